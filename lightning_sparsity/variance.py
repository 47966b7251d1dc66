r"""Variance guidance on tensors: a pull of a layer's group lengths towards a skewed distribution.

$$ R = \operatorname{KL}\bigl(p(s) \,\|\, p^*\bigr), \qquad s_g = \|w_g\|_2 / \sqrt{n_g} $$

over the active groups of one layer: a few large, most small, measured by their coefficient of
variation (CV, standard deviation over mean). $R$ does not see the scale of the weights. Groups
whose length is zero, or below a millionth of the layer's largest, are not active: they neither
count nor move. Works without a Trainer; needs torch only.

Reference:
    Variance-guided structured sparsity in deep neural networks, IEEE. Its abstract asks for the
    Kullback-Leibler divergence of the current distribution and a target that is concentrated at
    zero with a high variance; both versions here are readings of that sentence.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

__all__ = [
    "Statistics",
    "Version",
    "check",
    "divergence",
    "lengths",
    "push",
    "spike_and_slab",
    "statistics",
]

Version = Literal["moments", "histogram"]
RANGES: dict[Version, tuple[float, float]] = {"moments": (0.01, 100.0), "histogram": (0.76, 4.0)}
"""The target CVs that each version can have."""

ACTIVE = 1e-6  # share of the largest length above which a group is active
LEAST_CV = 0.005  # below it the divergence goes on as a straight line in the squared CV
BINS = 64
SPIKE = 0.1  # width of the spike, in units of the mean length
FLOOR = 1e-3  # share of the target that is uniform, so that no bin is empty


def check(lam: float, target_cv: float, version: Version) -> None:
    """Refuse a weight or a target that is out of range, and a version that does not exist."""
    if not (lam >= 0 and math.isfinite(lam)):
        raise ValueError(f"Variance guidance needs a finite lam >= 0, got lam={lam}.")
    if version not in get_args(Version):
        raise ValueError(f"version must be one of {', '.join(get_args(Version))}, got {version!r}.")
    low, high = RANGES[version]
    if not low <= target_cv <= high:
        raise ValueError(
            f"Variance guidance with version={version!r} needs target_cv between {low} and {high}, "
            f"got target_cv={target_cv}. Start from target_cv=2."
        )


def lengths(weight: Tensor, axis: int = 0) -> Tensor:
    r"""The root mean squares of the groups, $s_g = \|w_g\|_2 / \sqrt{n_g}$.

    Args:
        weight: A weight with at least two dimensions.
        axis: The axis that counts its groups.

    Returns:
        One length per group, differentiable; float32 for half precision.
    """
    others = [i for i in range(weight.dim()) if i != axis]
    wide = torch.promote_types(weight.dtype, torch.float32)
    norms: Tensor = torch.linalg.vector_norm(weight, dim=others, dtype=wide)
    return norms / math.sqrt(_size(weight, axis))


def divergence(lengths: Tensor, target_cv: float = 2.0, *, version: Version = "moments") -> Tensor:
    r"""How far the lengths of the active groups are from a target with `target_cv`.

    `"moments"`: between Gamma laws of the same mean with shapes $k = 1 / \mathrm{CV}^2$ and $k^* =
    1 / \mathrm{target\_cv}^2$,

    $$ R = (k - k^*)\, \psi(k) - \ln\Gamma(k) + \ln\Gamma(k^*) + k^* \ln(k / k^*) + k^* - k, \qquad
       \frac{dR}{dk} = (k - k^*) \Bigl(\psi'(k) - \frac1k\Bigr) $$

    a function of the CV alone, 0 at the target and monotone on both sides of it. It grows without
    bound where all lengths are equal; below a CV of 0.005 it goes on as its tangent in
    $\mathrm{CV}^2$, so that value and gradient stay finite.

    `"histogram"`: $R = \sum_b p_b \ln(p_b / q_b)$ between the soft histogram of the lengths, in
    units of their mean, and that of `spike_and_slab(target_cv)` in the same bins.

    Args:
        lengths: Lengths of the groups, at least 0.
        target_cv: The CV of the target, in [0.01, 100] for moments, in [0.76, 4] for the histogram.
            `G` active groups can have a CV of at most $\sqrt{G - 1}$.
        version: The divergence.

    Returns:
        A scalar in float64 on the CPU with a first derivative for autograd; 0 with fewer than two
        active groups.

    Shape:
        `lengths` has the shape `(G,)`.

    Raises:
        ValueError: If `target_cv` is out of range.
    """
    check(0.0, target_cv, version)
    s = _active(lengths)
    if s.numel() < 2:
        return s.sum() * 0
    shares = s / s.mean()
    return _moments(shares, target_cv) if version == "moments" else _histogram(shares, target_cv)


@torch.no_grad()
def push(
    weight: Tensor,
    grad: Tensor,
    lam: float,
    *,
    target_cv: float = 2.0,
    version: Version = "moments",
    axis: int = 0,
) -> None:
    r"""Add the gradient of the divergence in place: `grad += lam * dR/dw`.

    $$ \frac{dR}{dw_g} = \frac{dR}{ds_g} \frac{w_g}{n_g s_g} $$

    One pass over the weight for the lengths and one for the gradient. Groups that are not active
    get nothing.

    Args:
        weight: A weight with at least two dimensions.
        grad: What the gradient is added to, of the same shape.
        lam: The weight $\lambda \ge 0$ of the divergence.
        target_cv: See `divergence`.
        version: See `divergence`.
        axis: The axis of `weight` that counts its groups.

    Raises:
        ValueError: If `lam` or `target_cv` is out of range.
    """
    check(lam, target_cv, version)
    if lam == 0:  # a schedule that has not begun
        return
    s = lengths(weight.detach(), axis)
    with torch.enable_grad():
        known = s.cpu().double().requires_grad_()
        (slope,) = torch.autograd.grad(divergence(known, target_cv, version=version), known)
    factor = lam * slope / (_size(weight, axis) * known.detach()).where(slope != 0, 1)
    shape = [-1 if i == axis else 1 for i in range(weight.dim())]
    factor = factor.to(s.dtype).to(s.device).view(shape)
    grad.add_(weight * factor) if s.dtype != grad.dtype else grad.addcmul_(weight, factor)


@dataclass(frozen=True)
class Statistics:
    """How the lengths of a layer's active groups are spread.

    Attributes:
        active: How many groups are active.
        cv: Their coefficient of variation; 0 with fewer than two.
        kurtosis: Their excess kurtosis, 0 for a normal law; not a number where all are equal.
    """

    active: int
    cv: float
    kurtosis: float


@torch.no_grad()
def statistics(lengths: Tensor) -> Statistics:
    """Count the active groups of a layer and describe their lengths.

    Args:
        lengths: Lengths of the groups, at least 0.

    Shape:
        `lengths` has the shape `(G,)`.
    """
    s = _active(lengths)
    if s.numel() < 2:
        return Statistics(s.numel(), 0.0, math.nan)
    deviation = s / s.mean() - 1
    variance = deviation.square().mean()
    kurtosis = deviation.pow(4).mean() / variance.square() - 3
    return Statistics(s.numel(), float(variance.sqrt()), float(kurtosis))


@cache
def spike_and_slab(target_cv: float) -> tuple[float, float]:
    r"""A skewed law with mean 1 and a given CV: a narrow half-normal at zero and a wide one.

    $$ \pi\, N_+(0, \sigma_0^2) + (1 - \pi)\, N_+(0, \sigma_1^2), \qquad \sigma_0 = 0.1 $$

    With $h = \sqrt{\pi_\circ / 2}$ for the circle number $\pi_\circ$, mean and CV give

    $$ \sigma_1 = \frac{1 + \mathrm{CV}^2 - \sigma_0^2}{h - \sigma_0} - \sigma_0, \qquad 1 - \pi =
       \frac{h - \sigma_0}{\sigma_1 - \sigma_0} $$

    which has a solution from a CV of 0.76 on, that of a half-normal without a spike.

    Args:
        target_cv: The CV, in [0.76, 4].

    Returns:
        The share $\pi$ of the spike and the width $\sigma_1$ of the slab.
    """
    half = math.sqrt(math.pi / 2)
    slab = (1 + target_cv**2 - SPIKE**2) / (half - SPIKE) - SPIKE
    return 1 - (half - SPIKE) / (slab - SPIKE), slab


def _size(weight: Tensor, axis: int) -> int:
    return weight.numel() // weight.shape[axis]


def _active(lengths: Tensor) -> Tensor:
    """The lengths of the active groups: few numbers, which one transfer brings to the CPU."""
    s = lengths.cpu().double()
    return s[s > ACTIVE * s.max()] if s.numel() else s


def _moments(shares: Tensor, target_cv: float) -> Tensor:
    cv2 = (shares - 1).square().mean()
    with torch.no_grad():
        k = 1 / cv2.clamp(min=LEAST_CV**2)
        target = torch.tensor(1 / target_cv**2, dtype=k.dtype)
        kl = (k - target) * k.digamma() - k.lgamma() + target.lgamma()
        kl += target * (k / target).log() + target - k
        slope = -(k**2) * (k - target) * (k.polygamma(1) - 1 / k)  # by the squared CV
    return kl + slope * (cv2 - 1 / k)


def _histogram(shares: Tensor, target_cv: float) -> Tensor:
    centres, q = _target_histogram(target_cv)
    p = _soft_counts(shares, centres).mean(0).clamp(min=1e-30)
    return (p * (p / q).log()).sum()


def _soft_counts(shares: Tensor, centres: Tensor) -> Tensor:
    """Which share of every number falls into which bin, `(G, B)`."""
    width = centres[1]
    return (-(((shares[:, None] - centres) / width) ** 2) / 2).softmax(1)


@cache
def _target_histogram(target_cv: float) -> tuple[Tensor, Tensor]:
    """Centres of the bins, and the target in them, seen as softly as the lengths are."""
    share, slab = spike_and_slab(target_cv)
    centres = torch.linspace(0, 3 * slab, BINS, dtype=torch.float64)
    x = torch.linspace(0, 6 * slab, 20_000, dtype=torch.float64)
    density = sum(
        part / width * (-((x / width) ** 2) / 2).exp()
        for part, width in ((share, SPIKE), (1 - share, slab))
    )
    assert isinstance(density, Tensor)
    q = density / density.sum() @ _soft_counts(x, centres)
    return centres, (1 - FLOOR) * q + FLOOR / BINS
