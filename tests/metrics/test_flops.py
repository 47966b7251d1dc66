import logging
import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet18

from lightning_sparsity.metrics import flops
from lightning_sparsity.models import LeNet5

LAYERS = {
    "linear": (nn.Linear(6, 4), (3, 6), 3 * 6 * 4),
    "conv": (nn.Conv2d(4, 8, 3, padding=1), (2, 4, 5, 7), 2 * 5 * 7 * 8 * 4 * 9),
    "strided": (nn.Conv2d(4, 8, 3, stride=2), (1, 4, 7, 9), 3 * 4 * 8 * 4 * 9),
    "grouped": (nn.Conv2d(4, 8, 3, groups=2), (1, 4, 5, 5), 3 * 3 * 8 * 2 * 9),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), (1, 4, 5, 5), 3 * 3 * 4 * 9),
    "one-dimensional": (nn.Conv1d(3, 5, 4), (1, 3, 10), 7 * 5 * 3 * 4),
    "transposed": (nn.ConvTranspose2d(3, 5, 2, stride=2), (1, 3, 4, 4), 16 * 3 * 5 * 4),
}
each = pytest.mark.parametrize(("layer", "shape", "expected"), LAYERS.values(), ids=LAYERS)


class Twice(nn.Module):
    """Two inputs, one layer called twice, dropout, and operations that fvcore does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.sin(self.drop(self.layer(self.layer(x) + y)))


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no such thing")


@each
def test_one_multiply_add_counts_as_one(
    layer: nn.Module, shape: tuple[int, ...], expected: int
) -> None:
    assert flops(layer, torch.ones(shape)).total == expected


@each
def test_zero_weights_cost_nothing_in_the_effective_count(
    layer: nn.Module, shape: tuple[int, ...], expected: int
) -> None:
    keep = torch.zeros_like(layer.weight).flatten()
    keep[: (kept := len(keep) // 4)] = 1
    net = nn.Sequential(nn.Identity(), layer)
    before = layer.weight.data.clone()
    layer.weight.data.mul_(keep.view_as(before))
    count = flops(net, torch.ones(shape))
    layer.weight.data.copy_(before)
    assert count.total == expected
    assert count.effective == expected * kept // len(keep)
    assert flops(net, torch.ones(shape)).effective == expected


def test_it_agrees_with_torch_on_a_resnet() -> None:
    net, images = resnet18(), torch.ones(1, 3, 64, 64)
    with FlopCounterMode(display=False) as counter:
        net.eval()(images)
    count = flops(net, images)
    products = [
        name for name, part in net.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)
    ]
    assert sum(count.by_module[name] for name in products) * 2 == counter.get_total_flops()
    assert count.by_module["layer1"] == sum(count.by_module[f"layer1.{i}"] for i in range(2))
    assert count.total > counter.get_total_flops() // 2  # batch norm counts too


def test_modules_are_named_and_a_layer_called_twice_counts_twice() -> None:
    count = flops(Twice(), (torch.ones(3, 4), torch.ones(3, 4)))
    assert count.total == count.by_module["layer"] == 2 * 3 * 4 * 4
    by_layer = flops(LeNet5(), torch.ones(1, 1, 28, 28)).by_module
    assert by_layer == {
        "conv1": 24 * 24 * 20 * 25, "conv2": 8 * 8 * 50 * 500, "fc1": 800 * 500, "fc2": 5000,
    }  # fmt: skip


def test_what_is_not_counted_is_listed_and_nothing_is_printed(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    levels = {
        name: log.level
        for name, log in logging.root.manager.loggerDict.items()
        if isinstance(log, logging.Logger) and "fvcore" in name
    }
    count = flops(Twice(), (torch.ones(3, 4), torch.ones(3, 4)))
    assert count.uncounted["aten::sin"] == 1
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")
    assert all(logging.getLogger(name).level == level for name, level in levels.items())


@pytest.mark.parametrize("net", [Twice(), Broken()], ids=["counted", "failed"])
def test_the_model_and_the_random_state_are_left_as_they_were(net: nn.Module) -> None:
    net.train()
    net.layer.eval()
    net.layer.weight.requires_grad_(False)
    calls: list[str] = []
    with net.register_forward_hook(lambda *_: calls.append("hook")):
        before, state = vars(net.layer).copy(), torch.get_rng_state()
        hooks = [dict(part._forward_pre_hooks | part._forward_hooks) for part in net.modules()]
        weights = {name: weight.clone() for name, weight in net.state_dict().items()}
        if isinstance(net, Broken):
            with pytest.raises(RuntimeError, match="no such thing"):
                flops(net, torch.ones(3, 4))
        else:
            flops(net, (torch.ones(3, 4), torch.ones(3, 4)))
            assert calls == ["hook"]
        assert [
            dict(part._forward_pre_hooks | part._forward_hooks) for part in net.modules()
        ] == hooks
    assert net.training
    assert not net.layer.training
    assert vars(net.layer) == before
    assert not net.layer.weight.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weights[name], now) for name, now in net.state_dict().items())


def test_layers_that_are_not_called_or_called_under_two_names_are_counted_as_they_run() -> None:
    net = Twice()
    net.same, net.unused = net.layer, nn.Linear(4, 4)
    for part in (net.layer, net.unused):
        nn.init.zeros_(part.weight[:1])
    count = flops(net, (torch.ones(3, 4), torch.ones(3, 4)))
    assert (count.total, count.effective) == (96, 72)


def test_batch_norm_keeps_its_statistics() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    flops(net, torch.full((4, 1, 5, 5), 7.0))
    assert net[1].num_batches_tracked == 0
    assert net[1].running_mean.eq(0).all()


def test_effective_counts_only_layers_with_zeros_as_less() -> None:
    net = LeNet5()
    nn.init.zeros_(net.fc1.weight)
    count = flops(net, torch.ones(2, 1, 28, 28))
    assert count.total - count.effective == 2 * math.prod(net.fc1.weight.shape)
