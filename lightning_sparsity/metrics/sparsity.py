"""`Sparsity` and `ChannelSparsity` as torchmetrics."""

from abc import ABC, abstractmethod
from typing import Any, final

import torch
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

from lightning_sparsity.metrics.functional import (
    Weights,
    count_zero_channels,
    count_zeros,
    share,
)

__all__ = ["ChannelSparsity", "Sparsity"]


class _ZeroShare(Metric, ABC):
    """A share of zeros, over all weights of all updates of all processes."""

    is_differentiable = False
    full_state_update = False
    zeros: Tensor
    total: Tensor

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - torchmetrics' own options
        super().__init__(**options)
        # Integers: float32 would lose count beyond 16.8 million weights.
        for name in ("zeros", "total"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @abstractmethod
    def _count(self, weights: Weights) -> tuple[Tensor, int]: ...

    @override
    def update(self, weights: Weights) -> None:
        """Add a tensor, several, or several by name."""
        zeros, total = self._count(weights)
        self.zeros += zeros.to(self.zeros.device)
        self.total += total

    @override
    def compute(self) -> Tensor:
        """The share of zeros among all that was added, in [0, 1]."""
        return share(self.zeros, self.total)


@final
class Sparsity(_ZeroShare):
    """The share of entries that are exactly zero, in [0, 1].

    Counts are summed over updates and processes. Under DDP every process holds all the weights, so
    each counts the same ones: both counts grow alike and the share is unchanged.

    Args:
        options: Those of every torchmetrics `Metric`.

    Example:
        >>> metric = Sparsity()
        >>> metric.update({"fc.weight": torch.tensor([[0.0, 1.0], [0.0, 0.0]])})
        >>> metric.compute()
        tensor(0.7500)
    """

    @override
    def _count(self, weights: Weights) -> tuple[Tensor, int]:
        return count_zeros(weights)


@final
class ChannelSparsity(_ZeroShare):
    """The share of output channels whose weights are all exactly zero, in [0, 1].

    Output channels lie along the first dimension, as in convolutions and linear layers. Processes
    count as for `Sparsity`.

    Args:
        options: Those of every torchmetrics `Metric`.

    Example:
        >>> metric = ChannelSparsity()
        >>> metric.update(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
        >>> metric.compute()
        tensor(0.5000)
    """

    @override
    def _count(self, weights: Weights) -> tuple[Tensor, int]:
        return count_zero_channels(weights)
