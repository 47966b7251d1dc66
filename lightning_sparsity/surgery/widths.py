"""How many channels every layer has after a cut: all that its cost depends on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lightning_sparsity.surgery.layout import Bools, Ints, blocks
from lightning_sparsity.surgery.solver import Solver
from lightning_sparsity.surgery.tape import Tape

if TYPE_CHECKING:
    from lightning_sparsity.surgery.plan import Cut


@dataclass(eq=False)
class Widths:
    """Numbers of channels, one for each layer in the order of the tape."""

    rows: Ints
    columns: Ints
    """With the channel of ones, if there is one."""
    groups: Ints
    new_bias: Bools
    """Whether the layer needs a bias that it did not have."""

    @classmethod
    def of_tape(cls, tape: Tape) -> "Widths":
        """Before any cut."""
        layers = [site.layer for site in tape.sites.values()]
        rows, columns, groups = (
            np.array(numbers, dtype=np.int64)
            for numbers in (
                [layer.widths[0] for layer in layers],
                [layer.widths[1] for layer in layers],
                [layer.groups for layer in layers],
            )
        )
        return cls(rows, columns, groups, np.zeros(len(layers), dtype=np.bool_))

    @classmethod
    def of_cuts(cls, cuts: "Mapping[str, Cut]") -> "Widths":
        """After the cuts of a plan."""
        made = list(cuts.values())
        rows, columns, groups = (
            np.array(numbers, dtype=np.int64)
            for numbers in (
                [cut.rows.numel() for cut in made],
                [cut.columns.numel() + cut.ones for cut in made],
                [cut.groups for cut in made],
            )
        )
        return cls(rows, columns, groups, np.array([cut.bias for cut in made], dtype=np.bool_))

    @classmethod
    def of_solver(cls, solver: Solver, lacks_bias: Bools) -> "Widths":
        """After what a solver found.

        Args:
            solver: The solver, after its run.
            lacks_bias: The layers that have no place yet for a constant that they add.
        """
        facts, wiring = solver.facts, solver.wiring
        rows, columns = facts.rows.count(solver.computed), facts.columns.count(solver.kept)
        groups = np.ones(len(rows), dtype=np.int64)
        for i, carrier in solver.carriers.items():
            columns[i] += carrier is None
        for part in wiring.grouped:
            stays = blocks(solver.computed[part.rows], part.site.layer.groups).any(1)
            groups[facts.number[part.site.name]] = stays.sum()
        return cls(rows, columns, groups, lacks_bias & solver.adds_constants())
