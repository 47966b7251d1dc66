"""Penalties on weights: subgradients, and proximal steps in the optimizer's metric."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_sparsity import groups, regularization
from lightning_sparsity.penalties import (
    L0,
    L1,
    ExclusiveLasso,
    Grouped,
    GroupLasso,
    L0Ball,
    L1MinusL2,
    Penalty,
    SparseGroup,
    TransformedL1,
)
from lightning_sparsity.regularization import (
    Metric,
    check,
    check_optimizer,
    measure,
    metric_of,
    proximal_step,
    push,
    rate_of,
    tiny_groups,
)
from lightning_sparsity.selection import rows

LASSO = SparseGroup(L1(), GroupLasso(weighted=True))
CASES: list[tuple[Penalty, int | None]] = [
    (L1(), None),
    (TransformedL1(1.0), None),
    (L1MinusL2(), None),
    (GroupLasso(), 0),
    (GroupLasso(), 1),
    (LASSO, 0),
    (ExclusiveLasso(), 1),
]
METRIC_CASES = [case for case in CASES if not isinstance(case[0], L1MinusL2)]


def weight(*shape: int) -> Tensor:
    return torch.randn(*(shape or (6, 5, 3, 3)), generator=torch.Generator().manual_seed(3))


def as_matrix(x: Tensor, axis: int | None) -> Tensor:
    return x if axis is None else x.movedim(axis, 0).flatten(1)


def as_weight(x: Tensor, like: Tensor, axis: int | None) -> Tensor:
    if axis is None:
        return x
    return x.view(like.movedim(axis, 0).shape).movedim(0, axis)


@pytest.fixture(params=[2**19, 20], ids=["whole", "in chunks"])
def _chunk(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "CHUNK", request.param)


@pytest.mark.usefixtures("_chunk")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("penalty", "axis"), CASES, ids=str)
def test_the_subgradient_is_added(penalty: Penalty, axis: int | None, layout: Any) -> None:
    w, gradient = weight().to(memory_format=layout), torch.ones(6, 5, 3, 3)
    slope = penalty.subgradient(as_matrix(w, axis))
    push(w, gradient, penalty, 0.3, axis=axis)
    torch.testing.assert_close(gradient, 1 + 0.3 * as_weight(slope, w, axis))


@pytest.mark.usefixtures("_chunk")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("penalty", "axis"), CASES, ids=str)
def test_a_proximal_step_is_the_prox(penalty: Penalty, axis: int | None, layout: Any) -> None:
    w = weight().to(memory_format=layout)
    expected = as_weight(penalty.prox(as_matrix(w, axis), 0.2), w, axis)
    died = proximal_step(w, penalty, 0.2, axis=axis)
    torch.testing.assert_close(w, expected)
    assert not died


@pytest.mark.usefixtures("_chunk")
@pytest.mark.parametrize(("penalty", "axis"), METRIC_CASES, ids=str)
def test_in_a_metric_every_entry_has_its_own_step(penalty: Penalty, axis: int | None) -> None:
    w, moment = weight(), weight().square() + 1e-3
    steps = 0.1 / ((moment / 0.5).sqrt() + 1e-8)
    expected = as_weight(penalty.prox(as_matrix(w, axis), as_matrix(steps, axis)), w, axis)
    proximal_step(w, penalty, 0.1, metric=Metric(moment, 0.5, 1e-8), axis=axis)
    torch.testing.assert_close(w, expected, rtol=1e-5, atol=1e-6)


def test_a_step_of_zero_changes_nothing() -> None:
    w = weight()
    proximal_step(w, L1(), 0.0, metric=Metric(torch.ones_like(w), 1.0, 0.0))
    assert torch.equal(w, weight())


@pytest.mark.usefixtures("_chunk")
@pytest.mark.parametrize("axis", [0, 1])
def test_the_longest_group_survives_a_step_that_is_too_large(axis: int) -> None:
    w = weight()
    assert proximal_step(w, GroupLasso(), 1e3, axis=axis)
    before, after = as_matrix(weight(), axis), as_matrix(w, axis)
    longest = before.norm(dim=1).argmax()
    assert torch.equal(after[longest], before[longest])
    assert after.count_nonzero() == after.shape[1]


def adam(**options: Any) -> Callable[..., torch.optim.Optimizer]:
    return lambda weights: torch.optim.Adam(weights, lr=0.05, **options)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.05),
    "momentum": lambda weights: torch.optim.SGD(weights, lr=0.02, momentum=0.9),
    "nesterov": lambda weights: torch.optim.SGD(weights, lr=0.02, momentum=0.9, nesterov=True),
    "dampening": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.5, dampening=0.5),
    "adam": adam(betas=(0.9, 0.99)),
    "amsgrad": adam(amsgrad=True),
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=0.05, weight_decay=0.0),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize(
    ("penalty", "axis", "lam"), [(L1(), None, 0.8), (GroupLasso(), 0, 1.8), (LASSO, 0, 0.4)]
)
def test_every_optimizer_ends_at_the_same_minimum(
    make: Any, penalty: Penalty, axis: int | None, lam: float
) -> None:
    r"""The minimum of $\tfrac12 \|w - a\|^2 + \lambda r(w)$ is `prox(a)`, in whichever metric."""
    target = weight(6, 4)
    w = nn.Parameter(target + 0.1)
    optimizer = make([w])
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)
    for _ in range(600):
        optimizer.zero_grad()
        (0.5 * (w - target).square().sum()).backward()
        optimizer.step()
        group = optimizer.param_groups[0]
        step = rate_of(optimizer, group) * lam
        metric = metric_of(optimizer, group, w)
        proximal_step(w.detach(), penalty, step, metric=metric, axis=axis)
        slower.step()
    expected = penalty.prox(target, lam)
    assert 0 < int(expected.eq(0).sum()) < expected.numel()
    assert torch.equal(w.eq(0), expected.eq(0))
    torch.testing.assert_close(w.detach(), expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}], ids=str)
def test_the_metric_is_the_one_of_adams_own_step(options: Any) -> None:
    w = nn.Parameter(weight(4, 3))
    optimizer = torch.optim.Adam([w], lr=0.01, betas=(0.0, 0.9), eps=1e-3, **options)
    for seed in range(3):
        w.grad = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
        before = w.detach().clone()
        optimizer.step()
    metric = metric_of(optimizer, optimizer.param_groups[0], w)
    assert metric is not None
    assert w.grad is not None
    moved = metric.steps(metric.moment, 0.01) * w.grad
    torch.testing.assert_close(before - moved, w.detach())


def test_a_weight_is_measured_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "CHUNK", 20)
    w = weight()
    w[2] = 0
    found = measure(w, GroupLasso(), axis=0)
    assert int(found.zeros) == 45
    assert found.entries == 270
    torch.testing.assert_close(found.penalty, GroupLasso().value(rows(w, "output_channels")))


def test_groups_close_to_zero_are_tiny_and_the_longest_one_never_is() -> None:
    w = weight(4, 10)
    w[1] = 1e-6
    w[2] = 0
    w[2, 0] = 9e-5
    assert tiny_groups(w, 0).tolist() == [False, True, True, False]
    assert tiny_groups(torch.full((3, 2), 1e-9), 1).tolist() == [False, True]


@pytest.mark.parametrize(
    ("penalty", "update", "message"),
    [
        (L1(), "prox", r"update must be one of subgradient, proximal, got 'prox'"),
        (L0(), "subgradient", r"L0\(\) has no slope to descend: use update='proximal'"),
        (Grouped(L0()), "subgradient", "has no slope to descend"),
        (L0Ball(0.5), "subgradient", "has no slope to descend"),
        (SparseGroup(TransformedL1(), GroupLasso()), "proximal", "no exact prox .* splitting"),
    ],
)
def test_a_penalty_and_an_update_that_do_not_fit_are_refused(
    penalty: Penalty, update: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check(penalty, update)


def test_an_optimizer_whose_metric_is_not_known_is_refused() -> None:
    optimizer = torch.optim.Rprop([nn.Parameter(weight())])
    with pytest.raises(ValueError, match=r"metric is known \(SGD, Adam, AdamW\), got Rprop"):
        check_optimizer(optimizer, L1())


@pytest.mark.parametrize("penalty", [L1MinusL2(), Grouped(TransformedL1()), L0Ball(0.5)], ids=repr)
def test_a_penalty_without_a_prox_in_adams_metric_is_refused(penalty: Penalty) -> None:
    w = [nn.Parameter(weight())]
    check_optimizer(torch.optim.SGD(w), penalty)
    with pytest.raises(ValueError, match=r"one step per entry"):
        check_optimizer(torch.optim.Adam(w), penalty)


@pytest.mark.parametrize("lam", [-1.0, float("nan"), float("inf")])
def test_strengths_out_of_range_are_refused(lam: float) -> None:
    with pytest.raises(ValueError, match=f"finite lam >= 0, got lam={lam}"):
        regularization.check_strength(lam)
