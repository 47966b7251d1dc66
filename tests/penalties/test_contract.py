"""The laws that every penalty obeys, by brute force."""

import inspect

import pytest
import torch
from torch import Tensor

from lightning_sparsity import penalties
from lightning_sparsity.penalties import (
    L0,
    L1,
    MCP,
    SCAD,
    ExclusiveLasso,
    Grouped,
    GroupLasso,
    L0Ball,
    L1MinusL2,
    LogSum,
    Lp,
    Penalty,
    SparseGroup,
    TransformedL1,
)
from lightning_sparsity.penalties.elementwise import Elementwise

ENTRIES: list[Elementwise] = [
    L0(),
    L1(),
    *(Lp(p) for p in (0.01, 0.1, 0.25, 0.5, 2 / 3, 0.75, 0.9, 0.99)),
    *(TransformedL1(a) for a in (0.01, 0.5, 1.0, 10.0, 100.0, 1e4)),
    *(MCP(knot) for knot in (0.05, 0.5, 2.0, 5000.0)),
    *(SCAD(knee, knot) for knee, knot in ((0.1, 0.37), (1.0, 2.1), (1.0, 3.7), (2.0, 12.0))),
    *(LogSum(eps) for eps in (0.01, 0.05, 0.3, 1.0, 3.0)),
]
ROWS = [
    GroupLasso(),
    Grouped(L0()),
    Grouped(L1()),
    Grouped(TransformedL1(0.5)),
    Grouped(MCP(1.0)),
    Grouped(SCAD(0.5, 2.0)),
    Grouped(Lp(0.5)),
    ExclusiveLasso(),
    SparseGroup(L1(), GroupLasso()),
    SparseGroup(L1(), Grouped(L0()), group_weight=0.3),
    SparseGroup(L1(), Grouped(TransformedL1(1.0))),
    SparseGroup(L1(), Grouped(SCAD(0.5, 2.0)), group_weight=2.0),
    SparseGroup(L0(), GroupLasso()),
    SparseGroup(L0(), Grouped(MCP(1.0)), group_weight=0.5),
    SparseGroup(L0(), Grouped(L0()), group_weight=2.0),
    SparseGroup(L1MinusL2(1.0), GroupLasso(), group_weight=0.5),
    SparseGroup(L1MinusL2(0.5), GroupLasso(), group_weight=2.0),
]
TENSOR = [
    *(L1MinusL2(alpha) for alpha in (0.0, 0.3, 1.0)),
    *(L0Ball(amount) for amount in (0.0, 0.34, 0.67)),
]
PENALTIES: list[Penalty] = [*ENTRIES, *ROWS, *TENSOR]
STEPS = [1e-3, 1e-2, 0.1, 0.3, 1.0, 3.0, 10.0]

every_penalty = pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
every_step = pytest.mark.parametrize("step", STEPS)


def shaped(penalty: Penalty, x: Tensor) -> Tensor:
    """`x` as `penalty` takes it: as it is, or as one row."""
    return x.reshape(1, -1) if penalty.acts == "rows" else x


def test_every_public_penalty_is_under_contract() -> None:
    public = {getattr(penalties, name) for name in penalties.__all__}
    concrete = {penalty for penalty in public if not inspect.isabstract(penalty)}
    assert concrete == {type(penalty) for penalty in PENALTIES}


@pytest.mark.parametrize("penalty", ENTRIES, ids=repr)
@every_step
def test_no_point_beats_the_prox_of_an_entry(penalty: Elementwise, step: float) -> None:
    around = torch.tensor([penalty.numbers(step)[0]]).double()
    x = torch.cat([torch.linspace(-14, 14, 57).double(), around + 1e-3, around * 0.999])
    u = penalty.prox(x, step)
    points = x[:, None] * torch.linspace(0, 1, 10_001).double()
    best = (step * penalty.rho(points.abs()) + (points - x[:, None]).square() / 2).amin(1)
    assert (step * penalty.rho(u.abs()) + (u - x).square() / 2 <= best + 1e-9).all()


@pytest.mark.parametrize("penalty", [*ROWS, *TENSOR], ids=repr)
@pytest.mark.parametrize("step", [1e-3, 0.1, 0.7, 2.5, 10.0])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_point_beats_the_prox_of_a_vector(penalty: Penalty, step: float, size: int) -> None:
    """The box from 0 to x with all its faces, on a grid that closes in on its best point."""
    axis = torch.linspace(0, 1, 25).double()
    for x in vectors(size):
        u = penalty.prox(shaped(penalty, x), step).reshape(-1)
        ours = step * penalty.value(shaped(penalty, u)) + (u - x).square().sum() / 2
        low, high = torch.zeros(size).double(), torch.ones(size).double()
        for _ in range(5):
            axes = [
                torch.cat([axis[:1], a + (b - a) * axis]) for a, b in zip(low, high, strict=True)
            ]
            points = torch.cartesian_prod(*axes).reshape(-1, size) * x
            cost = step * values(penalty, points) + (points - x).square().sum(1) / 2
            assert ours <= cost.min() + 1e-9
            best, reach = (points[cost.argmin()] / x).nan_to_num(), (high - low) / 8
            low, high = (best - reach).clamp(min=0), (best + reach).clamp(max=1)


