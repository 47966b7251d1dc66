"""What a trace sees, what it reports, and what it leaves alone."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_sparsity import surgery

IMAGE = torch.randn(1, 3, 8, 8, dtype=torch.float64)


class Between(nn.Module):
    """A function between a norm and a convolution."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.function = function
        self.last = nn.LazyConv2d(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.norm(self.conv(x))))


def scaled_by_itself(x: Tensor) -> Tensor:
    return x * float(x.detach().abs().max())


def overwritten(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 2:4] = 1.0
    return x


def changed_through_a_view(x: Tensor) -> Tensor:
    left = x[:, :, 4:]
    left.mul_(2.0)
    return x


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2


def by_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(x.detach().numpy() * 2)


def by_rows(x: Tensor) -> Tensor:
    return torch.stack(list(x))


def compiled(x: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still around
        traced = torch.jit.trace(lambda x: x.flip(1), x)
    return traced(x)


OPAQUE: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "softmax": (lambda x: x.softmax(1), "softmax is not a function that channels"),
    "cumsum": (lambda x: x.cumsum(1), "cumsum is not a function that channels"),
    "sort": (lambda x: x.sort(1).values, "sort makes no floating"),
    "flip half": (
        lambda x: torch.cat([x[:, 4:], x[:, :4]], 1),
        "getitem moves channels by position",
    ),
    "mean": (lambda x: x - x.mean(1, keepdim=True), "mean works across channels"),
    "einsum": (
        lambda x: torch.einsum("nchw,dc->ndhw", x, torch.ones(8, 8).double()),
        "einsum is not",
    ),
    "functional": (
        lambda x: F.conv2d(x, torch.ones(8, 8, 1, 1).double()),
        "conv2d uses weights that",
    ),
    "position": (
        lambda x: x * torch.arange(8.0).double().view(8, 1, 1),
        "mul meets a tensor with one",
    ),
    "autograd function": (Doubled.apply, ""),
    "numpy": (by_numpy, "numpy takes values out of tensors"),
    "iteration": (by_rows, ""),
    "compiled": (compiled, "unseen code"),
    "item": (scaled_by_itself, ""),
    "setitem": (overwritten, "setitem is not a function"),
    "view": (changed_through_a_view, "mul changes a tensor through a view"),
    "where": (lambda x: torch.where(x > 0, x, x.exp()), "gt makes no"),
    "fold": (lambda x: x.reshape(-1, 8 * 36).reshape(1, 8, 6, 6), "view may count on"),
}


@pytest.mark.parametrize("gather", [True, False], ids=["gather", "no gather"])
@pytest.mark.parametrize("name", OPAQUE)
def test_what_cannot_be_followed_is_reported_and_stays_right(
    name: str, gather: bool, randomise: Any
) -> None:
    function, reason = OPAQUE[name]
    model = Between(function).double()
    model(IMAGE)
    flow = surgery.trace(randomise(model), IMAGE)
    assert reason in str(flow)
    plan = flow.plan({"norm": torch.arange(8) % 2 == 0}, gather=gather)
    small, masked = surgery.slim(model, plan), surgery.mask(model, plan)
    other = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    if name != "fold":
        torch.testing.assert_close(small(other), masked(other), rtol=1e-12, atol=1e-12)
    assert plan.proof is not None
    assert plan.proof <= 1e-12


def test_everything_frozen_is_listed_at_once() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.GroupNorm(2, 8),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.Softmax(1),
        nn.Conv2d(8, 2, 1),
    )
    report = str(surgery.trace(model.double(), IMAGE))
    for line in ("1: group_norm is not", "3: softmax is not"):
        assert line in report
    assert "8 channels" in report


def test_a_trace_leaves_the_model_alone() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(), nn.Conv2d(8, 2, 1)
    ).train()
    model[2].eval()
    seen: list[bool] = []
    model[3].register_forward_pre_hook(lambda m, _: seen.append(m.training))
    before = copy.deepcopy(model.state_dict())
    state = torch.random.get_rng_state()
    image = torch.randn(2, 3, 8, 8)
    torch.random.set_rng_state(state)
    flow = surgery.trace(model, image)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [m.training for m in model] == [True, True, False, True]
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert all(len(m._forward_hooks) == 0 for m in model)
    assert not [name for name in vars(image) if name.startswith("_channel")]
    assert not any(x.requires_grad and x.grad is not None for x in model.parameters())
    assert seen
    assert flow.norms == {"1": 8}


