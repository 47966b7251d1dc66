"""The divergence of group lengths, against quadrature, finite differences and plain counting."""

import math
from typing import Any

import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from lightning_sparsity import variance

VERSIONS: Any = ("moments", "histogram")
both = pytest.mark.parametrize("version", VERSIONS)


def two_levels(cv: float, groups: int = 100) -> Tensor:
    """Lengths with mean 1 and exactly this CV, up to 3: one in ten is long."""
    s = torch.full((groups,), 1 - cv / 3, dtype=torch.float64)
    s[: groups // 10] = 1 + 3 * cv
    return s


def spread(power: float, groups: int = 200) -> Tensor:
    return torch.linspace(0.01, 1, groups, dtype=torch.float64) ** power


@pytest.mark.parametrize("cv", [0.2, 0.5, 1.0, 1.7, 2.5])
@pytest.mark.parametrize("target", [0.6, 2.0])
def test_the_moments_give_the_divergence_of_two_gamma_laws(cv: float, target: float) -> None:
    p, q = (stats.gamma(c**-2, scale=c**2) for c in (cv, target))

    def integrand(t: float) -> float:  # in the logarithm of x: the laws are steep at zero
        x = math.exp(t)
        return float(p.pdf(x) * (p.logpdf(x) - q.logpdf(x)) * x)

    expected = integrate.quad(integrand, -200, math.log(1000), limit=500, points=[-5, 0, 2])[0]
    assert variance.divergence(two_levels(cv), target).item() == pytest.approx(expected, abs=1e-7)


@both
@pytest.mark.parametrize("power", [0.0, 0.1, 1.0, 5.0, 50.0])
def test_it_is_never_negative(version: Any, power: float) -> None:
    for target in (0.8, 2.0, 4.0):
        assert variance.divergence(spread(power), target, version=version) > -1e-12


@pytest.mark.parametrize("target", [0.3, 1.0, 2.0])
def test_by_moments_it_is_zero_at_the_target_and_grows_on_both_sides(target: float) -> None:
    cvs = [target * (1 + x / 10) for x in range(-9, 5)]
    values = [variance.divergence(two_levels(cv), target).item() for cv in cvs]
    at = cvs.index(target)
    assert values[at] == pytest.approx(0, abs=1e-12)
    assert values[: at + 1] == sorted(values[: at + 1], reverse=True)
    assert values[at:] == sorted(values[at:])


@both
@pytest.mark.parametrize("scale", [1e-6, 3.0, 1e6])
def test_the_scale_of_the_weights_does_not_matter(version: Any, scale: float) -> None:
    w = torch.randn(12, 3, 3, dtype=torch.float64)
    values = [variance.divergence(variance.lengths(x), version=version) for x in (w, scale * w)]
    assert values[1].item() == pytest.approx(values[0].item(), rel=1e-9)
    grads = [torch.zeros_like(w), torch.zeros_like(w)]
    variance.push(w, grads[0], 1.0, version=version)
    variance.push(scale * w, grads[1], 1.0, version=version)
    torch.testing.assert_close(grads[1] * scale, grads[0], rtol=1e-6, atol=0)


@both
@pytest.mark.parametrize("axis", [0, 1])
def test_what_is_added_is_the_gradient_by_finite_differences(version: Any, axis: int) -> None:
    w = torch.randn(5, 4, 2, dtype=torch.float64)
    w.select(axis, 1).mul_(4)
    w.select(axis, 2).zero_()
    begin = torch.randn_like(w)
    grad = begin.clone()
    variance.push(w, grad, 0.3, target_cv=1.5, version=version, axis=axis)

    def value() -> float:
        s = w.movedim(axis, 0).flatten(1)
        s = s[s.abs().sum(1) > 0].square().mean(1).sqrt()
        return 0.3 * variance.divergence(s, 1.5, version=version).item()

    expected = begin.clone()
    for place in (w != 0).nonzero().tolist():
        entry, eps = w[tuple(place)].item(), 1e-6
        ends = []
        for sign in (1, -1):
            w[tuple(place)] = entry + sign * eps
            ends.append(value())
        w[tuple(place)] = entry
        expected[tuple(place)] += (ends[0] - ends[1]) / (2 * eps)
    torch.testing.assert_close(grad, expected, rtol=1e-6, atol=1e-8)


@both
def test_groups_that_are_zero_or_almost_are_left_alone(version: Any) -> None:
    w = torch.randn(9, 6)
    w[3] = 0
    w[5] *= 1e-8
    begin = torch.randn_like(w)
    grad = begin.clone()
    variance.push(w, grad, 2.0, version=version)
    assert torch.equal(grad[[3, 5]], begin[[3, 5]])
    alive = [i for i in range(9) if i not in (3, 5)]
    alone = begin[alive].clone()
    variance.push(w[alive], alone, 2.0, version=version)
    torch.testing.assert_close(grad[alive], alone)
    assert not torch.isclose(grad[alive], begin[alive]).any(1).all()


@both
@pytest.mark.parametrize("alive", [0, 1])
def test_fewer_than_two_active_groups_are_left_alone(version: Any, alive: int) -> None:
    w = torch.zeros(4, 3)
    w[:alive] = 1.5
    begin = torch.randn_like(w)
    grad = begin.clone()
    variance.push(w, grad, 2.0, version=version)
    assert torch.equal(grad, begin)
    assert variance.divergence(variance.lengths(w), version=version).item() == 0
    assert variance.statistics(variance.lengths(w)).active == alive
    assert variance.statistics(variance.lengths(w)).cv == 0


@both
@pytest.mark.parametrize("cv", [0.0, 1e-12, 1e-6, 1e-3, 0.0049, 0.0051])
def test_value_and_gradient_stay_finite_where_all_groups_are_equal(version: Any, cv: float) -> None:
    s = two_levels(cv).requires_grad_()
    value = variance.divergence(s, version=version)
    (slope,) = torch.autograd.grad(value, s)
    assert 0 < value < 7
    assert slope.abs().max() < 10
    higher = variance.divergence(two_levels(cv + 1e-3), version=version)
    assert higher < value


@pytest.mark.parametrize("target", [0.8, 1.0, 2.0, 4.0])
def test_spike_and_slab_have_mean_one_and_the_cv_asked_for(target: float) -> None:
    share, slab = variance.spike_and_slab(target)
    assert 0 <= share < 1
    parts = ((share, stats.halfnorm(scale=0.1)), (1 - share, stats.halfnorm(scale=slab)))
    mean, square = (sum(part * law.moment(n) for part, law in parts) for n in (1, 2))
    assert mean == pytest.approx(1)
    assert math.sqrt(square - mean**2) == pytest.approx(target)


@pytest.mark.parametrize("target", [1.0, 2.0])
def test_the_histogram_is_closest_to_lengths_drawn_from_its_target(target: float) -> None:
    share, slab = variance.spike_and_slab(target)
    draws = torch.randn(5000, dtype=torch.float64).abs()
    s = torch.where(torch.rand(5000) < share, 0.1 * draws, slab * draws)
    at_target = variance.divergence(s, target, version="histogram")
    assert at_target < 0.02
    for power in (0.5, 0.8, 1.3):
        assert variance.divergence(s**power, target, version="histogram") > at_target


@both
def test_descending_spreads_lengths_towards_the_target(version: Any) -> None:
    w = torch.randn(64, 50, dtype=torch.float64)
    assert variance.statistics(variance.lengths(w)).cv < 0.2
    for _ in range(300):
        grad = torch.zeros_like(w)
        variance.push(w, grad, 100.0, target_cv=1.5, version=version)
        w -= grad
    assert variance.statistics(variance.lengths(w)).cv == pytest.approx(1.5, abs=0.1)


@both
def test_the_layout_in_memory_does_not_matter(version: Any) -> None:
    w = torch.randn(6, 5, 3, 3)
    for axis in (0, 1):
        grads = []
        for layout in (torch.contiguous_format, torch.channels_last):
            x = w.to(memory_format=layout)
            grads.append(torch.zeros_like(x))
            variance.push(x, grads[-1], 1.0, version=version, axis=axis)
            assert grads[-1].is_contiguous(memory_format=layout)
        turned = torch.zeros(w.transpose(0, axis).shape)
        variance.push(w.transpose(0, axis).contiguous(), turned, 1.0, version=version)
        torch.testing.assert_close(grads[1], grads[0])
        torch.testing.assert_close(turned.transpose(0, axis), grads[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    w = (100 * torch.randn(8, 3000)).to(dtype)  # squares overflow in float16
    grad, wide = torch.zeros_like(w), torch.zeros(w.shape)
    variance.push(w, grad, 1e3)
    variance.push(w.float(), wide, 1e3)
    assert grad.dtype == dtype
    assert torch.equal(grad, wide.to(dtype))
    assert grad.abs().max() > 0


def test_statistics_are_those_of_the_active_groups() -> None:
    w = torch.randn(20, 7, 3, dtype=torch.float64)
    w[[4, 9]] = 0
    s = w.flatten(1).square().mean(1).sqrt()
    s = s[s > 0].numpy()
    found = variance.statistics(variance.lengths(w))
    assert found.active == 18
    assert found.cv == pytest.approx(stats.variation(s))
    assert found.kurtosis == pytest.approx(stats.kurtosis(s))
    assert variance.statistics(variance.lengths(w.transpose(0, 1), axis=1)) == found
    assert math.isnan(variance.statistics(variance.lengths(torch.ones(3, 2))).kurtosis)


@pytest.mark.parametrize(
    ("lam", "target", "version", "message"),
    [
        (-1.0, 2.0, "moments", r"needs a finite lam >= 0, got lam=-1\.0"),
        (math.nan, 2.0, "moments", "needs a finite lam >= 0, got lam=nan"),
        (1.0, 0.0, "moments", r"needs target_cv between 0\.01 and 100\.0, got target_cv=0\.0"),
        (1.0, math.inf, "moments", "got target_cv=inf. Start from target_cv=2"),
        (1.0, math.nan, "moments", "got target_cv=nan"),
        (1.0, 0.7, "histogram", r"'histogram' needs target_cv between 0\.76 and 4\.0, got .*=0\.7"),
        (1.0, 2.0, "gamma", "version must be one of moments, histogram, got 'gamma'"),
    ],
)
def test_bad_numbers_are_named(lam: float, target: float, version: Any, message: str) -> None:
    w = torch.randn(4, 3)
    with pytest.raises(ValueError, match=message):
        variance.push(w, torch.zeros_like(w), lam, target_cv=target, version=version)
