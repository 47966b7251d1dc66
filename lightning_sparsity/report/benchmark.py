"""Networks timed at several places and batch sizes: the figures and their table."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast, final

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lightning_sparsity.report.latency import Comparison, Timing, compare
from lightning_sparsity.report.table import WIDTH
from lightning_sparsity.surgery.running import each_tensor, tensors_in

__all__ = ["Place", "Row", "machine", "measure", "print_rows"]


@final
@dataclass(frozen=True)
class Place:
    """Where and how networks run.

    Args:
        device: `"cpu"` or `"cuda"`.
        threads: Threads on the CPU; None on another device.
        compiled: Whether `torch.compile` has compiled them.
    """

    device: str
    threads: int | None = None
    compiled: bool = False

    def __str__(self) -> str:
        parts = [self.device]
        if self.threads is not None:
            parts.append(f"{self.threads} thread{'s' * (self.threads > 1)}")
        return ", ".join([*parts, "compiled"] if self.compiled else parts)


@final
@dataclass(frozen=True, eq=False)
class Row:
    """The times of all networks for one batch size at one place.

    Args:
        place: Where they ran.
        batch: The number of examples.
        comparison: Their times; the first network is the one that the others are compared with.
    """

    place: Place
    batch: int
    comparison: Comparison

    def speed_up(self, name: str) -> Timing:
        """How many times as fast as the first network another one is."""
        return self.comparison.ratio(next(iter(self.comparison.times)), to=name)

    def figures(self) -> dict[str, Any]:
        """The row in plain numbers, for other programs."""
        first, *others = self.comparison.times
        return {
            **asdict(self.place),
            "batch": self.batch,
            "ms": {name: asdict(self.comparison.timing(name)) for name in (first, *others)},
            "speed_up": {name: asdict(self.speed_up(name)) for name in others},
        }


def measure(
    networks: Mapping[str, nn.Module],
    example: Any,  # noqa: ANN401
    place: Place,
    batch: int,
    seconds: float,
) -> Row:
    """Time networks at a place; it is where they are afterwards.

    Args:
        networks: By name, the one that the others are compared with first.
        example: What they are called with; its examples are repeated as often as needed.
        place: Where they run.
        batch: How many examples they get.
        seconds: How long this takes, at most about, apart from compiling.
    """
    inputs = each_tensor(_of_size(example, batch), lambda x: x.to(place.device))
    used = {name: network.to(place.device) for name, network in networks.items()}
    if place.compiled:
        torch.compiler.reset()  # after some shapes of one network torch runs it eagerly
        used = {name: _compiled(network) for name, network in used.items()}
    return Row(place, batch, compare(used, inputs, seconds, threads=place.threads))


def _compiled(network: nn.Module) -> nn.Module:
    return cast(nn.Module, torch.compile(network, dynamic=False))


def _of_size(example: Any, n: int) -> Any:  # noqa: ANN401
    """The same inputs with n examples, in those tensors that are as long as the first."""
    sizes = [x.size(0) for x in tensors_in(example) if x.dim() > 0]

    def resized(x: Tensor) -> Tensor:
        fits = x.dim() > 0 and x.size(0) == sizes[0]
        return x[torch.arange(n, device=x.device) % sizes[0]] if fits else x

    return each_tensor(example, resized)


def print_rows(rows: Sequence[Row], work: Mapping[str, int | None]) -> None:
    """Print the times and how many times as fast as the first network the others are.

    Args:
        rows: What was measured, places in a row.
        work: FLOPs for one example by the name of the network, or None.
    """
    first, *others = work
    table = Table(
        title=f"Milliseconds per batch, and how many times as fast as {first}: median, and the "
        f"interquartile range below it\nfloat32, {machine(rows)}",
        title_justify="left",
    )
    table.add_column("")
    for column in ("batch", *work, *(f"{first} / {name}" for name in others)):
        table.add_column(column, justify="right")
    if None not in work.values():
        counts = {name: count or 0 for name, count in work.items()}
        ratios = [f"{counts[first] / counts[name]:.2f}×" for name in others]
        cells = [f"{count:,}" for count in counts.values()]
        table.add_row("FLOPs of one example", "", *cells, *ratios, end_section=True)
    for i, row in enumerate(rows):
        times = [_ms(row.comparison.timing(name)) for name in work]
        ratios = [_times(row.speed_up(name)) for name in others]
        last = i + 1 == len(rows) or rows[i + 1].place != row.place
        table.add_row(str(row.place), str(row.batch), *times, *ratios, end_section=last)
    Console(soft_wrap=True, highlight=False, width=WIDTH).print(table)


def machine(rows: Sequence[Row]) -> str:
    """What rows were measured with: torch, what the CPU can do, the name of the GPU."""
    parts = [f"torch {torch.__version__}", torch.backends.cpu.get_cpu_capability()]
    if any(row.place.device == "cuda" for row in rows):
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


def _ms(timing: Timing) -> str:
    low, median, high = (
        f"{x:,.{(x < 1) + (x < 10) + (x < 100)}f}" for x in (timing.low, timing.median, timing.high)
    )
    return f"{median}\n{low}–{high}"


def _times(ratio: Timing) -> str:
    return f"{ratio.median:.2f}×\n{ratio.low:.2f}–{ratio.high:.2f}"
