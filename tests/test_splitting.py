"""Relaxed splitting on tensors, without a Trainer."""

import itertools
import logging
import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_sparsity import groups, splitting
from lightning_sparsity.penalties import (
    L0,
    L1,
    MCP,
    SCAD,
    ExclusiveLasso,
    Grouped,
    GroupLasso,
    L1MinusL2,
    LogSum,
    Lp,
    Penalty,
    SparseGroup,
    TransformedL1,
)
from lightning_sparsity.splitting import compiles, measure, pull, split

ENTRIES = [L0(), L1(), Lp(0.5), TransformedL1(1.0), MCP(1.0), SCAD(0.5, 2.0), LogSum(0.3)]
ROWS = [
    GroupLasso(),
    Grouped(L0()),
    Grouped(TransformedL1(1.0)),
    SparseGroup(L1(), GroupLasso()),
    ExclusiveLasso(),
]
CASES = [
    *((penalty, None) for penalty in (*ENTRIES, L1MinusL2(0.5))),
    *((penalty, axis) for penalty in ROWS for axis in (0, 1)),
]
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 3).contiguous().transpose(0, 3),
    "with gaps": lambda x: x.repeat(1, 1, 1, 2)[..., ::2].copy_(x),
}
STEP = 0.3

every_case = pytest.mark.parametrize(("penalty", "axis"), CASES, ids=str)
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())


def weight(dtype: torch.dtype = torch.float32) -> Tensor:
    """Random numbers, with one output and one input channel so small that penalties drop them."""
    w = torch.randn(5, 4, 3, 6)
    w[0] *= 0.01
    w[:, 1] *= 0.01
    return w.to(dtype)


def copy_by_hand(w: Tensor, penalty: Penalty, axis: int | None) -> Tensor:
    """Row by row in float64, in the order of the indices."""
    w = w.double().contiguous()
    if axis is None:
        return penalty.prox(w, STEP)
    rows = [penalty.prox(row.reshape(1, -1), STEP).view(row.shape) for row in w.unbind(axis)]
    return torch.stack(rows, axis)


def close(ours: Tensor, theirs: Tensor, tolerance: float = 2e-6) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, check_dtype=False)


@every_case
@every_layout
def test_the_copy_is_the_prox_in_any_layout(
    penalty: Penalty, axis: int | None, layout: Callable[[Tensor], Tensor]
) -> None:
    w = layout(weight())
    before = w.clone()
    u = split(w, penalty, STEP, axis=axis)
    close(u, copy_by_hand(w, penalty, axis), 1e-6)
    assert torch.equal(u == 0, copy_by_hand(w, penalty, axis) == 0)
    assert (u == 0).any()
    assert torch.equal(w, before)
    if w.is_contiguous() or w.is_contiguous(memory_format=torch.channels_last):
        assert u.stride() == w.stride()


@every_case
@every_layout
@pytest.mark.parametrize("of_gradient", LAYOUTS.values(), ids=[f"into {n}" for n in LAYOUTS])
def test_the_pull_is_the_scaled_distance_in_any_layouts(
    penalty: Penalty,
    axis: int | None,
    layout: Callable[[Tensor], Tensor],
    of_gradient: Callable[[Tensor], Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    w, gradient = layout(weight()), of_gradient(weight())
    expected = gradient + 0.7 * (w - copy_by_hand(w, penalty, axis))
    whole, chunked = of_gradient(gradient), of_gradient(gradient.clone())
    before = w.clone()
    pull(w, chunked.copy_(gradient), penalty, STEP, 0.7, axis=axis)
    close(chunked, expected)
    monkeypatch.setattr(groups, "CHUNK", 100)
    whole = of_gradient(gradient.clone()).copy_(gradient)
    pull(w, whole, penalty, STEP, 0.7, axis=axis)
    close(whole, expected)
    assert torch.equal(w, before)


@every_case
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 2e-6), (torch.bfloat16, 0.05), (torch.float16, 0.01)],
    ids=str,
)
def test_the_pull_keeps_the_dtype(
    penalty: Penalty, axis: int | None, dtype: torch.dtype, tolerance: float
) -> None:
    w, target = weight(dtype), torch.zeros(5, 4, 3, 6, dtype=dtype)
    pull(w, target, penalty, STEP, 2.0, axis=axis)
    assert target.dtype == dtype
    expected = 2 * (w.double() - copy_by_hand(w, penalty, axis))
    # At a jump, a half precision number may fall to the other side.
    off = (target.double() - expected).abs() > tolerance * (1 + expected.abs())
    assert off.double().mean() < (0.02 if tolerance > 1e-3 else 1e-9)


