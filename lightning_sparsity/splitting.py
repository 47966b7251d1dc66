r"""Relaxed variable splitting on tensors: a weight $w$ and its sparse copy $u$, tied by a spring.

$$ \min_{w, u} \; f(w) + \lambda\, r(u) + \tfrac{\beta}{2} \|w - u\|^2 $$

For a given $w$ the best copy is $u = \operatorname{prox}(w)$ with step $\lambda / \beta$: a
function of $w$, so it is computed where it is needed and never stored. Works without a Trainer;
needs torch only.

Reference:
    T. Dinh, J. Xin, Convergence of a relaxed variable splitting method for learning sparse neural
    networks, 2018, arXiv:1812.05719. F. Xue, J. Xin, Learning sparse neural networks via l0 and Tl1
    by a relaxed variable splitting method with application to multi-scale curve classification,
    2019, arXiv:1902.07419.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from lightning_sparsity.groups import blocks, flat, groups_first, matrix
from lightning_sparsity.penalties.base import Penalty
from lightning_sparsity.penalties.elementwise import Elementwise
from lightning_sparsity.waiting import Waiting

__all__ = ["Measurement", "check_strengths", "compiles", "measure", "pull", "split"]

_log = logging.getLogger(__name__)


def check_strengths(lam: float, beta: float) -> None:
    """Refuse a penalty weight or a coupling that is out of range."""
    if not (lam >= 0 and math.isfinite(lam)):
        raise ValueError(f"Splitting needs a finite lam >= 0, got lam={lam}.")
    if not (beta > 0 and math.isfinite(beta)):
        raise ValueError(f"Splitting needs a finite beta > 0, got beta={beta}.")


@torch.no_grad()
def split(weight: Tensor, penalty: Penalty, step: float, *, axis: int | None = None) -> Tensor:
    r"""The sparse copy of a weight, with exact zeros.

    $$ u = \operatorname{prox}(w) = \arg\min_u \; \text{step}\, r(u) + \tfrac12 \|u - w\|^2 $$

    Args:
        weight: The weight $w$, of any shape.
        penalty: The penalty $r$.
        step: The ratio `lam / beta`, at least 0.
        axis: The axis of `weight` that counts groups, for a penalty on rows. If all of them would
            be zero, the longest one stays as it is.

    Returns:
        A new tensor like `weight`, strides included.
    """
    if axis is None:
        copy = penalty.prox(weight, step)
        return copy if copy.stride() == weight.stride() else torch.empty_like(weight).copy_(copy)
    grouped = groups_first(weight, axis)
    rows = grouped.flatten(1)
    made = penalty.prox(rows, step)
    longest = torch.linalg.vector_norm(rows, dim=1).argmax().view(1)
    spared = torch.where(made.any(), made.index_select(0, longest), rows.index_select(0, longest))
    copy = torch.empty_like(weight)
    made = made.index_copy(0, longest, spared)
    groups_first(copy, axis, like=weight).copy_(made.view(grouped.shape))
    return copy


@torch.no_grad()
def pull(
    weight: Tensor,
    target: Tensor,
    penalty: Penalty,
    step: float,
    scale: float,
    *,
    axis: int | None = None,
    compiled: bool = False,
) -> None:
    r"""Add the pull of the spring in place, in one pass over memory: `target += scale * (w - u)`.

    With `target = w.grad` and `scale = beta` it is the gradient of the coupling; with `target = w`
    and `scale = -lr * beta` the same step taken by the weight itself.

    Args:
        weight: The weight $w$.
        target: What the pull is added to, of the same shape: the gradient, or `weight` itself.
        penalty: The penalty $r$ that makes the copy $u$.
        step: The ratio `lam / beta`, at least 0.
        scale: Factor of the pull.
        axis: The axis of `weight` that counts groups, for a penalty on rows.
        compiled: Run penalties on entries as one compiled kernel (compiled at the first call).
    """
    if compiled and step > 0 and isinstance(penalty, Elementwise):
        numbers = (scale, *penalty.quick_numbers(step))
        constants = [torch.tensor(x, dtype=torch.float64) for x in numbers]
        # Detached, since a kernel is compiled anew for every shape that its input is a view of.
        whole = next(flat((weight, target), weight.numel()))
        tensors = [x.detach() for x in (whole[:1] if target is weight else whole)]
        _kernel(type(penalty), in_place=target is weight)(*tensors, *constants)
        return
    for block, part in blocks((weight, target), penalty, axis):
        part.add_(penalty.shrinkage(matrix(block, axis), step).view(part.shape), alpha=scale)


def compiles(weight: Tensor, penalty: Penalty, step: float, *, in_place: bool = False) -> bool:
    """Compile the kernel of `pull` and say how long it took; False where that fails.

    Args:
        weight: A weight of the size and type to come. It is not changed.
        penalty: The penalty of the kernel; only penalties on entries have one.
        step: Any step above 0 in the regime to come.
        in_place: Whether `target` will be `weight` itself.
    """
    if not isinstance(penalty, Elementwise) or step == 0:
        return False
    started = time.perf_counter()
    try:
        target = torch.zeros_like(weight)
        with Waiting("Compiling the splitting step"):
            pull(target if in_place else weight, target, penalty, step, 1.0, compiled=True)
    except Exception as error:  # a missing or broken compiler shows in many ways
        _log.warning("The splitting step runs uncompiled: %s", str(error).strip().split("\n")[0])
        return False
    _log.info("Compiled the splitting step in %.1f s.", time.perf_counter() - started)
    return True


@dataclass(frozen=True)
class Measurement:
    """What a split weight costs, as sums that add up over weights.

    Attributes:
        zeros: Entries of the copy that are exactly zero.
        entries: All entries.
        penalty: The penalty of the copy, `r(u)`.
        gap: The squared distance of weight and copy.
    """

    zeros: Tensor
    entries: int
    penalty: Tensor
    gap: Tensor


@torch.no_grad()
def measure(
    weight: Tensor, penalty: Penalty, step: float, *, axis: int | None = None
) -> Measurement:
    """Count and sum over a weight and its copy, chunk by chunk, without keeping the copy."""
    value, gap = (torch.zeros((), device=weight.device) for _ in range(2))
    zeros = torch.zeros((), device=weight.device, dtype=torch.int64)
    for (part,) in blocks((weight,), penalty, axis):
        block = matrix(part, axis)
        removed = penalty.shrinkage(block, step)
        zeros += (removed == block).sum()
        value += penalty.value(block - removed)
        gap += removed.float().square().sum()
    return Measurement(zeros, weight.numel(), value, gap)


@cache
def _kernel(penalty: type[Elementwise], in_place: bool) -> Callable[..., Tensor]:
    """One compiled kernel per kind of penalty: strengths and shapes are its arguments."""

    def pull_weight(weight: Tensor, scale: Tensor, *numbers: Tensor) -> Tensor:
        return weight.add_(penalty.quick(weight, *numbers) * scale)

    def pull_target(weight: Tensor, target: Tensor, scale: Tensor, *numbers: Tensor) -> Tensor:
        return target.add_(penalty.quick(weight, *numbers) * scale)

    return torch.compile(pull_weight if in_place else pull_target, dynamic=True)
