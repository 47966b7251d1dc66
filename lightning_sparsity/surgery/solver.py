"""Which channels stay: dead-code elimination on classes of tied variables.

A class is absent, present (its channels exist, their value does not matter) or valued (somebody
needs the value).
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_sparsity.surgery.constants import Constants
from lightning_sparsity.surgery.labels import components
from lightning_sparsity.surgery.tape import Site, Tape

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


@dataclass(eq=False)
class Held:
    """What stays although it could go: masks over dense rows and columns, by name of layer."""

    rows: dict[str, Tensor] = field(default_factory=dict)
    """The rows that exist, and are computed even if they are constant."""
    columns: dict[str, Tensor] = field(default_factory=dict)
    """The columns that are read even if they are constant."""


class Solver:
    """Finds for every layer what can go, given what is constant.

    Args:
        tape: The run of the model.
        classes: The class of every variable.
        constants: What is constant.
        held: What stays anyway.
        gather: Whether layers may pick their inputs (`Select`) and fill in constants (`Scatter`).
    """

    def __init__(
        self, tape: Tape, classes: Tensor, constants: Constants, held: Held, *, gather: bool
    ) -> None:
        self.constants = constants
        self.held = held
        self.gather = gather
        self.sites = tape.sites
        if not gather:
            classes = without_gathering(tape, classes)
        self.row_class = {name: classes[site.rows] for name, site in tape.sites.items()}
        self.column_class = {name: classes[site.columns] for name, site in tape.sites.items()}
        self.state = torch.zeros(tape.variables, dtype=torch.int8)
        self.state[0] = VALUED
        self.foldable = {name: constants.folds(site) for name, site in tape.sites.items()}
        for name, rows in held.rows.items():
            self._raise(self.row_class[name][rows], PRESENT)
        for name, columns in held.columns.items():
            known = ~constants.columns[name].isnan()  # others meet zero weights: any value will do
            self._raise(self.column_class[name][columns], PRESENT)
            self._raise(self.column_class[name][columns & known], VALUED)

    def solve(self) -> dict[str, Solved]:
        """What stays of every layer."""
        backwards = list(self.sites.values())[::-1]
        while True:
            self._settle(backwards)
            before = self.state.clone()
            for site in backwards:
                self._keep_one(site)
            if torch.equal(before, self.state) and not self._revive_carriers():
                return {name: self._solved(site) for name, site in self.sites.items()}

    def _settle(self, sites: list[Site]) -> None:
        before = None
        while before is None or not torch.equal(before, self.state):
            before = self.state.clone()
            for site in sites:
                self._need_inputs(site)

    def _computed(self, site: Site) -> Tensor:
        leaving = self.state[self.row_class[site.name]] >= PRESENT
        if self.gather and site.can_scatter and (site.can_select or site.layer.kind == "dense"):
            made = self.constants.leaving[site.name].isnan()
            leaving = leaving & (made | self.held.rows.get(site.name, torch.zeros_like(made)))
        return leaving

    def live(self, site: Site) -> Tensor:
        """The rows that the layer computes because somebody needs what they carry."""
        valued = self.state[self.row_class[site.name]] == VALUED
        return self._computed(site) & valued & self.constants.rows[site.name].isnan()

    def _droppable(self, site: Site) -> Tensor:
        """The columns that the layer can do without, given a column of ones or a constant one."""
        c = self.constants.columns[site.name]
        if not site.can_select and self.gather:
            return torch.zeros_like(c, dtype=torch.bool)
        droppable = self.foldable[site.name] | (
            ~c.isnan() if site.can_append or not self.gather else c == 0
        )
        return droppable & ~self.held.columns.get(site.name, torch.zeros_like(droppable))

    def _need_inputs(self, site: Site) -> None:
        computed = self._computed(site)
        columns, rows = self.column_class[site.name], self.row_class[site.name]
        live = self.live(site)
        if site.layer.kind == "channel":
            self._raise(columns[computed], PRESENT)
            self._raise(columns[live], VALUED)
        elif site.layer.kind == "grouped":
            grouped = self._grouped(site)
            self._raise(rows[grouped.computed], PRESENT)
            self._raise(columns[grouped.kept], PRESENT)
            wanted = blocks(live, site.layer.groups).any(1, keepdim=True)
            wanted = wanted & blocks(~self.foldable[site.name], site.layer.groups)
            self._raise(columns[wanted.flatten()], VALUED)
        elif bool(live.any()):
            self._raise(columns[~self._droppable(site)], VALUED)

    def _raise(self, classes: Tensor, level: int) -> None:
        if classes.numel():
            self.state[classes] = self.state[classes].clamp(min=level)

    def _keep_one(self, site: Site) -> None:
        """No layer and no activation without channels."""
        rows, columns = self.row_class[site.name], self.column_class[site.name]
        if not bool((self.state[rows] >= PRESENT).any()):
            self._raise(rows[:1], PRESENT)
        if not bool((self.state[columns] >= PRESENT).any()):
            self._raise(columns[:1], PRESENT)
        if site.layer.kind == "channel" and not bool(self._computed(site).any()):
            self._raise(columns[self._first(site)], PRESENT)

    def _first(self, site: Site) -> Tensor:
        """The row that keeps a layer from being empty: one that exists, if possible."""
        leaving = (self.state[self.row_class[site.name]] >= PRESENT).to(torch.int8)
        arriving = (self.state[self.column_class[site.name]] >= PRESENT).to(torch.int8)
        return (
            (2 * leaving + arriving if site.layer.kind == "channel" else leaving).argmax().view(1)
        )

    def _revive_carriers(self) -> bool:
        """Without gathering, a constant channel stays for each layer that needs a carrier."""
        if self.gather:
            return False
        revived = False
        for site in self.sites.values():
            solved = self._solved(site)
            if bool(solved.carried.any()) and solved.carrier is None:
                c = self.constants.columns[site.name].abs()
                best = torch.where(solved.carried, c, -1.0).argmax().view(1)
                self._raise(self.column_class[site.name][best], VALUED)
                revived = True
        return revived

    def _solved(self, site: Site) -> Solved:
        name = site.name
        leaving = self.state[self.row_class[name]] >= PRESENT
        arriving = self.state[self.column_class[name]] >= PRESENT
        computed = self._computed(site)
        if site.layer.kind == "grouped":
            return self._grouped(site)
        if not bool(computed.any()):
            computed = computed.index_fill(0, self._first(site), True)
        if site.layer.kind == "channel":
            none = torch.zeros_like(computed)
            return Solved(computed, leaving, computed, arriving, none, none)
        return self._dense(site, computed, leaving, arriving)

    def _grouped(self, site: Site) -> Solved:
        """Groups go whole; in those that stay, rows and columns are as many as in the largest."""
        leaving = self.state[self.row_class[site.name]] >= PRESENT
        arriving = self.state[self.column_class[site.name]] >= PRESENT
        valued = self.state[self.row_class[site.name]] == VALUED
        live = blocks(valued & self.constants.rows[site.name].isnan(), site.layer.groups)
        free = self.gather and site.can_select and site.can_scatter
        foldable = self.foldable[site.name]
        wanted = live.any(1, keepdim=True) & blocks(~foldable, site.layer.groups)
        rows = blocks(self._computed(site) if free else leaving, site.layer.groups)
        columns = wanted if free else blocks(arriving, site.layer.groups)
        stays = rows.any(1) if free else rows.any(1) | columns.any(1)
        if not bool(stays.any()):
            stays = stays.index_fill(
                0, blocks(leaving, site.layer.groups).sum(1).argmax().view(1), True
            )
        computed = evened(rows, blocks(leaving, site.layer.groups), stays)
        kept = evened(columns, blocks(arriving, site.layer.groups), stays)
        folded = live.any(1, keepdim=True).expand_as(wanted).flatten() & foldable & ~kept
        return Solved(computed, leaving, kept, arriving, folded, torch.zeros_like(kept))

    def _dense(self, site: Site, computed: Tensor, leaving: Tensor, arriving: Tensor) -> Solved:
        c = self.constants.columns[site.name]
        needed = bool(self.live(site).any())
        droppable = (
            self._droppable(site)
            if needed
            else torch.full_like(arriving, site.can_select or not self.gather)
        )
        kept = arriving & ~droppable if self.gather and site.can_select else arriving
        dropped = ~kept
        folded = dropped & self.foldable[site.name] if needed else torch.zeros_like(kept)
        carried = dropped & ~self.foldable[site.name] if needed else torch.zeros_like(kept)
        valued = self.state[self.column_class[site.name]] == VALUED
        candidates = torch.where(kept & valued & ~c.isnan(), c.abs(), 0.0)
        carrier = int(candidates.argmax()) if float(candidates.max()) > 0 else None
        if not bool(kept.any()) and not (self.gather and bool(carried.any())):
            kept = kept.index_fill(0, arriving.to(torch.int8).argmax().view(1), True)
            folded = folded & ~kept
        return Solved(computed, leaving, kept, arriving, folded, carried, carrier)


def blocks(mask: Tensor, groups: int) -> Tensor:
    """One row per group."""
    return mask.view(groups, -1)


def evened(chosen: Tensor, exists: Tensor, stays: Tensor) -> Tensor:
    """Equally many in every group that stays, at least one: chosen first, then what exists."""
    chosen = chosen & stays.unsqueeze(1)
    count = max(int(chosen.sum(1).max()), 1)
    n = chosen.size(1)
    order = (2 * chosen.long() + exists.long()) * n - torch.arange(n)
    picked = torch.zeros_like(chosen).scatter(1, order.topk(count, dim=1).indices, True)
    return (picked & stays.unsqueeze(1)).flatten()


def without_gathering(tape: Tape, classes: Tensor) -> Tensor:
    """Classes in which the two sides of a norm or depthwise layer live and die together."""
    pairs = [
        (classes[site.rows], classes[site.columns])
        for site in tape.sites.values()
        if site.layer.kind == "channel"
    ]
    everything = torch.arange(tape.variables)
    return components(tape.variables, [(everything, classes), *pairs])
