"""The laws that every penalty obeys, by brute force."""

import inspect
import math
from dataclasses import fields
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
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
    GroupLasso(weighted=True),
    Grouped(L0(), weighted=True),
    Grouped(TransformedL1(0.5), weighted=True),
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
    SparseGroup(L1(), GroupLasso(weighted=True), group_weight=0.4),
    SparseGroup(L1(), Grouped(L0(), weighted=True)),
    SparseGroup(L0(), GroupLasso(weighted=True)),
    SparseGroup(L0(), Grouped(MCP(1.0), weighted=True)),
    SparseGroup(L1MinusL2(1.0), GroupLasso(weighted=True), group_weight=0.5),
]
TENSOR = [
    *(L1MinusL2(alpha) for alpha in (0.0, 0.3, 1.0)),
    *(L0Ball(amount) for amount in (0.0, 0.34, 0.67)),
]
PENALTIES: list[Penalty] = [*ENTRIES, *ROWS, *TENSOR]
METRIC = [penalty for penalty in PENALTIES if penalty.has_metric_prox]
EUCLIDEAN = [penalty for penalty in PENALTIES if not penalty.has_metric_prox]
STEPS = [1e-3, 1e-2, 0.1, 0.3, 1.0, 3.0, 10.0]

every_penalty = pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
every_step = pytest.mark.parametrize("step", STEPS)
every_metric_penalty = pytest.mark.parametrize("penalty", METRIC, ids=repr)


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
    for x in vectors(size):
        u = penalty.prox(shaped(penalty, x), step).reshape(-1)
        no_point_beats(u, penalty, x, torch.full_like(x, step))


@pytest.mark.parametrize("penalty", [p for p in ROWS if p.has_metric_prox], ids=repr)
@pytest.mark.parametrize("scale", [1e-2, 1.0])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_point_beats_the_prox_with_one_step_per_entry(
    penalty: Penalty, scale: float, size: int
) -> None:
    for uneven in ([1.0, 0.3, 3.0], [0.02, 5.0, 0.3], [1e-8, 1e4, 0.5], [2.0, 1e6, 1e9]):
        step = scale * torch.tensor(uneven[:size]).double()
        for x in vectors(size):
            u = penalty.prox(shaped(penalty, x), shaped(penalty, step)).reshape(-1)
            no_point_beats(u, penalty, x, step)


def no_point_beats(u: Tensor, penalty: Penalty, x: Tensor, step: Tensor) -> None:
    """The box from 0 to x with all its faces, on a grid that closes in on its best point."""
    size, axis = len(x), torch.linspace(0, 1, 25).double()
    least = step.min()  # the scale of the cost

    def cost(points: Tensor) -> Tensor:
        return least * (values(penalty, points) + ((points - x).square() / step).sum(1) / 2)

    ours = cost(u[None])
    low, high = torch.zeros(size).double(), torch.ones(size).double()
    for _ in range(5):
        axes = [torch.cat([axis[:1], a + (b - a) * axis]) for a, b in zip(low, high, strict=True)]
        points = torch.cartesian_prod(*axes).reshape(-1, size) * x
        costs = cost(points)
        assert ours <= costs.min() + 1e-9 * least.clamp(max=1)
        best, reach = (points[costs.argmin()] / x).nan_to_num(), (high - low) / 8
        low, high = (best - reach).clamp(min=0), (best + reach).clamp(max=1)


@pytest.mark.parametrize("penalty", ENTRIES, ids=repr)
def test_every_entry_has_its_own_step(penalty: Elementwise) -> None:
    """Three hundred entries, each against its own prox, in every regime and past all scales."""
    generator = torch.Generator().manual_seed(5)
    step = 10 ** (10 * torch.rand(300, generator=generator).double() - 5)
    step[:3] = torch.tensor([1e12, 1e30, 2.0])
    thresholds = torch.tensor([penalty.numbers(s)[0] for s in step.tolist()]).double()
    x = thresholds * 3 * torch.randn(300, generator=generator).double()
    ours = penalty.prox(x, step)
    alone = torch.stack([penalty.prox(a, s) for a, s in zip(x, step.tolist(), strict=True)])
    torch.testing.assert_close(ours, alone, rtol=1e-12, atol=0)
    assert 30 < (ours == 0).sum() < 270