@every_case
def test_a_weight_may_be_pulled_towards_its_own_copy(penalty: Penalty, axis: int | None) -> None:
    w = weight()
    expected = w - 0.25 * (w - copy_by_hand(w, penalty, axis))
    pull(w, w, penalty, STEP, -0.25, axis=axis)
    close(w, expected)


@every_case
def test_a_step_of_zero_pulls_nothing(penalty: Penalty, axis: int | None) -> None:
    target = weight()
    before = target.clone()
    pull(weight(), target, penalty, 0.0, 3.0, axis=axis)
    assert torch.equal(target, before)


@every_case
def test_the_measurement_is_that_by_hand(
    penalty: Penalty, axis: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "CHUNK", 50)
    w = weight(torch.float64)
    u = copy_by_hand(w, penalty, axis)
    found = measure(w, penalty, STEP, axis=axis)
    as_taken = u if axis is None else u.movedim(axis, 0).flatten(1)
    assert found.zeros == (u == 0).sum()
    assert found.entries == 360
    assert found.penalty.item() == pytest.approx(penalty.value(as_taken).item(), rel=1e-5)
    assert found.gap.item() == pytest.approx((w - u).square().sum().item(), rel=1e-5)


def test_zeros_are_counted_exactly_beyond_what_float32_holds() -> None:
    w = torch.zeros(1).expand(2**24 + 3)
    assert int(measure(w, L0(), STEP).zeros) == 2**24 + 3


