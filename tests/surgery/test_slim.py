"""The slim model computes what the masked one computes, whatever the network looks like."""

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torchvision.ops import FrozenBatchNorm2d

from lightning_sparsity import surgery
from lightning_sparsity.surgery.running import call, tensors_in


def conv_bn(n: int, m: int, k: int = 3, **options: Any) -> list[nn.Module]:
    options.setdefault("padding", k // 2)
    return [nn.Conv2d(n, m, k, bias=False, **options), nn.BatchNorm2d(m)]


class Residual(nn.Module):
    def __init__(
        self, n: int = 12, act: Callable[[Tensor], Tensor] = F.relu, groups: int = 1
    ) -> None:
        super().__init__()
        self.act = act
        self.stem = nn.Sequential(*conv_bn(3, n))
        self.body = nn.Sequential(*conv_bn(n, 8, 1), nn.ReLU(), *conv_bn(8, n, groups=groups))
        self.head = nn.Linear(n, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        return self.head(self.act(x + self.body(x)).mean((2, 3)))


class PaddedShortcut(nn.Module):
    """The shortcut of ResNets for CIFAR: every other pixel, and new channels of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, 8), nn.ReLU())
        self.body = nn.Sequential(*conv_bn(8, 16, stride=2), nn.ReLU(), *conv_bn(16, 16))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        return self.head(F.relu(self.body(x) + shortcut).mean((2, 3)))


class PreActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 10, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(10), nn.BatchNorm2d(10), nn.BatchNorm2d(10)])
        self.convs = nn.ModuleList([nn.Conv2d(10, 10, k, padding=k // 2) for k in (1, 3)])
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=False):
            x = x + conv(F.relu(norm(x)))
        return self.head(F.relu(self.norms[-1](x)).mean((-2, -1)))


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(6 + 4 * i) for i in range(4)])
        self.convs = nn.ModuleList([nn.Conv2d(6 + 4 * i, 4, 3, padding=1) for i in range(3)])
        self.head = nn.Linear(18 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=False):
            x = torch.cat([x, conv(torch.relu(norm(x)))], dim=1)
        return self.head(F.avg_pool2d(F.relu_(self.norms[3](x)), 2).flatten(1))


class Shuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, 16), nn.ReLU())
        self.branches = nn.ModuleList(
            nn.Sequential(*conv_bn(8, 8, 1), nn.ReLU(), *conv_bn(8, 8, groups=8), *conv_bn(8, 8, 1))
            for _ in range(2)
        )
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch in self.branches:
            left, right = x.chunk(2, dim=1)
            x = torch.cat((left, F.relu(branch(right))), dim=1)
            n, c, h, w = x.size()
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)
        return self.head(x.mean([2, 3]))


class SqueezeExcitation(nn.Module):
    def __init__(self, act: type[nn.Module]) -> None:
        super().__init__()
        self.expand = nn.Sequential(*conv_bn(3, 16, 1), act(), *conv_bn(16, 16, groups=16), act())
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(16, 4, 1),
            nn.ReLU(),
            nn.Conv2d(4, 16, 1),
            nn.Sigmoid(),
        )
        self.project = nn.Sequential(*conv_bn(16, 8, 1))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand(x)
        return self.head(self.project(self.gate(x) * x).amax((2, 3)))


class SharedLayers(nn.Module):
    """One head on two levels, as detectors have it."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList([nn.Sequential(*conv_bn(3, 8), nn.ReLU()) for _ in range(2)])
        self.head = nn.Sequential(*conv_bn(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1))

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"levels": [self.head(level(x)) for level in self.levels], "size": x.shape[-1]}


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(*conv_bn(3, 8))
        self.right = nn.Sequential(*conv_bn(1, 8))
        self.out = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor, *, depth: Tensor) -> tuple[Tensor, list[Tensor]]:
        y = F.silu(self.left(x) - self.right(depth))
        return self.out(y), [F.interpolate(y, scale_factor=2.0, mode="bilinear")]


