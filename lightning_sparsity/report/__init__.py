"""What a run came to: a table, a picture and the figures behind them."""

from lightning_sparsity.report.latency import Comparison, Timing, compare
from lightning_sparsity.report.picture import draw
from lightning_sparsity.report.slim import Footprint, Slim
from lightning_sparsity.report.summary import Layer, Size, Summary, summarize
from lightning_sparsity.report.table import print_cut, print_table, save, say

__all__ = [
    "Comparison",
    "Footprint",
    "Layer",
    "Size",
    "Slim",
    "Summary",
    "Timing",
    "compare",
    "draw",
    "print_cut",
    "print_table",
    "save",
    "say",
    "summarize",
]
