"""A slim network is a network: it is traced, cut, saved and loaded like any other."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from lightning_sparsity import surgery
from lightning_sparsity.models import DenseNet40, ResNet20, ResNet164
from lightning_sparsity.surgery.modules import Scatter, Select
from lightning_sparsity.surgery.observing import relative_difference

IMAGES = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
OTHERS = torch.randn(3, 3, 40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Padded(nn.Module):
    """Zeros are put around an activation before the layer that reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)
        self.pad, self.mid, self.last = (
            nn.ZeroPad2d((1, 0, 2, 1)),
            nn.Conv2d(16, 16, 3),
            nn.BatchNorm2d(16),
        )
        self.head = nn.Conv2d(16, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.pad(nn.functional.silu(self.norm(self.stem(x)))))
        return self.head(nn.functional.silu(self.last(x)))


def grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.SiLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16), nn.SiLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.BatchNorm2d(16), nn.SiLU(),
        nn.ConvTranspose2d(16, 8, 2, stride=2), nn.BatchNorm2d(8), nn.PReLU(8),
        nn.Conv2d(8, 4, 3, padding=1),
    )  # fmt: skip


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet20": ResNet20,
    "resnet164": ResNet164,
    "densenet40": DenseNet40,
    "padded": Padded,
    "grouped": grouped,
    "mobilenet": lambda: torchvision.models.mobilenet_v3_small(weights=None),
    "shufflenet": lambda: torchvision.models.shufflenet_v2_x0_5(weights=None),
}

LARGE = ("resnet164", "densenet40", "mobilenet")


def difference(net: nn.Module, plan: surgery.Plan, small: nn.Module) -> float:
    with torch.no_grad():
        return relative_difference([surgery.mask(net, plan)(OTHERS)], [small(OTHERS)])


def parameters(net: nn.Module) -> int:
    return sum(x.numel() for x in net.parameters())


def shaken(net: nn.Module) -> nn.Module:
    """As if it had been trained a little: every weight moves."""
    with torch.no_grad():
        for x in net.parameters():
            x.add_(torch.randn_like(x), alpha=0.02)
    return net


@pytest.mark.parametrize("gather", [True, False], ids=["gather", "no gather"])
@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[pytest.mark.slow] * (kind in LARGE)) for kind in NETWORKS],
)
def test_three_rounds_are_exact_and_load_in_one_call(
    kind: str, gather: bool, randomise: Any, tmp_path: Path
) -> None:
    dense = NETWORKS[kind]()
    net, sizes = randomise(copy.deepcopy(dense)), [parameters(dense)]
    for round_ in range(3):
        plan = surgery.trace(net, IMAGES).plan_by(0.3, gather=gather or round_ == 1)
        small = surgery.slim(net, plan)
        assert difference(net, plan, small) <= 1e-12
        sizes.append(parameters(small))
        net = shaken(small)
    assert sizes[0] > sizes[1] > sizes[2] > sizes[3]
    surgery.save(net, plan, tmp_path)
    loaded = surgery.load(dense.double().eval(), tmp_path)
    assert torch.equal(loaded(OTHERS), net(OTHERS))
    assert all(torch.equal(x, loaded.state_dict()[n]) for n, x in net.state_dict().items())
    again = surgery.trace(loaded, IMAGES).plan_by(0.3)
    last = surgery.slim(loaded, again)
    assert difference(loaded, again, last) <= 1e-12
    surgery.save(last, tmp_path / "last")
    assert torch.equal(surgery.load(dense, tmp_path / "last")(OTHERS), last(OTHERS))


@pytest.mark.parametrize("kind", ["resnet20", "densenet40"])
def test_what_picks_and_fills_in_is_never_stacked(kind: str, randomise: Any) -> None:
    net = randomise(NETWORKS[kind]())
    for _ in range(3):
        net = surgery.slim(net, surgery.trace(net, IMAGES).plan_by(0.25))
    for module in net.modules():
        kinds = [type(child) for child in module.children()]
        assert kinds.count(Select) <= 1
        assert kinds.count(Scatter) <= 1
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        assert len(hooks) == sum(kind in (Select, Scatter) for kind in kinds)


