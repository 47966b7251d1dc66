"""Lightning callbacks: each decides when, a function on a lower floor decides what."""

from lightning_sparsity.callbacks.monitor import SparsityMonitor
from lightning_sparsity.callbacks.regularization import Regularization
from lightning_sparsity.callbacks.slim_network import SlimNetwork
from lightning_sparsity.callbacks.slimming import NetworkSlimming
from lightning_sparsity.callbacks.splitting import RelaxedVariableSplitting
from lightning_sparsity.callbacks.variance import VarianceGuidance

__all__ = [
    "NetworkSlimming",
    "Regularization",
    "RelaxedVariableSplitting",
    "SlimNetwork",
    "SparsityMonitor",
    "VarianceGuidance",
]
