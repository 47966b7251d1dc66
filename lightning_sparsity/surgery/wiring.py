"""Which channels are tied, and what each layer may do, in the form that the solver needs."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_sparsity.surgery.facts import Facts
from lightning_sparsity.surgery.labels import components
from lightning_sparsity.surgery.layout import Bools, Ints
from lightning_sparsity.surgery.tape import Site, Tape


class Part(NamedTuple):
    """One layer's part of the vectors over all layers."""

    site: Site
    rows: slice
    columns: slice
    row_class: Ints
    column_class: Ints


class Wiring:
    """The same for every solve of one network.

    Channels that are summed, or pass through layers that work on each channel alone, are tied: they
    form a class, which exists as a whole or not at all.

    Args:
        facts: The network.
        tape: Its run.
        classes: The class of every variable.
        gather: Whether layers may pick their inputs (`Select`) and fill in constants (`Scatter`).

    Attributes:
        row_class: The class of every row of the network.
        column_class: The class of every column.
        fills: The rows of layers that may fill in constants instead of computing them.
        drops: The columns of layers that may do without columns.
        picks: The columns of layers that may drop columns of their own, which others still read.
        appends: The columns of layers to whose input a channel of ones may be appended. It carries
            any constant past zero padding, which surrounds it as it surrounded the constant.
    """

    def __init__(self, facts: Facts, tape: Tape, classes: Tensor, *, gather: bool) -> None:
        self.gather = gather
        self.variables = tape.variables
        classes = classes if gather else without_gathering(tape, classes)
        of_variable: Ints = classes.numpy()
        self.row_class: Ints = of_variable[facts.rows.variables]
        self.column_class: Ints = of_variable[facts.columns.variables]
        kinds = [site.layer.kind for site in facts.sites]
        self.is_channel: Bools = np.array([kind == "channel" for kind in kinds], dtype=np.bool_)
        self.is_dense: Bools = np.array([kind == "dense" for kind in kinds], dtype=np.bool_)
        self.dense_columns = facts.columns.spread(self.is_dense)
        self.channel_rows = facts.rows.spread(self.is_channel)
        self.channel_columns = facts.columns.spread(self.is_channel)
        self.fills = facts.rows.spread([gather and _fills(site) for site in facts.sites])
        self.drops = facts.columns.spread([site.can_select or not gather for site in facts.sites])
        self.picks = facts.columns.spread([site.can_select and gather for site in facts.sites])
        self.appends = facts.columns.spread([site.can_append or not gather for site in facts.sites])
        self.parts = [
            Part(site, rows, columns, self.row_class[rows], self.column_class[columns])
            for site, rows, columns in zip(
                facts.sites, facts.rows.slices, facts.columns.slices, strict=True
            )
        ]
        self.grouped = [part for part in self.parts if part.site.layer.kind == "grouped"]


def _fills(site: Site) -> bool:
    """A layer that works on each channel alone computes what it reads, so it has to pick that."""
    return site.can_scatter and (site.can_select or site.layer.kind == "dense")


def without_gathering(tape: Tape, classes: Tensor) -> Tensor:
    """Classes in which the two sides of a norm or depthwise layer live and die together."""
    pairs = [
        (classes[site.rows], classes[site.columns])
        for site in tape.sites.values()
        if site.layer.kind == "channel"
    ]
    everything = torch.arange(tape.variables)
    return components(tape.variables, [(everything, classes), *pairs])
