r"""A penalty on a weight itself, $f(w) + \lambda\, r(w)$, by subgradient or by proximal steps.

The proximal step after a step of the optimizer is

$$ w \leftarrow \arg\min_u \; \lambda\, r(u) + \tfrac12 \|u - w\|_D^2, \qquad
   \|x\|_D^2 = \sum_i D_i x_i^2 $$

in the metric $D$ of the optimizer: $1 / \eta$ for SGD with learning rate $\eta$, and
$(\sqrt{\hat v_i} + \varepsilon) / \eta$ for Adam. With momentum $\mu$, PyTorch's SGD moves a weight
by $\eta / (1 - \mu)$ times its gradient in the long run, and that is the $\eta$ meant here: so
every optimizer comes to rest where $\nabla f + \lambda\, \partial r \ni 0$. Steps make exact zeros.
Works without a Trainer; needs torch only.

Reference:
    J. Yun, A. Lozano, E. Yang, Adaptive proximal gradient methods for structured neural networks,
    NeurIPS 2021.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from lightning_sparsity.groups import blocks, groups_first, matrix
from lightning_sparsity.penalties import L0Ball, Penalty
from lightning_sparsity.splitting import Measurement

__all__ = [
    "Metric",
    "Update",
    "check",
    "check_optimizer",
    "check_strength",
    "measure",
    "metric_of",
    "proximal_step",
    "push",
    "rate_of",
    "tiny_groups",
]

Update = Literal["subgradient", "proximal"]
TINY = 1e-5  # what the papers count as zero


def check_strength(lam: float) -> None:
    """Refuse a weight of a penalty that is out of range."""
    if not (lam >= 0 and math.isfinite(lam)):
        raise ValueError(f"Regularization needs a finite lam >= 0, got lam={lam}.")


def check(penalty: Penalty, update: str) -> None:
    """Refuse a penalty and a way to lower it that do not go together.

    Raises:
        ValueError: If they do not.
    """
    if update not in get_args(Update):
        raise ValueError(f"update must be one of {', '.join(get_args(Update))}, got {update!r}.")
    if update == "proximal":
        penalty.prox(torch.ones(1, 1), 1.0)  # a combination without an exact prox says so here
    elif isinstance(penalty, L0Ball) or not bool(_slopes(penalty).any()):
        raise ValueError(
            f"{penalty!r} has no slope to descend: use update='proximal', or "
            "RelaxedVariableSplitting."
        )


def _slopes(penalty: Penalty) -> Tensor:
    return penalty.subgradient(torch.tensor([[1e-3, 0.1]]))


@dataclass(frozen=True, eq=False)
class Metric:
    r"""How an adaptive optimizer scales single steps: by $1 / (\sqrt{\hat v} + \varepsilon)$.

    Args:
        moment: The second moment $v$ of each entry, in the shape of the weight.
        correction: What $v$ is divided by to give $\hat v$.
        eps: The optimizer's $\varepsilon$.
    """

    moment: Tensor
    correction: float
    eps: float

    def steps(self, moment: Tensor, step: float) -> Tensor:
        """The step of every entry of a part of the weight, given its part of the moment."""
        return (
            moment.sqrt().div_(math.sqrt(self.correction)).add_(self.eps).reciprocal_().mul_(step)
        )


def check_optimizer(optimizer: Optimizer, penalty: Penalty) -> None:
    """Refuse an optimizer whose metric is not known, or in which a penalty has no exact prox.

    Raises:
        ValueError: If one of both holds.
    """
    if not isinstance(optimizer, SGD | Adam | AdamW):
        raise ValueError(
            "update='proximal' needs an optimizer whose metric is known (SGD, Adam, AdamW), got "
            f"{type(optimizer).__name__}. Use one of those, or update='subgradient'."
        )
    if not isinstance(optimizer, SGD):
        one = torch.ones(1, 1)
        penalty.prox(one, one)


def rate_of(optimizer: Optimizer, group: dict[str, Any]) -> float:
    r"""How far a steady gradient of 1 moves a weight in a step, but for the metric.

    $$ \eta \, (1 - \text{dampening}) / (1 - \text{momentum}) $$

    for SGD, and the learning rate $\eta$ for Adam, whose first moment is an average.

    Args:
        optimizer: SGD, Adam or AdamW.
        group: One of its parameter groups.
    """
    rate = float(group["lr"])
    if isinstance(optimizer, SGD):
        return rate * (1 - float(group["dampening"])) / (1 - float(group["momentum"]))
    return rate


def metric_of(optimizer: Optimizer, group: dict[str, Any], weight: Tensor) -> Metric | None:
    """The metric in which an optimizer's step on a weight was taken; None for plain steps.

    Args:
        optimizer: SGD, Adam or AdamW, after a step.
        group: The parameter group of the weight.
        weight: The weight.
    """
    if isinstance(optimizer, SGD):
        return None
    state = optimizer.state[weight]
    moment = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
    return Metric(moment, 1 - float(group["betas"][1]) ** float(state["step"]), group["eps"])


@torch.no_grad()
def push(
    weight: Tensor, target: Tensor, penalty: Penalty, lam: float, *, axis: int | None = None
) -> None:
    r"""Add the penalty's subgradient in place: `target += lam * r'(w)`.

    Args:
        weight: The weight $w$.
        target: What it is added to, of the same shape: the gradient.
        penalty: The penalty $r$.
        lam: Its weight $\lambda \ge 0$.
        axis: The axis of `weight` that counts groups, for a penalty on rows.
    """
    for block, part in blocks((weight, target), penalty, axis):
        part.add_(penalty.subgradient(matrix(block, axis)).view(part.shape), alpha=lam)


@torch.no_grad()
def proximal_step(
    weight: Tensor,
    penalty: Penalty,
    step: float,
    *,
    metric: Metric | None = None,
    axis: int | None = None,
) -> Tensor:
    r"""Let a weight take a proximal step, in place; a weight of groups never dies.

    If every group would be zero, the longest one stays as it was.

    Args:
        weight: The weight, changed in place.
        penalty: The penalty $r$.
        step: Learning rate (`rate_of`) times $\lambda$, at least 0.
        metric: The metric of the optimizer; None for SGD.
        axis: The axis of `weight` that counts groups, for a penalty on rows.

    Returns:
        A boolean scalar: whether the penalty left nothing.

    Raises:
        ValueError: If there is a metric and the penalty has no exact prox in it.
    """
    if step == 0:
        return torch.zeros((), dtype=torch.bool, device=weight.device)
    moments = () if metric is None else (metric.moment,)
    alive = torch.zeros((), dtype=torch.bool, device=weight.device)
    longest = _Longest(weight) if axis is not None else None
    for part, *moment in blocks((weight, *moments), penalty, axis):
        block = matrix(part, axis)
        if longest is not None:
            longest.look_at(block)
        steps = step if metric is None else metric.steps(matrix(moment[0], axis), step)
        part.sub_(penalty.shrinkage(block, steps).view(part.shape))
        alive |= part.any()
    if longest is not None and axis is not None:
        longest.put_back(groups_first(weight, axis), alive)
    return ~alive


class _Longest:
    """The longest row that went by, and where it was; nothing in here waits for a device."""

    def __init__(self, weight: Tensor) -> None:
        self.length = weight.new_full((1,), -1.0)
        self.place = torch.zeros(1, dtype=torch.long, device=weight.device)
        self.row = weight.new_zeros(())
        self.seen = 0

    def look_at(self, rows: Tensor) -> None:
        """Rows that follow on those before."""
        length, place = torch.linalg.vector_norm(rows, dim=1).max(0, keepdim=True)
        longer = length > self.length
        self.row = torch.where(longer, rows.index_select(0, place)[0], self.row)
        self.place = torch.where(longer, place + self.seen, self.place)
        self.length = torch.where(longer, length, self.length)
        self.seen += len(rows)

    def put_back(self, grouped: Tensor, alive: Tensor) -> None:
        """Bring the row back into a weight that is not alive."""
        now = grouped.index_select(0, self.place)
        grouped.index_copy_(0, self.place, torch.where(alive, now, self.row.view(now.shape)))


@torch.no_grad()
def measure(weight: Tensor, penalty: Penalty, *, axis: int | None = None) -> Measurement:
    """Count and sum over a weight, chunk by chunk."""
    value = torch.zeros((), device=weight.device)
    zeros = torch.zeros((), device=weight.device, dtype=torch.int64)
    for (part,) in blocks((weight,), penalty, axis):
        zeros += (part == 0).sum()
        value += penalty.value(matrix(part, axis))
    return Measurement(zeros, weight.numel(), value, torch.zeros_like(value))


@torch.no_grad()
def tiny_groups(weight: Tensor, axis: int) -> Tensor:
    """Which groups of a weight have a mean magnitude of at most 1e-5; the longest one never has."""
    rows = groups_first(weight, axis).flatten(1)
    tiny = rows.abs().mean(1) <= TINY
    return tiny.index_fill(0, torch.linalg.vector_norm(rows, dim=1).argmax(), False)
