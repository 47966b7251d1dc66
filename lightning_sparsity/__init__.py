"""Train CNNs sparse with nonconvex penalties, as PyTorch Lightning callbacks.

The mathematics (`lightning_sparsity.penalties`, `lightning_sparsity.splitting`,
`lightning_sparsity.variance`) imports torch only; the callbacks are loaded the first time one of
them is named.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_sparsity.callbacks import (
        NetworkSlimming,
        Regularization,
        RelaxedVariableSplitting,
        SlimNetwork,
        SparsityMonitor,
        VarianceGuidance,
    )

__version__ = "0.1.0"
__all__ = [
    "NetworkSlimming",
    "Regularization",
    "RelaxedVariableSplitting",
    "SlimNetwork",
    "SparsityMonitor",
    "VarianceGuidance",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module attribute may be anything
    if name in __all__:
        return getattr(import_module("lightning_sparsity.callbacks"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