def vectors(size: int) -> Tensor:
    drawn = 3 * torch.randn(3, size, generator=torch.Generator().manual_seed(size)).double()
    ties = torch.tensor([[1.5, -1.5, 1.5], [0.2, 2.0, -2.0], [0.0, 0.7, 0.0]]).double()
    return torch.cat([drawn, ties[:, :size]])


def values(penalty: Penalty, points: Tensor) -> Tensor:
    return torch.vmap(lambda point: penalty.value(shaped(penalty, point)))(points)


@every_penalty
def test_the_prox_of_zero_is_zero_and_a_step_of_zero_changes_nothing(penalty: Penalty) -> None:
    x = torch.randn(3, 4)
    assert not penalty.prox(torch.zeros(3, 4), 0.5).any()
    assert torch.equal(penalty.prox(x, 0.0), x)
    assert penalty.prox(x, 0.0) is not x


@every_penalty
@every_step
def test_the_prox_is_odd_and_never_longer_than_its_input(penalty: Penalty, step: float) -> None:
    x = 2 * torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    u = penalty.prox(x, step)
    assert torch.equal(penalty.prox(-x, step), -u)
    assert (u.abs() <= x.abs() + 1e-6).all() or penalty.acts != "entries"
    assert u.norm() <= x.norm() * (1 + 1e-6)


@every_penalty
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
def test_dtype_and_shape_are_kept(penalty: Penalty, dtype: torch.dtype) -> None:
    x = torch.randn(6, 3).to(dtype)
    for result in (penalty.prox(x, 0.1), penalty.subgradient(x), penalty.shrinkage(x, 0.1)):
        assert result.shape == x.shape
        assert result.dtype == dtype
        assert result.isfinite().all()
    assert penalty.value(x).shape == ()


@every_penalty
@every_step
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_lower_precision_is_the_float64_prox_rounded_once(
    penalty: Penalty, step: float, dtype: torch.dtype
) -> None:
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(1)).to(dtype)
    exact = penalty.prox(x.double(), step)
    assert torch.equal(penalty.prox(x, step), exact.to(dtype))


@every_penalty
@every_step
def test_the_fast_shrinkage_agrees_with_the_prox(penalty: Penalty, step: float) -> None:
    x = torch.randn(64, 5, generator=torch.Generator().manual_seed(2))
    for dtype in (torch.float32, torch.float64):
        expected = x.double() - penalty.prox(x.double(), step)
        error = (penalty.shrinkage(x.to(dtype), step) - expected).abs()
        close = error <= 2e-6 * x.norm(dim=-1, keepdim=True)
        # At a jump, the last bit of a float32 decides between two answers that are equally good.
        assert close.all() if dtype == torch.float64 else close.double().mean() > 0.98


@pytest.mark.parametrize("penalty", ENTRIES, ids=repr)
@every_step
def test_a_prox_that_is_not_zero_is_a_stationary_point(penalty: Penalty, step: float) -> None:
    """The optimality condition `u + step * r'(u) = x`, to float64."""
    x = torch.linspace(0.001, 30, 4001).double()
    u = penalty.prox(x, step)
    residual = u + step * penalty.subgradient(u) - x
    assert (residual.abs()[u != 0] <= 1e-12 * x[u != 0].clamp(min=1)).all()


@every_penalty
def test_nan_stays_nan(penalty: Penalty) -> None:
    x = torch.tensor([[float("nan"), 1.0], [float("nan"), 1e-9]])
    assert penalty.prox(x, 0.1)[:, 0].isnan().all()


@every_penalty
def test_the_value_is_zero_at_zero_and_never_negative(penalty: Penalty) -> None:
    assert penalty.value(torch.zeros(3, 4)) == 0
    assert penalty.value(torch.randn(3, 4)) >= 0


@every_penalty
def test_autograd_of_the_value_is_the_subgradient(penalty: Penalty) -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(3)).double()
    x[0, 0] = 0.0
    x[1] = 0.0
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(penalty.value(x), x)
    assert gradient.isfinite().all()
    torch.testing.assert_close(
        gradient[x != 0], penalty.subgradient(x)[x != 0], rtol=1e-9, atol=1e-12
    )


@every_penalty
def test_the_subgradient_is_finite_everywhere_and_zero_at_zero(penalty: Penalty) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        x = torch.tensor([[0.0, 1e-45, -1e-38], [1.0, 1e30, -1e4], [0.0, 0.0, 0.0]]).to(dtype)
        x = x.clamp(torch.finfo(dtype).min, torch.finfo(dtype).max)
        gradient = penalty.subgradient(x)
        assert gradient.isfinite().all()
        assert not gradient[2].any()


@pytest.mark.parametrize("step", [-1e-9, float("nan"), float("inf")])
@every_penalty
def test_a_step_out_of_range_is_refused(penalty: Penalty, step: float) -> None:
    with pytest.raises(ValueError, match="finite step >= 0, got step="):
        penalty.prox(torch.ones(2, 2), step)


@every_penalty
def test_integers_are_refused(penalty: Penalty) -> None:
    with pytest.raises(ValueError, match=r"needs floating point numbers, got torch\.int64"):
        penalty.prox(torch.ones(2, 2, dtype=torch.int64), 0.1)


@pytest.mark.parametrize("penalty", ROWS, ids=repr)
def test_rows_are_asked_for_where_they_are_needed(penalty: Penalty) -> None:
    with pytest.raises(ValueError, match=r"acts on rows.*got shape \(2, 3, 4\)"):
        penalty.prox(torch.ones(2, 3, 4), 0.1)
