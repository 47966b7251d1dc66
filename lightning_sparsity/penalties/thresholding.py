r"""What a prox takes away from a magnitude: $d = t - \operatorname{prox}(t)$, $t = |x|$.

Closed forms as free functions. Each takes numbers that its penalty worked out once for a step (as
floats, or as 0-dim tensors in a compiled kernel) or for one step per entry (as tensors of the shape
of $t$), in which every regime of the problem is already decided. At or below `threshold` all of $t$
goes. Wherever the minimiser $u$ is not zero, $d = \text{step} \cdot \rho'(u)$.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

Number = float | Tensor


def choose(condition: bool | Tensor, yes: Number, no: Number) -> Number:
    """`yes` where the condition holds and `no` elsewhere, for a number or for every entry."""
    if isinstance(condition, Tensor):
        return torch.where(condition, yes, no)
    return yes if condition else no


def soft(t: Tensor, step: Number) -> Tensor:
    """Soft thresholding: `step` goes, or all there is."""
    return t.clamp(max=step)


def hard(t: Tensor, threshold: Number) -> Tensor:
    """Hard thresholding: all or nothing."""
    return torch.where(t <= threshold, t, 0.0)


def firm(
    t: Tensor, threshold: Number, step: Number, soft_until: Number, slope: Number, knot: Number
) -> Tensor:
    """Three pieces: `step` goes at first, less and less up to `knot`, then nothing."""
    fading = torch.where(t <= soft_until, step, slope * (knot - t).clamp(min=0.0))
    return torch.where(t <= threshold, t, fading)


def transformed_l1(t: Tensor, threshold: Number, a: Number, quarter: Number) -> Tensor:
    r"""The root of the cubic of transformed l1, without cancellation.

    With $s = a + t$ the shrinkage solves $d\,(s - d)^2 = c$, $c = \text{step}\, a (a + 1)$, that is

    $$ d = \tfrac43\, s \,\sin^2\!\big(\tfrac13 \arcsin \sqrt{27 c / (4 s^3)}\big). $$

    It equals the usual form $\tfrac23 s \cos(\varphi / 3) - \tfrac23 a + \tfrac13 t$, whose terms
    cancel for large $a$.

    Args:
        t: Magnitudes.
        threshold: Magnitudes up to here vanish.
        a: The shape parameter.
        quarter: $27 c / 4$.
    """
    s = t + a
    sine = (quarter / (s * s * s)).clamp(max=1.0).sqrt()
    root = s * torch.sin(torch.asin(sine) / 3).square() * (4 / 3)
    return torch.where(t <= threshold, t, root)


def lp(t: Tensor, threshold: Number, jump: Number, step: Number, p: Number) -> Tensor:
    r"""Newton's method for $u + \text{step}\,p\,u^{p-1} = t$, from the right: monotone."""
    u = t.clamp(min=jump)
    for _ in range(_NEWTON_STEPS):
        pull = step * p * u ** (p - 1)
        u = (u - (u + pull - t) / (1 + (p - 1) * pull / u)).clamp(min=jump)
    return torch.where(t <= threshold, t, step * p * u ** (p - 1))


def log_sum(t: Tensor, threshold: Number, step: Number, eps: Number) -> Tensor:
    r"""The smaller root of $d\,(t + \varepsilon - d) = \text{step}$, without cancellation."""
    s = t + eps
    root = 2 * step / (s + (s * s - 4 * step).clamp(min=0.0).sqrt())
    return torch.where(t <= threshold, t, root)


def log_sum_threshold(step: Number, eps: float) -> Number:
    r"""The magnitude above which the root of `log_sum` costs less than zero does.

    Newton's method: what zero gains over the root $u$ is concave in $t$ with slope $-u$, and
    negative from $t = \sqrt{2\,\text{step} \ln(1 + \text{step} / \varepsilon^2)}$ on, so it is
    monotone from there.
    """
    continuous = step <= eps * eps * (1 + 1e-8)
    if continuous is True:
        return step / eps
    least, high = step**0.5 - eps, step / eps
    t = (2 * step * _log1p(high / eps)) ** 0.5
    t = choose(t < high, t, high)
    for _ in range(_NEWTON_STEPS):
        s = t + eps
        gap = s * s - 4 * step
        u = t - 2 * step / (s + choose(gap > 0, gap, 0.0) ** 0.5)
        u = choose(u > least, u, least)
        gain_of_zero = step * _log1p(u / eps) + 0.5 * u * u - u * t
        t = t + gain_of_zero / (u + 1e-9 * eps)
    return choose(continuous, high, t)


