import pytest
import torch

from lightning_sparsity.models.curvenet import CurveNet


def test_the_fully_connected_layer_holds_most_weights() -> None:
    net = CurveNet()
    weights = sum(p.numel() for p in net.parameters())
    assert net.fc.weight.numel() == 32 * 8 * 8 * 128
    assert net.fc.weight.numel() >= 0.85 * weights


@pytest.mark.parametrize("size", [8, 32, 64])
@pytest.mark.parametrize("classes", [2, 5])
def test_gives_one_logit_per_class(size: int, classes: int) -> None:
    net = CurveNet(size, width=3, hidden=7, in_channels=2, num_classes=classes)
    assert net(torch.rand(4, 2, size, size)).shape == (4, classes)


def test_every_weight_gets_a_gradient() -> None:
    net = CurveNet(16, width=2, hidden=8)
    net(torch.rand(6, 1, 16, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 60}, "multiple of 8, got size=60"),
        ({"size": 0}, "multiple of 8, got size=0"),
        ({"width": 0}, "width >= 1, got width=0"),
        ({"hidden": -1}, "hidden >= 1, got hidden=-1"),
        ({"in_channels": 0}, "in_channels >= 1, got in_channels=0"),
        ({"num_classes": 0}, "num_classes >= 1, got num_classes=0"),
    ],
    ids=str,
)
def test_refuses_impossible_sizes(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CurveNet(**arguments)
