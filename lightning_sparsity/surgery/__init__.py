"""Channel surgery: make a CNN whose BatchNorm scales are sparse physically smaller, exactly."""

from lightning_sparsity.surgery.flow import ChannelFlow, trace
from lightning_sparsity.surgery.plan import Plan
from lightning_sparsity.surgery.slim import mask, slim

__all__ = ["ChannelFlow", "Plan", "mask", "slim", "trace"]
