"""A penalty on entries plus a penalty on rows, with the exact prox where there is one."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_sparsity.penalties.base import Acts, Penalty
from lightning_sparsity.penalties.elementwise import L0, L1, Elementwise
from lightning_sparsity.penalties.group import GroupLasso, L1MinusL2, Radial
from lightning_sparsity.penalties.rows import directions, lengths, prox_l1_minus_l2
from lightning_sparsity.penalties.thresholding import Number

__all__ = ["SparseGroup"]


@final
@dataclass(frozen=True)
class SparseGroup(Penalty):
    r"""A penalty on entries plus a penalty on rows: sparse inside the rows that survive.

    $$ r(x) = e(x) + \mu\, g(x) $$

    The prox is exact for `element=L1()` or `L0()` with any group penalty, and for `L1MinusL2`
    (taken of each row) with `GroupLasso`. Composing two proxes gives the prox of the sum only for
    l1, so every other pair is refused by name: split its element part and regularise the group part
    instead. With one step per entry it is exact for `L1()` with `GroupLasso()` or `Grouped(L0())`.

    Args:
        element: The penalty $e$ on entries.
        group: The penalty $g$ on rows: `GroupLasso()` or `Grouped(...)`.
        group_weight: The weight $\mu$ of the group penalty, above 0.

    Shape:
        `x` is a matrix `(G, M)` with one row per group.

    Raises:
        ValueError: If `group` does not act on lengths of rows, `element` acts on rows, or
            `group_weight <= 0`.

    Reference: N. Simon, J. Friedman, T. Hastie, R. Tibshirani, A sparse-group lasso, J. Comput.
        Graph. Stat. 22(2), 2013. K. Bui, F. Park, S. Zhang, Y. Qi, J. Xin, Structured sparsity of
        convolutional neural networks via nonconvex sparse group regularization, Front. Appl. Math.
        Stat. 6, 2021.
    """

    element: Penalty
    group: Penalty
    group_weight: float = 1.0
    acts: ClassVar[Acts] = "rows"

    @property
    @override
    def has_metric_prox(self) -> bool:
        """Whether soft thresholding may be followed by the metric prox of the group penalty."""
        return isinstance(self.element, L1) and self.group.has_metric_prox

    def __post_init__(self) -> None:
        if not isinstance(self.element, Elementwise | L1MinusL2):
            raise ValueError(
                f"SparseGroup needs a penalty on entries as element, got {self.element!r}."
            )
        if not isinstance(self.group, Radial):
            raise ValueError(
                f"SparseGroup needs GroupLasso() or Grouped(...) as group, got {self.group!r}."
            )
        if not (self.group_weight > 0 and math.isfinite(self.group_weight)):
            raise ValueError(
                "SparseGroup needs a finite group_weight > 0, "
                f"got group_weight={self.group_weight}."
            )

    def _value(self, x: Tensor) -> Tensor:
        if isinstance(self.element, L1MinusL2):
            return self.element.of_rows(x).sum() + self.group_weight * self.group.value(x)
        return self.element.value(x) + self.group_weight * self.group.value(x)

    def _slope(self, x: Tensor) -> Tensor:
        if isinstance(self.element, L1MinusL2):
            element = self.element.slope_of_rows(x)
        else:
            element = self.element.subgradient(x)
        return element + self.group_weight * self.group.subgradient(x)

    def _prox(self, x: Tensor, step: Number) -> Tensor:
        group_step = step * self.group_weight
        if isinstance(self.element, L1):
            return self.group._prox(self.element._prox(x, step), group_step)
        assert isinstance(self.group, Radial)
        assert not isinstance(step, Tensor)
        group_step = step * self.group_weight * self.group.weight(x)
        if isinstance(self.element, L0):
            return _prox_l0_and_length(x, step, self.group.of_length, group_step)
        if isinstance(self.element, L1MinusL2) and isinstance(self.group, GroupLasso):
            return prox_l1_minus_l2(x, step, self.element.alpha * step - group_step)
        raise ValueError(
            f"SparseGroup has no exact prox for {self.element!r} with {self.group!r}. "
            f"Use splitting: the element in RelaxedVariableSplitting, the group beside it."
        )

    def _shrinkage(self, x: Tensor, step: Number) -> Tensor:
        if isinstance(self.element, L1):
            removed = self.element._shrinkage(x, step)
            return removed + self.group._shrinkage(x - removed, step * self.group_weight)
        return x - self._prox(x, step)


def _prox_l0_and_length(x: Tensor, step: float, penalty: Elementwise, group_step: float) -> Tensor:
    r"""The prox of `step * l0` plus a penalty of the length: the largest entries win.

    With $m_k$ the length of the $k$ largest entries and $e(m) = \min_v \text{group\_step}\,\rho(v)
    + (v - m)^2 / 2$, the best $k$ minimises $\text{step}\, k + e(m_k) - m_k^2 / 2$.
    """
    t, order = x.abs().sort(1, descending=True)
    m = t.square().cumsum(1).sqrt()
    shrunk = penalty.prox_of_magnitude(m, group_step)
    rank = torch.arange(1, x.shape[1] + 1, device=x.device, dtype=x.dtype)
    cost = step * rank + group_step * penalty.rho(shrunk) + 0.5 * shrunk.square() - shrunk * m
    best = cost.min(1, keepdim=True)
    count = torch.where(best.values < 0, best.indices + 1, 0)
    kept = torch.zeros_like(x).scatter(1, order, (rank <= count).to(x.dtype)) * x
    length = lengths(kept)
    return directions(kept, length) * penalty.prox_of_magnitude(length, group_step)
