"""Channel surgery: make a CNN whose BatchNorm scales are sparse physically smaller, exactly."""

from lightning_sparsity.surgery.budget import Budget, Flops, Params, Threshold
from lightning_sparsity.surgery.flow import ChannelFlow, trace
from lightning_sparsity.surgery.plan import Plan
from lightning_sparsity.surgery.slim import mask, slim
from lightning_sparsity.surgery.storage import load, save
from lightning_sparsity.surgery.transplant import transplant

__all__ = [
    "Budget",
    "ChannelFlow",
    "Flops",
    "Params",
    "Plan",
    "Threshold",
    "load",
    "mask",
    "save",
    "slim",
    "trace",
    "transplant",
]
