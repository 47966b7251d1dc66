r"""Penalties on vectors: on the rows of a matrix, one row per group, or on a whole tensor.

`lightning_sparsity.selection.rows` makes rows of a weight. To add a penalty see `elementwise`: the
steps are the same.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from lightning_sparsity.penalties.base import Acts, Penalty
from lightning_sparsity.penalties.elementwise import L0, L1, Elementwise
from lightning_sparsity.penalties.rows import (
    directions,
    lengths,
    metric_length,
    prox_l1_minus_l2,
    tiny,
)
from lightning_sparsity.penalties.thresholding import Number

__all__ = ["ExclusiveLasso", "GroupLasso", "Grouped", "L1MinusL2"]


class Radial(Penalty):
    r"""A sum over rows of a function of their lengths: $r(x) = \sum_g c\, \rho(\|x_g\|_2)$.

    $c = 1$, or $\sqrt M$ for `weighted` rows of $M$ entries. The prox keeps the direction of a row
    and applies the prox of $c\,\rho$ to its length. One step per entry turns the row:

    $$ \operatorname{prox}(x)_i = \frac{x_i}{1 + \text{step}_i / \theta}, \qquad
       \theta = \frac{\|\operatorname{prox}(x)\|_2}{c\,\rho'(\|\operatorname{prox}(x)\|_2)} $$
    """

    acts: ClassVar[Acts] = "rows"
    weighted: bool

    @property
    @abstractmethod
    def of_length(self) -> Elementwise:
        """The elementwise penalty that acts on the lengths."""

    @property
    @override
    def has_metric_prox(self) -> bool:
        """Whether the ratio of length and slope is known: for l1 and l0."""
        return isinstance(self.of_length, L0 | L1)

    def weight(self, x: Tensor) -> float:
        """The factor of the term of every row of `x`."""
        return math.sqrt(x.shape[1]) if self.weighted else 1.0

    def _value(self, x: Tensor) -> Tensor:
        return self.weight(x) * self.of_length.rho(lengths(x)).sum()

    def _slope(self, x: Tensor) -> Tensor:
        length = lengths(x)
        slope = self.weight(x) * self.of_length.slope(length)
        return directions(x, length) * torch.where(length > 0, slope, 0.0)

    def _prox(self, x: Tensor, step: Number) -> Tensor:
        step = step * self.weight(x)
        if isinstance(step, Tensor):
            return x / (1 + step / self._ratio(x, step))
        length = lengths(x)
        return directions(x, length) * self.of_length.prox_of_magnitude(length, step)

    def _shrinkage(self, x: Tensor, step: Number) -> Tensor:
        step = step * self.weight(x)
        if isinstance(step, Tensor):
            return (self._ratio(x, step) / step).add_(1).reciprocal_().mul_(x)
        length = lengths(x)
        removed = self.of_length.removed(length, *self.of_length.numbers(step))
        return x * (removed / length.clamp(min=tiny(x)))

    def _ratio(self, x: Tensor, step: Tensor) -> Tensor:
        r"""The $\theta$ of every row, shape `(G, 1)`: zero where the row vanishes."""
        if isinstance(self.of_length, L0):
            dropped = (x * (x / step)).sum(1, keepdim=True) <= 2
            return torch.where(dropped, 0.0, torch.inf).to(x.dtype)
        return metric_length(x, step)


@final
@dataclass(frozen=True)
class GroupLasso(Radial):
    r"""The sum of the lengths of the rows (l2,1): drops whole rows, shrinks those it keeps.

    $$ r(x) = c \sum_g \|x_g\|_2, \qquad
       \operatorname{prox}(x)_g = x_g \max(1 - c\,\text{step} / \|x_g\|_2,\, 0), \qquad
       c = \begin{cases} \sqrt M & \text{weighted} \\ 1 & \text{else} \end{cases} $$

    With one step per entry a row vanishes for $\|x_g / (c\,\text{step}_g)\|_2 \le 1$; else

    $$ \operatorname{prox}(x)_i = \frac{\theta\, x_i}{\theta + c\,\text{step}_i}, \qquad
       \sum_i \Big(\frac{x_i}{\theta + c\,\text{step}_i}\Big)^2 = 1. $$

    Args:
        weighted: Weigh every row by the root of its number of entries $M$, which makes one `lam`
            fit layers of different widths.

    Shape:
        `x` is a matrix `(G, M)` with one row per group.

    Reference: M. Yuan, Y. Lin, Model selection and estimation in regression with grouped variables,
        J. R. Stat. Soc. B 68(1), 2006. T. Deleu, Y. Bengio, Structured sparsity inducing adaptive
        optimizers for deep learning, 2021, arXiv:2102.03869 (one step per entry).
    """

    weighted: bool = False

    @property
    @override
    def of_length(self) -> Elementwise:
        """Plain l1: a length is its own magnitude."""
        return L1()


@final
@dataclass(frozen=True)
class Grouped(Radial):
    r"""Any elementwise penalty on the lengths of the rows: group l0, group transformed l1, ...

    $$ r(x) = c \sum_g \rho(\|x_g\|_2), \qquad
       \operatorname{prox}(x)_g = \frac{x_g}{\|x_g\|_2} \operatorname{prox}_{c \rho}(\|x_g\|_2),
       \qquad c = \begin{cases} \sqrt M & \text{weighted} \\ 1 & \text{else} \end{cases} $$

    With one step per entry, group l0 keeps a row for $\sum_i x_i^2 / (c\,\text{step}_i) > 2$.

    Args:
        penalty: The penalty $\rho$ of a length, for example `L0()`.
        weighted: Weigh every row by the root of its number of entries $M$.

    Shape:
        `x` is a matrix `(G, M)` with one row per group.

    Raises:
        ValueError: If `penalty` does not act on single entries.
    """

    penalty: Penalty
    weighted: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.penalty, Elementwise):
            raise ValueError(
                f"Grouped needs an elementwise penalty such as L0(), got {self.penalty!r}, "
                f"which acts on {getattr(self.penalty, 'acts', 'something else')}."
            )

    @property
    @override
    def of_length(self) -> Elementwise:
        """The penalty that was given."""
        assert isinstance(self.penalty, Elementwise)
        return self.penalty


@final
@dataclass(frozen=True)
class ExclusiveLasso(Penalty):
    r"""Half the squared l1 norm of every row: the entries of a row compete.

    $$ r(x) = \tfrac12 \sum_g \|x_g\|_1^2 $$

    The prox is soft thresholding at $\text{step}_i\, S_n$ with

    $$ S_n = \frac{\sum_{i \le n} |x_i|}{1 + \sum_{i \le n} \text{step}_i}, $$

    the sums over the entries of the row with the $n$ largest $|x_i| / \text{step}_i$, and $n$ the
    last rank where that ratio lies above $S_n$.

    Shape:
        `x` is a matrix `(G, M)` with one row per group.

    Reference: J. Yoon, S. J. Hwang, Combined group and exclusive sparsity for deep neural networks,
        ICML 2017. The prox here is exact; thresholding at `step` times the l1 norm of the argument,
        as some code does, is not.
    """

    acts: ClassVar[Acts] = "rows"
    has_metric_prox = True

    def _value(self, x: Tensor) -> Tensor:
        return 0.5 * x.abs().sum(1).square().sum()

    def _slope(self, x: Tensor) -> Tensor:
        return x.sign() * x.abs().sum(1, keepdim=True)

    def _prox(self, x: Tensor, step: Number) -> Tensor:
        return x - self._shrinkage(x, step)

    def _shrinkage(self, x: Tensor, step: Number) -> Tensor:
        t = x.abs()
        if not isinstance(step, Tensor):
            step = x.new_tensor(step).expand_as(x)
        ratios, order = (t / step).sort(1, descending=True)
        sums = t.gather(1, order).cumsum(1) / (1 + step.gather(1, order).cumsum(1))
        count = (ratios > sums).sum(1, keepdim=True).clamp(min=1)
        return torch.copysign(torch.minimum(t, step * sums.gather(1, count - 1)), x)


@final
@dataclass(frozen=True)
class L1MinusL2(Penalty):
    r"""The l1 norm minus a share of the l2 norm of a whole tensor: sharper than l1.

    $$ r(x) = \|x\|_1 - \alpha \|x\|_2 $$

    With $M = \max_i |x_i|$ and $z$ the soft-thresholded $x$, the prox is $z\,(\|z\| +
    \alpha\,\text{step}) / \|z\|$ for $M > \text{step}$; for $(1 - \alpha)\,\text{step} < M \le
    \text{step}$ only one largest entry survives, with magnitude $M - (1 - \alpha)\,\text{step}$;
    below, nothing does.

    Args:
        alpha: Share of the l2 norm, in [0, 1]; 0 is plain l1.

    Shape:
        `x` has any shape and counts as one vector: one layer, in relaxed splitting.

    Raises:
        ValueError: If `alpha` is not in [0, 1].

    Reference:
        Y. Lou, M. Yan, Fast L1-L2 minimization via a proximal operator, J. Sci. Comput. 74, 2018.
    """

    alpha: float = 1.0
    acts: ClassVar[Acts] = "tensor"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"L1MinusL2 needs 0 <= alpha <= 1, got alpha={self.alpha}.")

    def of_rows(self, x: Tensor) -> Tensor:
        """The penalty of every row of a matrix, shape `(G, 1)`."""
        return x.abs().sum(1, keepdim=True) - self.alpha * lengths(x)

    def slope_of_rows(self, x: Tensor) -> Tensor:
        """A subgradient of `of_rows`, shape `(G, M)`."""
        return x.sign() - self.alpha * directions(x, lengths(x))

    def _value(self, x: Tensor) -> Tensor:
        return self.of_rows(x.reshape(1, -1)).sum()

    def _slope(self, x: Tensor) -> Tensor:
        return self.slope_of_rows(x.reshape(1, -1)).reshape(x.shape)

    def _prox(self, x: Tensor, step: Number) -> Tensor:
        assert not isinstance(step, Tensor)
        return prox_l1_minus_l2(x.reshape(1, -1), step, self.alpha * step).reshape(x.shape)

    def _shrinkage(self, x: Tensor, step: Number) -> Tensor:
        return x - self._prox(x, step)
