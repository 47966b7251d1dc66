r"""Network slimming on tensors: a penalty on all BatchNorm scales of a network, as one vector.

$$ \min_{W, \gamma} \; f(W, \gamma) + \lambda \sum_l r(\gamma_l) $$

Three ways to lower it: a subgradient added to the gradient, a sparse copy that the scales are
pulled towards, and a proximal step. Then `cut` removes the channels whose scales are smallest.
Works without a Trainer.

Reference:
    Z. Liu, J. Li, Z. Shen, G. Huang, S. Yan, C. Zhang, Learning efficient convolutional networks
    through network slimming, ICCV 2017. K. Bui, F. Park, S. Zhang, Y. Qi, J. Xin, Improving network
    slimming with nonconvex regularization, IEEE Access 9, 2021, arXiv:2010.01242.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from lightning_sparsity import surgery
from lightning_sparsity.penalties import L0Ball, Penalty, TransformedL1
from lightning_sparsity.splitting import Measurement
from lightning_sparsity.surgery.ranking import spread
from lightning_sparsity.surgery.running import call
from lightning_sparsity.waiting import Waiting

__all__ = [
    "Compensate",
    "Slimmed",
    "Update",
    "check",
    "cut",
    "measure",
    "proximal_step",
    "pull",
    "push",
    "split",
]

Compensate = Literal["shift", "mean", "statistics"]
Update = Literal["subgradient", "splitting", "proximal"]
BETA = {"subgradient": 1.0, "splitting": 3.0, "proximal": 100.0}
"""The coupling that each update has where none is given."""


def default_penalty(amount: float | surgery.Budget | None) -> Penalty:
    """The l0 ball of a share of channels; transformed l1 for budgets, whose share is not known."""
    if amount is None or isinstance(amount, surgery.Budget):
        return L0Ball(amount.share) if isinstance(amount, surgery.Share) else TransformedL1(1.0)
    return L0Ball(surgery.Share(amount).share)


def default_update(penalty: Penalty) -> Update:
    """What goes with a penalty."""
    return "splitting" if isinstance(penalty, L0Ball) else "subgradient"


def check(penalty: Penalty, update: str, *, coupled: bool) -> None:
    """Refuse a penalty and a way to lower it that do not go together.

    Args:
        penalty: The penalty of the scales.
        update: The way.
        coupled: Whether a coupling `beta` was given.

    Raises:
        ValueError: If they do not.
    """
    if update not in get_args(Update):
        raise ValueError(f"update must be one of {', '.join(get_args(Update))}, got {update!r}.")
    if coupled and update == "subgradient":
        raise ValueError("update='subgradient' has no coupling: leave beta out.")
    if penalty.acts == "rows":
        raise ValueError(f"{penalty!r} acts on rows, but the scales are one vector.")
    if update == "subgradient" and not penalty.subgradient(torch.tensor([1e-3, 0.1])).any():
        raise ValueError(f"{penalty!r} has a zero subgradient: use update='splitting'.")
    penalty.prox(torch.ones(1), 1.0)  # a combination without an exact prox says so here


@torch.no_grad()
def push(scales: Sequence[Tensor], penalty: Penalty, lam: float) -> None:
    r"""Add the penalty's subgradient to the gradients of the scales: `grad += lam * r'(scale)`.

    Args:
        scales: BatchNorm weights with gradients.
        penalty: The penalty $r$ of all scales as one vector.
        lam: Its weight $\lambda \ge 0$.
    """
    slopes = penalty.subgradient(_joint(scales))
    for scale, slope in zip(scales, _parts(slopes, scales), strict=True):
        if scale.grad is not None:
            scale.grad.add_(slope, alpha=lam)


@torch.no_grad()
def split(scales: Sequence[Tensor], penalty: Penalty, step: float) -> list[Tensor]:
    r"""The sparse copies of the scales, $u = \operatorname{prox}(\gamma)$ of all as one vector.

    A layer whose scales would all be zero keeps its largest one, of equal ones the last: no layer
    dies. Where an l0 ball has to choose among equal scales, all layers lose the same fraction.

    Args:
        scales: BatchNorm weights.
        penalty: The penalty $r$.
        step: The ratio `lam / beta`, at least 0.
    """
    return _parts(_sparse(penalty, _joint(scales), step, scales), scales)


@torch.no_grad()
def pull(scales: Sequence[Tensor], copies: Sequence[Tensor], beta: float) -> None:
    r"""Add the pull of the copies to the gradients: `grad += beta * (scale - copy)`."""
    for scale, copy in zip(scales, copies, strict=True):
        if scale.grad is not None:
            scale.grad.add_(scale - copy, alpha=beta)


@torch.no_grad()
def proximal_step(
    scales: Sequence[Tensor],
    copies: Sequence[Tensor],
    penalty: Penalty,
    *,
    lam: float,
    beta: float,
    rate: float,
) -> None:
    r"""The proximal part of a step, after the optimizer's, in place.

    $$ \gamma \leftarrow \frac{\alpha \gamma + \beta \xi}{\alpha + \beta}, \qquad \xi \leftarrow
       \operatorname{prox}\Bigl(\frac{\alpha \xi + \beta \gamma}{\alpha + \beta}\Bigr) \text{ with
       step } \frac{\lambda}{\alpha + \beta}, \qquad \alpha = 1 / \text{rate} $$

    Args:
        scales: BatchNorm weights $\gamma$.
        copies: Their sparse copies $\xi$.
        penalty: The penalty $r$ of the copies.
        lam: Its weight $\lambda \ge 0$.
        beta: The coupling $\beta > 0$.
        rate: The learning rate, at least 0.

    Reference:
        K. Bui, F. Xue, F. Park, Y. Qi, J. Xin, A proximal algorithm for network slimming, 2023,
        arXiv:2307.00684, there with l1.
    """
    share = 1 / (1 + beta * rate)  # alpha / (alpha + beta), also at a rate of zero
    joint, copy = _joint(scales), _joint(copies)
    joint = copy.lerp(joint, share)
    between = joint.lerp(copy, share)
    copy = _sparse(penalty, between, lam * rate * share, scales)
    for old, new in ((scales, joint), (copies, copy)):
        for part, value in zip(old, _parts(new, old), strict=True):
            part.copy_(value)


@torch.no_grad()
def measure(scales: Sequence[Tensor], copies: Sequence[Tensor], penalty: Penalty) -> Measurement:
    """Zeros, penalty and gap of the copies; a constraint (`L0Ball`) costs nothing."""
    joint, copy = _joint(scales), _joint(copies)
    value = penalty.value(copy) if not isinstance(penalty, L0Ball) else joint.new_zeros(())
    gap = (joint - copy).float().square().sum()
    return Measurement((copy == 0).sum(), copy.numel(), value, gap)


def _joint(scales: Sequence[Tensor]) -> Tensor:
    return torch.cat([scale.detach() for scale in scales])


def _parts(joint: Tensor, scales: Sequence[Tensor]) -> list[Tensor]:
    return list(joint.split([scale.numel() for scale in scales]))


def _sparse(penalty: Penalty, joint: Tensor, step: float, scales: Sequence[Tensor]) -> Tensor:
    """The prox of all scales as one vector, in which no layer dies."""
    sizes = tuple(scale.numel() for scale in scales)
    if not isinstance(penalty, L0Ball):
        return _spared(penalty.prox(joint, step), joint, sizes)
    # The ball takes the first ones of a tie, which must not be the whole first layer.
    order = _layout(sizes, joint.device)[-1]
    copy = torch.empty_like(joint).scatter(0, order, penalty.prox(joint[order], step))
    return _spared(copy, joint, sizes)


def _spared(copy: Tensor, joint: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """The copy with the largest scale of every layer that would die back in it, one for each."""
    layer, place, _ = _layout(sizes, joint.device)
    none, nowhere = joint.new_zeros(len(sizes)), place.new_full((len(sizes),), -1)
    largest = none.scatter_reduce(0, layer, joint.abs(), "amax")[layer]
    alive = none.scatter_reduce(0, layer, copy.abs(), "amax")[layer] > 0
    candidates = torch.where(joint.abs() == largest, place, -1)
    last = nowhere.scatter_reduce(0, layer, candidates, "amax")[layer]
    return torch.where(~alive & (place == last), joint, copy)


@lru_cache(maxsize=8)
def _layout(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The layer and the place of each entry, and the order in which all layers shrink alike."""
    layer = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    order = spread(torch.zeros(layer.numel()), layer)
    return layer.to(device), torch.arange(layer.numel(), device=device), order.to(device)


@dataclass(frozen=True, eq=False)
class Slimmed:
    """What `cut` made.

    Attributes:
        network: The slim network.
        plan: How it was cut, with the proof.
        frozen: What could not be cut and why, and other notes on the cut, in words.
    """

    network: nn.Module
    plan: surgery.Plan
    frozen: tuple[str, ...]


def cut(
    network: nn.Module,
    example_inputs: Any,  # noqa: ANN401
    amount: float | surgery.Budget | None,
    *,
    gather: bool = True,
    compensate: Compensate = "shift",
    batches: Iterable[Any] = (),
    round_to: int | None = None,
) -> Slimmed:
    """Remove the channels with the smallest BatchNorm scales of a whole network.

    Where at least that share of the scales is exactly zero already, exactly those go: training has
    chosen them, and nothing else changes.

    Args:
        network: The network; it is not changed.
        example_inputs: In the form that `surgery.trace` takes.
        amount: The share of channels to drop, or a budget: see `ChannelFlow.plan_by`. None: what is
            zero, scales as well as rows and columns of weights, and nothing else.
        gather: Whether layers may pick their inputs: see `ChannelFlow.plan`.
        compensate: What makes up for channels that go although their scale is not zero. `"shift"`:
            the constant that their shift makes stays. `"mean"`: their mean activation stays.
            `"statistics"`: their shift stays, and all running means and variances of the slim
            network are estimated anew.
        batches: Inputs for the last two, each in the form of `example_inputs`.
        round_to: Widths go up to the next multiple of this number: see `ChannelFlow.plan`. None:
            the amount's own.

    Raises:
        ValueError: If the network cannot be traced or the amount met, or there are no batches.
    """
    batches = list(batches)
    if compensate != "shift" and not batches:
        raise ValueError(f"compensate={compensate!r} needs batches, got none.")
    flow = surgery.trace(network, example_inputs)
    if round_to is None:
        round_to = amount.round_to if isinstance(amount, surgery.Budget) else 1
    if amount is None:
        plan = flow.plan({}, gather=gather, round_to=round_to)
    else:
        plan = flow.plan_by(_exact(flow, amount), gather=gather, round_to=round_to)
    told = tuple(str(item) for item in [*flow.frozen, *flow.notes, *plan.notes])
    if compensate == "mean":
        network = surgery.compensate(network, plan, batches)
        dead = plan.dead
        plan = surgery.trace(network, example_inputs).plan(dead, gather=gather, round_to=round_to)
    small = surgery.slim(network, plan)
    if compensate == "statistics":
        modes = {module: module.training for module in small.modules()}
        with Waiting("Estimating the statistics of BatchNorm"):
            update_bn(([batch] for batch in batches), _Called(small))
        for module, training in modes.items():
            module.training = training
    return Slimmed(small, plan, told)


class _Called(nn.Module):
    """A network called with inputs in any form that `surgery.trace` takes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Any) -> Any:  # noqa: ANN401
        """The network's outputs."""
        return call(self.network, inputs)


def _exact(flow: surgery.ChannelFlow, amount: float | surgery.Budget) -> float | surgery.Budget:
    """A threshold of zero, where a share is asked for and as many scales are zero."""
    share = amount.share if isinstance(amount, surgery.Share) else amount
    if isinstance(share, surgery.Budget):
        return amount
    scales = flow.scales()
    zeros = sum(int((scale == 0).sum()) for scale in scales.values())
    least = int(share * sum(flow.norms[name] for name in scales)) - len(scales)  # a layer keeps one
    return surgery.Threshold(0) if 0 < share < 1 and 0 < zeros >= least else amount
