"""The l0 ball: a share of entries to be zero in place of a weight to be tuned."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_sparsity.penalties.base import Acts, Penalty
from lightning_sparsity.penalties.thresholding import Number

__all__ = ["L0Ball"]


@final
@dataclass(frozen=True)
class L0Ball(Penalty):
    r"""The l0 constraint: at least a share of the entries is zero, the smallest ones.

    $$ r(x) = \begin{cases} 0 & \|x\|_0 \le n - \lfloor \text{amount} \cdot n \rfloor \\
       \infty & \text{otherwise} \end{cases} $$

    The prox keeps the largest entries as they are and zeroes the others, at every step size above
    zero: there is no weight to tune, any `lam` above zero does the same. In training the share
    rises from zero along a straight line between `start` and `end`, so that entries leave one after
    the other.

    Args:
        amount: The share of zeros, in [0, 1).
        start: Share of the training after which entries begin to leave, in [0, 1).
        end: Share of the training after which `amount` is reached, in (`start`, 1].

    Shape:
        `x` has any shape and counts as one vector: all scales of a network in `NetworkSlimming`,
        one layer in `RelaxedVariableSplitting`. Of equal entries the first ones go first.

    Raises:
        ValueError: If a number is out of range.

    Reference:
        T. Blumensath, M. E. Davies, Iterative thresholding for sparse approximations, J. Fourier
        Anal. Appl. 14, 2008 (the projection); the rising share follows M. Zhu, S. Gupta, To prune,
        or not to prune, 2017, arXiv:1710.01878.
    """

    amount: float = 0.5
    start: float = 0.05
    end: float = 0.45
    acts: ClassVar[Acts] = "tensor"

    def __post_init__(self) -> None:
        if not 0 <= self.amount < 1:
            raise ValueError(f"L0Ball needs 0 <= amount < 1, got amount={self.amount}.")
        if not 0 <= self.start < self.end <= 1:
            raise ValueError(
                f"L0Ball needs 0 <= start < end <= 1, got start={self.start} and end={self.end}."
            )

    @override
    def at(self, progress: float) -> "L0Ball":
        """The ball at a share of the training."""
        over = (progress - self.start) / (self.end - self.start)
        return replace(self, amount=self.amount * min(1.0, max(0.0, over)))

    def _zeros(self, x: Tensor) -> int:
        return int(self.amount * x.numel())

    def _value(self, x: Tensor) -> Tensor:
        inside = (x != 0).sum() <= x.numel() - self._zeros(x)
        return torch.where(inside, (0 * x).sum(), torch.inf)  # flat, for autograd too

    def _slope(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def _prox(self, x: Tensor, step: Number) -> Tensor:
        return x.masked_fill(self._smallest(x), 0.0)

    def _shrinkage(self, x: Tensor, step: Number) -> Tensor:
        return torch.where(self._smallest(x), x, 0.0)

    def _smallest(self, x: Tensor) -> Tensor:
        """The entries to be zeroed: those below the threshold, and the first ones that equal it."""
        count = self._zeros(x)
        if not count:
            return torch.zeros_like(x, dtype=torch.bool)
        t = x.abs().flatten()
        threshold = t.kthvalue(count).values
        below, equal = t < threshold, t == threshold
        first = equal & (equal.cumsum(0) <= count - below.sum())
        return (below | first).view_as(x)
