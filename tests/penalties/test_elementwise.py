"""Penalties on entries against the formulas of the papers, written out again by hand."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_sparsity.penalties import L0, L1, MCP, SCAD, LogSum, Lp, Penalty, TransformedL1

X = torch.arange(-600, 601).double() / 100
t = X.abs()
STEPS = [0.01, 0.1, 0.5, 1.0, 2.5, 7.0]
every_step = pytest.mark.parametrize("step", STEPS)


def soft(step: float) -> Tensor:
    return X.sign() * (t - step).clamp(min=0)


def hard(threshold: float) -> Tensor:
    return torch.where(t > threshold, X, 0.0)


def above(threshold: float, u: Tensor) -> Tensor:
    return torch.where(t > threshold, X.sign() * u, 0.0)


def agree(ours: Tensor, theirs: Tensor, tolerance: float = 1e-12, jumps: float = 0.002) -> None:
    """Equal but for the points of a grid that lie at a jump."""
    off = (ours - theirs).abs() > tolerance
    assert off.double().mean() <= jumps, X[off]


@pytest.mark.parametrize(
    ("near", "limit", "tolerance"),
    [
        (TransformedL1(1e7), L1(), 1e-5),
        (TransformedL1(1e-7), L0(), 1e-3),
        (Lp(1 - 1e-7), L1(), 1e-4),
        (Lp(1e-7), L0(), 1e-4),
        (MCP(1e9), L1(), 1e-7),
        (SCAD(1e9, 3e9), L1(), 1e-12),
        (SCAD(1.0, 1e9), L1(), 1e-7),
    ],
    ids=repr,
)
@every_step
def test_penalties_meet_in_their_limits(
    near: Penalty, limit: Penalty, tolerance: float, step: float
) -> None:
    agree(near.prox(X, step), limit.prox(X, step), tolerance, jumps=0.004)
    assert near.value(X[:600]).item() == pytest.approx(limit.value(X[:600]).item(), rel=1e-3)


@every_step
def test_log_sum_and_mcp_scale_to_their_limits(step: float) -> None:
    # eps times the log-sum is l1 for large eps; 2 / knot times MCP is l0 for small knots.
    agree(LogSum(1e8).prox(X, step * 1e8), soft(step), 1e-6)
    agree(MCP(1e-9).prox(X, step * 2e9), hard(math.sqrt(2 * step)))


@every_step
def test_l0_and_l1_threshold_hard_and_soft(step: float) -> None:
    agree(L0().prox(X, step), hard(math.sqrt(2 * step)), jumps=0)
    agree(L1().prox(X, step), soft(step))
    assert L0().value(X) == 1200
    assert L1().value(X).item() == pytest.approx(t.sum().item())


@every_step
@pytest.mark.parametrize("a", [0.01, 0.1, 0.5, 1.0, 4.0, 30.0])
def test_transformed_l1_is_the_arccos_form_of_zhang_and_xin(a: float, step: float) -> None:
    if step <= a * a / (2 * (a + 1)):
        threshold = step * (a + 1) / a
    else:
        threshold = math.sqrt(2 * step * (a + 1)) - a / 2
    cosine = 1 - 27 * step * a * (a + 1) / (2 * (a + t) ** 3)
    phi = cosine.clamp(-1, 1).arccos()
    u = 2 / 3 * (a + t) * (phi / 3).cos() - 2 * a / 3 + t / 3
    agree(TransformedL1(a).prox(X, step), above(threshold, u), 1e-7)


@every_step
def test_l_one_half_is_the_half_thresholding_of_xu(step: float) -> None:
    threshold = 1.5 * step ** (2 / 3)
    phi = (step / 4 * (t / 3) ** -1.5).clamp(max=1).arccos()
    u = 2 / 3 * t * (1 + (2 * math.pi / 3 - 2 / 3 * phi).cos())
    agree(Lp(0.5).prox(X, step), above(threshold, u), 1e-12)


@every_step
def test_l_two_thirds_is_its_closed_form(step: float) -> None:
    threshold = 2 * (2 * step / 3) ** 0.75
    phi = (27 * t**2 / (16 * (2 * step) ** 1.5)).clamp(min=1).arccosh()
    b = 2 / math.sqrt(3) * (2 * step) ** 0.25 * (phi / 3).cosh().sqrt()
    u = ((b + (2 * t / b - b**2).clamp(min=0).sqrt()) / 2) ** 3
    agree(Lp(2 / 3).prox(X, step), above(threshold, u), 1e-10)


@every_step
@pytest.mark.parametrize("knot", [0.3, 1.0, 3.0])
def test_mcp_is_firm_thresholding_or_jumps(knot: float, step: float) -> None:
    if step < knot:
        firm = torch.where(t <= knot, (t - step) / (1 - step / knot), t)
        agree(MCP(knot).prox(X, step), above(step, firm))
    else:
        agree(MCP(knot).prox(X, step), hard(math.sqrt(knot * step)))


@every_step
@pytest.mark.parametrize(("level", "a"), [(1.0, 3.7), (0.5, 2.1), (0.2, 6.0)])
def test_scad_has_the_three_pieces_of_fan_and_li_in_every_regime(
    level: float, a: float, step: float
) -> None:
    """The papers' SCAD with `lam = level` inside is `level` times ours, at `step / level`."""
    penalty, ours = SCAD(level, a * level), step * level
    if a > 1 + step:
        middle = ((a - 1) * t - a * step * level) / (a - 1 - step)
        three = torch.where(t <= (1 + step) * level, t - step * level, middle)
        expected = above(step * level, torch.where(t <= a * level, three, t))
    elif step < a + 1:
        low = torch.where(t <= level * (a + 1 + step) / 2, t - step * level, t)
        expected = above(step * level, low)
    else:
        expected = hard(level * math.sqrt(step * (a + 1)))
    agree(penalty.prox(X, ours), expected)


