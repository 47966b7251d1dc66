"""Which channels are constant, and at what: the tape run again on constants.

A channel that depends on nothing but weights has one value everywhere. NaN stands for everything
else. Numbers are float64, so that folding them away loses nothing.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sparsity.surgery import ops
from lightning_sparsity.surgery.labels import compact, varying
from lightning_sparsity.surgery.moves import move, pad_channels
from lightning_sparsity.surgery.recorder import argument
from lightning_sparsity.surgery.tape import Call, Site, Step, Tape, Unknown, Value, Weight, swapped

NAN = float("nan")
Zeros = dict[str, tuple[Tensor | None, Tensor | None]]


class Constants:
    """The constants of a model whose BatchNorm scales in `dead` count as zero.

    Args:
        model: The model, with the weights of now.
        tape: What its run left behind.
        dead: For each BatchNorm layer by name the scales that count as zero.
        zeros: Which rows and columns of each weight are zero, as far as it is known; filled in.
    """

    def __init__(
        self,
        model: nn.Module,
        tape: Tape,
        dead: Mapping[str, Tensor],
        zeros: Zeros | None = None,
    ) -> None:
        self.modules: dict[str, Any] = dict(model.named_modules())
        self.weights = dict(model.named_parameters()) | dict(model.named_buffers())
        self.dead = dead
        self.known: dict[Value, Tensor] = {}
        self.zeros: Zeros = {} if zeros is None else zeros
        self.columns: dict[str, Tensor] = {}
        """Per layer the constant that each input channel carries, in all calls that count."""
        self.rows: dict[str, Tensor] = {}
        """Per layer the constant that each output channel makes."""
        self.leaving: dict[str, Tensor] = {}
        """The same where its module ends, which may contain an activation."""
        read: dict[Call, Tensor] = {}
        made: dict[Call, Tensor] = {}
        for step in tape.steps:
            if step.call is not None:
                read[step.call], made[step.call] = self._layer(step.call.site, step.call)
            else:
                self._run(step)
        for name, site in tape.sites.items():
            self.columns[name] = _agreed([read[call] for call in site.seen()])
            self.rows[name] = _agreed([made[call] for call in site.seen()])
            self.leaving[name] = _agreed([self._leaves(made[call], call) for call in site.seen()])

    def _leaves(self, made: Tensor, call: Call) -> Tensor:
        """What becomes of the constants of a layer until its module ends."""
        c = self._of(call.leaving).flatten()
        c = c if c.numel() == made.numel() else torch.full_like(made, NAN)
        return torch.where(made.isnan(), made, c)

    def folds(self, site: Site) -> Tensor:
        """The columns whose constant a bias can carry exactly."""
        c = self.columns[site.name]
        fine = ~c.isnan() if all(call.folds for call in site.seen()) else c == 0
        empty = self._zeros(site)[1]
        return fine if empty is None else fine | empty

    def _of(self, value: Value) -> Tensor:
        if value not in self.known:
            self.known[value] = torch.full_like(
                compact(value.labels, value.labels), NAN, dtype=torch.float64
            )
        return self.known[value]

    def _run(self, step: Step) -> None:
        made = self._evaluate(step)
        for value, c in zip(step.results, made, strict=True):
            shape = compact(value.labels, value.labels).shape
            if c is None or c.numel() != shape.numel():
                c = torch.full(shape, NAN, dtype=torch.float64)
            self.known[value] = torch.where(c.isfinite(), c, NAN).reshape(shape)

    def _evaluate(self, step: Step) -> list[Tensor | None]:
        unknown: list[Tensor | None] = [None] * len(step.results)
        if all(bool(self._of(value).isnan().all()) for value in step.inputs):
            return unknown
        if step.kind == "move":
            return self._moved(step)
        if step.kind == "keep":
            c = self._of(step.inputs[0])
            return [
                torch.where(c == 0, c, NAN) if _averages_padding(step) else c for _ in step.results
            ]
        if step.kind == "pad":
            return [self._padded(step)]
        if step.kind == "reduce":
            c = self._of(step.inputs[0])
            return [torch.where(c == 0, c, NAN) if step.function.name == "sum" else c]
        if step.kind in ("map", "product"):
            return [self._mapped(step)]
        return unknown

    def _moved(self, step: Step) -> list[Tensor | None]:
        def swap(x: Any) -> Any:  # noqa: ANN401
            if isinstance(x, Unknown):
                return torch.tensor(NAN, dtype=torch.float64).expand(x.shape)
            return self._of(x).expand(x.labels.shape) if isinstance(x, Value) else x

        shapes = [value.labels.shape for value in step.results]
        moved = move(
            step.function.name,
            step.function.func,
            swapped(step.function.args, swap),
            swapped(step.function.kwargs, swap),
            shapes,
        )
        if moved is None:
            return [None] * len(step.results)
        return [
            compact(c, value.labels)
            for c, value in zip(moved, step.results, strict=True)
            if value is not None
        ]

    def _mapped(self, step: Step) -> Tensor | None:
        """The function of the constants; zero times anything is zero."""

        def swap(x: Any) -> Any:  # noqa: ANN401
            if isinstance(x, Unknown):
                return torch.tensor(NAN, dtype=torch.float64)
            if isinstance(x, Weight):
                return self.weights[x.name].detach().double().cpu()
            return self._of(x).clone() if isinstance(x, Value) else x

        args, kwargs = swapped(step.function.args, swap), swapped(step.function.kwargs, swap)
        func = (
            getattr(torch, step.function.name)
            if step.function.name in ops.SUMS | ops.PRODUCTS
            else step.function.func
        )
        made: Tensor = func(*args, **kwargs).double()
        if step.function.name == "mul" and len(step.inputs) == 2:
            made = torch.where((args[0] == 0) | (args[1] == 0), 0.0, made)
        return made

    def _padded(self, step: Step) -> Tensor:
        c = self._of(step.inputs[0])
        if argument(step.function.args, step.function.kwargs, 2, "mode", "constant") != "constant":
            return c
        filled = argument(step.function.args, step.function.kwargs, 3, "value", None) or 0.0
        before = step.inputs[0].labels
        along = varying(before)
        pad = argument(step.function.args, step.function.kwargs, 1, "pad")
        moved = any(n and before.dim() - 1 - i // 2 not in along for i, n in enumerate(pad))
        c = torch.where(c == filled, c, NAN) if moved else c
        return pad_channels(c, before, pad, filled)

    def _layer(self, site: Site, call: Call) -> tuple[Tensor, Tensor]:
        c = self._of(call.source).flatten()
        if c.numel() != site.columns.numel() or not site.can_select:
            c = torch.full((site.columns.numel(),), NAN, dtype=torch.float64)
        made = (
            self._dense(site, call, c)
            if site.layer.kind != "channel"
            else self._channels(site, call, c)
        )
        self.known[call.result] = made.view(compact(call.result.labels, call.result.labels).shape)
        return c, made

    def _dense(self, site: Site, call: Call, c: Tensor) -> Tensor:
        bias = self.bias(site)
        made = torch.full_like(bias, NAN)
        empty = self._zeros(site)[0]
        if empty is not None:
            made = torch.where(empty, bias, made)
        fine = (~c.isnan() if call.folds else c == 0).view(site.layer.groups, -1).all(1)
        if not bool(fine.any()):
            return made
        constant = fine.repeat_interleave(bias.numel() // site.layer.groups)
        return torch.where(constant, bias + self._contribution(site, c), made)

    def contribution(self, site: Site, folded: Tensor) -> Tensor:
        """What the constants in the columns `folded` add to each row."""
        return self._contribution(site, self.columns[site.name] * folded)

    def _contribution(self, site: Site, c: Tensor) -> Tensor:
        """The sum over the taps of each row times the constants; NaN counts as zero."""
        c = c.nan_to_num().view(site.layer.groups, -1)
        chosen = (c != 0).any(0).nonzero().flatten()
        if not chosen.numel():
            return torch.zeros(site.rows.numel(), dtype=torch.float64)
        blocks = blocks_of(self._weight(site), site.layer.groups, site.layer.weight_dims)
        taps = blocks[:, :, chosen.to(blocks.device)].double().flatten(3).sum(3).cpu()
        return (taps @ c[:, chosen].unsqueeze(2)).flatten()

    def _channels(self, site: Site, call: Call, c: Tensor) -> Tensor:
        module = self.modules[site.name]
        if isinstance(module, nn.PReLU):
            return torch.where(c < 0, c * self._vector(module.weight, 1.0, c), c)
        if isinstance(module, nn.modules.conv._ConvNd):
            taps = module.weight.detach().double().cpu().flatten(1).sum(1)
            fine = ~c.isnan() if call.folds else c == 0
            unread = (module.weight.detach() == 0).flatten(1).all(1).cpu()
            return torch.where(unread, 0.0, torch.where(fine, taps * c, NAN)) + self.bias(site)
        shift = self._vector(module.bias, 0.0, c)
        made = shift + self._normalised(module, c) * self._vector(module.weight, 1.0, c)
        scale_is_zero = self._vector(module.weight, 1.0, c) == 0
        if site.name in self.dead:
            scale_is_zero = scale_is_zero | self.dead[site.name].cpu()
        return torch.where(scale_is_zero, shift, made)

    def _normalised(self, module: Any, c: Tensor) -> Tensor:  # noqa: ANN401
        mean, var = module.running_mean, module.running_var
        own_statistics = (
            isinstance(module, nn.modules.instancenorm._InstanceNorm)
            and not module.track_running_stats
        )
        if mean is None or var is None or own_statistics:
            return torch.where(c.isnan(), NAN, 0.0)  # minus its own mean, a constant is zero
        deviation = (var.double().cpu() + getattr(module, "eps", 1e-5)).sqrt()
        normalised: Tensor = (c - mean.double().cpu()) / deviation
        return normalised

    def _vector(self, x: Tensor | None, default: float, like: Tensor) -> Tensor:
        return torch.full_like(like, default) if x is None else x.detach().double().cpu()

    def bias(self, site: Site) -> Tensor:
        """The bias of each row, zero where there is none."""
        default = torch.zeros(site.rows.numel(), dtype=torch.float64)
        return self._vector(self.modules[site.name].bias, 0.0, default)

    def _weight(self, site: Site) -> Tensor:
        weight: Tensor = self.modules[site.name].weight
        return weight.detach()

    def _zeros(self, site: Site) -> tuple[Tensor | None, Tensor | None]:
        """Which rows and which columns of a dense layer's weight are zero (None: none are)."""
        if site.layer.kind == "channel":
            return None, None
        if site.name not in self.zeros:
            self.zeros[site.name] = (None, None)
            weight = self._weight(site)
            if int(weight.count_nonzero()) < weight.numel():
                used = blocks_of(weight, site.layer.groups, site.layer.weight_dims) != 0
                used = used.flatten(3).any(3)
                self.zeros[site.name] = (
                    ~used.any(2).flatten().cpu(),
                    ~used.any(1).flatten().cpu(),
                )
        return self.zeros[site.name]


def blocks_of(weight: Tensor, groups: int, weight_dims: tuple[int, int]) -> Tensor:
    """A weight as (group, row, column, taps …), rows and columns counted within the group."""
    blocks = weight.reshape(groups, -1, *weight.shape[1:])
    blocks = blocks if weight_dims == (0, 1) else blocks.transpose(1, 2)
    return blocks.unsqueeze(3) if blocks.dim() == 3 else blocks


def _agreed(calls: list[Tensor]) -> Tensor:
    """The constants on which all calls agree."""
    first = calls[0]
    for other in calls[1:]:
        first = torch.where(first == other, first, NAN)
    return first


def _averages_padding(step: Step) -> bool:
    """Whether a pooling mixes zeros from outside into its averages."""
    if not step.function.name.startswith("avg_pool"):
        return False
    padding = argument(step.function.args, step.function.kwargs, 3, "padding", 0)
    padded = any(padding) if isinstance(padding, (tuple, list)) else bool(padding)
    counts = bool(argument(step.function.args, step.function.kwargs, 5, "count_include_pad", True))
    override = argument(step.function.args, step.function.kwargs, 6, "divisor_override", None)
    return override is not None or (padded and counts)