def test_a_failed_trace_leaves_the_model_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).train()
    with pytest.raises(
        ValueError,
        match="trace needs example inputs that the model runs on, but it raised RuntimeError",
    ):
        surgery.trace(model, torch.randn(1, 4, 8, 8))
    assert all(m.training for m in model.modules())
    assert not torch.nn.modules.module._global_forward_hooks


def test_heads_that_only_train_are_seen() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
            self.head, self.aux = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Any:
            x = self.stem(x)
            return (self.head(x), self.aux(x)) if self.training else self.head(x)

    flow = surgery.trace(Heads().double(), IMAGE)
    assert set(flow.tape.sites) == {"stem.0", "stem.1", "head", "aux"}


@pytest.mark.parametrize(
    ("dead", "message"),
    [
        ({"nowhere": torch.zeros(8, dtype=torch.bool)}, "names of BatchNorm layers.*'nowhere'"),
        ({"0": torch.zeros(8, dtype=torch.bool)}, "names of BatchNorm layers.*'0'"),
        ({"1": torch.zeros(7, dtype=torch.bool)}, r"boolean mask of 8 channels.*\(7,\)"),
        ({"1": torch.zeros(8)}, "boolean mask of 8 channels.*float32"),
        ({"1": [True] * 8}, r"boolean mask of 8 .* got a list: write torch.tensor\(.*dtype=torch"),
        (["1"], "dead needs a dict of boolean masks by name of BatchNorm layer, got a list"),
    ],
    ids=["unknown", "no norm", "length", "dtype", "list", "no dict"],
)
def test_masks_that_do_not_fit_are_refused(dead: Any, message: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).double()
    with pytest.raises(ValueError, match=message):
        surgery.trace(model, IMAGE).plan(dead)


def test_a_plan_for_another_model_is_refused() -> None:
    models = [
        nn.Sequential(nn.Conv2d(3, n, 3), nn.BatchNorm2d(n), nn.Conv2d(n, 2, 1)).double()
        for n in (8, 9)
    ]
    plan = surgery.trace(models[0], IMAGE).plan({"1": torch.arange(8) < 4})
    for carry_out in (surgery.slim, surgery.mask):
        with pytest.raises(
            ValueError, match=r"belongs to another model: '0.weight' has shape \[9, 3, 3, 3\]"
        ):
            carry_out(models[1], plan)


def test_weights_that_changed_since_the_plan_are_noticed(randomise: Any) -> None:
    model = randomise(
        nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1)
        )
    )
    model[1].bias.data.fill_(-1)
    plan = surgery.trace(model, IMAGE).plan({"1": torch.arange(8) < 4})
    model[1].bias.data.fill_(1)
    with pytest.raises(ValueError, match="does not fit the weights of now: '3'"):
        surgery.slim(model, plan)


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="trace needs a model with convolutions"):
        surgery.trace(nn.ReLU(), IMAGE)


class Sometimes(nn.Module):
    """A head that sees only what is found: nothing, as long as `x` is small."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.head = nn.Sequential(nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.norm(self.conv(x))
        return self.last(y), self.head(y[: int(x.sum() > 1e6)])


def test_a_head_that_found_nothing_stays_whole_and_works_when_there_is_something(
    randomise: Any,
) -> None:
    model = randomise(Sometimes())
    flow = surgery.trace(model, IMAGE)
    assert "head" not in str(list(flow.norms))
    assert any("makes nothing of these example inputs" in str(item) for item in flow.frozen)
    plan = flow.plan_by(0.5)
    slim, masked = surgery.slim(model, plan), surgery.mask(model, plan)
    assert slim.conv.weight.size(0) < 8
    assert slim.head[0].weight.shape == model.head[0].weight.shape
    for found, expected in zip(slim(1e6 + IMAGE), masked(1e6 + IMAGE), strict=True):
        assert found.size(0) == 1
        torch.testing.assert_close(found, expected)
