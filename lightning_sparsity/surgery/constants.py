"""Which channels are constant, and at what: the tape run again on constants.

A channel that depends on nothing but weights has one value everywhere. NaN stands for everything
else. Numbers are float64, so that folding them away loses nothing.
"""

from collections.abc import Mapping
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_sparsity.surgery import ops
from lightning_sparsity.surgery.attached import picked, placed
from lightning_sparsity.surgery.facts import Facts, blocks_of
from lightning_sparsity.surgery.labels import varying
from lightning_sparsity.surgery.layout import Bools, Floats, Side, array, tensor
from lightning_sparsity.surgery.moves import pad_channels
from lightning_sparsity.surgery.recorder import argument
from lightning_sparsity.surgery.tape import Call, Site, Step, Tape, Unknown, Value, Weight, swapped

NAN = float("nan")


class Constants:
    """The constants of a model whose BatchNorm scales in `dead` count as zero.

    Args:
        model: The model, with the weights of now.
        tape: What its run left behind.
        dead: For each BatchNorm layer by name the scales that count as zero.
        facts: What is known of the model and the tape already.

    Attributes:
        of_columns: The constant that each input channel of a layer carries, in all calls that
            count, in one vector over all layers.
        of_rows: The constant that each output channel makes.
        of_leaving: The same where its module ends, which may contain an activation.
    """

    def __init__(
        self,
        model: nn.Module,
        tape: Tape,
        dead: Mapping[str, Tensor],
        facts: Facts | None = None,
    ) -> None:
        self.facts = Facts(model, tape) if facts is None else facts
        self.tape = tape
        self.dead = {name: mask.cpu().numpy() for name, mask in dead.items()}
        self._known: dict[Value, Floats] = {}  # what is not in here is NaN all over
        self._bordered: dict[Value, Floats] = {}
        """Constants with a rim of zeros around them: of use to the layer that reads them alone."""
        read: dict[Call, Floats | None] = {}
        made: dict[Call, Floats | None] = {}
        for step in tape.steps:
            if step.call is not None:
                read[step.call], made[step.call] = self._layer(step.call.site, step.call)
            elif step.kind in ("select", "scatter"):
                self._pick_or_place(step)
            elif any(value in self._known for value in step.inputs):
                self._run(step)
        facts = self.facts
        calls = [site.seen() for site in facts.sites]
        self.of_columns = _agreed(facts.columns, [[read[call] for call in own] for own in calls])
        self.of_rows = _agreed(facts.rows, [[made[call] for call in own] for own in calls])
        self.of_leaving = _agreed(
            facts.rows, [[self._leaves(made[call], call) for call in own] for own in calls]
        )

    @cached_property
    def columns(self) -> dict[str, Tensor]:
        """`of_columns` by layer."""
        return self._by_layer(self.facts.columns, self.of_columns)

    @cached_property
    def rows(self) -> dict[str, Tensor]:
        """`of_rows` by layer."""
        return self._by_layer(self.facts.rows, self.of_rows)

    @cached_property
    def leaving(self) -> dict[str, Tensor]:
        """`of_leaving` by layer."""
        return self._by_layer(self.facts.rows, self.of_leaving)

    @property
    def known(self) -> dict[Value, Tensor]:
        """The constants of all values, with size 1 along dimensions where channels are the same."""
        values = [value for step in self.tape.steps for value in (*step.inputs, *step.results)]
        return {value: tensor(self._of(value)) for value in values}

    def contribution(self, site: Site, folded: Tensor) -> Tensor:
        """What the constants in the columns `folded` add to each row."""
        return tensor(self._contribution(site, np.where(folded, self.columns[site.name], 0.0)))

    def bias(self, site: Site) -> Tensor:
        """The bias of each row, zero where there is none."""
        return tensor(self.facts.bias(site))

    def _by_layer(self, side: Side, flat: Floats) -> dict[str, Tensor]:
        pairs = zip(self.facts.number, side.slices, strict=True)
        return {name: tensor(flat[own]) for name, own in pairs}

    def _of(self, value: Value) -> Floats:
        c = self._known.get(value)
        return np.full(self.facts.shape(value), NAN) if c is None else c

    def _set(self, value: Value, c: Floats | None) -> None:
        if c is not None and not np.isnan(c).all():
            self._known[value] = c.reshape(self.facts.shape(value))

    def _leaves(self, made: Floats | None, call: Call) -> Floats | None:
        """What becomes of the constants of a layer until its module ends."""
        if made is None or call.leaving is call.result:
            return made
        c = self._of(call.leaving).ravel()
        return np.where(np.isnan(made), made, c if c.size == made.size else NAN)

    def _run(self, step: Step) -> None:
        for value, c in zip(step.results, self._evaluate(step), strict=True):
            if c is not None and c.size == prod(self.facts.shape(value)):
                self._set(value, np.where(np.isfinite(c), c, NAN))

    def _evaluate(self, step: Step) -> list[Floats | None]:
        if step.kind == "move":
            return self._moved(step)
        if step.kind in ("map", "product"):
            return [self._mapped(step)]
        c = self._of(step.inputs[0])
        if step.kind == "keep":
            kept = np.where(c == 0, c, NAN) if _averages_padding(step) else c
            return [kept for _ in step.results]
        if step.kind == "pad":
            return [self._padded(step, c)]
        if step.kind == "reduce":
            return [np.where(c == 0, c, NAN) if step.function.name == "sum" else c]
        return [None] * len(step.results)

    def _moved(self, step: Step) -> list[Floats | None]:
        movement = self.facts.movement(step)
        if movement is None:
            return [None] * len(step.results)
        sources, places = movement
        entries = np.full(sources[-1][1].stop + 1, NAN)  # the last one is what place -1 takes
        for value, own in sources:
            if value in self._known:
                entries[own] = self._known[value].ravel()
        return [entries[place] for place in places]

    def _mapped(self, step: Step) -> Floats:
        """The function of the constants; zero times anything is zero."""

        def swap(x: Any) -> Any:  # noqa: ANN401
            if isinstance(x, Unknown):
                return torch.tensor(NAN, dtype=torch.float64)
            if isinstance(x, Weight):
                return self.facts.weights[x.name].detach().double().cpu()
            return tensor(self._of(x).copy()) if isinstance(x, Value) else x

        name, func = step.function.name, step.function.func
        args, kwargs = swapped(step.function.args, swap), swapped(step.function.kwargs, swap)
        func = getattr(torch, name) if name in ops.SUMS | ops.PRODUCTS else func
        made: Tensor = func(*args, **kwargs).double()
        if name == "mul" and len(step.inputs) == 2:
            made = torch.where((args[0] == 0) | (args[1] == 0), 0.0, made)
        return made.numpy()

    def _padded(self, step: Step, c: Floats) -> Floats:
        args, kwargs = step.function.args, step.function.kwargs
        if argument(args, kwargs, 2, "mode", "constant") != "constant":
            return c
        filled = argument(args, kwargs, 3, "value", None) or 0.0
        before, pad = step.inputs[0].labels, argument(args, kwargs, 1, "pad")
        along = varying(before)
        moved = any(n and before.dim() - 1 - i // 2 not in along for i, n in enumerate(pad))
        if moved:
            if not filled:
                self._bordered[step.results[0]] = c
            c = np.where(c == filled, c, NAN)
        padded: Floats = pad_channels(tensor(c), before, pad, filled).numpy()
        return padded

    def _pick_or_place(self, step: Step) -> None:
        """What an earlier cut picks and fills in: constants of its own among those that come in."""
        value, made = step.inputs[0], step.results[0]
        change = picked if step.kind == "select" else placed
        dim, index, added = step.function.args
        sizes = enumerate(self.facts.shape(value))
        shape = tuple(value.labels.size(d) if d == dim else n for d, n in sizes)
        for known in (self._known, self._bordered):
            if known is self._known or value in known:
                c = np.broadcast_to(known.get(value, np.full(1, NAN)), shape)
                c = change(c, dim, index, added)
                if c.size == prod(self.facts.shape(made)) and not np.isnan(c).all():
                    known[made] = c.reshape(self.facts.shape(made))

    def _layer(self, site: Site, call: Call) -> tuple[Floats | None, Floats | None]:
        """The constants that a layer reads in one call, and those that it makes."""
        source = self._known.get(call.source)
        if call.border and call.border == site.layer.border:
            source = self._bordered.get(call.source, source)
        fits = source is not None and source.size == site.columns.numel() and site.can_select
        c = source.ravel() if source is not None and fits else None
        made = (
            self._dense(site, call, c)
            if site.layer.kind != "channel"
            else self._channels(site, call, c)
        )
        self._set(call.result, made)
        return c, made

    def _dense(self, site: Site, call: Call, c: Floats | None) -> Floats | None:
        """Rows are constant if their weights are zero, or if all that they read is constant.

        Zero padding puts a rim of zeros around a constant, so what comes out is no constant, unless
        what goes in is zero too.
        """
        zeros, made = self.facts.zeros(site), None
        if zeros is not None:
            made = np.where(zeros[0], self.facts.bias(site), NAN)
        if c is None:
            return made
        fine = (~np.isnan(c) if call.folds else c == 0).reshape(site.layer.groups, -1).all(1)
        if not fine.any():
            return made
        bias = self.facts.bias(site)
        constant = fine.repeat(bias.size // site.layer.groups)
        return np.where(constant, bias + self._contribution(site, c), NAN if made is None else made)

    def _contribution(self, site: Site, c: Floats) -> Floats:
        """The sum over the taps of each row times the constants; NaN counts as zero."""
        c = np.nan_to_num(c).reshape(site.layer.groups, -1)
        chosen = torch.from_numpy((c != 0).any(0).nonzero()[0])
        weight: Tensor = self.facts.modules[site.name].weight.detach()
        blocks = blocks_of(weight, site.layer.groups, site.layer.weight_dims)
        taps = blocks[:, :, chosen.to(blocks.device)].double().flatten(3).sum(3).cpu()
        return (taps @ tensor(c)[:, chosen].unsqueeze(2)).flatten().numpy()

    def _channels(self, site: Site, call: Call, c: Floats | None) -> Floats | None:
        """What a layer that works on each channel alone makes of constants."""
        module, unknown = self.facts.modules[site.name], c is None
        c = np.full(site.rows.numel(), NAN) if c is None else c
        if isinstance(module, nn.PReLU):
            return None if unknown else np.where(c < 0, c * array(module.weight), c)
        if isinstance(module, nn.modules.conv._ConvNd):
            taps, unread = self.facts.depthwise(site)
            fine = ~np.isnan(c) if call.folds else c == 0
            return np.where(unread, 0.0, np.where(fine, taps * c, NAN)) + self.facts.bias(site)
        shift, scale, silent = self.facts.norm(site)
        dead: Bools | None = self.dead.get(site.name)
        silent = silent if dead is None else silent | dead
        if unknown:
            return np.where(silent, shift, NAN) if silent.any() else None
        return np.where(silent, shift, shift + self._normalised(module, c) * scale)

    def _normalised(self, module: Any, c: Floats) -> Floats:  # noqa: ANN401
        mean, var = module.running_mean, module.running_var
        own_statistics = (
            isinstance(module, nn.modules.instancenorm._InstanceNorm)
            and not module.track_running_stats
        )
        if mean is None or var is None or own_statistics:
            return np.where(np.isnan(c), NAN, 0.0)  # minus its own mean, a constant is zero
        normalised: Floats = (c - array(mean)) / np.sqrt(array(var) + getattr(module, "eps", 1e-5))
        return normalised


def _agreed(side: Side, layers: list[list[Floats | None]]) -> Floats:
    """The constants on which all calls of a layer agree, for all layers in one vector."""
    flat = np.full(side.layer.size, NAN)
    for own, (first, *others) in zip(side.slices, layers, strict=True):
        if first is not None and all(other is not None for other in others):
            for other in others:
                first = np.where(first == other, first, NAN)
            flat[own] = first
    return flat


def _averages_padding(step: Step) -> bool:
    """Whether a pooling mixes zeros from outside into its averages."""
    if not step.function.name.startswith("avg_pool"):
        return False
    args, kwargs = step.function.args, step.function.kwargs
    padding = argument(args, kwargs, 3, "padding", 0)
    padded = any(padding) if isinstance(padding, (tuple, list)) else bool(padding)
    counts = bool(argument(args, kwargs, 5, "count_include_pad", True))
    override = argument(args, kwargs, 6, "divisor_override", None)
    return override is not None or (padded and counts)