def _log1p(x: Number) -> Number:
    return x.log1p() if isinstance(x, Tensor) else math.log1p(x)


# Enough for float64 at every p and step; the brute-force law of the penalties would see fewer.
_NEWTON_STEPS = 6


def quick_soft(x: Tensor, step: Number) -> Tensor:
    """Soft thresholding of signed numbers in one operation."""
    return x.clamp(-step, step)  # type: ignore[arg-type]  # never mixed


def quick_hard(x: Tensor, threshold: Number) -> Tensor:
    """Hard thresholding of signed numbers; in eager mode `hardshrink` beats `where` five times."""
    if isinstance(threshold, Tensor):
        return torch.where(x.abs() <= threshold, x, 0.0)
    return x - F.hardshrink(x, threshold)


def quick_transformed_l1(
    x: Tensor, jump: Number, offset: Number, rate: Number, *series: Number
) -> Tensor:
    r"""The shrinkage of `transformed_l1` of signed numbers, by a polynomial.

    With $z = (a + t^*) / (a + t)$, at most 1 above the threshold $t^*$, it is $d = z^2 P(z^3)$: a
    dozen operations, none slower than a division. The prox increases, so what ends at or below its
    `jump` came from below the threshold.
    """
    z = x.abs().mul_(rate).add_(offset).reciprocal_()
    square = z * z
    d = square.mul_(_horner(series, z.mul_(square)))
    if not isinstance(jump, Tensor) and jump == 0:
        return torch.clamp(x, -d, d)
    t = x.abs()
    if isinstance(jump, Tensor):
        return torch.copysign(torch.where(t - d <= jump, t, d), x)
    return torch.copysign(t - F.threshold(t - d, jump, 0.0), x)


def _horner(series: tuple[Number, ...], y: Tensor) -> Tensor:
    """The polynomial with coefficients `series`, lowest first; on a CPU in one operation a term."""
    known = [c for c in series if isinstance(c, Tensor) or c != 0.0]
    if y.is_cpu and not isinstance(series[0], Tensor):
        terms = [torch.tensor(c, dtype=y.dtype) for c in known]
        value = terms[-1]
        for term in reversed(terms[:-1]):
            value = torch.addcmul(term, value, y, out=value if value.dim() else None)
        return value
    total = y * known[-1]
    for c in reversed(known[1:-1]):
        total = (total + c) * y
    return total + known[0]


@lru_cache(maxsize=1024)
def transformed_l1_series(threshold: float, a: float, quarter: float) -> tuple[float, ...] | None:
    r"""The numbers of `quick_transformed_l1`, or None if no short polynomial reaches 1e-6.

    With $q = c / s^3$ the shrinkage is $d = \tfrac{c}{s^2} F(q)$ and $F(q) = \tfrac{4}{3q}
    \sin^2(\tfrac13 \arcsin \sqrt{27 q / 4})$, which is analytic up to $q = 4/27$. Interpolated at
    Chebyshev nodes of $[0, q^*]$, $q^*$ at the threshold, it converges at the rate found here.
    """
    nearest = a + threshold
    top = quarter / nearest**3  # 27 q / 4 at the threshold: 1 is where the roots meet
    centre = 2 / top - 1
    degree = math.ceil(math.log(1e6) / math.acosh(centre)) if centre > 1 else _LONGEST
    if degree >= _LONGEST:
        return None
    angle = (torch.arange(degree + 1).double() + 0.5) * (math.pi / (degree + 1))
    nodes = 0.5 + 0.5 * angle.cos()
    sine = torch.asin((top * nodes).sqrt()).div(3).sin()
    powers = nodes[:, None] ** torch.arange(degree + 1)
    series = torch.linalg.solve(powers, sine.square() / nodes) * (4 / 3 * nearest)
    padding = [0.0] * (_LONGEST - degree - 1)
    jump = max(threshold - a / 2, 0.0)
    return (jump, a / nearest, 1 / nearest, *series.tolist(), *padding)


_LONGEST = 10
