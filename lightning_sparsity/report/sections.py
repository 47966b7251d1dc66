"""The sections of the page of a run, each from its files alone."""

import re
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from math import isfinite
from typing import Any

from lightning_sparsity.report import charts
from lightning_sparsity.report.files import PAGE, Run
from lightning_sparsity.report.svg import percent
from lightning_sparsity.report.words import Row, loading, number, settings

__all__ = ["SECTIONS"]

FEW_LAYERS = 30  # of which each has a bar with its name; more are shown at a glance before
COLUMN = 12  # layers below each other, where there is room for columns
FEW_LINES = 8
BY_FIT = "That is in summary.json, which <code>lightning-sparsity fit</code> writes."
FILES = {
    PAGE: "this page",
    "summary.json": "all figures, for programs",
    "summary.png": "the run as a picture",
    "config.yaml": "all settings; <code>fit --config config.yaml</code> trains it again",
    "hparams.yaml": "hyperparameters, by the logger",
    "metrics.csv": "metrics over the training, by the logger",
    "slim/plan.json": "which channels stay in which layer",
    "slim/model.safetensors": "the weights of the slim network",
    "slim/report.json": "what the cut came to, for programs",
}


def trained(run: Run, rows: Sequence[Row]) -> str:
    """Network, data, callbacks and their settings."""
    body = "".join(
        f"<dt>{escape(name)}</dt><dd>{''.join(f'<code>{escape(x)}</code>' for x in lines)}</dd>"
        for name, lines in settings(run)
    )
    body = f"<dl>{body}</dl>" if body else ""
    if not run.config:
        body += _missing("data and training: there is no config.yaml beside the files.")
    return body


def sides(run: Run, rows: Sequence[Row]) -> str:
    """The table of the three networks."""
    head = "".join(
        f'<th scope="col"><span class="key" style="--of: var(--{side})">{side}</span></th>'
        for side in ("dense", "sparse", "slim")
    )
    body = f'<table><thead><tr><td></td>{head}<th scope="col">dense ÷ slim</th></tr></thead><tbody>'
    for row in rows:
        cells = [_cell(row, i) for i in range(3)]
        gain = "" if row.gain is None else f"{row.gain:.2f}×"
        name = f'<th scope="row">{escape(row.name)}</th>'
        body += f"<tr>{name}{''.join(cells)}<td>{gain}</td></tr>"
    notes = "Dense: the weights that learned. Sparse: their copy with exact zeros, before the cut. "
    notes += "Slim: what is left, and what ships. One FLOP is one multiply-add, for one example; "
    notes += "the sparse count leaves out products with zero, which dense kernels do not."
    if any(row.spread for row in rows):
        notes += " Times: median, and below it the middle half of the runs."
    behind = (run.summary.get("slim") or {}).get("behind")
    if behind:
        notes += f" The slim network was cut {behind:,} steps after the best checkpoint, which "
        notes += "dense and sparse are."
    body = _scroll(f"{body}</tbody></table>", "Dense, sparse and slim")
    body += f'<p class="note">{notes}</p>'
    if not run.summary:
        body += _missing(f"accuracy, zeros and times. {BY_FIT}")
    return body


