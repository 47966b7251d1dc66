"""The Python of the documentation runs, page by page, with stand-ins for the reader's code."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from lightning_sparsity import surgery

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^(<!-- not run.*-->\n)?```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [
    page
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if FENCE.search(page.read_text())
]


def blocks(page: Path) -> Iterator[tuple[str, str, bool]]:
    """Each block of Python with its place, and whether it can run."""
    text = page.read_text()
    for found in FENCE.finditer(text):
        line = text[: found.start(2)].count("\n")
        yield f"{page.name}:{line}", "\n" * line + found[2], found[1] is None


class ShortTrainer(pl.Trainer):
    """Two epochs on the CPU, whatever the page asks for."""

    def __init__(self, **options: Any) -> None:
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        options.setdefault("logger", CSVLogger("runs", name=None))
        super().__init__(**{**options, **quiet, "max_epochs": 2})


@pytest.mark.filterwarnings("ignore:.*logger is already defined.*")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs(
    page: Path,
    tmp_path: Path,
    norm_net: Callable[..., Any],
    data: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pl, "Trainer", ShortTrainer)
    module, images = norm_net(), torch.rand(4, 1, 8, 8)
    plan = surgery.trace(module.model, images).plan_by(0.5)
    surgery.save(surgery.slim(module.model, plan), plan, "runs/version_0/slim")
    names = {
        "__name__": "page",
        "MyModule": norm_net,
        "Net": type(module.model),
        "module": module,
        "data": data(),
        "images": images,
    }
    for place, block in ((place, block) for place, block, runs in blocks(page) if runs):
        try:
            exec(compile(block, place, "exec"), names)
        except ModuleNotFoundError as error:
            if str(error.name).startswith("lightning_sparsity"):
                raise  # anybody else's package may be optional


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_does_not_run_is_python_at_least(page: Path) -> None:
    for place, block, _ in blocks(page):
        compile(block, place, "exec")
