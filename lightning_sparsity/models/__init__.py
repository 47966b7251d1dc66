"""The networks of the papers, as plain modules."""

from lightning_sparsity.models.curvenet import CurveNet
from lightning_sparsity.models.lenet5 import LeNet5

__all__ = ["CurveNet", "LeNet5"]
