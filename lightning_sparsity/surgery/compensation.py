"""Choose what dead channels leave behind: the mean of what they carried."""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sparsity.surgery.arguments import check_batches
from lightning_sparsity.surgery.constants import Constants
from lightning_sparsity.surgery.downstream import Places, downstream, part_of, places
from lightning_sparsity.surgery.entrywise import Entrywise, NotEntrywiseError
from lightning_sparsity.surgery.labels import compact
from lightning_sparsity.surgery.plan import Plan
from lightning_sparsity.surgery.running import call, preserved, tensors_in
from lightning_sparsity.surgery.slim import check_model
from lightning_sparsity.surgery.tape import Call, Tape
from lightning_sparsity.waiting import Waiting

REACH = 8
"""How far from the old shift a new one is looked for, in units of the scale."""
EXACT = 1e-12


@torch.no_grad()
def compensate(model: nn.Module, plan: Plan, batches: Iterable[Any]) -> nn.Module:
    r"""A copy of the model whose dead channels leave their mean activation behind, once cut.

    A dead channel leaves the constant $a(\beta)$ that the activation $a$ makes of its shift
    $\beta$. Here the shift moves to where the layers that read the channel see what they see on
    average now, with the scale $\gamma$ still in force:

    $$ a(\beta') = \operatorname{mean} a(\gamma \hat x + \beta) $$

    over examples and positions in evaluation mode, and over the readers if there are several. A
    shift stays where the channel is read through a sum with others only, as the mean of what a
    BatchNorm makes is its shift already, and where no constant reaches the readers. To cut the
    copy, trace it and plan `plan.dead` anew.

    Args:
        model: The model that was traced, with scales that are not zero yet.
        plan: Made by `ChannelFlow.plan` or `ChannelFlow.plan_by`. It says which channels are dead.
        batches: Example inputs, each in a form that `trace` takes; at least one.

    Returns:
        The copy. It differs in shifts of dead channels only, and `model` is not touched.

    Raises:
        ValueError: If there are no batches, the model cannot run on one, or the plan belongs to
            another model or was loaded from disk.
    """
    check_model(model, plan)
    check_batches(batches)
    if plan.flow is None:
        raise ValueError("compensate needs a plan made by ChannelFlow.plan, got one from disk.")
    better = copy.deepcopy(model)
    modules: dict[str, Any] = dict(better.named_modules())
    behind = places(plan.flow.tape)
    norms = [
        _Norm(modules, plan.flow.tape, behind, name, dead)
        for name, dead in plan.dead.items()
        if bool(dead.any()) and modules[name].bias is not None
    ]
    with Waiting("Measuring what dead channels carry") as waiting:
        means = _means(better, [read for norm in norms for read in norm.columns], batches)
        for i, norm in enumerate(norms, start=1):
            waiting.far = f"layer {i} of {len(norms)}"
            norm.compensate(means)
    return better


class _Norm:
    """A BatchNorm with dead channels, and the layers that read one of them by itself."""

    def __init__(
        self,
        modules: Mapping[str, Any],
        tape: Tape,
        behind: Places,
        name: str,
        dead: Tensor,
    ) -> None:
        self.module, self.dead = modules[name], {name: dead}
        self.steps, self.readers = downstream(tape, behind, name, modules)
        self.part = part_of(modules, self.steps)
        channel_of = torch.full((tape.variables,), -1)
        channel_of[tape.sites[name].rows[dead.cpu()]] = dead.cpu().nonzero().flatten()
        for step in self.steps:
            if step.call is not None and step.call.site.name != name:  # a PReLU renames channels
                channel_of[step.call.site.rows] = channel_of[step.call.site.columns]
        self.columns: dict[Call, tuple[Tensor, Tensor]] = {}
        """For each reader its columns that carry a dead channel, and which one each carries."""
        for reader, constant in self._constants().items():
            labels = compact(reader.source.labels, reader.source.labels).flatten()
            channels = channel_of[labels]
            own = (channels >= 0) & ~constant.isnan()
            if bool(own.any()):
                self.columns[reader] = own.nonzero().flatten(), channels[own]

    def compensate(self, means: Mapping[Call, Tensor]) -> None:
        """Move the shifts, given what each reader sees on average."""
        self.columns = {read: columns for read, columns in self.columns.items() if read in means}
        dtype, shift = self.module.bias.dtype, self.module.bias.detach().double().cpu()
        target = self._averaged(means)
        scale = self.module.weight.detach().double().cpu().abs()
        seen = self._seen_at_once() or self._seen_one_by_one
        found = _closest(lambda trials: seen(trials) - target, shift, target, scale)
        self._set_shift(found.to(dtype))

    def _seen_at_once(self) -> Callable[[Tensor], Tensor] | None:
        """What the readers see of many shifts, if every step works entry by entry."""
        own = [step for step in self.steps if step.call is not None]
        behind = [step for step in self.steps if step.call is None]
        if any(step.call.site.name not in self.dead for step in own if step.call is not None):
            return None
        try:
            steps = Entrywise(
                behind,
                [value for step in own for value in step.results],
                [reader.source for reader in self.columns],
            )
        except NotEntrywiseError:
            return None
        reads = torch.zeros(len(self.columns), self.module.weight.numel(), dtype=torch.bool)
        for row, (_, channels) in zip(reads, self.columns.values(), strict=True):
            row[channels] = True

        def seen(trials: Tensor) -> Tensor:
            total, found = torch.zeros_like(trials), steps(trials)
            for row, c in zip(reads, found, strict=True):
                total += c.where(row, 0.0)
            return total / reads.sum(0)

        return seen

    def _seen_one_by_one(self, trials: Tensor) -> Tensor:
        """The same for any steps: the tape run again for each row of shifts."""
        seen = []
        for trial in trials:
            self._set_shift(trial)
            seen.append(self._averaged(self._constants()))
        return torch.stack(seen)

    def _constants(self) -> dict[Call, Tensor]:
        """The constants that the readers see; NaN where other channels mix in."""
        known = Constants(self.part, Tape(self.steps), self.dead).known
        return {reader: known[reader.source].flatten() for reader in self.readers}

    def _averaged(self, seen: Mapping[Call, Tensor]) -> Tensor:
        """The mean of what is seen of each channel: over columns, then over readers."""
        n: int = self.module.weight.numel()
        total, readers = torch.zeros(2, n, dtype=torch.float64).unbind()
        for reader, (columns, channels) in self.columns.items():
            count = channels.bincount(minlength=n)
            total += channels.bincount(seen[reader][columns], n) / count.clamp(min=1)
            readers += count > 0
        return total / readers

    def _set_shift(self, shift: Tensor) -> None:
        old = self.module.bias
        new = shift.to(old.device)
        parameter = isinstance(old, nn.Parameter)
        self.module.bias = nn.Parameter(new, requires_grad=old.requires_grad) if parameter else new


