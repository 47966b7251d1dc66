"""Time per batch of networks, in interleaved runs, so that a slow machine slows all of them."""

import random
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, final

import torch
from torch import nn

from lightning_sparsity.surgery.running import call, tensors_in

__all__ = ["Comparison", "Timing", "compare", "in_turns", "once"]

WARM_UP, FEWEST, MOST = 1, 5, 200


@final
@dataclass(frozen=True)
class Timing:
    """The middle of some runs: milliseconds per batch, or ratios of them.

    Args:
        median: Half of the runs came to less.
        low: A quarter of the runs came to less.
        high: Three quarters of the runs came to less.
        runs: How many there were.
    """

    median: float
    low: float
    high: float
    runs: int


@final
@dataclass(frozen=True, eq=False)
class Comparison:
    """What networks that took turns have needed.

    Args:
        times: Milliseconds of each network by name, one figure for each round.
    """

    times: Mapping[str, tuple[float, ...]]

    def timing(self, name: str) -> Timing:
        """Milliseconds per batch of one network."""
        return _timing(self.times[name])

    def ratio(self, name: str, to: str) -> Timing:
        """How many times as long as another network one has needed, by rounds.

        Both networks of a ratio ran one soon after the other, so a machine that is slow for a while
        does not change it.

        Args:
            name: The network whose times are divided.
            to: The network by whose times of the same rounds they are divided.
        """
        return _timing([a / b for a, b in zip(self.times[name], self.times[to], strict=True)])


def compare(
    networks: Mapping[str, nn.Module],
    batch: Any,  # noqa: ANN401
    seconds: float = 1.0,
    *,
    threads: int | None = None,
) -> Comparison:
    """Time networks on one batch, one call of each after the other.

    Args:
        networks: By name; run in evaluation mode, without gradients, in their precision.
        batch: What they are called with, on their device: a tensor, a tuple of arguments or a
            mapping of them.
        seconds: How long this takes, at most about; each network runs a few times at least.
        threads: Threads on the CPU while this goes on, at least 1; None: as many as there are now.

    Raises:
        ValueError: If there is no network, or the number of threads is below 1.

    Example:
        >>> wide, narrow = nn.Linear(512, 512), nn.Linear(512, 64)
        >>> found = compare({"wide": wide, "narrow": narrow}, torch.rand(8, 512), seconds=0.1)
        >>> found.timing("wide").low <= found.timing("wide").median  # milliseconds
        True
        >>> found.ratio("wide", to="narrow").median > 0  # how many times as fast the narrow one is
        True
    """
    with _threads(threads):
        return in_turns({name: partial(once, x, batch) for name, x in networks.items()}, seconds)


def in_turns(runs: Mapping[str, Callable[[], float]], seconds: float = 1.0) -> Comparison:
    """Let runs that time themselves take turns; the order changes from round to round.

    Args:
        runs: By name; each runs once and says how many milliseconds it took.
        seconds: How long this takes, at most about, after a round that warms up.

    Raises:
        ValueError: If there are no runs.
    """
    if not runs:
        raise ValueError("A comparison needs at least one network, got none.")
    for run in list(runs.values()) * WARM_UP:
        run()
    times = {name: list[float]() for name in runs}
    order, shuffle = list(runs), random.Random(0).shuffle
    rounds, end = 0, perf_counter() + seconds
    while rounds < FEWEST or (rounds < MOST and perf_counter() < end):
        shuffle(order)
        for name in order:
            times[name].append(runs[name]())
        rounds += 1
    return Comparison({name: tuple(each) for name, each in times.items()})


@torch.no_grad()
def once(network: nn.Module, batch: Any) -> float:  # noqa: ANN401
    """Milliseconds of one call in evaluation mode; the modes of all parts are then as before."""
    modes = {part: part.training for part in network.modules()}
    network.eval()
    try:
        start = _now(batch)
        call(network, batch)
        return 1000 * (_now(batch) - start)
    finally:
        for part, training in modes.items():
            part.training = training


def _now(batch: object) -> float:
    for device in {x.device for x in tensors_in(batch) if x.is_cuda}:
        torch.cuda.synchronize(device)
    return perf_counter()


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """That many threads inside, and afterwards as many as before."""
    if number is not None and number < 1:
        raise ValueError(f"A comparison needs at least 1 thread, got threads={number}.")
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _timing(figures: tuple[float, ...] | list[float]) -> Timing:
    low, median, high = statistics.quantiles(figures, n=4, method="inclusive")
    return Timing(median, low, high, len(figures))
