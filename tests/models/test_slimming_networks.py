"""The networks of the slimming papers have the sizes that the papers' code has."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from lightning_sparsity.models import VGG19, DenseNet40, ResNet20, ResNet56, ResNet164

Build = Callable[..., nn.Module]


def parameters(model: nn.Module) -> int:
    return sum(x.numel() for x in model.parameters())


@pytest.mark.parametrize(
    ("build", "ten", "hundred", "channels"),
    [
        (VGG19, 20_035_018, 20_081_188, 5_504),
        (DenseNet40, 1_059_298, 1_100_428, 9_360),
        (ResNet164, 1_703_258, 1_726_388, 12_112),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_sizes_are_those_of_the_papers_code(
    build: Build, ten: int, hundred: int, channels: int
) -> None:
    model = build()
    assert parameters(model) == ten
    assert parameters(build(num_classes=100)) == hundred
    assert sum(m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d)) == channels


@pytest.mark.parametrize(("build", "n"), [(ResNet20, 3), (ResNet56, 9)], ids=["20", "56"])
def test_basic_resnets_count_as_by_hand(build: Build, n: int) -> None:
    stem = 3 * 16 * 9 + 2 * 16
    same = sum(2 * (9 * w * w + 2 * w) for w in (16, 32, 64)) * n
    wider = sum(w * w // 2 + 2 * w - 9 * w * w // 2 for w in (32, 64))
    assert parameters(build()) == stem + same + wider + 64 * 10 + 10


@pytest.mark.parametrize("build", [VGG19, DenseNet40, ResNet20, ResNet56, ResNet164])
def test_the_networks_map_images_to_logits(build: Build) -> None:
    model = build(num_classes=7, in_channels=1).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 1, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(
    ("build", "scale"), [(VGG19, 0.5), (DenseNet40, 0.5), (ResNet164, 0.5), (ResNet20, 1.0)]
)
def test_they_start_where_the_papers_start(build: Build, scale: float) -> None:
    torch.manual_seed(0)
    for module in build().modules():
        if isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == scale).all())
            assert not module.bias.any()
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            expected = math.sqrt(2 / (module.weight[0, 0].numel() * module.out_channels))
            assert module.bias is None
            assert float(module.weight.detach().std()) == pytest.approx(expected, rel=0.05)