@torch.no_grad()
def test_two_cuts_are_one_cut(randomise: Any) -> None:
    net = randomise(ResNet20())
    flow = surgery.trace(net, IMAGES)
    first = {n: torch.arange(k) % 4 == 1 for n, k in flow.norms.items()}
    both = {n: torch.arange(k) % 2 == 1 for n, k in flow.norms.items()}
    once = surgery.slim(net, flow.plan(first))
    again = surgery.trace(once, IMAGES)
    plan = again.plan({n: both[n][~first[n]] for n in again.norms})
    small = surgery.slim(once, plan)
    direct = surgery.slim(net, flow.plan(both))
    shapes = {n: x.shape for n, x in direct.state_dict().items()}
    assert {n: x.shape for n, x in small.state_dict().items()} == shapes
    assert relative_difference([direct(OTHERS)], [small(OTHERS)]) <= 1e-12
    whole = plan.from_dense()
    assert {n: k.tolist() for n, k in whole.kept.items()} == {
        n: (~dead).nonzero().flatten().tolist() for n, dead in both.items()
    }


def test_zeros_around_an_input_cost_one_channel(randomise: Any) -> None:
    """As many as with the padding of the layer itself."""
    small = surgery.slim(net := randomise(Padded()), surgery.trace(net, IMAGES).plan_by(0.5))
    assert isinstance(small.mid.select, Select)
    assert small.mid.select.border == (1, 0, 2, 1)
    assert small.mid.in_channels == len(small.norm.weight) + 1


def test_momentum_is_carried_over_twice(randomise: Any) -> None:
    net = randomise(ResNet20())
    optimizer = torch.optim.SGD(net.parameters(), 1e-4, momentum=0.9)
    for _ in range(2):
        net(IMAGES).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        plan = surgery.trace(net, IMAGES).plan_by(0.3)
        small = surgery.slim(net, plan)
        surgery.transplant(optimizer, net, small, plan)
        net = small
        for x in net.parameters():
            assert optimizer.state[x]["momentum_buffer"].shape == x.shape
    net(IMAGES).square().mean().backward()
    optimizer.step()
    assert bool(net(OTHERS).isfinite().all())


def test_save_without_a_plan_needs_a_model_that_knows_its_own(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"save needs a plan, or a model that surgery\.slim made"):
        surgery.save(ResNet20(), tmp_path)
    with pytest.raises(ValueError, match="save needs a folder"):
        surgery.save(ResNet20(), None)


def test_a_slim_network_refuses_inputs_that_the_dense_one_refuses(randomise: Any) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(7200, 2))
    randomise(net)
    small = surgery.slim(net, surgery.trace(net, IMAGES).plan({"1": torch.arange(8) < 4}))
    small(IMAGES)
    fewer = surgery.slim(small, surgery.trace(small, IMAGES).plan_by(0.5))
    for model in (net, small, fewer):
        with pytest.raises((RuntimeError, ValueError), match=r"shapes|needs"):
            model(OTHERS)


def test_a_slim_network_with_a_new_head_is_a_network_of_its_own(
    randomise: Any, tmp_path: Path
) -> None:
    net = randomise(ResNet20())
    small = surgery.slim(net, surgery.trace(net, IMAGES).plan_by(0.3))
    small.classifier = nn.Linear(small.classifier.in_features, 100).double()
    plan = surgery.trace(small, IMAGES).plan_by(0.3)
    smaller = surgery.slim(small, plan)
    assert difference(small, plan, smaller) <= 1e-12
    for known in (plan, None):
        with pytest.raises(ValueError, match=r"changed after an|save needs a plan"):
            surgery.save(smaller, known, tmp_path)
