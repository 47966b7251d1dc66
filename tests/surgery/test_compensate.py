"""Dead channels leave behind what their readers saw on average."""

import copy
import itertools
from collections.abc import Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from lightning_sparsity import surgery
from lightning_sparsity.surgery import compensation
from lightning_sparsity.surgery.entrywise import Entrywise, NotEntrywiseError
from lightning_sparsity.surgery.running import call, preserved

DEAD = torch.arange(12) % 3 > 0


def images(count: int = 3, **options: Any) -> list[Tensor]:
    options = {"dtype": torch.float64, **options}
    return [torch.randn(4 + i, 3, 8, 8, **options) for i in range(count)]


def two_convs(*between: nn.Module, **options: Any) -> nn.Sequential:
    options.setdefault("padding", 1)
    first = [nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), *between]
    second = [nn.Conv2d(12, 6, 3, **options), nn.BatchNorm2d(6), nn.ReLU()]
    return nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))


def compensated(
    model: nn.Module, dead: dict[str, Tensor], batches: Iterable[Any], example: Any
) -> tuple[nn.Module, surgery.Plan]:
    """The better model, and a plan of its own."""
    better = surgery.compensate(model, surgery.trace(model, example).plan(dead), batches)
    return better, surgery.trace(better, example).plan(dead)


def mean_input(model: nn.Module, layer: nn.Module, batches: Iterable[Any], dim: int = 1) -> Tensor:
    """What a layer sees of each channel on average, all batches taken together."""
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].movedim(dim, 0).flatten(1))
    )
    with preserved(model):
        model.eval()
        for batch in batches:
            call(model, batch)
    hook.remove()
    return torch.cat(seen, 1).mean(1)


BETWEEN = {
    "nothing": [],
    "relu": [nn.ReLU(inplace=True)],
    "relu and pooling": [nn.ReLU(), nn.MaxPool2d(2)],
    "silu": [nn.SiLU()],
    "gelu": [nn.GELU()],
    "hardswish": [nn.Hardswish()],
    "sigmoid and pooling": [nn.Sigmoid(), nn.AvgPool2d(2)],
    "prelu": [nn.PReLU(12, init=-0.3)],
    "prelu with one slope": [nn.PReLU()],
}


@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN.keys())
def test_the_reader_sees_the_mean_of_the_dense_network(
    between: list[nn.Module], randomise: Any
) -> None:
    model, batches = randomise(two_convs(*copy.deepcopy(between))), images()
    better, plan = compensated(model, {"1": DEAD}, batches, batches[0])
    masked, at = surgery.mask(better, plan), 2 + len(between)
    expected = mean_input(model, model[at], batches)
    got = mean_input(masked, masked[at], batches)
    torch.testing.assert_close(got[DEAD], expected[DEAD], rtol=0, atol=1e-9)
    surgery.slim(better, plan)
    assert plan.proof is not None
    assert plan.proof <= 1e-12


def nearest_crossing(act: nn.Module, old: float, scale: float, target: float) -> float:
    """The shift at which an activation makes the target: a slow search for one channel."""

    def error(shift: float) -> float:
        return float(act(torch.tensor([shift], dtype=torch.float64))) - target

    grid = [old + i * scale / 4 for i in range(-32, 33)]
    cells = [(a, b) for a, b in itertools.pairwise(grid) if error(a) * error(b) <= 0]
    if not cells:
        return min([*grid, target], key=lambda shift: abs(error(shift)))
    low, high = min(cells, key=lambda cell: abs(cell[0] + cell[1] - 2 * old))
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if error(middle) * error(low) > 0 else (low, middle)
    return low


