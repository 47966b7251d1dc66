"""Wide residual networks have the sizes of the papers' code, and channels can be cut from them."""

import math

import pytest
import torch
from torch import Tensor, nn

from lightning_sparsity import surgery
from lightning_sparsity.models import WideResNet
from lightning_sparsity.selection import select_weights


def parameters(model: nn.Module) -> int:
    return sum(x.numel() for x in model.parameters())


def by_hand(depth: int, width: int, classes: int) -> int:
    """Convolutions, scales and shifts, and the last layer."""
    total, inputs = 3 * 16 * 9, 16
    for base in (16, 32, 64):
        outputs = base * width
        for _ in range((depth - 4) // 6):
            total += 2 * inputs + 9 * inputs * outputs + 2 * outputs + 9 * outputs * outputs
            total += inputs * outputs if inputs != outputs else 0
            inputs = outputs
    return total + 2 * inputs + inputs * classes + classes


def drawn(width: int = 1) -> WideResNet:
    """A small network with random statistics, scales and shifts."""
    torch.manual_seed(0)
    model = WideResNet(10, width).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return model


def test_sizes_are_those_of_the_papers_code() -> None:
    with torch.device("meta"):
        assert parameters(WideResNet()) == 36_479_194
        assert parameters(WideResNet(num_classes=100)) == 36_536_884


@pytest.mark.parametrize(
    ("depth", "width", "classes"), [(16, 8, 10), (10, 1, 10), (22, 2, 100), (40, 4, 7)]
)
def test_other_sizes_count_as_by_hand(depth: int, width: int, classes: int) -> None:
    with torch.device("meta"):
        model = WideResNet(depth, width, num_classes=classes)
    assert parameters(model) == by_hand(depth, width, classes)


def test_one_pattern_selects_the_filters_that_the_paper_regularises() -> None:
    with torch.device("meta"):
        model = WideResNet()
    weights = [found.weight for found in select_weights(model, "*.conv1")]
    assert sum(len(weight) for weight in weights) == 4_480
    assert sum(weight.numel() for weight in weights) == 16_842_240


def test_maps_images_to_logits() -> None:
    model = WideResNet(10, 1, num_classes=7, in_channels=1)
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 7)


def test_dropout_lies_between_the_convolutions_and_acts_in_training_alone() -> None:
    model, images = WideResNet(10, 1), torch.randn(2, 3, 32, 32)
    seen: list[float] = []

    def hook(_module: nn.Module, _inputs: tuple[Tensor], made: Tensor) -> None:
        seen.append(float((made == 0).float().mean()))

    for block in model.blocks:
        block.get_submodule("norm2").register_forward_hook(hook)
        block.get_submodule("dropout").register_forward_hook(hook)
    model(images)
    assert all(zeros > 0.5 for zeros in seen[1::2])  # half by ReLU, and 30 % of the rest
    assert not any(seen[0::2])
    model.eval()
    assert torch.equal(model(images), model(images))


def test_starts_as_its_paper_says() -> None:
    torch.manual_seed(0)
    model = WideResNet(10, 4)
    assert not model.classifier.bias.any()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all())
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            expected = math.sqrt(2 / (module.weight[0, 0].numel() * module.out_channels))
            assert float(module.weight.detach().std()) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("gather", [True, False])
def test_dead_scales_can_be_cut(gather: bool) -> None:
    model = drawn()
    flow = surgery.trace(model, torch.randn(1, 3, 32, 32))
    plan = flow.plan_by(0.4, gather=gather)
    small = surgery.slim(model, plan)
    assert plan.proof is not None
    assert plan.proof < 1e-12
    assert parameters(small) < 0.6 * parameters(model)


def test_zero_filters_can_be_cut() -> None:
    model = drawn()
    for block in model.blocks:
        nn.init.zeros_(block.get_submodule("conv1").weight[:6])  # type: ignore[index]
    plan = surgery.trace(model, torch.randn(1, 3, 32, 32)).plan({})
    small = surgery.slim(model, plan)
    assert plan.proof is not None
    assert plan.proof < 1e-12
    left = [len(found.weight) for found in select_weights(small, "*.conv1")]
    assert left == [16 - 6, 32 - 6, 64 - 6]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 27}, "depth to be 10, 16, 22, 28 …, got depth=27"),
        ({"depth": 4}, "depth to be 10, 16, 22, 28 …, got depth=4"),
        ({"width": 0}, "width >= 1, got width=0"),
        ({"num_classes": 0}, "num_classes >= 1, got num_classes=0"),
        ({"in_channels": -1}, "in_channels >= 1, got in_channels=-1"),
        ({"dropout": 1.0}, "0 <= dropout < 1, got dropout=1.0"),
    ],
    ids=str,
)
def test_impossible_sizes_are_named(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WideResNet(**arguments)  # type: ignore[arg-type]
