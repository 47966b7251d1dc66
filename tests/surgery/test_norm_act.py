"""Modules that are a batch norm and an activation in one, as timm has them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_sparsity import surgery

IMAGES = torch.randn(2, 3, 10, 10, dtype=torch.float64)


class NormAct(nn.BatchNorm2d):
    """Batch norm and hard swish."""

    def forward(self, x: Tensor) -> Tensor:
        return F.hardswish(super_forward(self, x))


class ByHand(nn.BatchNorm2d):
    """What the norm makes is read twice."""

    def forward(self, x: Tensor) -> Tensor:
        x = super_forward(self, x)
        return x * x.sigmoid()


class WithDetour(nn.BatchNorm2d):
    """What comes in goes around the norm."""

    def forward(self, x: Tensor) -> Tensor:
        return super_forward(self, x).relu() + x


class WithGain(nn.BatchNorm2d):
    """A weight of its own comes after the norm."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.gain = nn.Parameter(torch.full((1,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        return super_forward(self, x) * self.gain


def super_forward(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    mean, var = norm.running_mean, norm.running_var
    return F.batch_norm(x, mean, var, norm.weight, norm.bias, norm.training, 0.1, norm.eps)


class Gated(nn.Module):
    """A residual sum of which one branch is multiplied by a gate."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 8, 3, padding=1), norm(8)
        self.conv, self.second = nn.Conv2d(8, 8, 3, padding=1), norm(8)
        self.gate, self.out = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.stem(x))
        y = self.second(self.conv(x))
        y = y * self.gate(y.mean((2, 3), keepdim=True)).sigmoid()
        return self.out(x + y)


@pytest.mark.parametrize("norm", [NormAct, ByHand, WithDetour, WithGain])
def test_whatever_a_norm_does_besides_the_cut_is_exact(norm: Any, randomise: Any) -> None:
    model = randomise(Gated(norm))
    flow = surgery.trace(model, IMAGES)
    plan = flow.plan({"first": torch.arange(8) < 3, "second": torch.arange(8) > 3})
    small = surgery.slim(model, plan)
    masked = surgery.mask(model, plan)
    other = torch.randn_like(IMAGES)
    torch.testing.assert_close(small(other), masked(other))


def test_dead_channels_of_a_norm_with_an_activation_leave_one_by_one(randomise: Any) -> None:
    model = randomise(Gated(NormAct))
    flow = surgery.trace(model, IMAGES)
    plan = flow.plan({"first": torch.arange(8) < 3, "second": torch.arange(8) > 3})
    small = surgery.slim(model, plan)
    widths = [x.num_features for x in (small.first, small.second)]
    assert widths == [5, 4]


class Swish(nn.Module):
    """Written out: the activation reads what the norm makes twice."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.sigmoid()


def test_an_activation_inside_may_read_a_channel_twice(randomise: Any) -> None:
    class NormAct(nn.BatchNorm2d):
        def __init__(self, width: int) -> None:
            super().__init__(width)
            self.act = Swish()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(super().forward(x))

    net = randomise(nn.Sequential(nn.Conv2d(3, 8, 3), NormAct(8), nn.Conv2d(8, 2, 3, padding=1)))
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    plan = surgery.trace(net, images).plan({"1": torch.arange(8) % 2 == 0})
    small = surgery.slim(net, plan)
    assert plan.kept["1"].tolist() == [1, 3, 5, 7]
    assert plan.proof is not None
    assert plan.proof <= 1e-12
    assert len(small[0].weight) == 4
