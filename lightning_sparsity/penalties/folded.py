"""Folded concave penalties on entries: flat, or nearly so, for large entries."""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lightning_sparsity.penalties import thresholding
from lightning_sparsity.penalties.elementwise import Elementwise, check_positive
from lightning_sparsity.penalties.thresholding import Number, choose

__all__ = ["MCP", "SCAD", "LogSum"]


@final
@dataclass(frozen=True)
class MCP(Elementwise):
    r"""Minimax concave penalty (MCP): like l1 near zero, flat beyond a knot.

    $$ r(x) = \sum_i \rho(|x_i|), \qquad
       \rho(t) = \begin{cases} t - t^2 / (2k) & t \le k \\ k / 2 & t > k \end{cases} $$

    Large entries are left alone instead of shrunk. For `step < knot` the prox is firm thresholding;
    from there on the problem is no longer convex, and the prox jumps at $\sqrt{k\,\text{step}}$.
    The papers' form with $(\lambda, a)$ is $\lambda\, r$ with `knot` $= a \lambda$.

    Args:
        knot: Magnitude $k$ from which the penalty is flat, above 0, in units of the weights.

    Shape:
        `x` has any shape.

    Raises:
        ValueError: If `knot` is not a finite number above 0.

    Reference: C.-H. Zhang, Nearly unbiased variable selection under minimax concave penalty, Ann.
        Stat. 38(2), 2010.
    """

    knot: float = 2.0

    def __post_init__(self) -> None:
        check_positive(self, knot=self.knot)

    def rho(self, t: Tensor) -> Tensor:
        capped = t.clamp(max=self.knot)
        return capped - capped.square() / (2 * self.knot)

    def slope(self, t: Tensor) -> Tensor:
        return (1 - t / self.knot).clamp(min=0.0)

    def numbers(self, step: Number) -> tuple[Number, ...]:
        firm = step < self.knot
        threshold = choose(firm, step, (self.knot * step) ** 0.5)
        slope = step / choose(firm, self.knot - step, math.inf)
        return threshold, step, 0.0, slope, self.knot

    removed = staticmethod(thresholding.firm)


@final
@dataclass(frozen=True)
class SCAD(Elementwise):
    r"""Smoothly clipped absolute deviation (SCAD): l1 up to a knee, flat from a knot on.

    $$ r(x) = \sum_i \rho(|x_i|), \qquad \rho'(t) = \begin{cases} 1 & t \le k_1 \\ (k_2 - t) / (k_2
       - k_1) & k_1 < t \le k_2 \\ 0 & t > k_2 \end{cases} $$

    All three regimes of the prox are covered: `step < knot - knee` (continuous), below `knot +
    knee` (soft thresholding, then a jump), and beyond (a jump from zero). The papers' form with
    $(\lambda, a)$ is $\lambda\, r$ with `knee` $= \lambda$ and `knot` $= a \lambda$.

    Args:
        knee: Magnitude $k_1$ up to which it is l1, above 0, in units of the weights.
        knot: Magnitude $k_2$ from which it is flat, above `knee`.

    Shape:
        `x` has any shape.

    Raises:
        ValueError: If not `0 < knee < knot`.

    Reference: J. Fan, R. Li, Variable selection via nonconcave penalized likelihood and its oracle
        properties, J. Am. Stat. Assoc. 96(456), 2001.
    """

    knee: float = 1.0
    knot: float = 3.7

    def __post_init__(self) -> None:
        if not 0 < self.knee < self.knot < math.inf:
            raise ValueError(
                f"SCAD needs 0 < knee < knot, got knee={self.knee} and knot={self.knot}."
            )

    def rho(self, t: Tensor) -> Tensor:
        past_knee = t.clamp(self.knee, self.knot) - self.knee
        return t.clamp(max=self.knee) + past_knee - past_knee.square() / (2 * self._width)

    def slope(self, t: Tensor) -> Tensor:
        return ((self.knot - t) / self._width).clamp(0.0, 1.0)

    def numbers(self, step: Number) -> tuple[Number, ...]:
        both = self.knot + self.knee
        continuous, soft = step < self._width, step < both
        threshold = choose(soft, step, (step * both) ** 0.5)
        soft_until = choose(continuous, self.knee + step, choose(soft, (both + step) / 2, 0.0))
        slope = step / choose(continuous, self._width - step, math.inf)
        return threshold, step, soft_until, slope, self.knot

    removed = staticmethod(thresholding.firm)

    @property
    def _width(self) -> float:
        return self.knot - self.knee


@final
@dataclass(frozen=True)
class LogSum(Elementwise):
    r"""The sum of logarithms: close to l0 for small `eps`.

    $$ r(x) = \sum_i \ln(1 + |x_i| / \varepsilon) $$

    For $\sqrt{\text{step}} \le \varepsilon$ the prox is continuous with threshold $\text{step} /
    \varepsilon$; beyond, it jumps at a threshold without closed form, found by Newton's method.

    Args:
        eps: Magnitude below which it acts like l1, above 0, in units of the weights.

    Shape:
        `x` has any shape.

    Raises:
        ValueError: If `eps` is not a finite number above 0.

    Reference: A. Prater-Bennette, L. Shen, E. Tripp, The proximity operator of the log-sum penalty,
        J. Sci. Comput. 93, 2022.
    """

    eps: float = 0.1

    def __post_init__(self) -> None:
        check_positive(self, eps=self.eps)

    def rho(self, t: Tensor) -> Tensor:
        return torch.log1p(t / self.eps)

    def slope(self, t: Tensor) -> Tensor:
        return 1 / (self.eps + t)

    def numbers(self, step: Number) -> tuple[Number, ...]:
        return thresholding.log_sum_threshold(step, self.eps), step, self.eps

    removed = staticmethod(thresholding.log_sum)
