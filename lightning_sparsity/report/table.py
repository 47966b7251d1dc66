"""A run as a table on the screen and as files in its folder."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lightning_sparsity.report.picture import draw
from lightning_sparsity.report.summary import Summary

__all__ = ["print_table", "save", "say"]


def say(line: str) -> None:
    """Print a line as it is."""
    Console(soft_wrap=True, highlight=False).print(line, markup=False)


def print_table(run: Summary) -> None:
    """Print the run, dense against sparse, and the sparsity of each layer.

    Args:
        run: What `summarize` found.
    """
    table = Table(
        title="Dense (w, which learned) and sparse (u, which ships)", title_justify="left"
    )
    table.add_column("")
    for column in ("dense", "sparse", "exactly zero"):
        table.add_column(column, justify="right")
    for name, dense, sparse, share in _lines(run):
        table.add_row(name, dense, sparse, share)
    Console(soft_wrap=True, highlight=False).print(table)
    say(
        "One FLOP is one multiply-add. The sparse count leaves out products with zero; "
        "dense kernels do not, so the time stays the same."
    )


def save(run: Summary, folder: Path) -> Iterator[Path]:
    """Write `summary.json` and `summary.png` into the folder of the run.

    Args:
        run: What `summarize` found.
        folder: The folder; made if it is not there.

    Returns:
        The files, each after it is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = folder / "summary.json"
    figures.write_text(json.dumps(_figures(run), indent=2) + "\n")
    yield figures
    picture = folder / "summary.png"
    draw(run, picture)
    yield picture
    if run.checkpoint:
        yield Path(run.checkpoint)


def _lines(run: Summary) -> Iterator[tuple[str, str, str, str]]:
    for name, (dense, sparse) in run.metrics.items():
        as_share = name.endswith("acc")
        before, after = (f"{x:.2%}" if as_share else f"{x:.4f}" for x in (dense, sparse))
        yield f"{name} ({run.split} split)", before, after, ""
    total, size = run.size.parameters, run.size
    yield "parameters", f"{total:,}", f"{total:,}", ""
    yield "non-zero", f"{size.dense:,}", f"{size.sparse:,}", f"{1 - size.sparse / total:.2%}"
    if run.work is not None:
        skipped = 1 - run.work.effective / run.work.total
        yield "FLOPs", f"{run.work.total:,}", f"{run.work.effective:,}", f"{skipped:.2%}"
    for layer in run.layers:
        share = 1 - layer.nonzero / layer.entries
        yield f"  {layer.name}", f"{layer.entries:,}", f"{layer.nonzero:,}", f"{share:.2%}"


def _figures(run: Summary) -> dict[str, object]:
    """The run in plain numbers, for other programs."""
    work = run.work
    return {
        "checkpoint": run.checkpoint,
        "split": run.split,
        "metrics": {name: {"dense": d, "sparse": s} for name, (d, s) in run.metrics.items()},
        "parameters": run.size.parameters,
        "nonzero": {"dense": run.size.dense, "sparse": run.size.sparse},
        "flops": None if work is None else {"dense": work.total, "sparse": work.effective},
        "layers": [asdict(layer) for layer in run.layers],
        "history": list(run.history),
    }
