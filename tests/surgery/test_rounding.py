"""Widths go up to multiples: which channels come back, and what it costs."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_sparsity import surgery
from lightning_sparsity.metrics import flops
from lightning_sparsity.models import VGG19, DenseNet40, ResNet20
from lightning_sparsity.surgery import Budget, Flops, Params, Share, Threshold
from lightning_sparsity.surgery.modules import Scatter, Select

IMAGE = torch.randn(1, 3, 32, 32, dtype=torch.float64)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.squeeze, self.second = nn.Conv2d(24, 20, 1), nn.BatchNorm2d(20)
        self.expand, self.third = nn.Conv2d(20, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(self.stem(x)))
        x = x + self.third(self.expand(F.relu(self.second(self.squeeze(x)))))
        return self.head(F.relu(x).mean((2, 3)))


def chain() -> nn.Sequential:
    """Two padded convolutions of 21 and 40 channels, and an unpadded one of 30."""
    layers: list[nn.Module] = []
    for n, m, padding in ((3, 21, 1), (21, 40, 1), (40, 30, 0)):
        layers += [nn.Conv2d(n, m, 3, padding=padding), nn.BatchNorm2d(m), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(30, 4))


def inverted() -> nn.Sequential:
    """A depthwise convolution between two others."""
    middle = [nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.BatchNorm2d(24), nn.ReLU()]
    last = [nn.Conv2d(24, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(nn.Conv2d(3, 24, 1), nn.BatchNorm2d(24), nn.ReLU(), *middle, *last)


NETWORKS = {"chain": chain, "residual": Residual, "ResNet20": ResNet20, "DenseNet40": DenseNet40}


@pytest.fixture
def silent(randomise: Any) -> Any:
    """Random statistics and scales; dead channels leave nothing behind a ReLU."""

    def silent(model: nn.Module) -> nn.Module:
        for module in randomise(model).modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.data = -module.bias.data.abs()
        return model

    return silent


def widths(small: nn.Module, dense: nn.Module) -> list[tuple[int, int]]:
    """What kernels see: rows and columns of every weight, and those of the dense one."""
    pairs: list[tuple[int, int]] = []
    for name, module in dense.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            weight = small.get_submodule(name).weight
            pairs += zip(weight.shape[:2], module.weight.shape[:2], strict=True)
    return pairs


@pytest.mark.parametrize("multiple", [8, 16])
@pytest.mark.parametrize("gather", [True, False], ids=["gather", "no gather"])
@pytest.mark.parametrize("name", ["chain", "residual", "ResNet20"])
def test_every_width_is_a_multiple_or_the_dense_width(
    name: str, gather: bool, multiple: int, randomise: Any
) -> None:
    model = randomise(NETWORKS[name]())
    plan = surgery.trace(model, IMAGE).plan_by(0.6, gather=gather, round_to=multiple)
    small = surgery.slim(model, plan)
    assert plan.proof is not None
    assert plan.proof <= 1e-12
    pairs = widths(small, model)
    assert all(n == dense or (n < dense and n % multiple == 0) for n, dense in pairs)
    assert any(n < dense for n, dense in pairs)


def test_concatenated_channels_are_picked_in_round_numbers(randomise: Any) -> None:
    model = randomise(DenseNet40())
    plan = surgery.trace(model, IMAGE).plan_by(0.5, round_to=8)
    small = surgery.slim(model, plan, verify=False)
    assert all(n == dense or n % 8 == 0 for n, dense in widths(small, model))
    assert sum(n for n, _ in widths(small, model)) < 0.7 * sum(n for _, n in widths(small, model))


@pytest.mark.parametrize("gather", [True, False], ids=["gather", "no gather"])
def test_a_width_goes_up_to_the_next_multiple_and_no_further(gather: bool, silent: Any) -> None:
    model = silent(chain())
    dead = {"1": torch.arange(21) % 3 > 0, "4": torch.arange(40) < 23, "7": torch.arange(30) < 6}
    small = surgery.slim(
        model, surgery.trace(model, IMAGE).plan(dead, gather=gather, round_to=8)
    )  # 7, 17 and 24 stay
    assert [small[i].weight.shape[0] for i in (0, 3, 6)] == [8, 24, 24]
    assert [small[i].weight.shape[1] for i in (3, 6, 11)] == [8, 24, 24]


@pytest.mark.parametrize("gather", [True, False], ids=["gather", "no gather"])
def test_the_largest_dead_scales_come_back(gather: bool, silent: Any) -> None:
    model = silent(chain())
    flow = surgery.trace(model, IMAGE)
    before, after = (
        flow.plan_by(0.6, gather=gather, round_to=multiple).dead for multiple in (1, 8)
    )
    for name in flow.norms:
        scale = model.get_submodule(name).weight.detach().abs()
        revived = before[name] & ~after[name]
        count = -int((~before[name]).sum()) % 8
        count = min(count, int(before[name].sum()))
        best = scale.masked_fill(~before[name], -1).topk(count).indices.sort().values
        assert torch.equal(revived.nonzero().flatten(), best)
        assert not (after[name] & ~before[name]).any()
    assert any((before[name] & ~after[name]).any() for name in flow.norms)


def test_channels_that_came_back_keep_their_scales_in_the_masked_network(silent: Any) -> None:
    model = silent(chain())
    dead = torch.arange(21) < 16
    plan = surgery.trace(model, IMAGE).plan({"1": dead}, round_to=8)
    masked = surgery.mask(model, plan)[1].weight
    assert int((dead & ~plan.dead["1"]).sum()) == 3
    assert torch.equal(masked == 0, plan.dead["1"])
    assert torch.equal(masked[~plan.dead["1"]], model[1].weight[~plan.dead["1"]])


@pytest.mark.parametrize("gather", [True, False], ids=["gather", "no gather"])
def test_constants_in_front_of_zero_padding_are_part_of_the_multiple(
    gather: bool, randomise: Any
) -> None:
    model = randomise(chain())
    with torch.no_grad():
        model[1].bias[:] = model[1].bias.abs() + 0.1
    plan = surgery.trace(model, IMAGE).plan({"1": torch.arange(21) < 6}, gather=gather, round_to=8)
    small = surgery.slim(model, plan)
    assert small[0].weight.shape[0] == small[3].weight.shape[1] == 16
    assert int((~plan.dead["1"]).sum()) == 15
    assert not any(isinstance(module, (Select, Scatter)) for module in small.modules())
    assert plan.proof is not None
    assert plan.proof <= 1e-12


@pytest.mark.parametrize("gather", [True, False], ids=["gather", "no gather"])
def test_scales_that_are_zero_stay_as_constants(gather: bool, randomise: Any) -> None:
    model = randomise(chain())
    with torch.no_grad():
        model[1].weight[:11] = model[4].weight[3:] = 0
    small = surgery.slim(model, surgery.trace(model, IMAGE).plan({}, gather=gather, round_to=8))
    assert [small[i].weight.shape[0] for i in (0, 3, 6)] == [16, 8, 30]
    assert [small[i].weight.shape[1] for i in (0, 3, 6)] == [3, 16, 8]
    torch.testing.assert_close(small(IMAGE), model(IMAGE), rtol=1e-12, atol=1e-12)


def test_zero_rows_and_columns_stay_where_there_is_no_batchnorm() -> None:
    model = nn.Sequential(nn.Linear(9, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU())
    model.append(nn.Linear(20, 2)).double()
    with torch.no_grad():
        model[0].weight[:9] = 0
        model[4].weight[:, 6:] = 0
    x = torch.randn(4, 9).double()
    small = surgery.slim(model, surgery.trace(model, x).plan({}, round_to=8))
    assert [tuple(small[i].weight.shape) for i in (0, 2, 4)] == [(16, 9), (8, 16), (2, 8)]
    torch.testing.assert_close(small(x), model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("exact", [False, True], ids=["small scales", "zero scales"])
def test_channels_come_back_along_a_depthwise_convolution(exact: bool, silent: Any) -> None:
    model = silent(inverted())
    dead = {"1": torch.arange(24) < 8, "4": torch.arange(24) % 3 == 0}  # 11 live in both
    if exact:
        for name, mask in dead.items():
            model.get_submodule(name).weight.data[mask] = 0
    small = surgery.slim(model, surgery.trace(model, IMAGE).plan(dead, round_to=8))
    assert [tuple(small[i].weight.shape[:2]) for i in (0, 3, 6)] == [(16, 3), (16, 1), (8, 16)]
    assert not any(isinstance(module, (Select, Scatter)) for module in small.modules())


def test_a_dead_branch_stays_dead(randomise: Any) -> None:
    model = randomise(Residual())
    dead = {"third": torch.ones(24, dtype=torch.bool)}
    plan = surgery.trace(model, IMAGE).plan(dead, round_to=8)
    small = surgery.slim(model, plan)
    assert plan.dead["third"].all()
    assert [x.numel() for x in small.expand.parameters()] == [9, 1]


@pytest.mark.parametrize("gather", [True, False], ids=["gather", "no gather"])
@pytest.mark.parametrize("name", ["chain", "residual", "ResNet20"])
def test_a_budget_is_met_in_round_widths(name: str, gather: bool, randomise: Any) -> None:
    model = randomise(NETWORKS[name]())
    flow = surgery.trace(model, IMAGE)
    for budget in (Params(0.6, round_to=4), Flops(0.6, round_to=4)):
        small = surgery.slim(model, flow.plan_by(budget, gather=gather), verify=False)
        parameters = [sum(x.numel() for x in net.parameters()) for net in (small, model)]
        work = [flops(net, IMAGE).total for net in (small, model)]
        after, before = parameters if isinstance(budget, Params) else work
        assert 0.3 < after / before <= 0.6 + 1e-3  # fvcore also counts pooling, which stays
        assert all(n == dense or n % 4 == 0 for n, dense in widths(small, model))


@pytest.mark.parametrize(
    ("amount", "plain"),
    [(Share(0.5, round_to=8), 0.5), (Threshold(0.9, round_to=8), Threshold(0.9))],
    ids=["share", "threshold"],
)
def test_an_amount_brings_its_own_multiple(
    amount: Budget, plain: float | Budget, randomise: Any
) -> None:
    flow = surgery.trace(randomise(chain()), IMAGE)
    own, named = flow.plan_by(amount), flow.plan_by(plain, round_to=8)
    assert all(own.cuts[name].same_channels(named.cuts[name]) for name in own.cuts)
    overruled, unrounded = flow.plan_by(amount, round_to=1), flow.plan_by(plain)
    assert all(overruled.cuts[name].same_channels(unrounded.cuts[name]) for name in overruled.cuts)
    assert not all(own.cuts[name].same_channels(unrounded.cuts[name]) for name in own.cuts)


def test_a_budget_shows_its_multiple_where_it_has_one() -> None:
    assert str(Flops(0.5)) == "Flops(keep=0.5)"
    assert str(Share(0.5, round_to=8)) == "Share(share=0.5, round_to=8)"


def test_files_and_optimizers_take_part(tmp_path: Path, randomise: Any) -> None:
    model = randomise(ResNet20()).train()
    with torch.no_grad():
        model.norm.weight[:13] = 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(IMAGE.expand(2, -1, -1, -1)).square().sum().backward()
    optimizer.step()
    model.eval()
    dense = copy.deepcopy(model)
    plan = surgery.trace(model, IMAGE).plan_by(0.5, round_to=8)
    small = surgery.slim(model, plan)
    surgery.save(small, plan, tmp_path)
    assert torch.equal(surgery.load(dense, tmp_path)(IMAGE), small(IMAGE))
    surgery.transplant(optimizer, model, small, plan)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in small.parameters()}
    assert all(state["momentum_buffer"].shape == p.shape for p, state in optimizer.state.items())


def test_a_large_plain_network_needs_nothing_in_between(randomise: Any) -> None:
    model = randomise(VGG19())
    small = surgery.slim(model, surgery.trace(model, IMAGE).plan_by(0.7, round_to=16))
    assert not any(isinstance(module, (Select, Scatter)) for module in small.modules())
    assert all(n == dense or n % 16 == 0 for n, dense in widths(small, model))


@pytest.mark.parametrize("wrong", [0, -8, 8.0, True, "8"], ids=repr)
def test_multiples_of_nothing_are_refused(wrong: Any, randomise: Any) -> None:
    flow = surgery.trace(randomise(chain()), IMAGE)
    refused = pytest.raises(ValueError, match=r"round_to needs a whole number >= 1.*got ")
    with refused:
        flow.plan({}, round_to=wrong)
    with refused:
        flow.plan_by(0.5, round_to=wrong)
    for budget in (Share, Flops, Params, Threshold):
        with refused:
            budget(0.5, round_to=wrong)


def test_a_multiple_that_leaves_every_width_as_it_was_is_refused(randomise: Any) -> None:
    flow = surgery.trace(randomise(chain()), IMAGE)
    with pytest.raises(ValueError, match="multiples of 64: take a smaller round_to, or cut more"):
        flow.plan_by(0.5, round_to=64)
