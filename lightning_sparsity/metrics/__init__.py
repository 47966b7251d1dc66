"""How sparse a network is, and what it takes: FLOPs, parameters, bytes, channels."""

from lightning_sparsity.metrics.flops import FlopCount, flops
from lightning_sparsity.metrics.footprint import Footprint, footprint
from lightning_sparsity.metrics.sparsity import ChannelSparsity, Sparsity

__all__ = ["ChannelSparsity", "FlopCount", "Footprint", "Sparsity", "flops", "footprint"]
