"""Follow the channels of any CNN through one real run of it."""

from collections.abc import Mapping
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sparsity.surgery.budget import Budget, Trials, budget_of
from lightning_sparsity.surgery.labels import components
from lightning_sparsity.surgery.plan import Plan, make_plan
from lightning_sparsity.surgery.ranking import Ranking
from lightning_sparsity.surgery.rounding import Groundwork, Rounding, check_round_to
from lightning_sparsity.surgery.tape import Frozen, Tape, followers_of
from lightning_sparsity.surgery.tracer import looks_like_frozen_norm
from lightning_sparsity.surgery.widths import Widths
from lightning_sparsity.waiting import Waiting


class ChannelFlow:
    """Where each channel of a model is made and read: what `trace` returns. Print it to see more.

    Attributes:
        norms: The BatchNorm layers that the run went through, with their numbers of channels.
        frozen: What cannot be cut, by module, function and reason.
        notes: What else there is to know about the run.
    """

    def __init__(self, model: nn.Module, tape: Tape, example_inputs: Any, notes: list[str]) -> None:  # noqa: ANN401
        self.model = model
        self.tape = tape
        self.example_inputs = example_inputs
        self.notes = notes
        tape.hold_borrowed()
        self.settle()
        self.followers = followers_of(tape)
        self.signature = signature_of(model)
        modules = dict(model.named_modules())
        self.norms = {
            name: site.rows.numel() for name, site in tape.sites.items() if is_norm(modules[name])
        }

    def settle(self) -> None:
        """Derive the classes of tied channels from the tape, again after it has held more."""
        self.classes = components(self.tape.variables, self.tape.ties)
        self.frozen: list[Frozen] = self.tape.report(self.classes)

    def plan(self, dead: Mapping[str, Tensor], *, gather: bool = True, round_to: int = 1) -> Plan:
        """What can be removed when some BatchNorm scales count as zero.

        Args:
            dead: For each BatchNorm layer by name a boolean mask over its channels, True where the
                scale counts as zero. Layers that are not named keep all their channels. Zero rows
                and columns of convolutions and linear layers count as well.
            gather: Whether layers may pick their inputs and fill in constants. It removes every
                dead channel of residual, dense and pre-activation networks, at the price of copying
                activations. Without it, channels that a sum or concatenation ties together go only
                when all of them are dead.
            round_to: Widths go up to the next multiple of this number, at most to what they were,
                because kernels like multiples of 8 or 16. The dead channels with the largest scales
                come back for that, and are dead no more.

        Raises:
            ValueError: If a name or a mask does not fit the model, a scale is NaN, or `round_to` is
                no whole number >= 1.
        """
        self._check(dead)
        _check_gather(gather)
        check_round_to(round_to)
        plan = make_plan(self, self.model, dead, gather=gather, round_to=round_to)
        plan.remake = partial(self.plan, dead, gather=gather, round_to=round_to)
        return plan

    def plan_by(
        self,
        amount: float | Budget,
        *,
        gather: bool = True,
        keep_at_least: int = 1,
        round_to: int | None = None,
    ) -> Plan:
        """Rank all BatchNorm scales of the network by magnitude, and remove the smallest.

        Args:
            amount: The share of all BatchNorm channels to drop, in (0, 1): the papers' percentile
                of raw magnitudes over the whole network. Frozen BatchNorm layers stay whole if
                others train. Or `Flops(keep)`, `Params(keep)`: drop until at most that share of the
                cost is left. Or `Threshold(at)`. Of equal scales just enough are removed, evenly
                over the layers (`Plan.notes` says so where that decides most); exact zeros always.
            gather: As in `plan`.
            keep_at_least: How many of its largest scales every layer keeps. With 0 a layer may die,
                and a network without detours then answers the same to everything.
            round_to: As in `plan`; a budget counts what then stays. None: the amount's own.

        Raises:
            ValueError: If an argument is out of range, the amount cannot be met, a scale is NaN,
                there is no BatchNorm, or nothing can be cut.
        """
        budget = budget_of(amount)
        _check_gather(gather)
        multiple = budget.round_to if round_to is None else check_round_to(round_to)
        self._check({})
        ranking = Ranking(self.scales(), keep_at_least)
        ground = Groundwork(self, self.model, gather=gather)
        tries = count(1)

        def widths(number: int) -> Widths:
            waiting.far = f"try {next(tries)}"
            return Rounding(ground, ranking.dead(number), round_to=multiple).widths()

        with Waiting(f"Looking for {budget}") as waiting:
            number = budget.count(Trials(self.model, self.tape, ranking.magnitudes, widths))
        dead = ranking.dead(number)
        plan = make_plan(self, self.model, dead, gather=gather, round_to=multiple, ground=ground)
        if any(bool(mask.any()) for mask in dead.values()) and not plan.removes_anything():
            self._refuse(multiple)
        plan.remake = partial(
            self.plan_by, amount, gather=gather, keep_at_least=keep_at_least, round_to=round_to
        )
        plan.notes += ranking.notes(number)
        return plan

    def scales(self) -> dict[str, Tensor]:
        """What `plan_by` ranks, by BatchNorm layer: the scales that train, or all if none does.

        Raises:
            ValueError: If there are none.
        """
        modules: dict[str, Any] = dict(self.model.named_modules())
        weights = {name: modules[name].weight for name in self.norms}
        weights = {name: x for name, x in weights.items() if isinstance(x, nn.Parameter)}
        trained = {name: x for name, x in weights.items() if x.requires_grad} or weights
        if not trained:
            raise ValueError(
                f"plan_by needs BatchNorm layers with scales, {type(self.model).__name__} has none "
                "in its run. Name dead channels yourself with plan(dead)."
            )
        return {name: x.detach().float().cpu() for name, x in trained.items()}

    def _refuse(self, round_to: int) -> None:
        if round_to > 1:
            raise ValueError(
                f"plan_by keeps every width when it rounds up to multiples of {round_to}: take a "
                "smaller round_to, or cut more."
            )
        raise ValueError(f"plan_by found nothing that can be cut.\n{self}")

    def _check(self, dead: Mapping[str, Tensor]) -> None:
        if signature_of(self.model) != self.signature:
            raise ValueError(
                "The model is no longer what was traced: its weights have other shapes. Trace it "
                "again."
            )
        if not isinstance(dead, Mapping):
            raise ValueError(
                "dead needs a dict of boolean masks by name of BatchNorm layer, got a "
                f"{type(dead).__name__}."
            )
        for name, mask in dead.items():
            if name not in self.norms:
                known = ", ".join(list(self.norms)[:5]) or "none"
                raise ValueError(
                    f"dead needs names of BatchNorm layers that the trace went through, got "
                    f"{name!r}. Known: {known} …."
                )
            if not isinstance(mask, Tensor):
                raise ValueError(
                    f"dead[{name!r}] needs a boolean mask of {self.norms[name]} channels, got a "
                    f"{type(mask).__name__}: write torch.tensor([...], dtype=torch.bool)."
                )
            if mask.dtype != torch.bool or mask.shape != (self.norms[name],):
                raise ValueError(
                    f"dead[{name!r}] needs a boolean mask of {self.norms[name]} channels, got "
                    f"{mask.dtype} of shape {tuple(mask.shape)}."
                )

    def __str__(self) -> str:
        channels = sum(self.norms.values())
        lines = [
            f"ChannelFlow: {len(self.tape.sites)} layers, {len(self.norms)} of them BatchNorm with "
            f"{channels} channels"
        ]
        lines += [f"  note: {note}" for note in self.notes]
        lines += [f"  frozen: {item}" for item in self.frozen]
        return "\n".join(lines)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a batch norm with scales of its own."""
    norm = isinstance(module, nn.modules.batchnorm._BatchNorm) or looks_like_frozen_norm(module)
    return norm and module.weight is not None


def _check_gather(gather: object) -> None:
    if not isinstance(gather, bool):
        raise ValueError(f"gather needs True or False, got {gather!r}.")


def signature_of(model: nn.Module) -> dict[str, list[int]]:
    """The shapes by which a plan knows its model again."""
    return {name: list(x.shape) for name, x in model.state_dict().items() if isinstance(x, Tensor)}
