"""The command `lightning-sparsity bench`: how fast the slim network of a run is, measured."""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from lightning_sparsity import report
from lightning_sparsity.cli.runs import networks_of
from lightning_sparsity.metrics.footprint import work as work_of
from lightning_sparsity.report.advice import advise
from lightning_sparsity.report.benchmark import Place, Row, machine, measure, print_rows
from lightning_sparsity.surgery.plan import Cut
from lightning_sparsity.surgery.storage import PLAN, read_record

SHORT = 2.0  # seconds that one waits without being told why


def run(given: Namespace) -> None:
    """Time the dense, the masked and the slim network of a run, and print a table.

    Args:
        given: The flags of `flags.parser`.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If there is no such device, or the networks cannot be run.
    """
    places = list(_places(given))
    dense, slim, example = networks_of(given.slim, given.config)
    record = read_record(Path(given.slim) / PLAN)
    cuts = {name: Cut.from_json(entry) for name, entry in record["layers"].items()}
    networks = {"dense": dense.float(), "masked": masked(dense, cuts), "slim": slim.float()}
    images = example if isinstance(example, Tensor) else None
    counts = {name: work_of(network, images) for name, network in networks.items()}
    work = {name: None if count is None else count.total for name, count in counts.items()}
    rows, failures = _measured(networks, example, places, given)
    print_rows(rows, work)
    advice = list(advise(rows, work, cuts))
    for line in [*failures, *advice]:
        report.say(line)
    if given.json is not None:
        _write(Path(given.json), given.slim, rows, work, [*failures, *advice])
        report.say(f"Measurements: {given.json}")


def _places(given: Namespace) -> Iterator[Place]:
    """Where to measure; eager before compiled."""
    threads = given.threads or [torch.get_num_threads()]
    cuda = torch.cuda.is_available()
    devices = given.device or (["cpu", "cuda"] if cuda else ["cpu"])
    if "cuda" in devices and not cuda:
        raise ValueError("There is no CUDA device here. Leave out --device cuda.")
    for device in dict.fromkeys(devices):
        for number in dict.fromkeys(threads) if device == "cpu" else [None]:
            for compiled in (False, True)[: 1 + given.compiled]:
                yield Place(device, number, compiled)


@torch.no_grad()
def masked(dense: nn.Module, cuts: Mapping[str, Cut]) -> nn.Module:
    """A copy of a network with zeros in its weights wherever a cut removes something.

    Args:
        dense: The network before the cut.
        cuts: How each layer is cut, by its name.
    """
    network = copy.deepcopy(dense)
    for name, cut in cuts.items():
        weight = getattr(network.get_submodule(name), "weight", None)
        if weight is None or weight.size(0) == 1:  # of an activation that all channels share
            continue
        kept = [cut.rows, cut.columns]
        outer, inner = (kept[i].to(weight.device) for i in cut.layer.weight_dims)
        weight.index_fill_(0, _others(outer, weight.size(0)), 0)
        if cut.layer.kind == "dense":
            weight.index_fill_(1, _others(inner, weight.size(1)), 0)
    return network


def _others(index: Tensor, n: int) -> Tensor:
    """The numbers below n that are not in the index."""
    return torch.ones(n, device=index.device).index_fill(0, index, 0).nonzero().flatten()


def _measured(
    networks: Mapping[str, nn.Module],
    example: Any,  # noqa: ANN401
    places: Sequence[Place],
    given: Namespace,
) -> tuple[list[Row], list[str]]:
    """The rows that could be measured, and why others could not."""
    rows, failures = list[Row](), list[str]()
    console = Console(stderr=True)
    quiet = not console.is_terminal or len(places) * len(given.batch) * given.seconds <= SHORT
    # Drawn between the rows alone: a thread that draws while networks run would slow them down.
    with Progress(console=console, transient=True, disable=quiet, auto_refresh=False) as progress:
        task = progress.add_task("", total=len(places) * len(given.batch))
        for place in places:
            for n in dict.fromkeys(given.batch):
                progress.update(task, description=f"{place}, batch {n}", refresh=True)
                try:
                    rows.append(measure(networks, example, place, n, given.seconds))
                except Exception as error:  # missing compilers and memory show in many ways
                    reason = f"{type(error).__name__}: {error}".splitlines()[0]
                    failures.append(f"Not measured: {place}, from batch {n} on ({reason}).")
                    break
                finally:
                    progress.advance(task)
    if not rows:
        raise ValueError(f"No network could be run. {failures[0]}")
    return rows, failures


def _write(
    path: Path,
    slim: str,
    rows: Sequence[Row],
    work: Mapping[str, int | None],
    advice: Sequence[str],
) -> None:
    content = {
        "slim": slim,
        "machine": machine(rows),
        "flops": dict(work),
        "rows": [row.figures() for row in rows],
        "advice": list(advice),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
