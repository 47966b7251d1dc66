"""Mistakes in the arguments of surgery: each is named at once, with its cure."""

from typing import Any

import pytest
import torch
from torch import nn

from lightning_sparsity import surgery


class Made:
    """A network, and what belongs to it."""

    def __init__(self) -> None:
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
        self.images = torch.rand(2, 1, 8, 8)
        self.flow = surgery.trace(self.net, self.images)
        self.plan = self.flow.plan_by(0.5)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)


@pytest.fixture(scope="module")
def made() -> Made:
    return Made()


PLANS = [
    (lambda _: None, r"plan needs a Plan, got None: make one with surgery\.trace"),
    (lambda _: "plan", r"plan needs a Plan, got 'plan': .* surgery\.load\(model, folder\)"),
    (lambda made: made.flow, r"got a ChannelFlow: did you mean flow\.plan_by\(0\.5\)"),
    (lambda made: made.plan.dead, r"plan needs a Plan, got a dict: make one"),
    (lambda _: 0.5, r"plan needs a Plan, got 0\.5: make one"),
]
CALLS = {
    "slim": lambda made, plan: surgery.slim(made.net, plan),
    "mask": lambda made, plan: surgery.mask(made.net, plan),
    "compensate": lambda made, plan: surgery.compensate(made.net, plan, [made.images]),
    "transplant": lambda made, plan: surgery.transplant(made.optimizer, made.net, made.net, plan),
}


@pytest.mark.parametrize(
    ("wrong", "message"), PLANS, ids=["none", "text", "flow", "dict", "number"]
)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_what_is_no_plan_is_named(call: Any, wrong: Any, message: str, made: Made) -> None:
    with pytest.raises(ValueError, match=message):
        call(made, wrong(made))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: surgery.slim(None, m.plan), r"model needs a network, an nn\.Module, got None"),
        (lambda m: surgery.mask("net", m.plan), r"model needs a network, .* got 'net'"),
        (lambda m: surgery.slim(m.net, m.plan, verify="no"), r"verify needs True or False, got 'n"),
        (lambda m: surgery.slim(m.net, m.plan, verify=0), r"verify needs True or False, got 0"),
        (lambda m: surgery.compensate(m.net, m.plan, m.images), r"got a Tensor: .* use \[batch\]"),
        (lambda m: surgery.compensate(m.net, m.plan, None), r"batches needs several .* got None"),
        (
            lambda m: surgery.compensate(m.net, m.plan, {"x": m.images}),
            r"batches needs several .* got a dict",
        ),
        (
            lambda m: surgery.transplant(m.net, m.net, m.net, m.plan),
            r"optimizer needs a torch\.optim\.Optimizer, got a Sequential",
        ),
        (
            lambda m: surgery.transplant(m.optimizer, m.net, m.plan, m.plan),
            r"small needs a network, .* got a Plan",
        ),
    ],
    ids=range(9),
)
def test_other_mistakes_are_named(call: Any, message: str, made: Made) -> None:
    with pytest.raises(ValueError, match=message):
        call(made)
