"""What a run came to: a table, a picture and the figures behind them."""

from lightning_sparsity.report.latency import Timing
from lightning_sparsity.report.penalties import draw_penalties, one_of_each
from lightning_sparsity.report.picture import draw
from lightning_sparsity.report.slim import Footprint, Slim
from lightning_sparsity.report.summary import Layer, Size, Summary, summarize
from lightning_sparsity.report.table import print_cut, print_table, save, say

__all__ = [
    "Footprint",
    "Layer",
    "Size",
    "Slim",
    "Summary",
    "Timing",
    "draw",
    "draw_penalties",
    "one_of_each",
    "print_cut",
    "print_table",
    "save",
    "say",
    "summarize",
]
