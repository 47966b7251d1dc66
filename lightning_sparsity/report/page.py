"""The report of a run: one self-contained HTML page."""

from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from lightning_sparsity.report import sections
from lightning_sparsity.report.files import PAGE, Run, entry, read
from lightning_sparsity.report.rows import Row, number, rows_of
from lightning_sparsity.report.words import (
    called,
    ends,
    gains,
    headline,
    loading,
    result,
    settings,
    spelled,
)

__all__ = ["page", "write_page"]


def write_page(folder: Path) -> Path:
    """Write `report.html` into the folder of a run, from the files that are there.

    Args:
        folder: The folder of the run.

    Returns:
        The file.

    Raises:
        FileNotFoundError: If the folder is not that of a run.
        ValueError: If one of its files is damaged.
    """
    path = folder / PAGE
    path.write_text(page(read(folder)), encoding="utf-8")
    return path


def page(run: Run) -> str:
    """The page of a run as HTML.

    Args:
        run: Its files.
    """
    folder = resources.files("lightning_sparsity.report")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["number"] = number
    template = environment.from_string((folder / "page.html.j2").read_text(encoding="utf-8"))
    style = (folder / "page.css").read_text(encoding="utf-8")
    return template.render(run=run, style=style, **_shown(run)) + "\n"


def _shown(run: Run) -> dict[str, Any]:
    """What the template writes."""
    rows, slim = rows_of(run.summary, run.cut), entry(run.summary, "slim")
    return {
        "folder": run.folder.as_posix(),
        "title": _title(run),
        "result": result(rows),
        "tiles": [*_tiles(rows)],
        "settings": [*settings(run)],
        "rows": rows,
        "timed": any(row.spread for row in rows),
        "behind": slim.get("behind"),
        "difference": run.cut.get("proof", slim.get("proof")),
        **sections.channels(run),
        "histograms": sections.histograms(run),
        "progress": [*sections.progress(run)],
        "curve": sections.amount(run),
        "frozen": [str(line) for line in run.cut.get("frozen") or []],
        "code": loading(run),
        "files": sections.files(run),
    }


def _title(run: Run) -> str:
    """Network and data."""
    module = entry(run.config, "model")
    inner = entry(module, "init_args").get("model")
    network = _name(inner) or _name(module) or str(run.cut.get("network") or "").rpartition(".")[2]
    data = _name(run.config.get("data"))
    return " on ".join(name for name in (network or "A run", data) if name)


def _name(entry: object) -> str:
    text = spelled(entry) if isinstance(entry, dict) and "class_path" in entry else ""
    return text.partition("(")[0]


def _tiles(rows: Sequence[Row]) -> Iterator[dict[str, str | None]]:
    """What was gained, and the metric that says most."""
    for gain in gains(rows):
        dense, _, slim = gain.row.values
        form = gain.row.form
        unit = " ms" if form == "ms" else ""
        yield {
            "head": gain.times,
            "what": gain.what,
            "left": f"{min(1.0, (slim or 0) / (dense or 1)):.1%}",
            "foot": f"{number(dense, form)} → {number(slim, form)}{unit}",
        }
    row = headline(rows)
    if row is not None:
        before, ships = (number(value, row.form) for value in ends(row))
        yield {"head": ships, "what": called(row), "left": None, "foot": f"dense {before}"}
