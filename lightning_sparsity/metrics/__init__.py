"""How sparse a network is, and how much work it does."""

from lightning_sparsity.metrics.flops import FlopCount, flops
from lightning_sparsity.metrics.sparsity import ChannelSparsity, Sparsity

__all__ = ["ChannelSparsity", "FlopCount", "Sparsity", "flops"]