def _cell(row: Row, i: int) -> str:
    text = number(row.values[i], row.form)
    if row.spread and i != 1:
        low, high = row.spread[i // 2]
        text += f"<small>{low:.2f}–{high:.2f}</small>"
    return f'<td class="ship">{text}</td>' if i == 2 else f"<td>{text}</td>"


def proof(run: Run, rows: Sequence[Row]) -> str:
    """What was compared, and the largest difference."""
    difference = run.cut.get("proof", (run.summary.get("slim") or {}).get("proof"))
    if difference is None:
        return _missing("no channel was cut, so there is nothing to prove.")
    words = (
        f'<p class="fact num">{difference:.1e}</p>'
        "<p>is the largest difference between the outputs of the slim network and of the one "
        "before the cut with all that went set to zero, relative to the largest output. Both were "
        "run on the same examples in double precision."
    )
    if difference < 1e-9:
        words += " The difference is rounding: the cut computes the same, with fewer channels."
    return words + (
        '</p><p class="note">Where training had brought the cut scales to zero, the network before '
        "the cut is the sparse one. Where it had not, the cut changes the network, and sparse and "
        "slim differ in the table above.</p>"
    )


def channels(run: Run, rows: Sequence[Row]) -> str:
    """How many channels of each layer are left."""
    layers = [
        (str(name), int(n["dense"]), int(n["slim"]))
        for name, n in (run.cut.get("layers") or {}).items()
    ]
    if not layers:
        return _missing("no channel was cut.")
    most = max(dense for _, dense, _ in layers)
    dense, slim = sum(layer[1] for layer in layers), sum(layer[2] for layer in layers)
    title = "Channels of each layer"
    body = f"<p>{slim:,} of {dense:,} channels are left in {len(layers)} layers.</p>"
    if len(layers) > FEW_LAYERS:
        wide = f'<figure class="wide">{charts.bars(layers, title)}</figure>'
        body += _scroll(wide, title)
    longest = max(len(name) for name, _, _ in layers)
    drawn = (charts.rows(x, title, most=most, longest=longest) for x in _parts(layers))
    parts = "".join(f"<figure>{chart}</figure>" for chart in drawn)
    parts = f'<div class="charts columns">{parts}</div>'
    if len(layers) > FEW_LAYERS:
        parts = (
            f"<details><summary>Each layer</summary>{_scroll(parts, title, tall=True)}</details>"
        )
    head = ("layer", "dense", "slim", "kept")
    lines = ((name, f"{a:,}", f"{b:,}", percent(b / a)) for name, a, b in layers)
    return body + parts + _numbers(head, lines)


def _parts(layers: list[tuple[str, int, int]]) -> list[list[tuple[str, int, int]]]:
    """The layers in columns of about the same length."""
    count = -(-len(layers) // COLUMN)
    size = -(-len(layers) // count)
    return [layers[i : i + size] for i in range(0, len(layers), size)]


def magnitudes(run: Run, rows: Sequence[Row]) -> str:
    """Histograms of scales and weights over the epochs."""
    found = run.summary.get("histograms") or []
    if not found:
        unseen = "No SparsityMonitor has counted them." if run.summary else BY_FIT
        return _missing(f"histograms. {unseen}")
    order = sorted(found, key=lambda h: str(h["of"]))
    figures = "".join(
        _figure(charts.ridges(list(group), f"{of} over the training"), str(of))
        for of, group in groupby(order, key=lambda h: str(h["of"]))
    )
    note = "One line per epoch, the first on top: which magnitudes there are beside exact zeros, "
    note += "whose share is at the right. The height is the square root of the density, each line "
    note += "as tall as the others."
    return f'<div class="charts">{figures}</div><p class="note">{note}</p>'


def progress(run: Run, rows: Sequence[Row]) -> str:
    """Objective and sparsity over the steps."""
    if not run.history:
        return _missing(
            "objective and sparsity over the steps: no SparsityMonitor has measured them, or its "
            "<code>every_n_steps</code> was more than there were steps."
        )
    drawn = ""
    for kind, share in (("objective", False), ("sparsity", True)):
        keys = sorted({k for p in run.history for k in p if k == kind or k.startswith(f"{kind}_")})
        series = {
            key: [(point["step"], point.get(key, float("nan"))) for point in run.history]
            for key in keys
        }
        chart = charts.lines(series, kind.capitalize(), along="optimizer step", share=share)
        drawn += _figure(chart, kind.capitalize()) if chart else ""
    note = "Objective: the loss of the batch and all penalties. Sparsity: the share of what a "
    note += "callback works on that is exactly zero; names are those in the log."
    return f'<div class="charts">{drawn}</div><p class="note">{note}</p>'


def amount(run: Run, rows: Sequence[Row]) -> str:
    """A metric against the share of channels that was cut."""
    found = (run.summary.get("slim") or {}).get("curve")
    if not found:
        return _missing(f"the curve. {BY_FIT}" if run.cut else "no channel was cut.")
    if found.get("skipped") or not found.get("points"):
        return _missing(f"it could not be measured: {escape(str(found.get('skipped')))}.")
    name = str(found["metric"])
    points = [(float(x), _value(y)) for x, y in found["points"]]
    chosen = float(found["chosen"][0]), _value(found["chosen"][1])
    form = "percent" if name.endswith(("acc", "accuracy")) else "decimal"
    chart = charts.curve(points, chosen, f"{name} by amount", share=form == "percent")
    note = (
        f"The network before the cut, cut by several shares of its channels and not fine-tuned. "
        f"Measured on the first {found['examples']:,} examples of the validation split, never on "
        "test data; the dashed line is the network before the cut."
    )
    lines = [(percent(x), number(y, form)) for x, y in points]
    lines.append((f"{percent(chosen[0])} (slim)", number(chosen[1], form)))
    table = _numbers(("channels cut", name), lines)
    beside = f'<div><p class="note">{note}</p>{table}</div>'
    return f'<div class="charts">{_figure(chart, name)}{beside}</div>'


def _value(y: Any) -> float:  # noqa: ANN401
    return float("nan") if y is None or not isfinite(y) else float(y)


def frozen(run: Run, rows: Sequence[Row]) -> str:
    """What could not be cut, and why."""
    if not run.cut:
        return _missing("no channel was cut.")
    found = [str(line) for line in run.cut.get("frozen") or []]
    if not found:
        return "<p>Nothing: every layer of the network could be cut.</p>"
    body = f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in found)}</ul>"
    if len(found) > FEW_LINES:
        body = f"<details><summary>{len(found)} parts</summary>{body}</details>"
    return f"<p>These channels stay whatever their scales are:</p>{body}"


def load(run: Run, rows: Sequence[Row]) -> str:
    """Python that loads what came out."""
    code = f'<pre tabindex="0"><code id="code">{escape(loading(run))}</code></pre>'
    button = '<button type="button" id="copy" hidden>Copy</button>'
    body = code + button
    if run.cut:
        body += (
            '<p class="note">The constructor makes the dense network, which takes on the channels '
            "of the slim one; nothing is unpickled, and both files are checked.</p>"
        )
    return body


def files(run: Run, rows: Sequence[Row]) -> str:
    """Which file is which."""
    lines = [_file(PAGE, "", FILES[PAGE])]
    for name, size in run.files.items():
        told = FILES.get(name, "")
        if name.startswith("checkpoints/"):
            told = "a checkpoint, which Lightning loads and resumes from"
            if str(run.summary.get("checkpoint") or "").endswith(name):
                told += "; dense and sparse above are this one"
        lines.append(_file(name, f"{size:,}", told))
    head = '<th scope="col">file</th><th scope="col">bytes</th>'
    head += '<th scope="col" class="what">what it is</th>'
    body = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return _scroll(body, "Files")


def _file(name: str, size: str, told: str) -> str:
    breaks = re.sub("([/.=])", r"\1<wbr>", escape(name))  # where a narrow window may break it
    name = f'<th scope="row"><code>{breaks}</code></th>'
    return f'<tr>{name}<td>{size}</td><td class="what">{told}</td></tr>'


SECTIONS = {
    "trained": ("What was trained", trained),
    "sides": ("Dense, sparse and slim", sides),
    "proof": ("Proof that the cut is exact", proof),
    "channels": ("Channels kept", channels),
    "magnitudes": ("Magnitudes over the training", magnitudes),
    "progress": ("Objective and sparsity", progress),
    "amount": ("Accuracy against amount", amount),
    "frozen": ("What could not be cut", frozen),
    "load": ("Load it", load),
    "files": ("Files", files),
}
"""Heading and body of each, by its anchor, in the order of the page."""


def _figure(chart: str, name: str) -> str:
    return f"<figure><h3>{escape(name)}</h3>{chart}</figure>"


def _missing(what: str) -> str:
    """What is not there; `what` is HTML."""
    return f'<p class="missing">{what}</p>'


def _scroll(body: str, name: str, *, tall: bool = False) -> str:
    """Wide things scroll on their own, by keyboard as well."""
    kind = "scroll tall" if tall else "scroll"
    return f'<div class="{kind}" role="region" aria-label="{name}" tabindex="0">{body}</div>'


def _numbers(head: Sequence[str], lines: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> str:
    """A table that opens on demand: the numbers of a chart."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = ""
    for name, *cells in lines:
        rest = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        body += f'<tr><th scope="row">{escape(name)}</th>{rest}</tr>'
    table = f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    return f"<details><summary>Numbers</summary>{_scroll(table, 'Numbers', tall=True)}</details>"
