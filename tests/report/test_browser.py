"""The page of a run as a browser lays it out."""

import json
import shutil
import subprocess
from collections.abc import Callable
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

from lightning_sparsity import report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="there is no chromium or google-chrome on the PATH"),
]
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --enable-logging=stderr"
)
# In a frame, because windows are 500 pixels wide at least.
FRAME = """<!doctype html><title></title><iframe width="{width}" height="900" style="border: 0"
srcdoc="{source}"></iframe><script>
onload = () => {{
  const shown = frames[0], page = shown.document, root = page.documentElement;
  page.querySelectorAll("details").forEach((part) => {{ part.open = true; }});
  document.title = JSON.stringify({{
    window: shown.innerWidth, page: root.scrollWidth,
    paper: shown.getComputedStyle(page.body).backgroundColor,
    letters: Math.min(...[...page.querySelectorAll("svg text")].map((text) =>
      parseFloat(shown.getComputedStyle(text).fontSize) * text.getScreenCTM().a)),
    button: !page.getElementById("copy").hidden,
  }});
}};
</script>"""


def seen(folder: Path, width: int, dark: bool, profile: Path) -> dict[str, Any]:
    """What a window shows of the page in a folder, with everything in it opened."""
    source = escape(report.write_page(folder).read_text())
    frame = folder / "frame.html"
    frame.write_text(FRAME.format(width=width, source=source))
    done = subprocess.run(
        [
            *(str(BROWSER), *QUIET.split(), f"--user-data-dir={profile}"),
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            *("--window-size=1400,900", "--dump-dom", frame.resolve().as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    title = done.stdout.partition("<title>")[2].partition("</title>")[0]
    return dict(json.loads(unescape(title)))


@pytest.mark.parametrize("layers", [3, 164])
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_fits_the_window_and_its_letters_can_be_read(
    made_up: Callable[..., Any],
    written: Callable[..., Path],
    tmp_path: Path,
    width: int,
    layers: int,
) -> None:
    found = seen(written(made_up(layers)), width, False, tmp_path / "profile")
    assert found["window"] == width
    assert found["page"] <= width
    assert found["letters"] >= 9
    assert found["button"]


def test_the_page_is_light_or_dark_as_the_reader_likes(
    made_up: Callable[..., Any], written: Callable[..., Path], tmp_path: Path
) -> None:
    folder = written(made_up())
    light, dark = (seen(folder, 800, on, tmp_path / f"profile{on}") for on in (False, True))
    assert light["paper"] == "rgb(247, 248, 249)"
    assert dark["paper"] == "rgb(17, 22, 28)"
