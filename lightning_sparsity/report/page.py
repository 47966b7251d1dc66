"""The report of a run: one HTML page that holds everything it shows."""

from html import escape
from importlib import resources
from pathlib import Path

from lightning_sparsity.disk import write
from lightning_sparsity.report.files import PAGE, Run, entry, read
from lightning_sparsity.report.sections import SECTIONS
from lightning_sparsity.report.words import (
    Gain,
    Row,
    called,
    ends,
    gains,
    headline,
    number,
    result,
    spelled,
    table,
)

__all__ = ["page", "write_page"]

ALONE = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
"""The browser is told that the page needs nothing from outside."""
COPY = """
const button = document.getElementById("copy");
if (button && navigator.clipboard) {
  button.hidden = false;
  button.onclick = () => navigator.clipboard
    .writeText(document.getElementById("code").textContent)
    .then(() => { button.textContent = "Copied"; });
}
"""


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
    write(path, page(read(folder)).encode())
    return path


def page(run: Run) -> str:
    """The page of a run as HTML.

    Args:
        run: Its files.
    """
    rows = table(run)
    style = (resources.files("lightning_sparsity.report") / "page.css").read_text(encoding="utf-8")
    title = escape(_title(run))
    sections = "".join(
        f'<section aria-labelledby="{anchor}"><h2 id="{anchor}">{heading}</h2>'
        f"{body(run, rows)}</section>\n"
        for anchor, (heading, body) in SECTIONS.items()
    )
    tiles = "".join(_tile(gain) for gain in gains(rows)) + _metric(headline(rows))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{ALONE}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<p class="from">Report of {escape(run.folder.as_posix())}</p>
<h1>{title}</h1>
<p class="result">{escape(result(rows))}.</p>
</header>
<main>
<div class="tiles">{tiles}</div>
{sections}</main>
<footer>Made by lightning_sparsity from the files of the run.</footer>
<script>{COPY}</script>
</body>
</html>
"""


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


def _tile(gain: Gain) -> str:
    dense, _, slim = gain.row.values
    left = min(1.0, (slim or 0) / (dense or 1))
    form = gain.row.form
    unit = " ms" if form == "ms" else ""
    return (
        f'<div class="tile"><b>{gain.times}</b><span>{escape(gain.what)}</span>'
        f'<div class="left"><i style="width: {left:.1%}"></i></div>'
        f'<span class="num">{number(dense, form)} → {number(slim, form)}{unit}</span></div>'
    )


def _metric(row: Row | None) -> str:
    if row is None:
        return ""
    dense, ships = (number(value, row.form) for value in ends(row))
    return (
        f'<div class="tile"><b>{ships}</b><span>{escape(called(row))}</span>'
        f'<div class="left none"></div><span class="num">dense {dense}</span></div>'
    )
