"""Planning does much once, or at once for all layers: the answers are those of the plain way."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_sparsity import surgery
from lightning_sparsity.models import DenseNet40, ResNet20
from lightning_sparsity.surgery import Flops, Params
from lightning_sparsity.surgery.budget import Keep, Trials
from lightning_sparsity.surgery.crossing import crossing
from lightning_sparsity.surgery.facts import blocks_of, zeros_of
from lightning_sparsity.surgery.plan import make_plan
from lightning_sparsity.surgery.ranking import Ranking
from lightning_sparsity.surgery.rounding import Groundwork, Rounding
from lightning_sparsity.surgery.tape import Layer
from lightning_sparsity.surgery.widths import Widths

IMAGE = torch.randn(1, 3, 16, 16, dtype=torch.float64)


class Mixed(nn.Module):
    """A sum, a concatenation, groups, a depthwise convolution and padded constants."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.second = nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, 3, groups=12, padding=1, bias=False)
        self.third = nn.BatchNorm2d(12)
        self.up = nn.ConvTranspose2d(24, 10, 2, stride=2)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.stem(x)).relu()
        y = self.second(self.grouped(x)).sigmoid()
        x = x + self.third(self.depthwise(x))
        return self.head(self.up(torch.cat([x, y], 1)).relu().mean((2, 3)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mixed": Mixed,
    "ResNet20": ResNet20,
    "DenseNet40": DenseNet40,
}


@pytest.mark.parametrize(
    ("budget", "gather"),
    [
        (Flops(0.6), True),
        (Flops(0.6), False),
        (Params(0.7), True),
        (Params(0.7), False),
        (Flops(0.8, round_to=2), True),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_budget_is_met_by_a_count_while_one_less_does_not_meet_it(
    name: str, budget: Keep, gather: bool, randomise: Any
) -> None:
    model = randomise(NETWORKS[name]())
    flow = surgery.trace(model, IMAGE)
    ranking = Ranking(flow.scales(), 0)

    def planned(count: int) -> surgery.Plan:
        """By a plan of its own, with nothing left over from others."""
        dead = ranking.dead(count)
        return make_plan(flow, model, dead, gather=gather, round_to=budget.round_to)

    def widths(count: int) -> Widths:
        return Widths.of_cuts(planned(count).cuts)

    def cost(count: int) -> int:
        return budget.cost(model, flow.tape, planned(count).cuts)

    count = budget.count(Trials(model, flow.tape, ranking.magnitudes, widths))
    assert cost(count) <= budget.keep * budget.cost(model, flow.tape, None) < cost(count - 1)
    plan = flow.plan_by(budget, gather=gather, keep_at_least=0)
    assert is_same(plan, planned(count))


def is_same(plan: surgery.Plan, other: surgery.Plan) -> bool:
    pairs = zip(plan.cuts.values(), other.cuts.values(), strict=True)
    return all(one.to_json() == another.to_json() for one, another in pairs)


@pytest.mark.parametrize("round_to", [1, 4])
@pytest.mark.parametrize("gather", [True, False], ids=["gather", "no gather"])
@pytest.mark.parametrize("name", NETWORKS)
def test_plans_on_one_groundwork_are_those_that_stand_alone(
    name: str, gather: bool, round_to: int, randomise: Any, draw_dead: Any
) -> None:
    model = randomise(NETWORKS[name]())
    flow = surgery.trace(model, IMAGE)
    ground = Groundwork(flow, model, gather=gather)
    for share in (0.9, 0.2, 0.5):
        dead = draw_dead(flow, share)
        alone = make_plan(flow, model, dead, gather=gather, round_to=round_to)
        after = make_plan(flow, model, dead, gather=gather, round_to=round_to, ground=ground)
        assert is_same(after, alone)
        widths = Rounding(ground, dead, round_to=round_to).widths()
        built = Widths.of_cuts(alone.cuts)
        for own, other in zip(vars(widths).values(), vars(built).values(), strict=True):
            assert np.array_equal(own, other)


@pytest.mark.parametrize("gather", [True, False], ids=["gather", "no gather"])
@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_are_priced_as_they_are_built(
    name: str, gather: bool, randomise: Any, draw_dead: Any
) -> None:
    model = randomise(NETWORKS[name]())
    flow = surgery.trace(model, IMAGE)
    for share in (0.3, 0.95):
        plan = flow.plan(draw_dead(flow, share), gather=gather)
        small = surgery.slim(model, plan)
        built = sum(x.numel() for x in small.parameters())
        assert Params(0.5).cost(model, flow.tape, plan.cuts) == built


def curve(rng: random.Random, n: int) -> list[float]:
    """Costs of 0 to n scales removed: falling like a square, in steps, here and there rising."""
    step = rng.choice((1, 1, 8))
    smooth = [(n - 0.8 * (i - i % step)) ** 2 for i in range(n)]
    return [x + rng.choice((0, 0, 0, 2 * n)) for x in smooth] + [(0.2 * n) ** 2]


@pytest.mark.parametrize("seed", range(30))
def test_the_search_finds_a_crossing_in_few_tries(seed: int) -> None:
    rng = random.Random(seed)
    n = rng.choice([1, 2, 7, 100, 5000])
    costs = curve(rng, n)
    asked: list[int] = []

    def cost(count: int) -> float:
        asked.append(count)
        return costs[count]

    allowed = costs[-1] + (costs[0] - costs[-1]) * rng.uniform(0, 0.99)
    found = crossing(cost, allowed, (0, costs[0]), (n, costs[n]))
    assert costs[found] <= allowed < costs[found - 1]
    assert len(asked) == len(set(asked)) <= 12 + n.bit_length()
    assert all(0 < count < n for count in asked)


def test_the_search_is_not_long_even_where_the_cost_falls_off_a_cliff() -> None:
    asked: list[int] = []

    def cost(count: int) -> float:
        asked.append(count)
        return 1000.0 if count < 4700 else 10.0

    assert crossing(cost, 999.0, (0, 1001.0), (5000, 10.0)) == 4700
    assert len(asked) <= 12 + 13


@pytest.mark.parametrize(
    ("shape", "layer"),
    [
        ((6, 4, 3, 3), Layer("dense", (6, 4), -3)),
        ((6, 4), Layer("dense", (6, 4), -1)),
        ((6, 4, 2), Layer("dense", (4, 6), -2, (1, 0))),
        ((6, 4, 3), Layer("grouped", (6, 12), -2, (0, 1), 3)),
    ],
    ids=["convolution", "linear", "transposed", "grouped"],
)
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.8])
def test_zero_rows_and_columns_of_a_weight_are_found(
    fraction: float, shape: tuple[int, ...], layer: Layer
) -> None:
    weight = torch.randn(shape).masked_fill(torch.rand(shape) < fraction, 0)
    weight[:, 2] = weight[4] = weight[0] = 0
    used = blocks_of(weight, layer.groups, layer.weight_dims) != 0
    found = zeros_of(weight, layer)
    assert found is not None
    for mask, others in zip(found, (2, 1), strict=True):
        expected = ~used.flatten(3).any(3).any(others).flatten()
        assert torch.equal(torch.from_numpy(mask), expected)
    assert zeros_of(torch.randn(shape), layer) is None


class Picked(nn.Module):
    """Takes some positions by an index that is a buffer of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.register_buffer("index", torch.tensor([0, 2, 5]))
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.conv(x)).relu().index_select(2, self.index))


def test_a_movement_may_be_told_where_to_by_a_buffer(randomise: Any) -> None:
    model = randomise(Picked())
    plan = surgery.trace(model, IMAGE).plan({"norm": torch.arange(8) < 5})
    small = surgery.slim(model, plan)
    assert small.conv.out_channels == small.last.in_channels == 3
    assert plan.proof is not None
    assert plan.proof <= 1e-12


class Widened(nn.Module):
    """Concatenates channels with a tensor made on the way and with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.token = nn.Parameter(torch.randn(1, 2, 14, 14))
        self.last = nn.Conv2d(13, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu()
        return self.last(torch.cat([x, torch.ones(1, 3, 14, 14, dtype=x.dtype), self.token], 1))


def test_channels_may_stand_beside_what_no_layer_made(randomise: Any) -> None:
    model = randomise(Widened())
    plan = surgery.trace(model, IMAGE).plan({"norm": torch.arange(8) < 5})
    small = surgery.slim(model, plan)
    assert small.conv.out_channels == 3
    assert small.last.in_channels == 3 + 3 + 2
    assert plan.proof is not None
    assert plan.proof <= 1e-12
