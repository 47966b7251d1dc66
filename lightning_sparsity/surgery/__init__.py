"""Channel surgery: make a CNN whose BatchNorm scales are sparse physically smaller, exactly.

A scale of zero makes a constant channel. `trace` follows every channel through one run of the
model, a plan says which ones nobody needs, `slim` removes them, folds their constants into what
remains and proves that the result computes what the masked model computes.

Example:
    >>> import torch
    >>> from lightning_sparsity import surgery
    >>> from lightning_sparsity.models import ResNet20
    >>> model, images = ResNet20().eval(), torch.randn(1, 3, 32, 32)
    >>> with torch.no_grad():
    ...     _ = model.norm.weight[:8].zero_()
    >>> flow = surgery.trace(model, images)
    >>> plan = flow.plan_by(surgery.Threshold(0))
    >>> small = surgery.slim(model, plan)
    >>> len(plan.kept["norm"]), plan.proof < 1e-12
    (8, True)
"""

from lightning_sparsity.surgery.budget import Budget, Flops, Params, Share, Threshold
from lightning_sparsity.surgery.compensation import compensate
from lightning_sparsity.surgery.export import export
from lightning_sparsity.surgery.flow import ChannelFlow
from lightning_sparsity.surgery.plan import Plan
from lightning_sparsity.surgery.slim import mask, slim
from lightning_sparsity.surgery.storage import load, save
from lightning_sparsity.surgery.tracing import trace
from lightning_sparsity.surgery.transplant import transplant

__all__ = [
    "Budget",
    "ChannelFlow",
    "Flops",
    "Params",
    "Plan",
    "Share",
    "Threshold",
    "compensate",
    "export",
    "load",
    "mask",
    "save",
    "slim",
    "trace",
    "transplant",
]
