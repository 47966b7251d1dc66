"""The rows of dense, sparse and slim that the terminal, the page and the command `slim` show."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from lightning_sparsity.report.files import entry

__all__ = ["SPACE", "Row", "form_of", "layer_rows", "number", "rows_of"]

Content = Mapping[str, Any]
Sides = tuple[float | None, float | None, float | None]
SPACE = "\u202f"  # narrow, and no place to break a line


@final
@dataclass(frozen=True)
class Row:
    """A line of the table: dense, sparse and slim, where they are known.

    Args:
        name: What was measured.
        values: The three numbers.
        form: `"percent"`, `"decimal"`, `"count"` or `"ms"`.
        spread: The interquartile ranges of the runs of dense and slim, for times.
        zero: The fraction of the dense count that is exactly zero in the sparse network.
    """

    name: str
    values: Sides
    form: str
    spread: tuple[tuple[float, float], tuple[float, float]] | None = None
    zero: float | None = None

    @property
    def gain(self) -> float | None:
        """How many times the dense network is the slim one; None for metrics."""
        dense, _, slim = self.values
        return dense / slim if dense and slim and self.form in ("count", "ms") else None

    @property
    def saved(self) -> float | None:
        """The fraction of the dense network that the slim one does without; None for metrics."""
        dense, _, slim = self.values
        known = dense and slim is not None and self.form in ("count", "ms")
        return 1 - (slim or 0) / dense if dense and known else None


def number(value: float | None, form: str) -> str:
    """A number as every table and sentence shows it."""
    if value is None:
        return "–"
    if form == "percent":
        return f"{100 * value:.2f}{SPACE}%"
    return {"count": f"{value:,.0f}", "ms": f"{value:.2f}"}.get(form, f"{value:.4f}")


def form_of(metric: str) -> str:
    """How a metric is shown, by its name."""
    return "percent" if metric.endswith(("acc", "accuracy")) else "decimal"


def rows_of(summary: Content, cut: Content) -> list[Row]:
    """What is known of the three networks: from the summary, or else from the cut.

    Args:
        summary: What `summary.json` holds; empty if there is none.
        cut: What `report.json` of a cut holds; empty if there is none.
    """
    rows = [*_metrics(summary, cut), *_counts(summary, cut), *_times(entry(summary, "slim"))]
    return [row for row in rows if any(value is not None for value in row.values)]


def _counts(summary: Content, cut: Content) -> Iterator[Row]:
    slim = entry(summary, "slim")
    after, total = entry(slim, "after"), summary.get("parameters")  # zeros are parameters as well
    flops, left = _sides(summary.get("flops")), _sides(summary.get("nonzero"))
    channels = _channels(slim)
    counts: tuple[tuple[str, str, Sides, float | None], ...] = (
        ("parameters", "parameters", (total, total, after.get("parameters")), None),
        ("non-zero", "", (*left, after.get("nonzero")), _zero(total, left[1])),
        ("FLOPs", "flops", (*flops, after.get("flops")), _zero(*flops)),
        (
            "bytes on disk",
            "bytes_on_disk",
            (*_sides(summary.get("bytes_on_disk")), _sides(after.get("bytes_on_disk"))[0]),
            None,
        ),
        ("channels", "channels", (channels[0], None, channels[1]), None),
    )
    for name, key, (dense, sparse, ships), zero in counts:
        known = entry(cut, key)
        sides = dense or known.get("dense"), sparse, ships or known.get("slim")
        yield Row(name, sides, "count", zero=zero)


def _metrics(summary: Content, cut: Content) -> Iterator[Row]:
    slim = entry(entry(summary, "slim"), "metrics")
    for name, sides in entry(summary, "metrics").items():
        values = (*_sides(sides), slim.get(name))
        yield Row(f"{name} ({summary.get('split')} split)", values, form_of(name))
    for name, (before, after) in entry(cut, "metrics").items():
        label = f"{name} (validation split{', this cut' if summary else ''})"
        yield Row(label, (before, None, after), form_of(name))


def _times(slim: Content) -> Iterator[Row]:
    for n, (before, after) in entry(slim, "latency").items():
        spread = (before["low"], before["high"]), (after["low"], after["high"])
        values = before["median"], None, after["median"]
        yield Row(f"ms per batch of {n}", values, "ms", spread)


def layer_rows(summary: Content, most: int) -> list[Row]:
    """The largest layers, in the order of the network: entries of their weights.

    Args:
        summary: What `summary.json` holds.
        most: How many there are at most.
    """
    layers: Sequence[Content] = summary.get("layers") or []
    largest = sorted(layers, key=lambda layer: layer["entries"], reverse=True)[:most]
    slim = entry(summary, "slim")
    after = entry(entry(slim, "after"), "layers")
    return [
        Row(
            layer["name"],
            (layer["entries"], layer["nonzero"], after.get(layer["name"], 0) if slim else None),
            "count",
            zero=_zero(layer["entries"], layer["nonzero"]),
        )
        for layer in layers
        if layer in largest
    ]


def _channels(slim: Content) -> tuple[int | None, int | None]:
    before, after = (entry(entry(slim, side), "channels") for side in ("before", "after"))
    return (sum(before.values()), sum(after.values())) if before else (None, None)


def _sides(content: Content | None) -> tuple[Any, Any]:
    return (content or {}).get("dense"), (content or {}).get("sparse")


def _zero(dense: float | None, sparse: float | None) -> float | None:
    return 1 - sparse / dense if dense and sparse is not None else None
