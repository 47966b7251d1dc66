"""Momentum and Adam's moments survive the cut."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lightning_sparsity import surgery
from lightning_sparsity.models import ResNet20

IMAGES, TARGETS = torch.randn(8, 3, 32, 32).double(), torch.arange(8)
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, weight_decay=1e-3),
    "adam": lambda p: torch.optim.AdamW(p, lr=1e-3, amsgrad=True),
}


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(IMAGES), TARGETS)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_as_the_masked_model_would(
    name: str, randomise: Any, draw_dead: Any
) -> None:
    """With dead channels at zero all along, the slim model repeats the dense one's steps."""
    middle, last = nn.Conv2d(8, 8, 3, groups=2), nn.ConvTranspose2d(8, 10, 3)
    model = randomise(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), middle, last))
    model.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten())
    dead = {"1": torch.arange(8) < 3}
    with torch.no_grad():
        model[1].weight[:3] = model[1].bias[:3] = 0
    optimizer = OPTIMIZERS[name](model.parameters())
    for p in (model[1].weight, model[1].bias):
        p.register_hook(lambda g: g.index_fill(0, torch.arange(3), 0))
    for _ in range(3):
        step(model, optimizer)
    flow = surgery.trace(model, IMAGES)
    plan = flow.plan(dead)
    small = surgery.slim(model, plan)
    other = OPTIMIZERS[name](model.parameters())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    surgery.transplant(other, model, small, plan)
    losses = [(step(model, optimizer), step(small, other)) for _ in range(3)]
    assert losses[0][0] != losses[2][0]
    assert [a for a, _ in losses] == pytest.approx([b for _, b in losses], rel=1e-9)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_parameter_is_handed_over_with_its_state(
    name: str, randomise: Any, draw_dead: Any
) -> None:
    model = randomise(ResNet20()).train()
    groups = [{"params": list(model.blocks.parameters()), "lr": 0.5}]
    groups.append(
        {"params": [p for n, p in model.named_parameters() if not n.startswith("blocks")]}
    )
    optimizer = OPTIMIZERS[name](groups)
    step(model, optimizer)
    flow = surgery.trace(model, IMAGES)
    plan = flow.plan(draw_dead(flow, 0.5))
    small = surgery.slim(model, plan)
    surgery.transplant(optimizer, model, small, plan)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in small.parameters()}
    assert len(held) == len({id(p) for p in held})
    for p, state in optimizer.state.items():
        assert all(
            x.shape == p.shape for x in state.values() if isinstance(x, torch.Tensor) and x.dim()
        )
    step(small, optimizer)


def test_a_foreign_optimizer_is_refused_and_left_alone(randomise: Any) -> None:
    model = randomise(ResNet20())
    flow = surgery.trace(model, IMAGES)
    plan = flow.plan({"norm": torch.arange(16) < 8})
    small = surgery.slim(model, plan)
    optimizer = torch.optim.SGD(ResNet20().parameters(), lr=0.1)
    before = [p for group in optimizer.param_groups for p in group["params"]]
    with pytest.raises(ValueError, match="needs an optimizer of `model`"):
        surgery.transplant(optimizer, model, small, plan)
    after = [p for group in optimizer.param_groups for p in group["params"]]
    assert all(a is b for a, b in zip(before, after, strict=True))


def test_weights_of_another_model_stay_as_they_are(randomise: Any) -> None:
    model, other = randomise(ResNet20()), torch.nn.Linear(3, 3).double()
    optimizer = torch.optim.Adam([*other.parameters(), *model.parameters()])
    (other(torch.ones(1, 3).double()).sum() + model(IMAGES).sum()).backward()
    optimizer.step()
    before = {p: dict(optimizer.state[p]) for p in other.parameters()}
    flow = surgery.trace(model, IMAGES)
    plan = flow.plan({"norm": torch.arange(16) < 8})
    small = surgery.slim(model, plan)
    surgery.transplant(optimizer, model, small, plan)
    held = optimizer.param_groups[0]["params"]
    assert {id(p) for p in held} == {id(p) for m in (other, small) for p in m.parameters()}
    for p, state in before.items():
        assert optimizer.state[p]["exp_avg"] is state["exp_avg"]


def test_state_of_another_form_is_refused(randomise: Any) -> None:
    model = randomise(ResNet20())
    flow = surgery.trace(model, IMAGES)
    plan = flow.plan({"norm": torch.arange(16) < 8})
    small = surgery.slim(model, plan)
    optimizer = torch.optim.Adafactor(model.parameters())
    step(model, optimizer)
    with pytest.raises(ValueError, match="state with one entry per weight"):
        surgery.transplant(optimizer, model, small, plan)