def test_shifts_are_those_that_a_slow_search_finds_channel_by_channel(randomise: Any) -> None:
    acts = [nn.SiLU(), nn.Hardswish(), nn.GELU()]
    layers = [
        layer
        for act in acts
        for layer in (nn.LazyConv2d(12, 3, padding=1), nn.BatchNorm2d(12), act)
    ]
    model = nn.Sequential(*layers, nn.Conv2d(12, 4, 1))
    model(images(1)[0].float())
    batches = images()
    model = randomise(model)
    norms = {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    better, _ = compensated(model, dict.fromkeys(norms, DEAD), batches, batches[0])
    for (name, norm), act in zip(norms.items(), acts, strict=True):
        means = mean_input(model, model[int(name) + 2], batches)
        for c in DEAD.nonzero().flatten().tolist():
            old, scale = norm.bias[c].item(), norm.weight[c].abs().item()
            expected = nearest_crossing(act, old, scale, means[c].item())
            assert better[int(name)].bias[c].item() == pytest.approx(expected, abs=1e-9)


class Activations(nn.Module):
    """Several activations behind one norm, in branches that meet again and in those that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12))
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 12, 1), nn.Sigmoid())
        self.left, self.right = nn.Conv2d(12, 4, 1), nn.Conv2d(12, 4, 3, padding=1)
        self.both, self.last = nn.Conv2d(15, 4, 1), nn.Linear(12, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        y = x * torch.sigmoid(1.7 * x) + 0.3
        z = torch.cat([F.hardswish(x), images[:, :, 1:-1, 1:-1]], 1).permute(0, 2, 3, 1)
        made = self.left(F.max_pool2d(y, 2)).mean((2, 3)) + self.both(z.permute(0, 3, 1, 2)).amax()
        gated = F.relu(x)
        return made + self.right(gated * self.gate(gated)).mean((2, 3)) + self.last(y.mean((2, 3)))


def test_all_shifts_at_once_are_those_found_with_one_run_of_the_tape_each(
    randomise: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batches = randomise(Activations()), images()
    with monkeypatch.context() as patch:
        patch.setattr(compensation._Norm, "_seen_one_by_one", None)
        at_once, _ = compensated(model, {"stem.1": DEAD}, batches, batches[0])
    refused: list[object] = []

    def refuse(*args: object) -> None:
        refused.append(args)
        raise NotEntrywiseError

    monkeypatch.setattr(compensation, "Entrywise", refuse)
    one_by_one, _ = compensated(model, {"stem.1": DEAD}, batches, batches[0])
    assert refused
    assert not torch.equal(at_once.stem[1].bias, model.stem[1].bias)
    torch.testing.assert_close(at_once.stem[1].bias, one_by_one.stem[1].bias, rtol=0, atol=1e-12)


class NotEntrywise(nn.Module):
    """Behind one norm: what depends on the channel, on zeros around, or on other channels."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12))
        self.slopes = nn.Parameter(torch.linspace(-0.5, 0.5, 12).view(12, 1, 1))
        self.last = nn.Conv2d(24 if what == "two functions" else 12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x))
        if self.what == "weights":
            x = x * self.slopes
        elif self.what == "padded average":
            x = F.avg_pool2d(x, 3, 1, 1)
        elif self.what == "padding":
            x = F.pad(x, (1, 1, 1, 1))
        elif self.what == "two functions":
            x = torch.cat([x, x.tanh()], 1)
        elif self.what == "sum":
            x = x.sum((2, 3), keepdim=True)
        elif self.what == "other channels":
            x = x + x.flip(1)
        return self.last(x)


@pytest.mark.parametrize(
    ("what", "function"),
    [
        ("weights", "mul"),
        ("padded average", "avg_pool2d"),
        ("padding", "pad"),
        ("two functions", "cat"),
        ("sum", "sum"),
        ("other channels", "add"),
    ],
)
def test_what_does_not_work_entry_by_entry_is_left_to_the_tape(
    what: str, function: str, randomise: Any
) -> None:
    model, batches = randomise(NotEntrywise(what)), images(1)
    flow = surgery.trace(model, batches[0])
    steps = [step for step in flow.tape.steps if step.call is None]
    made = flow.tape.sites["stem.1"].calls[0].result
    Entrywise(steps[:1], [made], steps[0].results)
    with pytest.raises(NotEntrywiseError, match=function):
        Entrywise(steps, [made], steps[-1].results)
    surgery.compensate(model, flow.plan({"stem.1": DEAD}), batches)


def test_shifts_alone_are_moved_and_only_those_of_dead_channels(randomise: Any) -> None:
    model, batches = randomise(two_convs(nn.ReLU())), images()
    with torch.no_grad():
        model[1].weight[~DEAD] = 0  # constant as well, but not to be cut
        model[1].bias += 1
    better, _ = compensated(model, {"1": DEAD}, batches, batches[0])
    before, after = model.state_dict(), better.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["1.bias"]
    assert torch.equal(model[1].bias != better[1].bias, DEAD)


def test_means_are_those_of_evaluation_mode(randomise: Any) -> None:
    model, batches = randomise(two_convs(nn.Dropout(), nn.GELU())), images()
    expected, _ = compensated(model, {"1": DEAD}, batches, batches[0])
    got, _ = compensated(model.train(), {"1": DEAD}, batches, batches[0])
    assert torch.equal(got[1].bias, expected[1].bias)


def test_a_shift_whose_constant_cannot_be_followed_stays(randomise: Any) -> None:
    """Pooling that averages zeros from outside makes constants of zero shifts alone."""
    model, batches = randomise(two_convs(nn.AvgPool2d(3, 1, 1))), images()
    for shift in (0.0, 0.5):
        nn.init.constant_(model[1].bias, shift)
        better, _ = compensated(model, {"1": DEAD}, batches, batches[0])
        assert torch.equal(better[1].bias, model[1].bias)


class Residual(nn.Module):
    def __init__(self, act: Any) -> None:
        super().__init__()
        self.act = act
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12))
        self.body = nn.Sequential(
            nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12), nn.SiLU(), nn.Conv2d(12, 12, 1)
        )
        self.norm, self.head = nn.BatchNorm2d(12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.act(x + self.norm(self.body(x))).mean((2, 3)))


