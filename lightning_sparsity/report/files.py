"""What a run has left in its folder, read for its page."""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import yaml

__all__ = ["PAGE", "Run", "entry", "read"]

Content = Mapping[str, Any]
PAGE = "report.html"
PLACES = ("*", "slim/*", "checkpoints/*")


@final
@dataclass(frozen=True)
class Run:
    """The files of a run. What is not there is empty.

    Args:
        folder: Their folder.
        summary: `summary.json`, which `lightning-sparsity fit` writes.
        slim: The folder of the slim network.
        cut: Its `report.json`, which every cut writes.
        config: `config.yaml`, which a LightningCLI writes.
        history: What the monitor measured, from the summary or else from `metrics.csv`.
        files: Path of each file in the folder, but for the page, and its bytes.
    """

    folder: Path
    summary: Content
    slim: Path
    cut: Content
    config: Content
    history: tuple[Mapping[str, float], ...]
    files: Mapping[str, int]


def read(folder: Path) -> Run:
    """The run in a folder.

    Args:
        folder: The folder of its logger.

    Raises:
        FileNotFoundError: If it has neither a `summary.json` nor a `slim/report.json`.
        ValueError: If one of its files is damaged.
    """
    config = _content(folder / "config.yaml")
    summary, slim = _content(folder / "summary.json"), _slim(folder, config)
    cut = _content(slim / "report.json")
    if not summary and not cut:
        raise FileNotFoundError(
            f"There is neither a summary.json nor a slim/report.json in {str(folder)!r}. Name the "
            "folder of a run, like runs/curves/version_0."
        )
    history = summary.get("history") or _logged(folder / "metrics.csv")
    return Run(folder, summary, slim, cut, config, tuple(history), _sizes(folder))


def entry(content: Content, name: str) -> Content:
    """A table inside another one; an empty one where there is none."""
    found = content.get(name)
    return found if isinstance(found, Mapping) else {}


def _slim(folder: Path, config: Content) -> Path:
    """The folder of the slim network: in that of the run, or where a callback's `dirpath` says."""
    callbacks = entry(config, "trainer").get("callbacks") or []
    places = [folder]
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        arguments = entry(callback, "init_args") if isinstance(callback, Mapping) else {}
        if isinstance(arguments.get("dirpath"), str):
            places.append(Path(arguments["dirpath"]))
    found = (place / "slim" for place in places if (place / "slim" / "report.json").is_file())
    return next(found, folder / "slim")


def _content(path: Path) -> Content:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text()) if path.suffix == ".json" else _yaml(path)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{str(path)!r} is damaged: it holds no table.")
    return content


def _yaml(path: Path) -> Any:  # noqa: ANN401
    return yaml.safe_load(path.read_text()) or {}


def _logged(path: Path) -> list[dict[str, float]]:
    """The figures of the monitor in the file of a CSVLogger."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        found = [row for row in csv.DictReader(file) if row.get("sparsity") and row.get("step")]
    return [{name: float(x) for name, x in row.items() if x and _is_number(x)} for row in found]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _sizes(folder: Path) -> dict[str, int]:
    found = [path for place in PLACES for path in sorted(folder.glob(place)) if path.is_file()]
    found = [path for path in found if path.name != PAGE]  # the page cannot know its own size
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in found}
