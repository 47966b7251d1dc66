"""The networks for MNIST have the sizes counted by hand, and channels can be cut from them."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from lightning_sparsity.models import MNISTNet

Build = Callable[..., nn.Module]


def parameters(model: nn.Module) -> int:
    return sum(x.numel() for x in model.parameters())


def test_the_small_network_has_332_032_parameters() -> None:
    convolutions = 32 * (9 + 1) + 32 * (288 + 1) + 64 * (288 + 1) + 64 * (576 + 1)
    assert parameters(MNISTNet()) == 332_032
    assert parameters(MNISTNet(hidden=3)) == convolutions + 3 * 1025 + 10 * 4


def test_the_small_network_computes_what_its_layers_in_a_row_compute() -> None:
    net = MNISTNet(num_classes=7, in_channels=3).eval()
    images = torch.randn(4, 3, 28, 28)
    row = nn.Sequential(
        net.conv1, nn.ReLU(), net.conv2, nn.ReLU(), nn.MaxPool2d(2),
        net.conv3, nn.ReLU(), net.conv4, nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), net.fc1, nn.ReLU(), net.fc2,
    )  # fmt: skip
    with torch.no_grad():
        assert torch.equal(net(images), row(images))
        assert net(images).shape == (4, 7)


def test_dropout_acts_in_training_alone() -> None:
    torch.manual_seed(0)
    net, images = MNISTNet(), torch.rand(2, 1, 28, 28)
    assert not torch.equal(net(images), net(images))
    net.eval()
    assert torch.equal(net(images), net(images))


@pytest.mark.parametrize("build", [MNISTNet])
@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_a_dropout_that_is_no_share_is_named(build: Build, dropout: float) -> None:
    with pytest.raises(ValueError, match=f"0 <= dropout < 1, got dropout={dropout}"):
        build(dropout=dropout)


@pytest.mark.parametrize("name", ["num_classes", "in_channels", "hidden"])
def test_a_count_below_one_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} >= 1, got {name}=0"):
        MNISTNet(**{name: 0})
