"""A run as a table on the screen and as files in its folder."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lightning_sparsity.report.page import write_page
from lightning_sparsity.report.slim import Slim
from lightning_sparsity.report.summary import Summary
from lightning_sparsity.sparse_file import FileSize

__all__ = ["print_cut", "print_table", "save", "say"]

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
    slim = run.slim
    table = Table(title=_title(run), title_justify="left")
    table.add_column("")
    for column in ("dense", "sparse", "exactly zero", *(("slim", "saved") if slim else ())):
        table.add_column(column, justify="right")
    for line in [*_lines(run), *_layers(run)]:
        table.add_row(*(line if slim else line[:4]))
    Console(soft_wrap=True, highlight=False, width=WIDTH).print(table)
    for note in _notes(run):
        say(note)


def print_cut(figures: Mapping[str, Any], metrics: Mapping[str, tuple[float, float]]) -> None:
    """Print what a cut came to.

    Args:
        figures: What `report.json` of the cut holds.
        metrics: Metrics of the validation split by name, before and after.
    """
    table = Table(title="The network before and after the cut", title_justify="left")
    table.add_column("")
    for column in ("dense", "slim", "saved"):
        table.add_column(column, justify="right")
    for name, (before, after) in metrics.items():
        table.add_row(f"{name} (validation split)", _metric(name, before), _metric(name, after))
    rows = {
        "channels": "channels",
        "parameters": "parameters",
        "bytes on disk": "bytes_on_disk",
        "FLOPs": "flops",
    }
    for label, name in rows.items():
        if figures[name] is not None:
            before, after = figures[name]["dense"], figures[name]["slim"]
            table.add_row(label, f"{before:,}", f"{after:,}", _saved(before, after))
    Console(soft_wrap=True, highlight=False, width=WIDTH).print(table)
    say("One FLOP is one multiply-add.")
    say(_proof(figures["proof"]))


def save(run: Summary, folder: Path) -> Iterator[Path]:
    """Write `summary.json` and `report.html` into the folder of the run.

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
    if run.checkpoint:
        yield Path(run.checkpoint)
    yield write_page(folder)


Line = tuple[str, str, str, str, str, str]


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
    """What the reader has to know to read the table right."""
    if run.size.bytes_on_disk is not None:
        yield (
            "Bytes on disk: safetensors files; the sparse one leaves zeros out "
            "(lightning_sparsity.sparse_file)."
        )
    if run.slim is None:
        yield (
            "One FLOP is one multiply-add. The sparse count leaves out products with zero; "
            "dense kernels do not, so the time stays the same."
        )
        return
    yield (
        "One FLOP is one multiply-add. The sparse count leaves out products with zero, which "
        "dense kernels do not; the slim network does not have them."
    )
    yield _proof(run.slim.proof)
    for n, (before, after) in run.slim.latency.items():
        yield (
            f"Latency at batch {n}: median of {after.runs} runs in turn; the middle half took "
            f"{before.low:.2f} to {before.high:.2f} ms dense, {after.low:.2f} to {after.high:.2f} "
            "ms slim."
        )


def _proof(difference: float) -> str:
    return (
        "Proof: the slim network computes what the one before the cut computes with all that went "
        f"at zero; largest relative difference {difference:.1e}."
    )


def _lines(run: Summary) -> Iterator[Line]:
    """The rows on the whole network."""
    slim = run.slim
    for name, (dense, sparse) in run.metrics.items():
        given = (dense, sparse, slim.metrics[name] if slim else 0.0)
        before, after, cut = (_metric(name, x) for x in given)
        yield f"{name} ({run.split} split)", before, after, "", cut, ""
    total, size, work = run.size.parameters, run.size, run.size.work
    left = slim.after.parameters if slim else 0
    yield "parameters", f"{total:,}", f"{total:,}", "", f"{left:,}", _saved(total, left)
    zero = f"{1 - size.sparse / total:.2%}"
    yield "non-zero", f"{size.dense:,}", f"{size.sparse:,}", zero, "", ""
    if work is not None:
        left = (slim.after.flops or 0) if slim else 0
        counts = (f"{work.total:,}", f"{work.effective:,}", _saved(work.total, work.effective))
        yield "FLOPs", *counts, f"{left:,}", _saved(work.total, left)
    if size.bytes_on_disk is not None:
        yield _bytes_line(size.bytes_on_disk, slim)
    if slim is not None:
        yield from _slim_lines(slim)


def _metric(name: str, value: float) -> str:
    return f"{value:.2%}" if name.endswith("acc") else f"{value:.4f}"


def _slim_lines(slim: Slim) -> Iterator[Line]:
    channels = sum(slim.before.channels.values()), sum(slim.after.channels.values())
    yield _line("channels", channels, "{:,}")
    for n, (before, after) in slim.latency.items():
        yield _line(f"ms per batch of {n}", (before.median, after.median), "{:.2f}", digits=0)


def _bytes_line(file: FileSize, slim: Slim | None) -> Line:
    left, cut = "", ""
    if slim is not None and slim.after.bytes_on_disk is not None:
        after = slim.after.bytes_on_disk.dense
        left, cut = f"{after:,}", _saved(file.dense, after)
    return "bytes on disk", f"{file.dense:,}", f"{file.sparse:,}", "", left, cut


def _line(name: str, values: tuple[float, float], form: str, digits: int = 2) -> Line:
    """A row on the dense and the slim network, which says nothing of the sparse one."""
    dense, slim = (form.format(x) for x in values)
    return name, dense, "", "", slim, _saved(*values, digits)


def _saved(before: float, after: float, digits: int = 2) -> str:
    return f"{1 - after / before:.{digits}%}"


def _layers(run: Summary) -> Iterator[Line]:
    """The rows on single layers: the largest ones, in the order of the network."""
    largest = sorted(run.size.layers, key=lambda layer: layer.entries, reverse=True)[:MOST_LAYERS]
    for layer in run.size.layers:
        if layer in largest:
            share = f"{1 - layer.nonzero / layer.entries:.2%}"
            left = run.slim.after.layers.get(layer.name, 0) if run.slim else 0
            counts = f"{layer.entries:,}", f"{layer.nonzero:,}"
            yield f"  {layer.name}", *counts, share, f"{left:,}", _saved(layer.entries, left)
    more = len(run.size.layers) - len(largest)
    if more:
        yield f"  … and {more} smaller layers", "", "", "", "", ""


def _figures(run: Summary) -> dict[str, object]:
    """The run in plain numbers, for other programs."""
    work = run.size.work
    figures = {
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
    return figures if run.slim is None else {**figures, "slim": asdict(run.slim)}