@every_step
@pytest.mark.parametrize("eps", [0.05, 0.5, 3.0])
def test_log_sum_takes_the_larger_root_or_zero(eps: float, step: float) -> None:
    root = ((t - eps) + ((t + eps) ** 2 - 4 * step).clamp(min=0).sqrt()) / 2
    cost = step * torch.log1p(root / eps) + (root - t) ** 2 / 2
    real = ((t + eps) ** 2 >= 4 * step) & (root > 0) & (cost < t**2 / 2)
    agree(LogSum(eps).prox(X, step), torch.where(real, X.sign() * root, 0.0))


def coded(name: str, s: float, a: float, x: Tensor) -> Tensor:
    """What the code of network slimming with nonconvex penalties adds to a gradient."""
    t, sign = x.abs(), x.sign()
    if name == "l1":
        return s * sign
    if name == "lp":
        return s * a * sign / t ** (1 - a)
    if name == "Tl1":
        return s * a * (a + 1) * sign / (a + t) ** 2
    if name == "MCP":
        return torch.where(t <= a * s, sign * (s - t / a), 0.0)
    middle = torch.where(t <= a * s, (a * s * sign - x) / (a - 1), 0.0)
    return torch.where(t <= s, s * sign, middle)


@pytest.mark.parametrize(
    ("name", "make", "s", "a"),
    [
        ("l1", lambda s, a: L1(), 1e-4, 0.0),
        ("lp", lambda s, a: Lp(a), 1e-4, 0.5),
        ("Tl1", lambda s, a: TransformedL1(a), 1e-4, 1.0),
        ("MCP", lambda s, a: MCP(a * s), 1e-4, 15_000.0),
        ("MCP", lambda s, a: MCP(a * s), 0.5, 3.0),
        ("SCAD", lambda s, a: SCAD(s, a * s), 1e-4, 10_000.0),
        ("SCAD", lambda s, a: SCAD(s, a * s), 0.7, 3.7),
    ],
    ids=lambda x: "" if callable(x) else str(x),
)
def test_lam_times_the_subgradient_is_what_the_papers_code_adds(
    name: str, make: Callable[[float, float], Penalty], s: float, a: float
) -> None:
    x = X[X != 0]
    ours = s * make(s, a).subgradient(x)
    torch.testing.assert_close(ours, coded(name, s, a, x), rtol=1e-12, atol=1e-15)


