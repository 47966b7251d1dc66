"""Penalties on rows and tensors against the formulas of the papers, one row at a time."""

import math
from collections.abc import Callable, Iterable, Iterator
from decimal import Context, Decimal, localcontext

import pytest
import torch
from torch import Tensor

from lightning_sparsity.penalties import (
    L0,
    L1,
    MCP,
    SCAD,
    ExclusiveLasso,
    Grouped,
    GroupLasso,
    L1MinusL2,
    Lp,
    Penalty,
    SparseGroup,
    TransformedL1,
)

ROWS = torch.tensor(
    [
        [0.0, 0.0, 0.0, 0.0],
        [0.1, -0.2, 0.05, 0.0],
        [1.0, -1.0, 1.0, -1.0],
        [-3.0, 0.5, 0.2, 2.0],
        [0.0, 0.0, -1.7, 0.0],
        [4.0, 4.0, -0.1, 0.3],
    ]
).double()
STEPS = [0.05, 0.4, 1.0, 2.5]
every_step = pytest.mark.parametrize("step", STEPS)


def soft(y: Tensor, step: float) -> Tensor:
    return y.sign() * (y.abs() - step).clamp(min=0)


def group_soft(y: Tensor, step: float) -> Tensor:
    return y * max(0.0, 1 - step / y.norm().item()) if y.any() else y


def each(rows: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(rows))


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@every_step
def test_group_lasso_shortens_every_row(step: float) -> None:
    close(GroupLasso().prox(ROWS, step), each(group_soft(y, step) for y in ROWS))
    close(Grouped(L1()).prox(ROWS, step), GroupLasso().prox(ROWS, step))
    assert GroupLasso().value(ROWS).item() == pytest.approx(sum(y.norm().item() for y in ROWS))


def decimal_theta(x: list[float], step: list[float]) -> Decimal:
    """The root of `sum (x / (theta + step))^2 = 1` by bisection in fifty digits, or zero."""
    pairs = [(Decimal(a), Decimal(s)) for a, s in zip(x, step, strict=True)]

    def excess(theta: Decimal) -> Decimal:
        return sum(((a / (theta + s)) ** 2 for a, s in pairs), Decimal(-1))

    low, high = Decimal(0), sum((abs(a) for a, _ in pairs), Decimal(0))
    if excess(low) <= 0:
        return low
    while high - low > high * Decimal(10) ** -20:
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high


def rows_with_steps() -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for i in range(300):
        x = torch.randn(6, generator=generator).double() * 10.0 ** (i % 4 - 2)
        share = torch.rand(6, generator=generator).double()
        yield x, 10 ** (12 * share - 8) if i % 2 else x.norm() * (0.5 + share)
    uneven = torch.tensor([1e-8, 1e4, 1.0, 1e-3, 1e2, 1e30]).double()
    yield torch.tensor([1e-9, 9e3, 0.1, 0.0, 0.0, 1.0]).double(), uneven
    yield torch.tensor([1e-7, 9999.0, 0.0, 0.0, 0.0, 0.0]).double(), uneven
    yield torch.zeros(6).double(), uneven


def test_group_lasso_with_one_step_per_entry_is_the_root_to_1e_10() -> None:
    cases = list(rows_with_steps())
    x, step = (each(tensors) for tensors in zip(*cases, strict=True))
    ours, removed = GroupLasso().prox(x, step), GroupLasso().shrinkage(x, step)
    zeros = 0
    with localcontext(Context(prec=50)):
        for a, s, u, d in zip(x.tolist(), step.tolist(), ours, removed, strict=True):
            theta = decimal_theta(a, s)
            zeros += theta == 0
            exact = [Decimal(y) * theta / (theta + Decimal(t)) for y, t in zip(a, s, strict=True)]
            taken = [Decimal(y) - v for y, v in zip(a, exact, strict=True)]
            for mine, right in ((u, exact), (d, taken)):
                expected = torch.tensor([float(v) for v in right], dtype=torch.float64)
                torch.testing.assert_close(mine, expected, rtol=1e-10, atol=0)
    assert 30 < zeros < 270