@every_metric_penalty
@every_step
def test_equal_steps_are_one_step(penalty: Penalty, step: float) -> None:
    x = 3 * torch.randn(100, 3, generator=torch.Generator().manual_seed(6)).double()
    for method in (penalty.prox, penalty.shrinkage):
        ours = method(x, torch.full_like(x, step))
        torch.testing.assert_close(ours, method(x, step), rtol=1e-12, atol=3e-6 * step)
    assert torch.equal(penalty.prox(x, torch.full_like(x, step)) == 0, penalty.prox(x, step) == 0)


@every_metric_penalty
def test_the_fast_shrinkage_agrees_with_the_prox_for_one_step_per_entry(penalty: Penalty) -> None:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(300, 5, generator=generator)
    step = 10 ** (8 * torch.rand(300, 5, generator=generator) - 6)
    step[0], step[1, 0], step[2, 0] = 1e5, 1e30, 3e38
    expected = x.double() - penalty.prox(x.double(), step.double())
    error = (penalty.shrinkage(x, step) - expected).abs()
    assert (error <= 2e-6 * x.norm(dim=-1, keepdim=True)).double().mean() > 0.98
    for dtype in (torch.float16, torch.bfloat16):
        for kind in (dtype, torch.float32):
            removed = penalty.shrinkage(x.to(dtype), step.clamp(max=6e4).to(kind))
            assert removed.dtype == dtype
            assert removed.isfinite().all()


@every_metric_penalty
def test_one_step_per_entry_is_odd_rounded_once_and_keeps_nan(penalty: Penalty) -> None:
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(8))
    step = x.flip(0).square() + 1e-3
    u = penalty.prox(x, step)
    assert torch.equal(penalty.prox(-x, step), -u)
    assert torch.equal(u, penalty.prox(x.double(), step.double()).float())
    assert not penalty.prox(torch.zeros(40, 5), step).any()
    assert penalty.prox(torch.full_like(x, math.nan), step).isnan().all()
    assert penalty.shrinkage(x[:0], step[:0]).shape == (0, 5)
    assert penalty.prox(x[:0], step[:0]).shape == (0, 5)


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


@every_penalty
def test_the_subgradient_in_float32_is_close_to_the_one_in_float64(penalty: Penalty) -> None:
    x = torch.randn(50, 5, generator=torch.Generator().manual_seed(9))
    torch.testing.assert_close(
        penalty.subgradient(x), penalty.subgradient(x.double()).float(), rtol=1e-5, atol=1e-6
    )


@every_metric_penalty
@pytest.mark.parametrize("bad", [0.0, -0.5, math.nan, math.inf])
def test_a_step_of_an_entry_out_of_range_is_refused(penalty: Penalty, bad: float) -> None:
    step = torch.tensor([[1.0, 1.0], [bad, 1.0]])
    with pytest.raises(ValueError, match=rf"needs finite steps > 0, got step={bad}\."):
        penalty.prox(torch.ones(2, 2), step)


@every_metric_penalty
@pytest.mark.parametrize("method", ["prox", "shrinkage"])
def test_steps_that_do_not_fit_are_refused(penalty: Penalty, method: str) -> None:
    call = getattr(penalty, method)
    with pytest.raises(ValueError, match=r"of the shape \(2, 2\) of x.* of shape \(2,\) on cpu"):
        call(torch.ones(2, 2), torch.ones(2))
    with pytest.raises(ValueError, match=r"got torch\.int64 of shape"):
        call(torch.ones(2, 2), torch.ones(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="on meta"):
        call(torch.ones(2, 2), torch.ones(2, 2, device="meta"))


@pytest.mark.parametrize("penalty", EUCLIDEAN, ids=repr)
@pytest.mark.parametrize("method", ["prox", "shrinkage"])
def test_one_step_per_entry_is_refused_where_no_exact_prox_is_known(
    penalty: Penalty, method: str
) -> None:
    name = type(penalty).__name__
    with pytest.raises(ValueError, match=rf"{name}.* no exact prox with one step .*use SGD"):
        getattr(penalty, method)(torch.ones(2, 2), torch.ones(2, 2))


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


def written(penalty: Penalty) -> dict[str, Any]:
    """A penalty as a configuration file has it."""
    numbers = {f.name: getattr(penalty, f.name) for f in fields(penalty)}  # type: ignore[arg-type]
    plain = {k: written(x) if isinstance(x, Penalty) else x for k, x in numbers.items()}
    return {"class_path": type(penalty).__name__, "init_args": plain}


def test_every_penalty_can_be_given_in_a_configuration() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--penalty", type=Penalty)
    make = parser.instantiate if hasattr(parser, "instantiate") else parser.instantiate_classes
    for penalty in PENALTIES:
        read = parser.parse_object({"penalty": written(penalty)})
        assert make(read).penalty == penalty