def _means(model: nn.Module, reads: list[Call], batches: Iterable[Any]) -> dict[Call, Tensor]:
    """What layers read on average, call by call, in evaluation mode."""
    modules = dict(model.named_modules())
    sites = {read.site.name: read.site for read in reads}
    seen: dict[str, list[Tensor]] = {name: [] for name in sites}
    totals: dict[Call, Tensor] = {}
    hooks = [
        modules[name].register_forward_pre_hook(_look(site.layer.dim, seen[name]), with_kwargs=True)
        for name, site in sites.items()
    ]
    runs = 0
    with preserved(model):
        model.eval()
        for batch in batches:
            _run(model, batch)
            runs += 1
            for name, site in sites.items():
                calls = [call for call in site.calls if not call.training]
                if len(calls) == len(seen[name]):  # else the model went another way than traced
                    for read, sums in zip(calls, seen[name], strict=True):
                        totals[read] = sums + totals.get(read, torch.zeros(()))
                seen[name].clear()
    if not runs:
        raise ValueError("compensate needs at least one batch of example inputs, got none.")
    for hook in hooks:
        hook.remove()
    return {read: sums / count for read, (sums, count) in totals.items()}


def _look(dim: int, seen: list[Tensor]) -> Callable[..., None]:
    """A hook that writes down the sum of each channel that comes in, and of how many entries."""

    def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = next(tensors_in((args, kwargs))).movedim(dim, -1)
        sums = x.reshape(-1, x.size(-1)).sum(0, dtype=torch.float64).cpu()
        seen.append(torch.stack([sums, torch.full_like(sums, x.numel() // x.size(-1))]))

    return look


def _run(model: nn.Module, batch: Any) -> None:  # noqa: ANN401
    try:
        call(model, batch)
    except Exception as error:
        raise ValueError(
            "compensate needs batches in a form that trace takes (a tensor, a tuple of all "
            f"arguments or a dict), but the model raised {type(error).__name__}: {error}"
        ) from error


def _closest(
    error: Callable[[Tensor], Tensor], shift: Tensor, target: Tensor, scale: Tensor
) -> Tensor:
    """For each channel the shift with the smallest error; the old one where nothing is better.

    Without an activation, or with a ReLU, the target is the shift. Others are searched for a change
    of sign, nearest to the old shift first, and bisected there.

    Args:
        error: For shifts in rows, how far what they make is from the target; NaN: no constant.
        shift: The old shifts.
        target: What the readers should see; NaN where nobody reads the channel by itself.
        scale: How far around the old shifts to look, in eighths.
    """
    trials = torch.stack([shift, target])
    errors = error(trials)
    unsolved = errors.isfinite().any(0) & (_size(errors).amin(0) > EXACT)
    if bool(unsolved.any()):
        grid = shift + scale * torch.linspace(-REACH, REACH, 8 * REACH + 1).double().unsqueeze(1)
        around = error(grid)
        crosses = around[:-1] * around[1:] <= 0
        distance = (grid[:-1] + grid[1:] - 2 * shift).abs().where(crosses, torch.inf)
        at = distance.argmin(0, keepdim=True)
        low, high = grid.gather(0, at)[0], grid.gather(0, at + 1)[0]
        side = around.gather(0, at)[0].sign()
        for _ in range(48):
            middle = (low + high) / 2
            same = error(middle.unsqueeze(0))[0].sign() == side
            low, high = middle.where(same, low), high.where(same, middle)
        low = low.unsqueeze(0)
        trials, errors = torch.cat([trials, grid, low]), torch.cat([errors, around, error(low)])
    return trials.gather(0, _size(errors).argmin(0, keepdim=True))[0]


def _size(errors: Tensor) -> Tensor:
    return errors.abs().nan_to_num(torch.inf)
