"""What a run came to: a table, a picture, a page and the figures behind them."""

from lightning_sparsity.report.curve import Curve
from lightning_sparsity.report.files import Run, read
from lightning_sparsity.report.latency import Comparison, Timing, compare
from lightning_sparsity.report.page import page, write_page
from lightning_sparsity.report.penalties import draw_penalties, one_of_each
from lightning_sparsity.report.picture import draw
from lightning_sparsity.report.slim import Footprint, Slim
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
    "draw",
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
