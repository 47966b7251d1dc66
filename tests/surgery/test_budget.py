"""How much is cut: by rank, by threshold, by cost."""

from typing import Any

import pytest
import torch
from torch import nn

from lightning_sparsity import surgery
from lightning_sparsity.metrics import flops
from lightning_sparsity.models import DenseNet40, ResNet56
from lightning_sparsity.surgery import Flops, Params, Threshold

IMAGE = torch.randn(1, 3, 32, 32, dtype=torch.float64)


def chain(*widths: int) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in zip((3, *widths), widths, strict=False):
        layers += [nn.Conv2d(before, after, 3, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 4))


def parameters(model: nn.Module) -> int:
    return sum(x.numel() for x in model.parameters())


def scales(flow: surgery.ChannelFlow) -> torch.Tensor:
    return torch.cat([flow.model.get_submodule(name).weight.detach().abs() for name in flow.norms])


@pytest.mark.parametrize("amount", [0.001, 0.3, 0.5, 0.95])
def test_a_share_is_the_percentile_of_all_scales(amount: float, randomise: Any) -> None:
    flow = surgery.trace(randomise(chain(10, 20, 30)), IMAGE)
    plan = flow.plan_by(amount, keep_at_least=0)
    magnitudes = sorted(scales(flow).tolist())
    threshold = magnitudes[int(len(magnitudes) * amount)]
    for name, dead in plan.dead.items():
        assert torch.equal(dead, flow.model.get_submodule(name).weight.detach().abs() <= threshold)


def test_ties_at_the_threshold_go(randomise: Any) -> None:
    model = randomise(chain(4, 4))
    model[1].weight.data[:] = model[4].weight.data[:] = torch.tensor([0.1, 0.2, 0.2, 0.9])
    plan = surgery.trace(model, IMAGE).plan_by(0.3)
    assert {name: dead.tolist() for name, dead in plan.dead.items()} == {
        name: [True, True, True, False] for name in ("1", "4")
    }


def test_every_layer_keeps_its_largest_scales(randomise: Any) -> None:
    model = randomise(chain(8, 8))
    model[1].weight.data *= 1e-6
    flow = surgery.trace(model, IMAGE)
    assert flow.plan_by(0.7, keep_at_least=0).dead["1"].all()
    kept = ~flow.plan_by(0.7, keep_at_least=3).dead["1"]
    assert torch.equal(kept.nonzero().flatten(), model[1].weight.topk(3).indices.sort().values)


def test_a_threshold_takes_what_is_not_larger(randomise: Any) -> None:
    model = randomise(chain(8))
    model[1].weight.data[:] = torch.tensor([0, -1e-3, 1e-3, 2e-3, 0, 1, -1, 2])
    flow = surgery.trace(model, IMAGE)
    assert flow.plan_by(Threshold(1e-3)).kept["1"].tolist() == [3, 5, 6, 7]
    assert flow.plan_by(Threshold(0)).kept["1"].tolist() == [1, 2, 3, 5, 6, 7]


@pytest.mark.parametrize(
    ("build", "keep", "gather"),
    [(ResNet56, 0.3, True), (ResNet56, 0.7, False), (DenseNet40, 0.5, True)],
    ids=["resnet", "resnet without gathering", "densenet"],
)
def test_a_cost_is_met_from_below(build: Any, keep: float, gather: bool, randomise: Any) -> None:
    model = randomise(build())
    flow = surgery.trace(model, IMAGE)
    small = surgery.slim(model, flow.plan_by(Params(keep), gather=gather), verify=False)
    share = parameters(small) / parameters(model)
    assert keep - 0.01 <= share <= keep
    small = surgery.slim(model, flow.plan_by(Flops(keep), gather=gather), verify=False)
    share = flops(small, IMAGE).total / flops(model, IMAGE).total
    assert keep - 0.01 <= share <= keep + 1e-3  # fvcore also counts pooling, which stays


def test_flops_count_what_fvcore_counts(randomise: Any) -> None:
    grouped = nn.Conv2d(8, 8, 3, groups=4, stride=2)
    up = nn.ConvTranspose2d(8, 6, 3, stride=2, bias=False)
    depthwise = nn.Conv2d(6, 6, 3, groups=6)
    layers = [
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        grouped,
        up,
        depthwise,
        nn.BatchNorm2d(6),
    ]
    model = randomise(nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3)))
    model(IMAGE)
    flow = surgery.trace(model, IMAGE)
    assert Flops(0.5).cost(model, flow.tape, None) == flops(model, IMAGE).total
    plan = flow.plan({"1": torch.arange(8) < 3, "6": torch.arange(6) < 2})
    small = surgery.slim(model, plan)
    assert Flops(0.5).cost(model, flow.tape, plan.cuts) == flops(small, IMAGE).total


def test_an_impossible_budget_says_what_is_possible(randomise: Any) -> None:
    model = randomise(chain(8, 8))
    flow = surgery.trace(model, IMAGE)
    with pytest.raises(
        ValueError, match=r"Params\(keep=0.01\) cannot be met.*share of 0\.\d+ stays"
    ) as error:
        flow.plan_by(Params(0.01))
    reachable = float(str(error.value).split("share of ")[1].split()[0])
    small = surgery.slim(model, flow.plan_by(Params(reachable + 1e-3)))
    assert parameters(small) / parameters(model) == pytest.approx(reachable, abs=1e-3)


@pytest.mark.parametrize("amount", [0.0, 1.0, -0.5, 1.5, float("nan")])
def test_amounts_outside_are_refused(amount: float) -> None:
    flow = surgery.trace(chain(4).double(), IMAGE)
    with pytest.raises(ValueError, match="share of channels in"):
        flow.plan_by(amount)
    for budget in (Flops, Params):
        with pytest.raises(ValueError, match="needs 0 < keep < 1"):
            budget(amount)


@pytest.mark.parametrize("at", [-1.0, float("nan"), float("inf")])
def test_thresholds_outside_are_refused(at: float) -> None:
    with pytest.raises(ValueError, match="Threshold needs a finite number"):
        Threshold(at)


def test_scales_that_are_no_numbers_are_refused() -> None:
    model = chain(4).double()
    model[1].weight.data[2] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinity in '1'"):
        surgery.trace(model, IMAGE).plan_by(0.5)


def test_a_model_without_norms_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)).double()
    with pytest.raises(ValueError, match="plan_by needs BatchNorm layers"):
        surgery.trace(model, IMAGE).plan_by(0.5)


def test_a_model_in_which_all_is_frozen_is_refused() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x).softmax(1)

    flow = surgery.trace(Frozen().double(), IMAGE)
    with pytest.raises(ValueError, match="nothing that can be cut") as error:
        flow.plan_by(0.5, gather=False)
    assert "softmax" in str(error.value)
