"""Which channels stay: dead-code elimination on classes of tied variables.

A class is absent, present (its channels exist, their value does not matter) or valued (somebody
needs the value).
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from torch import Tensor

from lightning_sparsity.surgery.constants import Constants
from lightning_sparsity.surgery.layout import Bools, Ints, blocks, evened, tensor
from lightning_sparsity.surgery.tape import Site, Tape
from lightning_sparsity.surgery.wiring import Part, Wiring

ABSENT, PRESENT, VALUED = 0, 1, 2


@dataclass(eq=False)
class Solved:
    """What stays of one layer, as masks over its dense rows and columns."""

    computed: Tensor
    """The rows that the layer still computes."""
    leaving: Tensor
    """The rows that exist after the layer (and its `Scatter`)."""
    kept: Tensor
    """The columns that the layer still reads."""
    arriving: Tensor
    """The columns that exist before the layer (and its `Select`)."""
    folded: Tensor
    """The columns whose constant moves into the bias."""
    carried: Tensor
    """The columns whose constant moves into one column: zero padding keeps it out of the bias."""
    carrier: int | None = None
    """The kept column that takes over the `carried` ones; None if a column of ones does."""

    def __post_init__(self) -> None:
        self.behind = self.leaving
        """What exists behind the layer: `leaving` with what an earlier cut filled in."""
        self.before = self.arriving
        """What exists in front of the layer: `arriving` with what an earlier cut did not pick."""


@dataclass(eq=False)
class Held:
    """What stays although it could go: masks over dense rows and columns, by name of layer."""

    rows: dict[str, Tensor] = field(default_factory=dict)
    """The rows that exist, and are computed even if they are constant."""
    columns: dict[str, Tensor] = field(default_factory=dict)
    """The columns that are read even if they are constant."""


class Solver:
    """Finds for every layer what can go, given what is constant.

    Nobody needs anything at first, but the outputs. Going backwards through the layers, a class
    rises to what its readers need, until nothing rises any more: what is left at zero can go.

    Args:
        tape: The run of the model.
        classes: The class of every variable.
        constants: What is constant.
        held: What stays anyway.
        gather: Whether layers may pick their inputs (`Select`) and fill in constants (`Scatter`).
        wiring: What is known of the tape, the classes and `gather` already.
    """

    def __init__(
        self,
        tape: Tape,
        classes: Tensor,
        constants: Constants,
        held: Held,
        *,
        gather: bool,
        wiring: Wiring | None = None,
    ) -> None:
        self.constants = constants
        self.facts = facts = constants.facts
        self.wiring = wiring or Wiring(facts, tape, classes, gather=gather)
        self.gather = gather
        self.state = np.zeros(tape.variables, dtype=np.int8)
        self.state[0] = VALUED
        c = constants.of_columns
        known, zero = ~np.isnan(c), c == 0
        held_rows = facts.rows.joined({facts.number[name]: x for name, x in held.rows.items()})
        held_columns = facts.columns.joined(
            {facts.number[name]: x for name, x in held.columns.items()}
        )
        # A bias carries what a layer adds everywhere. Zero padding takes it away at the border,
        # unless the constant is zero, or nobody multiplies it by anything but zero.
        self.foldable = facts.unread | np.where(facts.folds, known, zero)
        own = self.foldable | np.where(self.wiring.appends, known, zero)
        self.droppable = self.wiring.drops & own & ~held_columns
        """The columns that a layer can do without, given a column of ones or a constant one."""
        self.unknown_rows = np.isnan(constants.of_rows)
        self.computable = ~self.wiring.fills | np.isnan(constants.of_leaving) | held_rows
        """The rows that a layer computes if they exist; it fills in the others."""
        self._raise(self.wiring.row_class[held_rows], PRESENT)
        self._raise(self.wiring.column_class[held_columns], PRESENT)
        # Columns that are not known meet zero weights: any value will do.
        self._raise(self.wiring.column_class[held_columns & known], VALUED)

    def solve(self) -> dict[str, Solved]:
        """What stays of every layer."""
        self.run()
        return self.solved

    def run(self) -> None:
        """Find it, all layers in one vector: `solved` and `counts` show it."""
        backwards = self.wiring.parts[::-1]
        while True:
            self._settle(backwards)
            before = self.state.copy()
            for part in self._empty(backwards):
                self._keep_one(part)
            if np.array_equal(before, self.state):
                self._read_off()
                if not self._revive_carriers():
                    return

    def _settle(self, parts: list[Part]) -> None:
        """Raise classes until everybody has what it needs.

        Classes only rise, and what a dense layer needs depends on nothing but whether anything that
        it makes is needed: once is enough.
        """
        waiting, before = parts, None
        while before is None or not np.array_equal(before, self.state):
            before = self.state.copy()
            waiting = [part for part in waiting if not self._need_inputs(part)]

    def _need_inputs(self, part: Part) -> bool:
        """Raise what a layer reads; whether it will never need more."""
        level, columns = self.state[part.row_class], part.column_class
        computable = self.computable[part.rows]
        live = (level == VALUED) & computable & self.unknown_rows[part.rows]
        if part.site.layer.kind == "dense":
            if not live.any():
                return False
            self._raise(columns[~self.droppable[part.columns]], VALUED)
            return True
        if part.site.layer.kind == "channel":
            self._raise(columns[(level >= PRESENT) & computable], PRESENT)
            self._raise(columns[live], VALUED)
            return False
        groups = part.site.layer.groups
        computed, kept, _ = self._grouped(part)
        self._raise(part.row_class[computed], PRESENT)
        self._raise(columns[kept], PRESENT)
        wanted = blocks(live, groups).any(1, keepdims=True)
        wanted = wanted & blocks(~self.foldable[part.columns], groups)
        self._raise(columns[wanted.ravel()], VALUED)
        return False

    def _raise(self, classes: Ints, level: int) -> None:
        if classes.size:
            self.state[classes] = np.maximum(self.state[classes], level)

    def _empty(self, parts: list[Part]) -> list[Part]:
        """The layers that may have nothing to make or to read."""
        rows, columns = self.facts.rows, self.facts.columns
        leaving = self.state[self.wiring.row_class] >= PRESENT
        arriving = self.state[self.wiring.column_class] >= PRESENT
        full = (rows.count(leaving) > 0) & (columns.count(arriving) > 0)
        full &= ~self.wiring.is_channel | (rows.count(leaving & self.computable) > 0)
        return [part for part, fine in zip(parts, full[::-1], strict=True) if not fine]

    def _keep_one(self, part: Part) -> None:
        """No layer and no activation without channels."""
        rows, columns = part.row_class, part.column_class
        if not (self.state[rows] >= PRESENT).any():
            self._raise(rows[:1], PRESENT)
        if not (self.state[columns] >= PRESENT).any():
            self._raise(columns[:1], PRESENT)
        channel = part.site.layer.kind == "channel"
        if channel and not ((self.state[rows] >= PRESENT) & self.computable[part.rows]).any():
            self._raise(columns[self._first(part)].reshape(1), PRESENT)

    def _first(self, part: Part) -> int:
        """The row that keeps a layer from being empty: one that exists, if possible."""
        score = 1 * (self.state[part.row_class] >= PRESENT)
        if part.site.layer.kind == "channel":
            score = 2 * score + (self.state[part.column_class] >= PRESENT)
        return int(score.argmax())

    def _revive_carriers(self) -> bool:
        """Without gathering, a constant channel stays for each layer that needs a carrier."""
        if self.gather:
            return False
        without = [i for i, carrier in self.carriers.items() if carrier is None]
        for i in without:
            if self.carriers.get(i, 0) is None:  # one that stays for another layer may do here too
                own = self.wiring.parts[i].columns
                size = np.abs(self.constants.of_columns[own])
                best = np.where(self.carried[own], size, -1.0).argmax()
                self._raise(self.wiring.parts[i].column_class[best].reshape(1), VALUED)
                self._read_off()
        return bool(without)

    def _read_off(self) -> None:
        """What stays of all layers, from what their classes have risen to."""
        rows, columns, wiring = self.facts.rows, self.facts.columns, self.wiring
        level = self.state[wiring.row_class]
        self.leaving: Bools = level >= PRESENT
        self.arriving: Bools = self.state[wiring.column_class] >= PRESENT
        self.computed: Bools = self.leaving & self.computable
        live = self.computed & (level == VALUED) & self.unknown_rows
        self.alive: Bools = rows.count(live) > 0
        """Whether somebody needs what a layer makes."""
        needed = columns.spread(self.alive)
        droppable = np.where(needed, self.droppable, wiring.drops)
        self.kept: Bools = self.arriving & ~(wiring.picks & droppable)
        dropped = ~self.kept & needed & wiring.dense_columns
        self.folded: Bools = dropped & self.foldable
        self.carried: Bools = dropped & ~self.foldable
        carrying = (columns.count(self.carried) > 0).nonzero()[0].tolist()
        self.carriers: dict[int, int | None] = {i: self._carrier(i) for i in carrying}
        """By number the layers whose padding keeps constants out of the bias, and who has them."""
        self._fill_empty()
        self.kept[wiring.channel_columns] = self.computed[wiring.channel_rows]
        for part in wiring.grouped:
            computed, kept, folded = self._grouped(part)
            self.computed[part.rows], self.kept[part.columns] = computed, kept
            self.folded[part.columns] = folded

    def _carrier(self, i: int) -> int | None:
        """The column that can take over constants: one that stays and is constant itself."""
        part = self.wiring.parts[i]
        c = np.abs(self.constants.of_columns[part.columns])
        valued = self.state[part.column_class] == VALUED
        candidates = np.where(self.kept[part.columns] & valued & ~np.isnan(c), c, 0.0)
        return int(candidates.argmax()) if candidates.max() > 0 else None

    def _fill_empty(self) -> None:
        """Every layer computes a row, and reads a column unless one of ones is there."""
        rows, columns, parts = self.facts.rows, self.facts.columns, self.wiring.parts
        for i in (rows.count(self.computed) == 0).nonzero()[0]:
            self.computed[parts[i].rows.start + self._first(parts[i])] = True
        for i in (self.wiring.is_dense & (columns.count(self.kept) == 0)).nonzero()[0].tolist():
            if not (self.gather and i in self.carriers):
                own = parts[i].columns
                at = own.start + int(self.arriving[own].argmax())
                self.kept[at], self.folded[at] = True, False

    def _grouped(self, part: Part) -> tuple[Bools, Bools, Bools]:
        """The rows that a grouped layer computes, and the columns that it reads and that it folds.

        Groups go whole; in those that stay, rows and columns are as many as in the largest.
        """
        site, groups = part.site, part.site.layer.groups
        level = self.state[part.row_class]
        leaving, arriving = level >= PRESENT, self.state[part.column_class] >= PRESENT
        live = blocks((level == VALUED) & self.unknown_rows[part.rows], groups)
        free = self.gather and site.can_select and site.can_scatter
        foldable = self.foldable[part.columns]
        wanted = live.any(1, keepdims=True) & blocks(~foldable, groups)
        rows = blocks(leaving & self.computable[part.rows] if free else leaving, groups)
        columns = wanted if free else blocks(arriving, groups)
        stays = np.asarray((rows if free else np.hstack([rows, columns])).any(1))
        if not stays.any():
            stays[blocks(leaving, groups).sum(1).argmax()] = True
        computed = evened(rows, blocks(leaving, groups), stays)
        kept = evened(columns, blocks(arriving, groups), stays)
        needed = np.broadcast_to(live.any(1, keepdims=True), wanted.shape).ravel()
        return computed, kept, needed & foldable & ~kept

    def live(self, site: Site) -> Tensor:
        """The rows that the layer computes because somebody needs what they carry."""
        part = self.wiring.parts[self.facts.number[site.name]]
        valued = self.state[part.row_class] == VALUED
        return tensor(valued & self.computable[part.rows] & self.unknown_rows[part.rows])

    @cached_property
    def solved(self) -> dict[str, Solved]:
        """What stays of every layer, by name."""
        found = {}
        for i, part in enumerate(self.wiring.parts):
            rows = (self.computed, self.leaving)
            columns = (self.kept, self.arriving, self.folded, self.carried)
            computed, leaving = (tensor(mask[part.rows]) for mask in rows)
            kept, arriving, folded, carried = (tensor(mask[part.columns]) for mask in columns)
            masks = (computed, leaving, kept, arriving, folded, carried)
            made = found[part.site.name] = Solved(*masks, self.carriers.get(i))
            made.behind, made.before = (
                tensor(self.state[self.wiring.of_variable[variables.numpy()]] >= PRESENT)
                for variables in (part.site.leaving, part.site.arriving)
            )
        return found

    def adds_constants(self) -> Bools:
        """For each layer whether it has to add constants, in its bias or behind it."""
        c, made = self.constants.of_columns, self.constants.of_rows
        folded = self.folded & ~np.isnan(c) & (c != 0)
        constant = self.computed & ~self.unknown_rows & (made != 0)
        return (self.facts.columns.count(folded) > 0) | (self.facts.rows.count(constant) > 0)
