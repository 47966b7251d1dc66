"""The results of a run: a table, a page and the measurements behind them."""

from lightning_sparsity.metrics.footprint import Footprint
from lightning_sparsity.report.curve import Curve
from lightning_sparsity.report.files import Run, read
from lightning_sparsity.report.latency import Comparison, Timing, compare
from lightning_sparsity.report.page import page, write_page
from lightning_sparsity.report.penalties import draw_penalties, one_of_each
from lightning_sparsity.report.slim import Slim
from lightning_sparsity.report.summary import Layer, Size, Summary, summarize
from lightning_sparsity.report.table import print_cut, print_table, save, say

__all__ = [
    "Comparison",
    "Curve",
    "Footprint",
    "Layer",
    "Run",
    "Size",
    "Slim",
    "Summary",
    "Timing",
    "compare",
    "draw_penalties",
    "one_of_each",
    "page",
    "print_cut",
    "print_table",
    "read",
    "save",
    "say",
    "summarize",
    "write_page",
]
