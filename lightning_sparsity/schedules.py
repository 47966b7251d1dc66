"""Numbers that change over training, as functions of the epoch: a resumed run needs no state."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

__all__ = ["Growing", "Schedule", "Warmup"]


class Schedule(ABC):
    """A number as a function of the epoch."""

    @abstractmethod
    def at(self, epoch: float) -> float:
        """The number at `epoch`: 0 when training starts, 1.5 in the middle of the second epoch."""


@final
@dataclass(frozen=True)
class Growing(Schedule):
    r"""Multiplied by a factor every few epochs, as the coupling of the papers is.

    $$ \beta(t) = \text{start} \cdot \text{factor}^{\lfloor t / n \rfloor} $$

    Args:
        start: The number in the first epochs, above 0.
        factor: What it is multiplied with, at least 1.
        every_n_epochs: Epochs $n$ between two multiplications, at least 1.

    Raises:
        ValueError: If a number is out of range.

    Reference: K. Bui, F. Park, S. Zhang, Y. Qi, J. Xin, Structured sparsity of convolutional neural
        networks via nonconvex sparse group regularization, Front. Appl. Math. Stat. 6, 2021.
    """

    start: float
    factor: float = 1.25
    every_n_epochs: int = 20

    def __post_init__(self) -> None:
        if not (self.start > 0 and math.isfinite(self.start)):
            raise ValueError(f"Growing needs a finite start > 0, got start={self.start}.")
        if not (self.factor >= 1 and math.isfinite(self.factor)):
            raise ValueError(f"Growing needs a finite factor >= 1, got factor={self.factor}.")
        if self.every_n_epochs < 1:
            raise ValueError(
                f"Growing needs every_n_epochs >= 1, got every_n_epochs={self.every_n_epochs}."
            )

    def at(self, epoch: float) -> float:
        """The number at `epoch`."""
        return float(self.start * self.factor ** (math.floor(epoch) // self.every_n_epochs))


@final
@dataclass(frozen=True)
class Warmup(Schedule):
    r"""From zero to its value along a straight line, then constant: for a penalty weight.

    $$ \lambda(t) = \text{value} \cdot \min(1, (t - \text{start}) / \text{epochs})_+ $$

    Args:
        value: The number at the end, at least 0.
        epochs: Length of the rise, above 0.
        start: The epoch at which the rise begins, at least 0.

    Raises:
        ValueError: If a number is out of range.
    """

    value: float
    epochs: float = 5.0
    start: float = 0.0

    def __post_init__(self) -> None:
        if not (self.value >= 0 and math.isfinite(self.value)):
            raise ValueError(f"Warmup needs a finite value >= 0, got value={self.value}.")
        if not (0 < self.epochs < math.inf and 0 <= self.start < math.inf):
            raise ValueError(
                "Warmup needs finite epochs > 0 and start >= 0, "
                f"got epochs={self.epochs} and start={self.start}."
            )

    def at(self, epoch: float) -> float:
        """The number at `epoch`."""
        return self.value * min(1.0, max(0.0, (epoch - self.start) / self.epochs))


def at(number: float | Schedule, epoch: float) -> float:
    """The value of a number or a schedule at `epoch`."""
    return number.at(epoch) if isinstance(number, Schedule) else float(number)