def test_a_row_at_the_threshold_vanishes_and_one_above_it_hardly_survives() -> None:
    x = torch.tensor([[3.0, 4.0], [6.0, 0.0], [3.0, 0.0], [0.0, 8.0]]).double()
    step = torch.tensor([[5.0, 5.0], [6.0, 1e-8], [3.0, 1e4], [1e-8, 8.0]]).double()
    assert not GroupLasso().prox(x, step).any()
    assert torch.equal(GroupLasso().shrinkage(x, step), x)
    above = GroupLasso().prox(x * (1 + 1e-9), step).norm(dim=1)
    torch.testing.assert_close(above, 1e-9 * x.norm(dim=1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("weighted", [False, True])
def test_group_l0_with_one_step_per_entry_weighs_the_squares(weighted: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(300, 4, generator=generator).double()
    step = 10 ** (2 * torch.rand(300, 4, generator=generator).double() - 1)
    gain = (x.square() / step).sum(1, keepdim=True) / 2
    kept = gain > (2 if weighted else 1)
    assert torch.equal(Grouped(L0(), weighted).prox(x, step), torch.where(kept, x, 0.0))
    assert 30 < kept.sum() < 270


def test_the_exclusive_lasso_with_one_step_per_entry_solves_its_equations() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(300, 5, generator=generator).double()
    step = 10 ** (6 * torch.rand(300, 5, generator=generator).double() - 3)
    u = ExclusiveLasso().prox(x, step)
    level = step * u.abs().sum(1, keepdim=True)
    close(u, x.sign() * (x.abs() - level).clamp(min=0))
    assert 300 < (u == 0).sum() < 1200


@every_step
@pytest.mark.parametrize(
    "make", [GroupLasso, lambda weighted: Grouped(TransformedL1(0.5), weighted)], ids=["l1", "tl1"]
)
def test_weighted_rows_count_by_the_root_of_their_entries(
    make: Callable[[bool], Penalty], step: float
) -> None:
    plain, weighted = make(False), make(True)
    close(weighted.value(ROWS), 2 * plain.value(ROWS))
    close(weighted.subgradient(ROWS), 2 * plain.subgradient(ROWS))
    close(weighted.prox(ROWS, step), plain.prox(ROWS, 2 * step))
    close(weighted.shrinkage(ROWS, step), plain.shrinkage(ROWS, 2 * step))
    close(SparseGroup(L1(), weighted, 0.3).value(ROWS), SparseGroup(L1(), plain, 0.6).value(ROWS))


@every_step
def test_group_l0_keeps_long_rows_untouched(step: float) -> None:
    kept = each(y if y.norm() > math.sqrt(2 * step) else 0 * y for y in ROWS)
    close(Grouped(L0()).prox(ROWS, step), kept)
    assert Grouped(L0()).value(ROWS) == 5


@every_step
@pytest.mark.parametrize(
    "penalty", [TransformedL1(0.5), MCP(1.0), SCAD(0.5, 2.0), Lp(0.5)], ids=repr
)
def test_a_grouped_penalty_acts_on_lengths_along_the_row(penalty: Penalty, step: float) -> None:
    def shortened(y: Tensor) -> Tensor:
        length = y.norm()
        return y if length == 0 else y / length * penalty.prox(length, step)

    close(Grouped(penalty).prox(ROWS, step), each(map(shortened, ROWS)))


@pytest.mark.parametrize(
    "penalty", [GroupLasso(), Grouped(L0()), SparseGroup(L1(), GroupLasso())], ids=repr
)
def test_a_row_of_one_is_an_entry(penalty: Penalty) -> None:
    x = torch.linspace(-2, 2, 41).double().view(-1, 1)
    entries = {"GroupLasso": L1(), "Grouped": L0()}.get(type(penalty).__name__)
    expected = soft(x, 0.6) if entries is None else entries.prox(x, 0.3)
    close(penalty.prox(x, 0.3), expected)


@every_step
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_l1_minus_l2_is_the_prox_of_lou_and_yan(alpha: float, step: float) -> None:
    for y in ROWS:
        largest = y.abs().max().item()
        if largest > step:
            z = soft(y, step)
            expected = z * (z.norm() + alpha * step) / z.norm()
        else:
            expected = torch.zeros_like(y)
            if largest > (1 - alpha) * step:
                i = y.abs().argmax()
                expected[i] = y[i].sign() * (largest + (alpha - 1) * step)
        if largest == step:  # a whole set of minimisers: any is as good
            continue
        close(L1MinusL2(alpha).prox(y, step), expected)
        value = y.abs().sum() - alpha * y.norm()
        close(L1MinusL2(alpha).value(y), value)


def test_l1_minus_l2_keeps_the_largest_magnitude_and_not_the_largest_number() -> None:
    u = L1MinusL2().prox(torch.tensor([0.1, -0.5, 0.3]), 0.8)
    assert u.tolist() == [0.0, -0.5, 0.0]


@every_step
def test_the_exclusive_lasso_thresholds_each_row_at_its_own_level(step: float) -> None:
    def by_hand(y: Tensor) -> Tensor:
        ranked = y.abs().sort(descending=True).values.tolist()
        levels = [step * sum(ranked[:n]) / (1 + step * n) for n in range(1, len(ranked) + 1)]
        last = [n for n, level in enumerate(levels) if ranked[n] > level]
        return soft(y, levels[last[-1]]) if last else 0 * y

    close(ExclusiveLasso().prox(ROWS, step), each(map(by_hand, ROWS)))
    value = sum(y.abs().sum().item() ** 2 for y in ROWS) / 2
    assert ExclusiveLasso().value(ROWS).item() == pytest.approx(value)


@every_step
@pytest.mark.parametrize("weight", [0.3, 2.0])
def test_the_sparse_group_lasso_thresholds_entries_first(weight: float, step: float) -> None:
    ours = SparseGroup(L1(), GroupLasso(), weight).prox(ROWS, step)
    close(ours, each(group_soft(soft(y, step), weight * step) for y in ROWS))


@every_step
@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_l0_with_a_group_lasso_keeps_the_best_number_of_entries(weight: float, step: float) -> None:
    def by_hand(y: Tensor) -> Tensor:
        order = y.abs().argsort(descending=True)
        gains = [
            max(y[order[:k]].norm().item() - weight * step, 0) ** 2 / 2 - step * k
            for k in range(len(y) + 1)
        ]
        kept = torch.zeros_like(y)
        best = order[: gains.index(max(gains))]
        kept[best] = y[best]
        return group_soft(kept, weight * step)

    close(SparseGroup(L0(), GroupLasso(), weight).prox(ROWS, step), each(map(by_hand, ROWS)))


@every_step
@pytest.mark.parametrize("weight", [0.3, 2.0])
def test_l1_minus_l2_with_a_group_lasso_gains_less(weight: float, step: float) -> None:
    def by_hand(y: Tensor) -> Tensor:
        gain, largest = 0.8 * step - weight * step, y.abs().max().item()
        z = soft(y, step)
        if largest > step:
            return z * max(z.norm().item() + gain, 0.0) / z.norm()
        u = torch.zeros_like(y)
        if gain > 0 and largest > step - gain:
            i = y.abs().argmax()
            u[i] = y[i].sign() * (largest - step + gain)
        return u

    penalty = SparseGroup(L1MinusL2(0.8), GroupLasso(), weight)
    rows = ROWS[[y.abs().max().item() != step for y in ROWS]]
    close(penalty.prox(rows, step), each(map(by_hand, rows)))


@pytest.mark.parametrize(
    "element", [TransformedL1(1.0), MCP(1.0), SCAD(1.0, 3.7), Lp(0.5)], ids=repr
)
@pytest.mark.parametrize("group", [GroupLasso(), Grouped(L0())], ids=repr)
def test_sums_without_an_exact_prox_are_refused_by_name(element: Penalty, group: Penalty) -> None:
    penalty = SparseGroup(element, group)
    name = type(element).__name__
    with pytest.raises(ValueError, match=rf"no exact prox for {name}.*Use splitting"):
        penalty.prox(ROWS, 0.1)
    expected = element.value(ROWS) + group.value(ROWS)
    close(penalty.value(ROWS), expected)
    assert penalty.subgradient(ROWS).isfinite().all()


def test_l1_minus_l2_with_another_group_penalty_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no exact prox for L1MinusL2\(alpha=1.0\) with Grouped"):
        SparseGroup(L1MinusL2(), Grouped(L0())).prox(ROWS, 0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L1MinusL2(-0.1), r"L1MinusL2 needs 0 <= alpha <= 1, got alpha=-0\.1"),
        (lambda: L1MinusL2(1.1), r"got alpha=1\.1"),
        (lambda: L1MinusL2(math.nan), "got alpha=nan"),
        (
            lambda: Grouped(GroupLasso()),
            r"needs an elementwise penalty.*got GroupLasso\(.*\), which",
        ),
        (lambda: Grouped(L1MinusL2()), "which acts on tensor"),
        (
            lambda: SparseGroup(GroupLasso(), GroupLasso()),
            r"on entries as element, got GroupLasso\(",
        ),
        (lambda: SparseGroup(L1(), L1()), r"GroupLasso\(\) or Grouped\(...\) as group, got L1\(\)"),
        (lambda: SparseGroup(L1(), ExclusiveLasso()), r"as group, got ExclusiveLasso\(\)"),
        (
            lambda: SparseGroup(L1(), GroupLasso(), 0.0),
            r"finite group_weight > 0, got group_weight=0\.0",
        ),
        (lambda: SparseGroup(L1(), GroupLasso(), math.nan), "got group_weight=nan"),
    ],
)
def test_parameters_out_of_range_are_named(make: Callable[[], Penalty], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