class Allocations(TorchDispatchMode):
    """The largest number of bytes in new tensors that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[int, int]] = {}
        self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        given = {t.untyped_storage().data_ptr() for t in tree_leaves(args) if _is_tensor(t)}
        out = func(*args, **(kwargs or {}))
        for tensor in filter(_is_tensor, tree_leaves(out)):
            storage = tensor.untyped_storage()
            key = storage.data_ptr()
            if key in given and key not in self.alive:
                continue  # a view of what there was before
            users, size = self.alive.get(key, (0, storage.nbytes()))
            self.alive[key] = users + 1, size
            weakref.finalize(tensor, self._forget, key)
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return out

    def _forget(self, key: int) -> None:
        users, size = self.alive.pop(key)
        if users > 1:
            self.alive[key] = users - 1, size


def _is_tensor(x: object) -> bool:
    return isinstance(x, Tensor)


@pytest.mark.parametrize(
    ("penalty", "axis"),
    [(L0(), None), (L1(), None), (TransformedL1(1.0), None), (Grouped(L0()), 0), (GroupLasso(), 1)],
    ids=str,
)
def test_a_pull_makes_no_copy_of_the_weights(
    penalty: Penalty, axis: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "CHUNK", 2**14)
    w = torch.randn(1000, 2500)
    target = torch.zeros_like(w)
    with Allocations() as naive:
        target.add_(w - torch.where(w.abs() > 1, w, 0))
    assert naive.peak >= 4 * w.numel()
    with Allocations() as ours:
        pull(w, target, penalty, STEP, 0.5, axis=axis)
    assert 0 < ours.peak <= 6 * 4 * 2**14
    assert ours.peak < 0.04 * 4 * w.numel()


def test_the_chunks_are_a_small_part_of_a_large_network() -> None:
    w = torch.zeros(20_000_000)
    with Allocations() as ours:
        pull(w, w, TransformedL1(1.0), STEP, 0.5)
    assert ours.peak <= 6 * 4 * groups.CHUNK


@pytest.mark.parametrize(
    ("penalty", "axis"),
    [(penalty, None) for penalty in (*ENTRIES, L1MinusL2())] + [(p, 0) for p in ROWS[:3]],
    ids=str,
)
def test_the_alternating_iteration_never_increases_the_objective(
    penalty: Penalty, axis: int | None
) -> None:
    """The theorem of relaxed splitting, on a quadratic with Lipschitz constant 1."""
    lam, beta = 0.05, 0.5
    eta = 0.99 * 2 / (beta + 1)
    basis, _ = torch.linalg.qr(torch.randn(20, 20).double())
    hessian = basis * torch.linspace(0, 1, 20).double() @ basis.T
    w, goal = torch.randn(5, 4).double(), torch.randn(20).double()

    def objective(u: Tensor) -> float:
        away = w.flatten() - goal
        spring = beta / 2 * (w - u).square().sum()
        return float(away @ hessian @ away / 2 + lam * penalty.value(u) + spring)

    values = [objective(split(w, penalty, lam / beta, axis=axis))]
    for _ in range(100):
        gradient = (hessian @ (w.flatten() - goal)).view(w.shape)
        pull(w, gradient, penalty, lam / beta, beta, axis=axis)
        w -= eta * gradient
        values.append(objective(split(w, penalty, lam / beta, axis=axis)))
    assert values[-1] < values[0]
    # Training takes the shrinkage in its own precision; the series of Tl1 is good to 1e-6.
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(values))


@pytest.mark.parametrize(
    ("lam", "beta", "message"),
    [
        (-1.0, 1.0, r"finite lam >= 0, got lam=-1\.0"),
        (math.nan, 1.0, "finite lam >= 0, got lam=nan"),
        (1.0, 0.0, r"finite beta > 0, got beta=0\.0"),
        (1.0, math.inf, "finite beta > 0, got beta=inf"),
    ],
)
def test_strengths_out_of_range_are_named(lam: float, beta: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        splitting.check_strengths(lam, beta)


@pytest.fixture
def fresh_kernels() -> Iterator[None]:
    torch._dynamo.reset()
    splitting._kernel.cache_clear()
    yield
    splitting._kernel.cache_clear()
    torch._dynamo.reset()


@pytest.fixture
def compiler(fresh_kernels: None) -> None:
    if not compiles(torch.ones(4), L1(), 0.1):
        pytest.skip("torch.compile finds no C++ compiler")


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize(
    ("penalty", "steps"),
    # Both regimes of Tl1 in each of its two kernels: away from the critical step, and around it.
    [
        (L0(), (0.1, 0.2)),
        (TransformedL1(0.1), (1e-4, 4e-4, 0.5, 1.0)),
        (TransformedL1(1.0), (0.1, 0.2, 0.3, 0.6)),
    ],
    ids=["L0", "TransformedL1 by its series", "TransformedL1 by its sine"],
)
def test_one_compiled_kernel_serves_every_step_and_shape(
    penalty: Penalty, steps: tuple[float, ...], compiler: None
) -> None:
    assert compiles(weight(), penalty, steps[0])
    assert compiles(weight(), penalty, steps[0], in_place=True)
    before = graphs()
    shapes = [(9,), (4, 6), (3, 4, 1, 1), (7, 1, 3, 3), (2, 3, 4)]
    for shape, step in itertools.product(shapes, steps):
        w, target = torch.randn(shape), torch.randn(shape)
        expected = target.clone()
        pull(w, expected, penalty, step, 0.7 / len(shape))
        pull(w, target, penalty, step, 0.7 / len(shape), compiled=True)
        close(target, expected, 1e-6)
        moved = w.clone()
        pull(moved, moved, penalty, step, -0.1, compiled=True)
        pull(w, w, penalty, step, -0.1)
        close(moved, w, 1e-6)
    assert graphs() == before


def test_without_a_compiler_it_says_so_and_goes_on(
    fresh_kernels: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no g++ here\nand more lines")

    monkeypatch.setattr(torch, "compile", fails)
    with caplog.at_level(logging.WARNING):
        assert not compiles(weight(), TransformedL1(1.0), STEP)
    (record,) = caplog.records
    assert record.getMessage() == "The splitting step runs uncompiled: no g++ here"


@pytest.mark.parametrize(("penalty", "step"), [(GroupLasso(), STEP), (L0(), 0.0)], ids=str)
def test_there_is_no_kernel_for_rows_or_for_nothing(penalty: Penalty, step: float) -> None:
    assert not compiles(torch.randn(3, 4), penalty, step)


def test_what_has_no_kernel_runs_without_one() -> None:
    w, target = torch.randn(4, 5), torch.zeros(4, 5)
    pull(w, target, GroupLasso(), STEP, 1.0, axis=0, compiled=True)
    close(target, w - copy_by_hand(w, GroupLasso(), 0))
