r"""Penalties that are a sum over entries: $r(x) = \sum_i \rho(|x_i|)$.

To add one, write a frozen dataclass with `rho`, `slope` and the two parts of its prox, name it in
`__all__`, and put an instance into the list of `tests/penalties/test_contract.py`. Exports, API
page, CLI choice and figures follow.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from lightning_sparsity.penalties import thresholding
from lightning_sparsity.penalties.base import Acts, Penalty
from lightning_sparsity.penalties.thresholding import Number

__all__ = ["L0", "L1", "Lp", "TransformedL1"]


class Elementwise(Penalty):
    r"""A sum over entries, given by a function $\rho(t)$ of the magnitude $t = |x_i| \ge 0$.

    The prox comes in two parts, so that a kernel compiled once serves every step: `numbers` decides
    the regime and works out thresholds, `removed` applies them to tensors. With one step per entry
    the numbers are tensors too: `thresholding.choose` decides for both.
    """

    acts: ClassVar[Acts] = "entries"
    has_metric_prox = True
    removed: ClassVar[Callable[..., Tensor]]
    """`removed(t, *numbers)` is `t - prox(t)` for magnitudes `t`: a formula of `thresholding`."""

    @abstractmethod
    def rho(self, t: Tensor) -> Tensor:
        """The penalty of single magnitudes `t`."""

    @abstractmethod
    def slope(self, t: Tensor) -> Tensor:
        """The derivative of `rho` at `t > 0`."""

    @abstractmethod
    def numbers(self, step: Number) -> tuple[Number, ...]:
        """The constants of the prox for one step, or one per entry, the regime decided."""

    def quick_numbers(self, step: Number) -> tuple[Number, ...]:
        """The constants of `quick` for one step."""
        return self.numbers(step)

    @classmethod
    def quick(cls, x: Tensor, *numbers: Number) -> Tensor:
        """`x - prox(x)` from `quick_numbers`: the hot path of training, in the precision of `x`."""
        return torch.copysign(cls.removed(x.abs(), *numbers), x)

    def prox_of_magnitude(self, t: Tensor, step: Number) -> Tensor:
        """The prox for magnitudes: never negative, exactly zero at and below the threshold."""
        return (t - self.removed(t, *self.numbers(step))).clamp(min=0.0)

    def _value(self, x: Tensor) -> Tensor:
        return self.rho(x.abs()).sum()

    def _slope(self, x: Tensor) -> Tensor:
        return torch.where(x == 0, 0.0, x.sign() * self.slope(x.abs()))

    def _prox(self, x: Tensor, step: Number) -> Tensor:
        return x.sign() * self.prox_of_magnitude(x.abs(), step)

    def _shrinkage(self, x: Tensor, step: Number) -> Tensor:
        return self.quick(x, *self.quick_numbers(step))


@final
@dataclass(frozen=True)
class L0(Elementwise):
    r"""The number of entries that are not zero.

    $$ r(x) = \#\{ i : x_i \ne 0 \}, \qquad
       \operatorname{prox}(x)_i = x_i \text{ if } |x_i| > \sqrt{2\,\text{step}}, \text{ else } 0 $$

    Its prox is hard thresholding: entries are kept untouched or dropped. Its subgradient is zero
    everywhere, so train with it by splitting.

    Shape:
        `x` has any shape.

    Reference: T. Blumensath, M. Davies, Iterative thresholding for sparse approximations, J.
        Fourier Anal. Appl. 14, 2008.
    """

    def rho(self, t: Tensor) -> Tensor:
        return t.sign()

    def slope(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def numbers(self, step: Number) -> tuple[Number, ...]:
        return ((2 * step) ** 0.5,)

    removed = staticmethod(thresholding.hard)

    @classmethod
    def quick(cls, x: Tensor, *numbers: Number) -> Tensor:
        return thresholding.quick_hard(x, *numbers)


@final
@dataclass(frozen=True)
class L1(Elementwise):
    r"""The sum of magnitudes, the convex penalty of the lasso and of network slimming.

    $$ r(x) = \sum_i |x_i|, \qquad \operatorname{prox}(x)_i = \operatorname{sign}(x_i) \max(|x_i| -
    \text{step}, 0) $$

    Its prox is soft thresholding: it also shrinks what it keeps, which the nonconvex penalties
    avoid.

    Shape:
        `x` has any shape.

    Reference: R. Tibshirani, Regression shrinkage and selection via the lasso, J. R. Stat. Soc. B
        58(1), 1996.
    """

    def rho(self, t: Tensor) -> Tensor:
        return t

    def slope(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def numbers(self, step: Number) -> tuple[Number, ...]:
        return (step,)

    removed = staticmethod(thresholding.soft)

    @classmethod
    def quick(cls, x: Tensor, *numbers: Number) -> Tensor:
        return thresholding.quick_soft(x, *numbers)


@final
@dataclass(frozen=True)
class Lp(Elementwise):
    r"""The sum of magnitudes to a power below one, between l0 and l1.

    $$ r(x) = \sum_i |x_i|^p, \qquad 0 < p < 1 $$

    The prox is zero up to $t^* = x_0 + \text{step}\, p\, x_0^{p-1}$ with $x_0 =
    (2\,\text{step}\,(1-p))^{1/(2-p)}$, and jumps to $x_0$ there; above, it is the larger root of $u
    + \text{step}\, p\, u^{p-1} = |x|$. The slope is not bounded near zero.

    Args:
        p: The power, in (0, 1).

    Shape:
        `x` has any shape.

    Raises:
        ValueError: If `p` is not in (0, 1).

    Reference: G. Marjanovic, V. Solo, On lq optimization and matrix completion, IEEE Trans. Signal
        Process. 60(11), 2012.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.p < 1:
            raise ValueError(
                f"Lp needs 0 < p < 1, got p={self.p}. For p=0 there is L0, for p=1 L1."
            )

    def rho(self, t: Tensor) -> Tensor:
        # The power of zero has an infinite slope, which autograd would turn into NaN.
        return torch.where(t > 0, torch.where(t > 0, t, 1.0) ** self.p, t)

    def slope(self, t: Tensor) -> Tensor:
        return self.p * t ** (self.p - 1)

    def numbers(self, step: Number) -> tuple[Number, ...]:
        jump = (2 * step * (1 - self.p)) ** (1 / (2 - self.p))
        return jump + step * self.p * jump ** (self.p - 1), jump, step, self.p

    removed = staticmethod(thresholding.lp)


