"""The networks for MNIST have the sizes counted by hand, and zero channels can be cut from them."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from lightning_sparsity import surgery
from lightning_sparsity.models import FourLayerCNN, MNISTNet

Build = Callable[..., nn.Module]
NETWORKS = [MNISTNet, FourLayerCNN]


def parameters(model: nn.Module) -> int:
    return sum(x.numel() for x in model.parameters())


def test_three_convolutions_leave_the_first_linear_layer_1024_inputs() -> None:
    convolutions = 32 * (25 + 2) + 64 * (288 + 2) + 64 * (576 + 2)
    assert parameters(MNISTNet()) == 332_002
    assert parameters(MNISTNet(hidden=3)) == convolutions + 3 * 1026 + 10 * 4


def test_the_four_layers_have_the_sizes_of_the_papers_code() -> None:
    layers = {n: sum(w.numel() for w in m.parameters()) for n, m in FourLayerCNN().named_children()}
    assert layers == {
        "conv1": 32 * 25,
        "conv2": 64 * 32 * 25,
        "dropout": 0,
        "fc1": 1000 * (1024 + 1),
        "fc2": 10 * (1000 + 1),
    }
    assert sum(layers.values()) == 1_087_010


def test_three_convolutions_compute_what_their_layers_in_a_row_compute() -> None:
    net = MNISTNet(num_classes=7, in_channels=3).double().eval()
    row = nn.Sequential(
        net.conv1, nn.MaxPool2d(2), net.norm1, nn.ReLU(), net.conv2, net.norm2, nn.ReLU(),
        net.conv3, nn.MaxPool2d(2), net.norm3, nn.ReLU(),
        nn.Flatten(), net.fc1, net.norm4, nn.ReLU(), net.fc2,
    )  # fmt: skip
    images = torch.randn(4, 3, 28, 28, dtype=torch.float64)
    assert torch.allclose(net(images), row(images), rtol=1e-12)
    assert net(images).shape == (4, 7)


def test_the_four_layers_compute_what_they_compute_in_a_row() -> None:
    net = FourLayerCNN(num_classes=7, in_channels=3).double().eval()
    row = nn.Sequential(
        net.conv1, nn.ReLU(), nn.MaxPool2d(2), net.conv2, nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), net.fc1, nn.ReLU(), net.fc2,
    )  # fmt: skip
    images = torch.randn(4, 3, 28, 28, dtype=torch.float64)
    assert torch.allclose(net(images), row(images), rtol=1e-12)
    assert net(images).shape == (4, 7)


@pytest.mark.parametrize(
    ("build", "layers"),
    [(MNISTNet, ["dropout1", "dropout2"]), (FourLayerCNN, ["dropout"])],
)
def test_dropout_acts_between_the_layers_and_in_training_alone(
    build: Build, layers: list[str]
) -> None:
    net, images, seen = build(dropout=0.25), torch.rand(2, 1, 28, 28), list[bool]()
    for layer in layers:
        net.get_submodule(layer).register_forward_hook(
            lambda _m, given, made: seen.append(torch.equal(given[0], made))
        )
    net(images)
    times = len(seen)
    net.eval()(images)
    assert seen == [False] * times + [True] * times
    assert times == {MNISTNet: 2, FourLayerCNN: 3}[build]


@pytest.mark.parametrize("build", NETWORKS)
def test_zero_channels_can_be_cut(build: Build) -> None:
    torch.manual_seed(0)
    net = build().eval()
    for layer, dead in (("conv1", 5), ("conv2", 7), ("fc1", 40)):
        for weight in net.get_submodule(layer).parameters():
            nn.init.zeros_(weight[:dead])
    plan = surgery.trace(net, torch.randn(1, 1, 28, 28)).plan({})
    small = surgery.slim(net, plan)
    assert plan.proof is not None
    assert plan.proof < 1e-12
    widths = [len(small.get_submodule(n).weight) for n in ("conv1", "conv2", "fc1")]
    before = [len(net.get_submodule(n).weight) for n in ("conv1", "conv2", "fc1")]
    assert widths == [before[0] - 5, before[1] - 7, before[2] - 40]


@pytest.mark.parametrize("build", NETWORKS)
@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_a_dropout_that_is_no_share_is_named(build: Build, dropout: float) -> None:
    with pytest.raises(ValueError, match=f"0 <= dropout < 1, got dropout={dropout}"):
        build(dropout=dropout)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (MNISTNet, "num_classes"), (MNISTNet, "in_channels"), (MNISTNet, "hidden"),
        (FourLayerCNN, "num_classes"), (FourLayerCNN, "in_channels"),
    ],
)  # fmt: skip
def test_a_count_below_one_is_named(build: Build, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} >= 1, got {name}=0"):
        build(**{name: 0})
