"""What a run came to: a table, a picture and the figures behind them."""

from lightning_sparsity.report.picture import draw
from lightning_sparsity.report.summary import Layer, Size, Summary, summarize
from lightning_sparsity.report.table import print_table, save, say

__all__ = ["Layer", "Size", "Summary", "draw", "print_table", "save", "say", "summarize"]