@pytest.mark.parametrize("act", [F.relu, F.silu], ids=["relu", "silu"])
def test_a_channel_read_through_a_sum_keeps_its_shift(act: Any, randomise: Any) -> None:
    model, batches = randomise(Residual(act)), images()
    dead = dict.fromkeys(("stem.1", "body.1", "norm"), DEAD)
    better, plan = compensated(model, dead, batches, batches[0])
    assert torch.equal(better.norm.bias, model.norm.bias)
    assert not torch.equal(better.body[1].bias, model.body[1].bias)
    masked = surgery.mask(better, plan)
    expected, got = (mean_input(m, m.body[0], batches)[DEAD] for m in (model, masked))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
    surgery.slim(better, plan)
    assert plan.proof is not None
    assert plan.proof <= 1e-12


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12))
        self.left, self.right = nn.Conv2d(12, 4, 3, padding=1), nn.Linear(12 * 9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        right = self.right(F.avg_pool2d(F.silu(x), 2).flatten(1))
        return self.left(torch.tanh(x)).mean((2, 3)) + right


def test_several_readers_count_alike(randomise: Any) -> None:
    model, batches = randomise(TwoReaders()), images(1)
    better, plan = compensated(model, {"stem.1": DEAD}, batches, batches[0])
    masked = surgery.mask(better, plan)
    expected, got = (
        mean_input(m, m.left, batches) + mean_input(m, m.right, batches).view(12, 9).mean(1)
        for m in (model, masked)
    )
    torch.testing.assert_close(got[DEAD], expected[DEAD], rtol=0, atol=1e-9)


class SharedHead(nn.Module):
    """One head on two levels; channels arrive by name."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(nn.Conv2d(n, 12, 1), nn.BatchNorm2d(12), nn.ReLU()) for n in (3, 1)
        )
        self.head = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor, *, depth: Tensor) -> list[Tensor]:
        return [self.head(level(y)) for level, y in zip(self.levels, (x, depth), strict=True)]


def test_each_call_of_a_shared_layer_is_looked_at_by_itself(randomise: Any) -> None:
    model = randomise(SharedHead())
    batches = [{"x": x, "depth": 3 * x[:, :1]} for x in images()]
    better, plan = compensated(model, {"levels.1.1": DEAD}, batches, batches[0])
    masked = surgery.mask(better, plan)
    levels = [model.levels[1], masked.levels[1]]
    everything = torch.cat([batch["depth"] for batch in batches])
    expected, got = (level(everything).mean((0, 2, 3))[DEAD] for level in levels)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)


def test_what_the_model_was_it_stays(randomise: Any) -> None:
    model = randomise(two_convs(nn.SiLU(), nn.Dropout())).float().train()
    model[4].eval()
    model[1].bias.requires_grad_(False)
    calls: list[str] = []
    model[0].register_forward_hook(lambda *_: calls.append("first"))
    before, batches = copy.deepcopy(model.state_dict()), images(dtype=torch.float32)
    plan = surgery.trace(model, batches[0]).plan({"1": DEAD})
    random = torch.get_rng_state()
    better = surgery.compensate(model, plan, batches)
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    for name, x in better.named_buffers():
        assert torch.equal(x, before[name])
    assert [m.training for m in better.modules()] == [m.training for m in model.modules()]
    assert {x.dtype for x in better.parameters()} == {torch.float32}
    assert not better[1].bias.requires_grad
    assert better[1].weight.requires_grad
    assert not {x.data_ptr() for x in better.parameters()} & {
        x.data_ptr() for x in model.parameters()
    }
    assert [len(m._forward_pre_hooks) for m in better.modules()] == [0] * len(list(model.modules()))
    calls.clear()
    better(batches[0])
    assert calls == ["first"]


def test_no_shift_becomes_nan(randomise: Any) -> None:
    model, batches = randomise(two_convs(nn.SiLU())), images()
    batches[1][0, 0, 0, 0] = torch.nan
    better, _ = compensated(model, {"1": DEAD}, batches, batches[0])
    assert torch.equal(better[1].bias, model[1].bias)


def test_recalibration_of_the_slim_network_equals_that_of_the_masked_one(randomise: Any) -> None:
    model, batches = randomise(two_convs(nn.ReLU())), images()
    better, plan = compensated(model, {"1": DEAD}, batches, batches[0])
    small, masked = surgery.slim(better, plan), surgery.mask(better, plan)
    stale = small(batches[0])
    for network in (small, masked):
        update_bn(batches, network)
    assert not torch.allclose(small(batches[0]), stale)
    torch.testing.assert_close(small(batches[0]), masked(batches[0]), rtol=1e-12, atol=1e-12)


def test_errors_say_what_is_missing(randomise: Any, tmp_path: Any) -> None:
    model, batches = randomise(two_convs(nn.ReLU())), images()
    plan = surgery.trace(model, batches[0]).plan({"1": DEAD})
    with pytest.raises(ValueError, match="at least one batch of example inputs, got none"):
        surgery.compensate(model, plan, iter([]))
    with pytest.raises(ValueError, match=r"in a form that trace takes .* raised"):
        surgery.compensate(model, plan, [(batches[0], torch.zeros(4))])
    with pytest.raises(ValueError, match="belongs to another model"):
        surgery.compensate(nn.Sequential(nn.Conv2d(3, 3, 1)), plan, batches)
    plan.flow = None
    with pytest.raises(ValueError, match=r"made by ChannelFlow.plan, got one from disk"):
        surgery.compensate(model, plan, batches)
