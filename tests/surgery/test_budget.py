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


def test_of_equal_scales_just_enough_are_removed(randomise: Any) -> None:
    model = randomise(chain(4, 4))
    model[1].weight.data[:] = model[4].weight.data[:] = torch.tensor([0.1, 0.2, 0.2, 0.9])
    plan = surgery.trace(model, IMAGE).plan_by(0.3)  # int(8 * 0.3) + 1 = 3
    assert {name: dead.tolist() for name, dead in plan.dead.items()} == {
        "1": [True, True, False, False],
        "4": [True, False, False, False],
    }


@pytest.mark.parametrize("amount", [0.1, 0.5, 0.83])
def test_a_fresh_network_loses_the_same_share_of_every_layer(amount: float) -> None:
    flow = surgery.trace(chain(16, 5, 40, 64).double(), IMAGE)
    plan = flow.plan_by(amount)
    counts = {name: int(dead.sum()) for name, dead in plan.dead.items()}
    assert sum(counts.values()) == int(125 * amount) + 1
    assert all(abs(counts[name] - amount * n) <= 1 for name, n in flow.norms.items())
    again = flow.plan_by(amount)
    assert all(torch.equal(dead, again.dead[name]) for name, dead in plan.dead.items())


def test_a_tie_in_parts_of_layers_is_spread_over_those_parts(randomise: Any) -> None:
    model = randomise(chain(20, 20))
    model[1].weight.data[10:], model[1].weight.data[:10] = -0.1, 3.0
    model[4].weight.data[:] = 0.1
    plan = surgery.trace(model, IMAGE).plan_by(14.5 / 40)  # 15 of the 30 equal ones
    assert plan.dead["1"].nonzero().flatten().tolist() == [10, 11, 12, 13, 14]
    assert plan.dead["4"].nonzero().flatten().tolist() == list(range(10))


def test_exact_zeros_are_always_removed(randomise: Any) -> None:
    model = randomise(chain(10, 10))
    model[1].weight.data[3:9] = 0
    assert surgery.trace(model, IMAGE).plan_by(0.1).kept["1"].tolist() == [0, 1, 2, 9]


def test_what_a_tie_decides_alone_is_noted(randomise: Any) -> None:
    model = randomise(chain(10, 10))
    assert surgery.trace(model, IMAGE).plan_by(0.3).notes == []
    model[1].weight.data[:] = model[4].weight.data[:5] = 0.25
    flow = surgery.trace(model, IMAGE)
    plan = flow.plan_by(0.3)
    (note,) = plan.notes
    assert note in str(plan)
    assert "15 of 20 BatchNorm scales have the same magnitude 0.25:" in note
    assert flow.plan_by(Threshold(0.25)).notes == []  # takes all of them


def test_the_last_of_equal_scales_is_the_one_that_a_layer_keeps() -> None:
    plan = surgery.trace(chain(6, 9).double(), IMAGE).plan_by(0.99, keep_at_least=2)
    assert plan.dead["1"].tolist() == [True] * 4 + [False] * 2
    assert plan.dead["4"].tolist() == [True] * 7 + [False] * 2


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


@pytest.mark.parametrize(
    ("amount", "message"),
    [
        (50, r"\(0, 1\), got amount=50: did you mean 0.5\?"),
        ("50%", r"\(0, 1\), got amount='50%': did you mean 0.5\?"),
        ("0.5", r"\(0, 1\), got amount='0.5': did you mean 0.5\?"),
        ("half", r"\(0, 1\), got amount='half'\."),
        (True, r"\(0, 1\), got amount=True\."),
        (None, r"\(0, 1\), got amount=None\."),
        (Flops, r"got the class Flops itself: did you mean Flops\(0.5\)\?"),
    ],
    ids=str,
)
def test_amounts_that_are_no_share_are_refused_with_the_cure(amount: Any, message: str) -> None:
    flow = surgery.trace(chain(4).double(), IMAGE)
    with pytest.raises(ValueError, match=message):
        flow.plan_by(amount)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (50, r"got keep=50: did you mean \w+\(0.5\)\?"),
        ("0.5", r"got keep='0.5': did you mean \w+\(0.5\)\?"),
        (True, r"got keep=True\."),
    ],
)
def test_costs_that_are_no_share_are_refused_with_the_cure(keep: Any, message: str) -> None:
    for budget in (Flops, Params):
        with pytest.raises(ValueError, match=message):
            budget(keep)


@pytest.mark.parametrize("wrong", [1.5, -1, True, "1"], ids=repr)
def test_a_number_of_channels_to_keep_that_is_none_is_refused(wrong: Any) -> None:
    flow = surgery.trace(chain(4).double(), IMAGE)
    with pytest.raises(ValueError, match=f"keep_at_least to be a whole number >= 0, got {wrong!r}"):
        flow.plan_by(0.5, keep_at_least=wrong)


@pytest.mark.parametrize("wrong", ["no", 1, None], ids=repr)
def test_gathering_is_yes_or_no(wrong: Any) -> None:
    flow = surgery.trace(chain(4).double(), IMAGE)
    with pytest.raises(ValueError, match=f"gather needs True or False, got {wrong!r}"):
        flow.plan_by(0.5, gather=wrong)
    with pytest.raises(ValueError, match=f"gather needs True or False, got {wrong!r}"):
        flow.plan({}, gather=wrong)


@pytest.mark.parametrize("at", ["0.1", True, -1.0, float("nan"), float("inf")])
def test_thresholds_outside_are_refused(at: Any) -> None:
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
