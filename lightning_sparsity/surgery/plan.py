"""What will be cut: made by a `ChannelFlow`, carried out by `slim`, written to disk by `save`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightning_sparsity.surgery.cuts import Cut, composed, cut
from lightning_sparsity.surgery.rounding import Groundwork, Rounding
from lightning_sparsity.surgery.solver import Held

if TYPE_CHECKING:
    from lightning_sparsity.surgery.flow import ChannelFlow

REMEMBERED = "_slim_plan"


@dataclass(eq=False)
class Plan:
    """Which channels stay in every layer of one model.

    Attributes:
        kept: For each BatchNorm layer by name, the channels that still exist.
        proof: Largest difference between what the masked and the slim model return, relative to
            each output's largest entry. None until `slim` has measured it.
        verified: On which inputs and in which precision that was measured, in words.
        notes: What else there is to know about the choice of channels.
    """

    dead: dict[str, Tensor]
    gather: bool
    cuts: dict[str, Cut]
    kept: dict[str, Tensor]
    signature: dict[str, list[int]]
    proof: float | None = None
    flow: "ChannelFlow | None" = field(default=None, repr=False)
    held: Held = field(default_factory=Held, repr=False)

    def __post_init__(self) -> None:
        self.notes: list[str] = []
        self.before: Plan | None = None
        """How the model had been cut before, if it was slim already."""
        self.rebuilt = False
        """Whether it was, and somebody has changed its layers since: no dense model is known."""
        self.verified = ""
        self.remake: Callable[[], Plan] | None = None
        """Makes the plan again, for what the flow has learned since."""

    def become(self, other: "Plan") -> None:
        """Take over another plan for the same model."""
        vars(self).update(vars(other))

    def from_dense(self) -> "Plan":
        """All cuts up to this one as one cut of the dense model, to be stored and loaded."""
        if self.before is None:
            return self
        first = self.before
        cuts = {
            name: composed(cut, self.cuts[name]) if name in self.cuts else cut
            for name, cut in first.cuts.items()
        }
        cuts |= {name: cut for name, cut in self.cuts.items() if name not in cuts}
        dead = dict(self.dead)
        for name, mask in first.dead.items():
            gone = torch.ones_like(mask).index_fill(0, first.cuts[name].rows, False)
            still = self.dead.get(name, torch.zeros(1, dtype=torch.bool))
            dead[name] = (mask | gone).index_put((first.cuts[name].rows,), still)
        kept = {name: cuts[name].rows for name in dead}
        whole = Plan(dead, self.gather, cuts, kept, first.signature, self.proof)
        whole.verified = self.verified
        return whole

    def removes_anything(self) -> bool:
        """Whether any layer loses a channel."""
        return any(cut.is_smaller() for cut in self.cuts.values())

    def __str__(self) -> str:
        before = sum(mask.numel() for mask in self.dead.values())
        after = sum(index.numel() for index in self.kept.values())
        proof = self.verified or "not verified yet"
        first = f"Plan: {after} of {before} BatchNorm channels are kept; {proof}"
        return "\n".join([first, *(f"  note: {note}" for note in self.notes)])


def make_plan(
    flow: "ChannelFlow",
    model: nn.Module,
    dead: Mapping[str, Tensor],
    *,
    gather: bool,
    round_to: int = 1,
    ground: Groundwork | None = None,
) -> Plan:
    """The plan that removes everything that `dead` makes removable, but for round widths."""
    ground = ground or Groundwork(flow, model, gather=gather)
    rounding = Rounding(ground, dead, round_to=round_to)
    solved = rounding.solved
    cuts = {name: cut(site, solved[name]) for name, site in flow.tape.sites.items()}
    for made, new_bias in zip(cuts.values(), rounding.widths().new_bias, strict=True):
        made.bias = bool(new_bias)
    kept = {name: cuts[name].rows for name in flow.norms}
    return Plan(rounding.dead, gather, cuts, kept, flow.signature, flow=flow, held=rounding.held)


def plan_of(model: nn.Module) -> Plan | None:
    """How a model was cut from the dense one, if surgery has made it and nobody has rebuilt it."""
    found, modules = vars(model).get(REMEMBERED), dict(model.named_modules())
    if not isinstance(found, Plan):
        return None
    fits = all(name in modules and cut.made(modules[name]) for name, cut in found.cuts.items())
    return found if fits else None


def remember(small: nn.Module, plan: Plan) -> None:
    """Let a slim model know how it was cut from the dense one."""
    whole = plan.from_dense()
    known = Plan(whole.dead, whole.gather, whole.cuts, whole.kept, whole.signature, whole.proof)
    known.verified = plan.verified
    setattr(small, REMEMBERED, known)
