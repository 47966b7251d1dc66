"""Widths that kernels like: some of what could go stays, until widths are multiples of a number."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from lightning_sparsity.surgery.constants import Constants
from lightning_sparsity.surgery.facts import Facts
from lightning_sparsity.surgery.labels import ROOT, components
from lightning_sparsity.surgery.layout import tensor
from lightning_sparsity.surgery.solver import Held, Solved, Solver
from lightning_sparsity.surgery.widths import Widths
from lightning_sparsity.surgery.wiring import Part, Wiring, without_gathering

if TYPE_CHECKING:
    from lightning_sparsity.surgery.flow import ChannelFlow


def check_round_to(round_to: int) -> int:
    """Refuse what widths cannot be multiples of."""
    if not isinstance(round_to, int) or isinstance(round_to, bool) or round_to < 1:
        raise ValueError(f"round_to needs a whole number >= 1, such as 8, got {round_to!r}.")
    return round_to


class Groundwork:
    """What all plans for one model have in common, whatever is dead.

    Args:
        flow: The trace.
        model: The model, with its current weights.
        gather: Whether layers may pick their inputs and fill in constants.
    """

    def __init__(self, flow: "ChannelFlow", model: nn.Module, *, gather: bool) -> None:
        self.flow, self.model, self.gather = flow, model, gather
        self.facts = facts = Facts(model, flow.tape)
        self.wiring = Wiring(facts, flow.tape, flow.classes, gather=gather)
        followers = {name: facts.modules[after] for name, after in flow.followers.items()}
        self.lacks_bias = np.array(
            [
                site.layer.kind != "channel"
                and facts.modules[name].bias is None
                and getattr(followers.get(name), "running_mean", None) is None
                for name, site in flow.tape.sites.items()
            ],
            dtype=np.bool_,
        )
        """The layers that need a bias of their own to add a constant."""


class Rounding:
    """Solves for what can go, and takes back as much of it as makes widths round.

    A dead BatchNorm channel that stays is alive again, with the scale that it has; those with the
    largest scales come first. Other channels, and those whose scale is zero, stay as constants.
    Every step only adds to what stays, so the steps come to an end: at multiples, or at the dense
    widths.

    Args:
        ground: The trace and the model.
        dead: For each BatchNorm layer by name the scales that count as zero.
        round_to: What widths become multiples of; 1 takes nothing back.
    """

    def __init__(self, ground: Groundwork, dead: Mapping[str, Tensor], *, round_to: int) -> None:
        self.ground, self.flow, self.gather = ground, ground.flow, ground.gather
        self.multiple = round_to
        self.sites = self.flow.tape.sites
        self.dead = {
            name: dead.get(name, torch.zeros(n, dtype=torch.bool)).cpu().clone()
            for name, n in self.flow.norms.items()
        }
        self.held = Held()
        self._find_constants()
        self._solve()
        if round_to > 1:
            self.units = self._units()
            while self._carry() or self._revive() or self._hold_rows() or self._hold_columns():
                self._solve()

    @property
    def solved(self) -> dict[str, Solved]:
        """What stays of every layer."""
        return self.solver.solved

    def widths(self) -> Widths:
        """How many channels stay in every layer."""
        return Widths.of_solver(self.solver, self.ground.lacks_bias)

    def _find_constants(self) -> None:
        ground = self.ground
        self.constants = Constants(ground.model, self.flow.tape, self.dead, ground.facts)

    def _solve(self) -> None:
        """What stays of every layer, given what is constant and what is held."""
        self.solver = Solver(
            self.flow.tape,
            self.flow.classes,
            self.constants,
            self.held,
            gather=self.gather,
            wiring=self.ground.wiring,
        )
        self.solver.run()

    def _carry(self) -> bool:
        """A constant channel, not one of ones, carries constants past zero padding."""
        found = False
        for name, solved in self.solved.items():
            if solved.carrier is None and bool(solved.carried.any()):
                c = self.constants.columns[name].abs()
                column = torch.where(solved.carried, c, -1.0).argmax()
                _add(self.held.columns, name, _only(column, solved.kept))
                self._compute(int(self._part(name).column_class[int(column)]))
                found = True
        return found

    def _part(self, name: str) -> Part:
        return self.ground.wiring.parts[self.ground.facts.number[name]]

    def _compute(self, of_class: int) -> None:
        """Layers that fill in no constants so far compute this one."""
        for name, solved in self.solved.items():
            rows = tensor(self._part(name).row_class == of_class)
            if bool(rows.any()) and torch.equal(solved.leaving, solved.computed):
                _add(self.held.rows, name, rows)
                if name in self.units:
                    self._hold_units(self.units[name][rows])

    def _revive(self) -> bool:
        """BatchNorm layers of other widths get back the largest of their dead scales."""
        modules = self.ground.facts.modules
        scores = torch.zeros(self._size())
        for name, dead in self.dead.items():
            scale = modules[name].weight.detach().float().cpu().abs()
            scores.scatter_reduce_(0, self.units[name], torch.where(dead, scale, 0.0), "amax")
        chosen = []
        for name in self.flow.norms:
            solved, own = self.solved[name], self.units[name]
            free, short = ~solved.computed, self._short(name, solved.computed)
            if short:
                best = _best(free, scores[own], solved.leaving, short)
                # At the dense width nothing has to be dead, not even what carries constants.
                chosen.append(own if short == int(free.sum()) else own[best])
        units = torch.cat(chosen).unique() if chosen else torch.empty(0, dtype=torch.long)
        if not units.numel():
            return False
        held = self._hold_units(units)
        self.dead = {name: dead & ~held[self.units[name]] for name, dead in self.dead.items()}
        self._find_constants()
        return True

    def _hold_units(self, units: Tensor) -> Tensor:
        held = torch.zeros(self._size(), dtype=torch.bool).index_fill(0, units, True)
        for name, own in self.units.items():
            _add(self.held.rows, name, held[own])
        return held

    def _hold_rows(self) -> bool:
        """Other layers compute constants, or rows that nobody needs."""
        found = False
        for name, solved in self.solved.items():
            free, short = ~solved.computed, self._short(name, solved.computed)
            if short and name not in self.flow.norms:
                none = torch.zeros(free.numel())
                _add(self.held.rows, name, _best(free, none, solved.leaving, short))
                found = True
        return found

    def _hold_columns(self) -> bool:
        """Layers read constants that could move into their bias."""
        found = False
        for name, solved in self.solved.items():
            free, short = ~solved.kept, self._short(name, solved.kept)
            if short and self.sites[name].layer.kind == "dense":
                none = torch.zeros(free.numel())
                _add(self.held.columns, name, _best(free, none, solved.arriving, short))
                found = True
        return found

    def _short(self, name: str, stays: Tensor) -> int:
        """How many channels more make a multiple, or the dense width; none for a dead layer."""
        site = self.sites[name]
        alive = bool(self.solver.alive[self.ground.facts.number[name]])
        if site.layer.kind == "grouped" or not alive:
            return 0
        n = int(stays.sum())
        return min(-(-n // self.multiple) * self.multiple, stays.numel()) - n

    def _size(self) -> int:
        layers = [site.rows.numel() for site in self.sites.values() if site.layer.kind == "channel"]
        return self.flow.tape.variables + sum(layers)

    def _units(self) -> dict[str, Tensor]:
        """Per layer that works on channels one by one, which of its channels come back together.

        Gathering, a BatchNorm channel comes back with those in front of and behind a depthwise
        convolution; without, with all that live and die with it.
        """
        tape, own = self.flow.tape, {}
        classes = self.flow.classes
        classes = classes if self.gather else without_gathering(tape, classes)
        linked = torch.full((tape.variables,), not self.gather)
        at = tape.variables
        for name, site in self.sites.items():
            if site.layer.kind == "channel":
                own[name] = torch.arange(at, at + site.rows.numel())
                at += site.rows.numel()
                if name not in self.flow.norms:
                    linked[classes[torch.cat([site.rows, site.columns])]] = True
        linked[ROOT] = False
        pairs = []
        for name, units in own.items():
            for variables in (self.sites[name].rows, self.sites[name].columns):
                side = classes[variables]
                pairs.append((units[linked[side]], side[linked[side]]))
        tied = components(at, pairs)
        return {name: tied[units] for name, units in own.items()}


def _only(index: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(like).index_fill(0, index.view(1), True)


def _add(held: dict[str, Tensor], name: str, more: Tensor) -> None:
    held[name] = held[name] | more if name in held else more


def _best(free: Tensor, scores: Tensor, exists: Tensor, count: int) -> Tensor:
    """The free channels of the highest scores; of equal ones those that exist, then the first."""
    order = exists.to(torch.int8).sort(descending=True, stable=True).indices
    order = order[scores[order].sort(descending=True, stable=True).indices]
    chosen = order[free[order]][:count]
    return torch.zeros_like(free).index_fill(0, chosen, True)
