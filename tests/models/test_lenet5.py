import subprocess
import sys

import pytest
import torch
from torch import nn

from lightning_sparsity.models import LeNet5


def test_it_has_the_parameters_counted_in_the_papers() -> None:
    by_layer = {
        name: sum(w.numel() for w in part.parameters()) for name, part in LeNet5().named_children()
    }
    assert by_layer == {
        "conv1": 20 * (25 + 1),
        "conv2": 50 * (20 * 25 + 1),
        "fc1": 500 * (800 + 1),
        "fc2": 10 * (500 + 1),
    }
    assert sum(by_layer.values()) == 431_080


def test_it_computes_what_the_layers_in_a_row_compute() -> None:
    net = LeNet5(num_classes=7, in_channels=3).double()
    images = torch.randn(4, 3, 28, 28, dtype=torch.float64)
    row = nn.Sequential(
        net.conv1, nn.ReLU(), nn.MaxPool2d(2), net.conv2, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        net.fc1, nn.ReLU(), net.fc2,
    )  # fmt: skip
    assert torch.allclose(net(images), row(images), rtol=1e-12)
    assert net(images).shape == (4, 7)


@pytest.mark.parametrize("name", ["num_classes", "in_channels"])
def test_a_count_below_one_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} >= 1, got {name}=0"):
        LeNet5(**{name: 0})


def test_models_load_no_lightning() -> None:
    check = "import sys, lightning_sparsity.models; assert 'lightning' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)