class Parametrised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(*conv_bn(3, 8), nn.ReLU())
        self.middle = nn.Conv2d(8, 8, 1)
        parametrize.register_parametrization(self.middle, "weight", nn.Tanh())
        self.norm = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.norm(self.middle(self.first(x)))))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(*conv_bn(3, 8), nn.ReLU())
        self.bottom = nn.Sequential(nn.MaxPool2d(2), *conv_bn(8, 12), nn.ReLU())
        self.up = nn.ConvTranspose2d(12, 8, 3, stride=2, padding=1, output_padding=1)
        self.deep_up = nn.ConvTranspose2d(8, 8, 2, stride=2, groups=8)
        self.norm, self.deep_norm = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.last = nn.Conv2d(16, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        down = self.down(x)
        up = F.relu(self.norm(self.up(self.bottom(down))))
        deep = F.leaky_relu(self.deep_norm(self.deep_up(up)), 0.1)
        return self.last(F.pad(torch.cat([down, F.avg_pool2d(deep, 2)], 1), (1, 0, 1, 0)))


class Borrowing(nn.Module):
    """Layers whose weights other code reads, or whose call goes round their hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, 8), nn.ReLU())
        self.mix, self.out = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.norm, self.last = nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.mix(self.stem(x)))
        x = F.conv2d(x, self.mix.weight.flip(0), self.mix.bias)
        x = F.relu(self.norm(self.out.forward(self.out(x))))
        return self.last(x * self.norm.weight.sigmoid().view(-1, 1, 1))


class AuxiliaryHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, 8), nn.ReLU())
        self.aux = nn.Sequential(
            *conv_bn(8, 4, 1), nn.Flatten(), nn.Dropout(), nn.Linear(4 * 64, 3)
        )
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        out = self.head(x).mean((2, 3))
        return (out, self.aux(F.dropout(x, training=True))) if self.training else out


def stack(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


@cache
def toys() -> dict[str, tuple[nn.Module, Any]]:
    image = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4)]
    mlp = stack(
        nn.Linear(9, 16),
        nn.BatchNorm1d(16),
        nn.Tanh(),
        nn.Linear(16, 8),
        nn.BatchNorm1d(8),
        nn.Linear(8, 2),
    )
    wide = stack(nn.Conv1d(3, 8, 5), nn.BatchNorm1d(8), nn.GELU(), nn.Conv1d(8, 4, 3, dilation=2))
    deep = stack(
        nn.Conv3d(1, 6, 3), nn.SyncBatchNorm(6), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(6, 2, 2)
    )
    flat = [nn.Flatten(), nn.Dropout(), nn.Linear(12 * 16, 4)]
    frozen = [nn.Conv2d(3, 8, 1), FrozenBatchNorm2d(8), nn.ReLU(), *conv_bn(8, 12), *tail]
    return {
        "padded": (stack(*conv_bn(3, 8), nn.ReLU(), *conv_bn(8, 12), nn.Sigmoid(), *tail), image),
        "unpadded": (
            stack(*conv_bn(3, 8, padding=0), nn.GELU(), *conv_bn(8, 12, padding=0), *tail),
            image,
        ),
        "reflected": (stack(*conv_bn(3, 8), *conv_bn(8, 12, padding_mode="reflect"), *tail), image),
        "same": (stack(*conv_bn(3, 8), nn.ELU(), *conv_bn(8, 12, padding="same"), *tail), image),
        "flattened": (stack(*conv_bn(3, 12), nn.ReLU6(), nn.MaxPool2d(2), *flat), image),
        "mlp": (mlp, torch.randn(3, 9, dtype=torch.float64)),
        "one dimension": (wide, torch.randn(2, 3, 20, dtype=torch.float64)),
        "three dimensions": (deep, torch.randn(1, 1, 8, 8, 8, dtype=torch.float64)),
        "biased": (
            stack(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Softplus(), nn.Conv2d(8, 2, 1)),
            image,
        ),
        "residual": (Residual(), image),
        "padded shortcut": (PaddedShortcut(), image),
        "residual of silu": (Residual(act=F.silu), image),
        "pre-activation": (PreActivation(), image),
        "dense": (Dense(), image),
        "shuffled": (Shuffled(), image),
        "squeeze-excitation": (SqueezeExcitation(nn.ReLU), image),
        "squeeze-excitation of silu": (SqueezeExcitation(nn.SiLU), image),
        "grouped": (
            stack(*conv_bn(3, 8), nn.ReLU(), *conv_bn(8, 12, groups=4), nn.ReLU(), *tail),
            image,
        ),
        "grouped transposed": (
            stack(
                *conv_bn(3, 12),
                nn.ReLU(),
                nn.ConvTranspose2d(12, 12, 3, groups=3, bias=False),
                nn.BatchNorm2d(12),
                nn.ReLU(),
                *conv_bn(12, 12, groups=2, padding=0),
                *tail,
            ),
            image,
        ),
        "grouped in front of a sum": (Residual(groups=2), image),
        "multiplied": (
            stack(*conv_bn(3, 4), nn.ReLU(), *conv_bn(4, 12, groups=4), nn.ReLU(), *tail),
            image,
        ),
        "depthwise": (
            stack(*conv_bn(3, 12), nn.ReLU(), *conv_bn(12, 12, groups=12), nn.ReLU(), *tail),
            image,
        ),
        "prelu": (stack(*conv_bn(3, 8), nn.PReLU(8), *conv_bn(8, 12), nn.PReLU(), *tail), image),
        "instance norm": (
            stack(*conv_bn(3, 12), nn.InstanceNorm2d(12, affine=True), nn.ReLU(), *tail),
            image,
        ),
        "group norm": (stack(*conv_bn(3, 12), nn.GroupNorm(3, 12), nn.ReLU(), *tail), image),
        "frozen norm": (stack(*frozen), image),
        "no affine": (
            stack(*conv_bn(3, 8), nn.BatchNorm2d(8, affine=False), *conv_bn(8, 12), *tail),
            image,
        ),
        "batch statistics": (
            stack(
                *conv_bn(3, 8),
                nn.ReLU(),
                *conv_bn(8, 12),
                nn.BatchNorm2d(12, track_running_stats=False),
                *tail,
            ),
            image,
        ),
        "pixel shuffle": (
            stack(*conv_bn(3, 16), nn.PixelShuffle(2), *conv_bn(4, 12), *tail),
            image,
        ),
        "padded pool": (stack(*conv_bn(3, 8), nn.AvgPool2d(3, 1, 1), nn.Conv2d(8, 2, 1)), image),
        "outer pad": (stack(*conv_bn(3, 8), nn.ZeroPad2d(1), nn.Conv2d(8, 2, 3)), image),
        "shared layers": (SharedLayers(), image),
        "two inputs": (TwoInputs(), {"x": image, "depth": image[:, :1]}),
        "parametrised": (Parametrised(), image),
        "u-net": (UNet(), image),
        "borrowing": (Borrowing(), image),
        "auxiliary head": (AuxiliaryHead(), image),
        "features": (stack(*conv_bn(3, 8), nn.ReLU()), image),
    }


@pytest.fixture(params=toys())
def toy(request: pytest.FixtureRequest, randomise: Any) -> tuple[nn.Module, Any]:
    model, inputs = toys()[request.param]
    return randomise(copy.deepcopy(model)), inputs


def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    with torch.no_grad():
        return list(tensors_in(call(model, inputs)))


def fresh(inputs: Any) -> Any:
    """Other inputs than those of the trace: another batch and, for images, other values."""
    if isinstance(inputs, dict):
        return {name: fresh(x) for name, x in inputs.items()}
    return torch.randn(5, *inputs.shape[1:], dtype=inputs.dtype)


def slimmed(model: nn.Module, plan: Any, inputs: Any) -> nn.Module:
    """The slim model, which computes what the masked one computes, also on other inputs."""
    small, masked = surgery.slim(model, plan), surgery.mask(model, plan)
    assert plan.proof is not None
    assert plan.proof <= 1e-12
    new = fresh(inputs)
    for expected, got in zip(outputs(masked, new), outputs(small, new), strict=True):
        torch.testing.assert_close(
            got, expected, rtol=1e-12, atol=1e-12 * float(expected.abs().max())
        )
    return small


@pytest.mark.parametrize("share", [0.4, 0.7, 1.0])
@pytest.mark.parametrize("gather", [True, False], ids=["gather", "no gather"])
def test_slim_computes_what_mask_computes(
    toy: Any, share: float, gather: bool, draw_dead: Any
) -> None:
    model, inputs = toy
    flow = surgery.trace(model, inputs)
    plan = flow.plan(draw_dead(flow, share), gather=gather)
    small = slimmed(model, plan, inputs)
    if gather:
        assert size(small) < size(model)


@pytest.mark.parametrize("exact", [False, True], ids=["small scales", "zero scales"])
@pytest.mark.parametrize("gather", [True, False], ids=["gather", "no gather"])
@pytest.mark.parametrize("multiple", [4, 8])
def test_it_does_so_in_round_widths(
    toy: Any, multiple: int, gather: bool, exact: bool, draw_dead: Any
) -> None:
    model, inputs = toy
    torch.manual_seed(0)  # whichever test has made the toys
    dead = draw_dead(surgery.trace(model, inputs), 0.5)
    if exact:
        for name, mask in dead.items():
            model.get_submodule(name).weight.data[mask] = 0
    flow = surgery.trace(model, inputs)
    plan = flow.plan({} if exact else dead, gather=gather, round_to=multiple)
    slimmed(model, plan, inputs)
    for name, cut in plan.cuts.items():
        rows, columns = cut.rows.numel(), cut.columns.numel() + cut.ones
        for n, dense in zip((rows, columns), cut.layer.widths, strict=True):
            lone = n == 1  # what is left of a layer that nobody needs
            assert n % multiple == 0 or n == dense or lone or cut.layer.kind == "grouped", name


def size(model: nn.Module) -> int:
    return sum(x.numel() for x in model.parameters())


def test_slim_takes_a_training_step(toy: Any, draw_dead: Any) -> None:
    model, inputs = toy
    flow = surgery.trace(model, inputs)
    small = surgery.slim(model, flow.plan(draw_dead(flow, 0.5))).train()
    if any(isinstance(module, nn.SyncBatchNorm) for module in small.modules()):
        small.eval()  # trains on GPUs only
    before = copy.deepcopy(small.state_dict())
    optimizer = torch.optim.SGD(small.parameters(), lr=1e-2)
    result = call(small, inputs)
    sum(x.square().mean() for x in tensors_in(result)).backward()
    optimizer.step()
    assert any(not torch.equal(x, before[name]) for name, x in small.state_dict().items())
    assert all(x.isfinite().all() for x in outputs(small.eval(), inputs))


GOES_WHOLE = [
    "padded",
    "residual",
    "pre-activation",
    "dense",
    "shuffled",
    "squeeze-excitation",
    "u-net",
    "prelu",
]


@pytest.mark.parametrize("name", GOES_WHOLE)
def test_no_dead_channel_stays(name: str, randomise: Any) -> None:
    model, inputs = toys()[name]
    flow = surgery.trace(randomise(copy.deepcopy(model)), inputs)
    dead = {norm: torch.arange(n) % 3 > 0 for norm, n in flow.norms.items()}
    plan = flow.plan(dead)
    for norm, kept in plan.kept.items():
        assert not dead[norm][kept].any(), norm


def test_without_gathering_nothing_is_added(toy: Any, draw_dead: Any) -> None:
    model, inputs = toy
    flow = surgery.trace(model, inputs)
    small = surgery.slim(model, flow.plan(draw_dead(flow, 0.5), gather=False))
    assert [type(m) for m in small.modules()] == [type(m) for m in model.modules()]


def test_a_constant_in_front_of_zero_padding_costs_one_channel(randomise: Any) -> None:
    model = randomise(stack(*conv_bn(3, 8), nn.Sigmoid(), nn.Conv2d(8, 2, 3, padding=1)))
    flow = surgery.trace(model, torch.randn(1, 3, 6, 6).double())
    dead = {"1": torch.tensor([True] * 5 + [False] * 3)}
    with_ones = surgery.slim(model, flow.plan(dead))
    assert with_ones[3].weight.shape == (2, 4, 3, 3)
    assert with_ones[0].weight.shape[0] == 3
    carried = surgery.slim(model, flow.plan(dead, gather=False))
    assert carried[3].weight.shape == (2, 4, 3, 3)
    assert carried[0].weight.shape[0] == 4


def test_a_constant_in_front_of_a_norm_moves_into_its_mean(randomise: Any) -> None:
    model = randomise(stack(*conv_bn(3, 8), nn.Sigmoid(), *conv_bn(8, 4, 1), nn.Conv2d(4, 2, 1)))
    flow = surgery.trace(model, torch.randn(1, 3, 6, 6).double())
    small = surgery.slim(model, flow.plan({"1": torch.arange(8) < 5}))
    assert small[3].bias is None
    assert not torch.equal(small[4].running_mean, model[4].running_mean)


def test_a_dead_branch_costs_next_to_nothing(randomise: Any) -> None:
    model = randomise(Residual())
    image = torch.randn(1, 3, 8, 8).double()
    flow = surgery.trace(model, image)
    small = surgery.slim(model, flow.plan({"body.4": torch.ones(12, dtype=torch.bool)}))
    assert [x.numel() for x in small.body.parameters()] == [1, 1, 1, 9, 1, 1]


def test_groups_go_whole_or_lose_equally_many(randomise: Any) -> None:
    grouped = [nn.Conv2d(12, 6, 1, groups=3), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)]
    model = randomise(stack(*conv_bn(3, 12), nn.ReLU(), *grouped))
    flow = surgery.trace(model, torch.randn(1, 3, 6, 6).double())
    first = torch.tensor([1, 1, 1, 0, 1, 0, 0, 1, 0, 0, 0, 0]).bool()
    small = surgery.slim(
        model, flow.plan({"1": first, "4": torch.tensor([0, 1, 0, 1, 1, 1]).bool()})
    )
    assert small[3].groups == 2
    assert small[3].weight.shape == (2, 2, 1, 1)
    assert small[5].weight.shape == (2, 2, 1, 1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.8, 0.95])
def test_nearly_dead_networks_are_cut_exactly(
    toy: Any, share: float, seed: int, draw_dead: Any
) -> None:
    """Zero shifts and zero rows and columns of weights on top of dead scales: corners meet."""
    model, inputs = toy
    torch.manual_seed(seed)
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, (nn.Conv2d, nn.Linear)) and "weight" in own:
            own["weight"].data[torch.rand(own["weight"].size(0)) < 0.3] = 0
            own["weight"].data[:, torch.rand(own["weight"].size(1)) < 0.2] = 0
        elif "bias" in own:
            own["bias"].data[torch.rand(own["bias"].size(0)) < 0.4] = 0
    flow = surgery.trace(model, inputs)
    plan = flow.plan(draw_dead(flow, share))
    small = surgery.slim(model, plan)
    assert plan.proof is not None
    assert plan.proof <= 1e-12
    assert size(small) == surgery.Params(0.5).cost(model, flow.tape, plan.cuts)


def test_zero_rows_and_columns_of_plain_layers_go_too() -> None:
    model = stack(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    with torch.no_grad():
        model[0].weight[:3] = 0
        model[4].weight[:, 4:] = 0
    flow = surgery.trace(model, torch.randn(2, 4).double())
    small = surgery.slim(model, flow.plan({}))
    assert [tuple(small[i].weight.shape) for i in (0, 2, 4)] == [(5, 4), (4, 5), (2, 4)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_the_model_was_it_stays(dtype: torch.dtype, randomise: Any, draw_dead: Any) -> None:
    model = randomise(Residual()).to(dtype).train()
    model.body[1].eval()
    model.stem[0].weight.requires_grad_(False)
    calls: list[str] = []
    model.head.register_forward_hook(lambda *_: calls.append("head"))
    before = copy.deepcopy(model.state_dict())
    image = torch.randn(2, 3, 8, 8, dtype=dtype)
    flow = surgery.trace(model, image)
    small = surgery.slim(model, flow.plan(draw_dead(flow, 0.5)))
    assert {x.dtype for x in small.parameters()} == {dtype}
    assert not small.stem[0].weight.requires_grad
    assert small.stem[1].weight.requires_grad
    modes = {name: module.training for name, module in model.named_modules()}
    assert modes == {name: m.training for name, m in small.named_modules() if name in modes}
    calls.clear()
    small.eval()(image)
    assert calls == ["head"]
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    shared = {x.data_ptr() for x in model.state_dict().values()} - {0}
    assert not shared & {x.data_ptr() for x in small.state_dict().values()}


def test_channels_stay_innermost_in_memory(tmp_path: Path, randomise: Any, draw_dead: Any) -> None:
    model = randomise(Residual()).to(memory_format=torch.channels_last)
    flow = surgery.trace(model, torch.randn(2, 3, 8, 8).double())
    plan = flow.plan(draw_dead(flow, 0.4))
    small = surgery.slim(model, plan)
    surgery.save(small, plan, tmp_path)
    for network in (small, surgery.load(model, tmp_path)):
        weights = [w for w in network.parameters() if w.dim() == 4]
        assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)
        assert not all(w.is_contiguous() for w in weights)


def test_float32_agrees_to_rounding(randomise: Any, draw_dead: Any) -> None:
    model = randomise(Residual()).float()
    image = torch.randn(2, 3, 8, 8)
    flow = surgery.trace(model, image)
    plan = flow.plan(draw_dead(flow, 0.4))
    small, masked = surgery.slim(model, plan), surgery.mask(model, plan)
    torch.testing.assert_close(small(image), masked(image), rtol=1e-5, atol=1e-5)
    assert plan.proof is not None
    assert plan.proof <= 1e-12


def test_one_module_in_two_places_stays_one(randomise: Any) -> None:
    shared = nn.Conv2d(8, 8, 1)
    model = randomise(stack(*conv_bn(3, 8), nn.ReLU(), shared, nn.ReLU(), shared))
    flow = surgery.trace(model, torch.randn(1, 3, 4, 4).double())
    small = surgery.slim(model, flow.plan({"1": torch.arange(8) < 4}))
    assert small[3] is small[5]


def test_a_slim_model_exports(randomise: Any, draw_dead: Any) -> None:
    model, image = randomise(Residual()), torch.randn(2, 3, 8, 8).double()
    flow = surgery.trace(model, image)
    small = surgery.slim(model, flow.plan(draw_dead(flow, 0.5)))
    exported = torch.export.export(small, (image,), strict=False).module()
    assert torch.equal(exported(image), small(image))


def test_a_slim_model_can_be_cut_again(randomise: Any, draw_dead: Any) -> None:
    model, image = randomise(Dense()), torch.randn(2, 3, 8, 8).double()
    for _ in range(2):
        flow = surgery.trace(model, image)
        plan = flow.plan(draw_dead(flow, 0.3))
        model = surgery.slim(model, plan)
        assert plan.proof is not None
        assert plan.proof <= 1e-12


def test_a_network_that_is_one_layer_is_cut_to_its_rows_that_are_not_zero() -> None:
    for bias in (True, False):
        layer = nn.Linear(6, 4, bias=bias).double()
        with torch.no_grad():
            layer.weight[1:3] = 0
        x = torch.rand(5, 6, dtype=torch.float64)
        small = surgery.slim(layer, surgery.trace(layer, x).plan({}))
        assert small.weight.shape == (2, 6)
        torch.testing.assert_close(small(x), layer(x))
