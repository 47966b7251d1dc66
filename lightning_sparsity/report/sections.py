"""What the sections of the page show, as data: the template writes it and escapes it."""

import re
from collections.abc import Iterator, Mapping
from itertools import groupby
from math import isfinite
from typing import Any

from markupsafe import Markup

from lightning_sparsity.report import charts
from lightning_sparsity.report.files import PAGE, Run, entry
from lightning_sparsity.report.rows import form_of, number
from lightning_sparsity.report.svg import Chart, percent

__all__ = ["amount", "channels", "files", "histograms", "progress"]

FEW_LAYERS = 30  # of which each has a bar with its name; more have an overview before
COLUMN = 12  # layers below each other, where there is room for columns
CHANNELS = "Channels of each layer"
FILES = {
    PAGE: "this page",
    "summary.json": "all measurements, for programs",
    "config.yaml": Markup("all settings; <code>fit --config config.yaml</code> trains it again"),
    "hparams.yaml": "hyperparameters, by the logger",
    "metrics.csv": "metrics over the training, by the logger",
    "slim/plan.json": "which channels are kept in which layer",
    "slim/model.safetensors": "the weights of the slim network",
    "slim/report.json": "the results of the cut, for programs",
}
Layers = list[tuple[str, int, int]]


def channels(run: Run) -> dict[str, Any]:
    """How many channels of each layer are kept."""
    found = entry(run.cut, "layers").items()
    layers = [(str(name), int(n["dense"]), int(n["slim"])) for name, n in found]
    if not layers:
        return {"layers": []}
    most = max(dense for _, dense, _ in layers)
    longest = max(len(name) for name, _, _ in layers)
    return {
        "layers": layers,
        "total": number(sum(dense for _, dense, _ in layers), "count"),
        "kept": number(sum(slim for _, _, slim in layers), "count"),
        "overview": charts.bars(layers, CHANNELS) if len(layers) > FEW_LAYERS else None,
        "layer_charts": [
            charts.rows(x, CHANNELS, most=most, longest=longest) for x in _parts(layers)
        ],
        "layer_numbers": [(name, f"{a:,}", f"{b:,}", percent(b / a)) for name, a, b in layers],
    }


def _parts(layers: Layers) -> list[Layers]:
    """The layers in columns of about the same length."""
    count = -(-len(layers) // COLUMN)
    size = -(-len(layers) // count)
    return [layers[i : i + size] for i in range(0, len(layers), size)]


def histograms(run: Run) -> list[tuple[str, Chart]]:
    """Histograms of scales and weights over the epochs, by what they count."""
    found = sorted(run.summary.get("histograms") or [], key=lambda h: str(h["of"]))
    return [
        (str(of), charts.ridges(list(group), f"{of} over the training"))
        for of, group in groupby(found, key=lambda h: str(h["of"]))
    ]


def progress(run: Run) -> Iterator[tuple[str, Chart | None]]:
    """Objective and sparsity over the steps."""
    for kind, share in (("objective", False), ("sparsity", True)):
        keys = sorted({k for p in run.history for k in p if k == kind or k.startswith(f"{kind}_")})
        series = {
            key: [(point["step"], point.get(key, float("nan"))) for point in run.history]
            for key in keys
        }
        name = kind.capitalize()
        yield name, charts.lines(series, name, along="optimizer step", share=share)


def amount(run: Run) -> Mapping[str, Any]:
    """A metric against the fraction of channels removed."""
    found = entry(entry(run.summary, "slim"), "curve")
    if not found or found.get("skipped") or not found.get("points"):
        return found and {"points": [], "skipped": str(found.get("skipped"))}
    name = str(found["metric"])
    points = [(float(x), _value(y)) for x, y in found["points"]]
    chosen = float(found["chosen"][0]), _value(found["chosen"][1])
    form = form_of(name)
    lines = [(percent(x), number(y, form)) for x, y in points]
    return {
        "metric": name,
        "examples": found["examples"],
        "chart": charts.curve(points, chosen, f"{name} by amount", share=form == "percent"),
        "points": [*lines, (f"{percent(chosen[0])} (slim)", number(chosen[1], form))],
    }


def _value(y: Any) -> float:  # noqa: ANN401
    return float("nan") if y is None or not isfinite(y) else float(y)


def files(run: Run) -> Iterator[dict[str, Any]]:
    """The files of the run: where a narrow window may break their names, bytes, contents."""
    yield {"parts": _breakable(PAGE), "size": "", "told": FILES[PAGE]}
    for name, size in run.files.items():
        told = FILES.get(name, "")
        if name.startswith("checkpoints/"):
            told = "a checkpoint, which Lightning loads and resumes from"
            if str(run.summary.get("checkpoint") or "").endswith(name):
                told += "; dense and sparse above are this one"
        yield {"parts": _breakable(name), "size": f"{size:,}", "told": told}


def _breakable(name: str) -> list[str]:
    return [part for part in re.split("(?<=[/.=])", name) if part]
