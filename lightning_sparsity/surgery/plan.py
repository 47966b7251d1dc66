"""What will be cut: a plan is data, made by a `ChannelFlow`, carried out by `slim`, written to disk by `save`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightning_sparsity.surgery.constants import Constants
from lightning_sparsity.surgery.solver import Solved, Solver
from lightning_sparsity.surgery.tape import Site

if TYPE_CHECKING:
    from lightning_sparsity.surgery.flow import ChannelFlow


@dataclass(eq=False)
class Cut:
    """How one layer changes."""

    rows: Tensor
    """The output channels that it still computes."""
    columns: Tensor
    """The input channels that it still reads."""
    select: Tensor | None
    """Where those are among the channels that arrive; None if all arrive."""
    scatter: Tensor | None
    """Where its outputs go among the channels that leave; None if it computes them all."""
    width: int
    """How many channels leave."""
    ones: bool
    """Whether a channel of ones is appended to its input."""
    bias: bool = False
    """Whether it needs a bias that it did not have."""

    def same_channels(self, other: "Cut") -> bool:
        """Whether two cuts leave the same channels."""
        return (
            self.ones == other.ones
            and torch.equal(self.rows, other.rows)
            and torch.equal(self.columns, other.columns)
        )


@dataclass(eq=False)
class Plan:
    """Which channels stay in every layer of one model.

    Attributes:
        kept: For each BatchNorm layer by name, the channels that still exist.
        proof: Largest difference between the masked and the slim model's outputs on the example inputs, relative to
            the largest output, in float64. None until `slim` has measured it.
    """

    dead: dict[str, Tensor]
    gather: bool
    cuts: dict[str, Cut]
    kept: dict[str, Tensor]
    signature: dict[str, list[int]]
    proof: float | None = None
    flow: "ChannelFlow | None" = field(default=None, repr=False)

    def __str__(self) -> str:
        before = sum(mask.numel() for mask in self.dead.values())
        after = sum(index.numel() for index in self.kept.values())
        proof = "not proved yet" if self.proof is None else f"relative difference {self.proof:.1e}"
        return f"Plan: {after} of {before} BatchNorm channels stay; {proof}"


def make_plan(
    flow: "ChannelFlow", model: nn.Module, dead: Mapping[str, Tensor], *, gather: bool
) -> Plan:
    """The plan that removes everything that `dead` makes removable."""
    constants = Constants(model, flow.tape, dead)
    solved = Solver(flow.tape, flow.classes, constants, gather=gather).solve()
    cuts = {name: cut(site, solved[name]) for name, site in flow.tape.sites.items()}
    kept = {name: cuts[name].rows for name in flow.norms}
    masks = {
        name: dead[name].clone() if name in dead else torch.zeros(n, dtype=torch.bool)
        for name, n in flow.norms.items()
    }
    return Plan(masks, gather, cuts, kept, flow.signature, flow=flow)


def cut(site: Site, solved: Solved) -> Cut:
    """The same in numbers of channels."""
    arriving, leaving = solved.arriving.nonzero().flatten(), solved.leaving.nonzero().flatten()
    rows, columns = solved.computed.nonzero().flatten(), solved.kept.nonzero().flatten()
    return Cut(
        rows=rows,
        columns=columns,
        select=None if torch.equal(arriving, columns) else torch.searchsorted(arriving, columns),
        scatter=None if torch.equal(leaving, rows) else torch.searchsorted(leaving, rows),
        width=leaving.numel(),
        ones=bool(solved.carried.any()) and solved.carrier is None,
    )
