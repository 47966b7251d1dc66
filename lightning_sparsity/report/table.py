"""A run as a table on the terminal and as files in its folder."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lightning_sparsity.report.page import write_page
from lightning_sparsity.report.rows import SPACE, Row, layer_rows, number, rows_of
from lightning_sparsity.report.summary import Summary

__all__ = ["print_cut", "print_table", "save", "say"]

COLUMNS = ("", "dense", "sparse", "exactly zero", "slim", "saved")
MOST_LAYERS = 12
WIDTH = 160  # at most: also where the output is no terminal, and long names need room


def say(line: str) -> None:
    """Print a line as it is."""
    Console(soft_wrap=True, highlight=False).print(line, markup=False)


def print_table(run: Summary) -> None:
    """Print the run, side by side, and its largest layers.

    Args:
        run: What `summarize` found.
    """
    content = _content(run)
    layers = layer_rows(content, MOST_LAYERS)
    rows = [*rows_of(content, {}), *(replace(row, name=f"  {row.name}") for row in layers)]
    more = len(run.size.layers) - len(layers)
    if more:
        rows.append(Row(f"  … and {more} smaller layers", (None, None, None), "count"))
    _print(_title(run), rows, None if run.slim else COLUMNS[:4])
    for note in _notes(run):
        say(note)


def print_cut(content: Mapping[str, Any]) -> None:
    """Print the results of a cut.

    Args:
        content: What `report.json` of the cut holds.
    """
    columns = [name for name in COLUMNS if name not in ("sparse", "exactly zero")]
    _print("The network before and after the cut", rows_of({}, content), columns)
    say("One FLOP is one multiply-add.")
    say(_proof(content["proof"]))


def _print(title: str, rows: Sequence[Row], columns: Sequence[str] | None = None) -> None:
    shown = columns or COLUMNS
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(shown):
        table.add_column(column, justify="right" if i else "left")
    for row in rows:
        cells = dict(zip(COLUMNS, _cells(row), strict=True))
        table.add_row(*(cells[column] for column in shown))
    Console(soft_wrap=True, highlight=False, width=WIDTH).print(table)


def _cells(row: Row) -> tuple[str, ...]:
    """The row in the order of the columns; without narrow spaces, which not every font has."""
    dense, sparse, slim = ("" if x is None else number(x, row.form) for x in row.values)
    zero = "" if row.zero is None else number(row.zero, "percent")
    saved = "" if row.saved is None else f"{row.saved:.{0 if row.form == 'ms' else 2}%}"
    return row.name, *(x.replace(SPACE, "") for x in (dense, sparse, zero, slim, saved))


def save(run: Summary, folder: Path) -> Iterator[Path]:
    """Write `summary.json` and `report.html` into the folder of the run.

    Args:
        run: What `summarize` found.
        folder: The folder; made if it is not there.

    Returns:
        The files, each after it is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = folder / "summary.json"
    numbers.write_text(json.dumps(_content(run), indent=2) + "\n")
    yield numbers
    if run.checkpoint:
        yield Path(run.checkpoint)
    yield write_page(folder)


def _title(run: Summary) -> str:
    if run.slim is None:
        return "Dense (w, which learned) and sparse (u, which ships)"
    title = "Dense (w, which learned), sparse (u, before the cut) and slim (which ships)"
    if run.slim.behind:
        title += (
            "\nDense and sparse are the best checkpoint; the slim network was cut at the end of "
            f"training, {run.slim.behind:,} steps later"
        )
    return title


def _notes(run: Summary) -> Iterator[str]:
    """Notes on how to read the table."""
    if run.size.bytes_on_disk is not None:
        yield (
            "Bytes on disk: safetensors files; the sparse one leaves zeros out "
            "(lightning_sparsity.sparse_file)."
        )
    if run.slim is None:
        yield (
            "One FLOP is one multiply-add. The sparse count omits products with zero; dense "
            "kernels compute them, so the time stays the same."
        )
        return
    yield (
        "One FLOP is one multiply-add. The sparse count omits products with zero, which dense "
        "kernels compute; the slim network does not have them."
    )
    yield _proof(run.slim.proof)
    for n, (before, after) in run.slim.latency.items():
        yield (
            f"Latency at batch {n}: median of {after.runs} interleaved runs; interquartile range "
            f"{before.low:.2f} to {before.high:.2f} ms dense, {after.low:.2f} to {after.high:.2f} "
            "ms slim."
        )


def _proof(difference: float) -> str:
    return (
        "Equivalence check: the outputs match those of the network before the cut with everything "
        f"removed set to zero; largest relative difference {difference:.1e}."
    )


def _content(run: Summary) -> dict[str, Any]:
    """The run in plain numbers, for other programs."""
    work = run.size.work
    content = {
        "checkpoint": run.checkpoint,
        "split": run.split,
        "metrics": {name: {"dense": d, "sparse": s} for name, (d, s) in run.metrics.items()},
        "parameters": run.size.parameters,
        "nonzero": {"dense": run.size.dense, "sparse": run.size.sparse},
        "flops": None if work is None else {"dense": work.total, "sparse": work.effective},
        "bytes_on_disk": run.size.bytes_on_disk and asdict(run.size.bytes_on_disk),
        "layers": [asdict(layer) for layer in run.size.layers],
        "history": list(run.history),
        "histograms": list(run.histograms),
    }
    return content if run.slim is None else {**content, "slim": asdict(run.slim)}