@final
@dataclass(frozen=True)
class TransformedL1(Elementwise):
    r"""Transformed l1 (Tl1): like l0 for small `a`, like l1 for large `a`, bounded in between.

    $$ r(x) = \sum_i \frac{(a + 1)\,|x_i|}{a + |x_i|} $$

    Up to $\text{step} = a^2 / (2(a+1))$ the prox is continuous with threshold
    $\text{step}\,(a+1)/a$; beyond, it jumps at $\sqrt{2\,\text{step}\,(a+1)} - a/2$.

    Args:
        a: Shape, above 0, in units of the weights.

    Shape:
        `x` has any shape.

    Raises:
        ValueError: If `a` is not a finite number above 0.

    Reference: S. Zhang, J. Xin, Minimization of transformed L1 penalty: closed form representation
        and iterative thresholding algorithms, Commun. Math. Sci. 15(2), 2017, arXiv:1412.5240.
    """

    a: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self, a=self.a)

    def rho(self, t: Tensor) -> Tensor:
        return (self.a + 1) * t / (self.a + t)

    def slope(self, t: Tensor) -> Tensor:
        return self.a * (self.a + 1) / (self.a + t).square()

    def numbers(self, step: Number) -> tuple[Number, ...]:
        a = self.a
        continuous = step <= a * a / (2 * (a + 1))
        jumping = (2 * step * (a + 1)) ** 0.5 - a / 2
        threshold = thresholding.choose(continuous, step * (a + 1) / a, jumping)
        return threshold, a, 6.75 * step * a * (a + 1)

    removed = staticmethod(thresholding.transformed_l1)

    def quick_numbers(self, step: Number) -> tuple[Number, ...]:
        numbers = self.numbers(step)
        if isinstance(step, Tensor):
            return numbers
        return thresholding.transformed_l1_series(*numbers) or numbers

    @classmethod
    def quick(cls, x: Tensor, *numbers: Number) -> Tensor:
        if len(numbers) == 3:
            return super().quick(x, *numbers)
        return thresholding.quick_transformed_l1(x, *numbers)


def check_positive(penalty: Penalty, **parameters: float) -> None:
    for name, value in parameters.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(
                f"{type(penalty).__name__} needs a finite {name} > 0, got {name}={value}."
            )
