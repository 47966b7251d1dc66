"""Time per batch of two networks, measured in turn so that the machine's moods hit both."""

import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from time import perf_counter
from typing import final

import torch
from torch import Tensor, nn

__all__ = ["Timing", "compare"]

WARM_UP, FEWEST, MOST = 1, 4, 200


@final
@dataclass(frozen=True)
class Timing:
    """Milliseconds per batch.

    Args:
        median: Half of the runs were faster.
        low: A quarter of the runs was faster.
        high: Three quarters of the runs were faster.
        runs: How many there were.
    """

    median: float
    low: float
    high: float
    runs: int


def compare(
    module: nn.Module,
    other: Callable[[], AbstractContextManager[None]],
    batch: Tensor,
    seconds: float = 1.0,
) -> tuple[Timing, Timing]:
    """Time a module inside and outside a context that puts another network into it.

    Args:
        module: Run in evaluation mode, on its device, with its weights as they are.
        other: Makes the context.
        batch: What the module is called with.
        seconds: How long this takes, about; each network runs a few times at least.

    Returns:
        The times inside the context, and those outside.
    """
    inside, outside = list[float](), list[float]()
    end = perf_counter() + seconds
    while len(outside) < FEWEST or (perf_counter() < end and len(outside) < MOST):
        with other():
            inside.append(_once(module, batch))
        outside.append(_once(module, batch))
    return _timing(inside[WARM_UP:]), _timing(outside[WARM_UP:])


@torch.no_grad()
def _once(module: nn.Module, batch: Tensor) -> float:
    modes = {part: part.training for part in module.modules()}
    module.eval()
    start = _now(batch)
    module(batch)
    end = _now(batch)
    for part, training in modes.items():
        part.training = training
    return 1000 * (end - start)


def _now(batch: Tensor) -> float:
    if batch.is_cuda:
        torch.cuda.synchronize(batch.device)
    return perf_counter()


def _timing(times: list[float]) -> Timing:
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(statistics.median(times), low, high, len(times))