def high_precision_prox(mp: Any, x: float, step: float, a: float) -> float:
    """The best of zero and the stationary points of transformed l1, in 40 digits."""
    t, step, a = mp.mpf(abs(x)), mp.mpf(step), mp.mpf(a)
    # (t - u) (a + u)^2 = step a (a + 1)
    roots = mp.polyroots(
        [-1, t - 2 * a, 2 * a * t - a * a, t * a * a - step * a * (a + 1)],
        maxsteps=500, extraprec=200,
    )  # fmt: skip
    candidates = [mp.mpf(0)] + [
        mp.re(u) for u in roots if abs(mp.im(u)) < mp.mpf(10) ** -20 and 0 < mp.re(u) <= t
    ]

    def cost(u: Any) -> Any:
        return step * (a + 1) * u / (a + u) + (u - t) ** 2 / 2

    return math.copysign(float(min(candidates, key=cost)), x)


@pytest.mark.parametrize("a", [0.01, 0.1, 1.0, 10.0, 100.0, 1e3, 1e4])
@pytest.mark.parametrize("step", [1e-3, 0.1, 1.0])
def test_transformed_l1_in_float32_is_within_2e_7_of_its_input(a: float, step: float) -> None:
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(40):
        threshold = TransformedL1(a).numbers(step)[0]
        factors = torch.tensor([0.2, 0.9, 0.999, 1.001, 1.01, 1.1, 1.5, 3.0, 20.0, -1.02, -4.0])
        x = threshold * factors
        exact = [high_precision_prox(mpmath, value, step, a) for value in x.tolist()]
    ours = TransformedL1(a).prox(x, step)
    assert ours.dtype == torch.float32
    error = (ours.double() - torch.tensor(exact).double()).abs()
    assert (error <= 2e-7 * x.double().abs()).all()


@pytest.mark.parametrize("a", [0.01, 0.5, 1.0, 10.0, 1e4])
@pytest.mark.parametrize("factor", [1e-3, 0.05, 0.5, 0.99, 1.01, 2.0, 50.0, 1e4])
def test_the_quick_shrinkage_of_transformed_l1_is_close_to_the_accurate_one(
    a: float, factor: float
) -> None:
    step = factor * a * a / (2 * (a + 1))
    threshold = TransformedL1(a).numbers(step)[0]
    x = torch.linspace(-5 * threshold, 5 * threshold, 4001).double()
    away = (x.abs() / threshold - 1).abs() > 1e-4
    quick, accurate = TransformedL1(a).shrinkage(x, step), x - TransformedL1(a).prox(x, step)
    assert ((quick - accurate).abs() <= 2e-6 * threshold)[away].all()


@pytest.mark.parametrize("function", ["value", "prox"])
def test_compiled_functions_agree(function: str) -> None:
    penalty = TransformedL1(0.5)
    x = torch.randn(40, requires_grad=function == "value")
    eager: Any = penalty.value if function == "value" else lambda x: penalty.prox(x, 0.3)
    torch._dynamo.reset()
    compiled = torch.compile(eager, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), eager(x))
    if function == "value":
        (ours,) = torch.autograd.grad(compiled(x), x)
        torch.testing.assert_close(ours, penalty.subgradient(x.detach()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Lp(0.0), r"Lp needs 0 < p < 1, got p=0\.0. For p=0 there is L0"),
        (lambda: Lp(1.0), r"got p=1\.0"),
        (lambda: Lp(math.nan), "got p=nan"),
        (lambda: TransformedL1(0.0), r"TransformedL1 needs a finite a > 0, got a=0\.0"),
        (lambda: TransformedL1(-1.0), r"got a=-1\.0"),
        (lambda: TransformedL1(math.inf), "got a=inf"),
        (lambda: TransformedL1(math.nan), "got a=nan"),
        (lambda: MCP(0.0), r"MCP needs a finite knot > 0, got knot=0\.0"),
        (lambda: SCAD(1.0, 1.0), r"SCAD needs 0 < knee < knot, got knee=1\.0 and knot=1\.0"),
        (lambda: SCAD(0.0, 1.0), r"got knee=0\.0"),
        (lambda: SCAD(1.0, math.inf), "knot=inf"),
        (lambda: SCAD(1.0, math.nan), "knot=nan"),
        (lambda: LogSum(0.0), r"LogSum needs a finite eps > 0, got eps=0\.0"),
    ],
)
def test_parameters_out_of_range_are_named(make: Callable[[], Penalty], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
