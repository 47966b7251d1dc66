"""The page of a run, from files made up by hand."""

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lightning_sparsity import report
from lightning_sparsity.report.words import loading

Files = dict[str, Any]
Make, Write = Callable[..., Files], Callable[[Files], Path]
SECTIONS = {
    *("trained", "sides", "proof", "channels", "magnitudes", "progress", "amount", "frozen"),
    *("load", "files"),
}
EMPTY = {"meta", "path", "circle", "wbr"}
ODD = """<script>alert("1")</script>&amp;'"""


class Page(HTMLParser):
    """Elements with their attributes, rows of tables, and text; refuses what is not well formed."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def row(self, name: str) -> list[str]:
        (found,) = [row[1:] for row in self.rows if row[0] == name]
        return found


def page_of(folder: Path) -> Page:
    return Page(report.page(report.read(folder)))


def test_a_complete_run_shows_everything(made_up: Make, written: Write) -> None:
    page = page_of(written(made_up()))
    headings = {attrs["id"] for tag, attrs in page.elements if tag == "h2"}
    assert headings == SECTIONS
    charts = [attrs["aria-label"] for tag, attrs in page.elements if tag == "svg"]
    for title in ("Channels of each layer", "BatchNorm scales", "weights", "Objective", "Sparsity"):
        assert any(str(chart).startswith(title) for chart in charts)
    assert any("40\u202f% cut: 98\u202f%" in str(chart) for chart in charts)
    assert not [attrs for _, attrs in page.elements if attrs.get("class") == "missing"]
    assert "first 987 examples of the validation split" in page.text
    assert "head: add meets an input (2 channels)" in page.text
    for setting in ("CurveNet(size=32)", "Curves(train=99)", "L0Ball(amount=0.4)", "18", "7"):
        assert setting in page.text


def test_the_result_is_one_sentence(made_up: Make, written: Write) -> None:
    assert (
        "7.6× fewer parameters, 2.5× fewer FLOPs, 1.6× faster at batch 64, "
        "test accuracy 98.95\u202f%\u00a0→\u00a098.90\u202f%."
    ) in page_of(written(made_up())).text


@pytest.mark.parametrize(
    ("dense", "slim", "words"),
    [
        (6.0, 9.5, "1.6× slower at batch 64"),
        (9.5, 9.45, "as fast at batch 64, within the spread"),
        (9.5, 9.3, "as fast at batch 64, test"),
    ],
)
def test_a_slim_network_is_not_called_faster_than_measured(
    made_up: Make, written: Write, dense: float, slim: float, words: str
) -> None:
    files = made_up()
    for timing, median in zip(
        files["summary.json"]["slim"]["latency"]["64"], (dense, slim), strict=True
    ):
        timing.update(median=median, low=0.99 * median, high=1.01 * median)
    assert words in page_of(written(files)).text


def test_the_table_has_the_numbers_of_the_files(made_up: Make, written: Write) -> None:
    page = page_of(written(made_up()))
    assert page.row("parameters") == ["278,842", "278,842", "36,625", "7.61×"]
    assert page.row("non-zero") == ["278,830", "20,569", "11,111", "25.09×"]
    assert page.row("FLOPs") == ["7,749,888", "7,491,637", "3,083,631", "2.51×"]
    assert page.row("bytes on disk") == ["1,117,688", "93,234", "156,852", "7.13×"]
    assert page.row("channels") == ["56", "–", "34", "1.65×"]
    assert page.row("test_loss (test split)") == ["0.0255", "0.0258", "0.0258", ""]
    assert page.row("test_acc (test split)")[1] == "98.91\u202f%"
    assert page.row("ms per batch of 64") == ["9.508.55–10.45", "–", "6.005.40–6.60", "1.58×"]
    assert page.row("stage0.1.norm") == ["64", "2", "3\u202f%"]
    assert page.row("40\u202f%") == ["98.00\u202f%"]


def test_the_files_are_named_with_their_sizes(made_up: Make, written: Write) -> None:
    folder = written(made_up() | {"checkpoints/last.ckpt": "x" * 1234, "mine.txt": "y"})
    report.write_page(folder)
    page = page_of(folder)
    bytes_of = f"{(folder / 'slim' / 'report.json').stat().st_size:,}"
    assert page.row("slim/report.json")[0] == bytes_of
    assert page.row("checkpoints/last.ckpt")[0] == "1,234"
    assert page.row("checkpoints/last.ckpt")[1].endswith("dense and sparse above are this one")
    assert page.row("mine.txt") == ["1", ""]
    assert page.row("report.html") == ["", "this page"]


def test_a_cut_of_another_trainer_shows_what_is_there(made_up: Make, written: Write) -> None:
    logged = "epoch,objective,sparsity,step,val_loss\n0,,,9,0.5\n0,0.7,0.25,10,\n1,0.6,0.5,20,\n"
    cut = made_up()["slim/report.json"]
    page = page_of(written({"slim/report.json": cut, "metrics.csv": logged}))
    assert page.row("parameters") == ["278,842", "–", "36,625", "7.61×"]
    assert "7.6× fewer parameters, 2.5× fewer FLOPs." in page.text
    assert "there is no config.yaml" in page.text
    assert page.text.count("That is in summary.json, which lightning-sparsity fit writes") == 3
    charts = [str(attrs["aria-label"]) for tag, attrs in page.elements if tag == "svg"]
    assert "Sparsity. sparsity ends at 50\u202f%." in charts
    assert "surgery.load(CurveNet(...), " in page.text


def test_a_run_without_a_cut_says_so(made_up: Make, written: Write) -> None:
    files = made_up()
    del files["slim/report.json"], files["summary.json"]["slim"]
    page = page_of(written(files))
    assert "92.62\u202f% of the parameters exactly zero, no channel cut, test accuracy" in page.text
    assert page.text.count("no channel was cut") == 4
    assert "ImageClassifier.load_from_checkpoint('runs/a/checkpoints/last.ckpt')" in page.text


def test_a_slim_network_elsewhere_is_found_by_the_configuration(
    made_up: Make, written: Write, tmp_path: Path
) -> None:
    files = made_up()
    (callback,) = files["config.yaml"]["trainer"]["callbacks"]
    callback["init_args"]["dirpath"] = str(tmp_path / "run" / "other")
    files["other/slim/report.json"] = files.pop("slim/report.json")
    page = page_of(written(files))
    assert page.row("stage0.1.norm") == ["64", "2", "3\u202f%"]
    assert f"'{(tmp_path / 'run' / 'other' / 'slim').as_posix()}')" in page.text


def test_a_configuration_of_another_form_does_no_harm(made_up: Make, written: Write) -> None:
    files = made_up()
    files["config.yaml"] = {"model": {"lr": 0.1}, "trainer": None, "data": "mine.yaml"}
    page = page_of(written(files))
    assert "{'lr': 0.1, 'init_args': {}}" not in page.text
    assert "surgery.load(CurveNet(...), " in page.text


def test_the_metrics_of_the_command_slim_are_shown(made_up: Make, written: Write) -> None:
    cut = {**made_up()["slim/report.json"], "metrics": {"val_acc": [0.91, 0.87]}}
    page = page_of(written({"slim/report.json": cut}))
    assert "val accuracy 91.00\u202f%\u00a0→\u00a087.00\u202f%" in page.text


def test_a_curve_that_could_not_be_measured_says_why(made_up: Make, written: Write) -> None:
    files = made_up()
    files["summary.json"]["slim"]["curve"] = {"skipped": "there is <no> data", "points": []}
    assert "it could not be measured: there is <no> data." in page_of(written(files)).text


def test_what_comes_from_files_is_escaped(made_up: Make, written: Write) -> None:
    files = made_up()
    cut, summary, config = files["slim/report.json"], files["summary.json"], files["config.yaml"]
    cut["layers"] = {ODD: {"dense": 8, "slim": 4}}
    cut |= {"frozen": [ODD], "network": ODD, "amount": ODD}
    summary["metrics"] = {f"{ODD}_acc": {"dense": 0.5, "sparse": 0.5}}
    summary["slim"]["curve"]["metric"] = ODD
    for point in summary["history"]:
        point[f"sparsity_{ODD}"] = 0.5
    for histogram in summary["histograms"]:
        histogram["of"] = ODD
    config["seed_everything"] = config["model"]["init_args"]["model"]["class_path"] = ODD
    config["data"]["class_path"] = config["model"]["class_path"] = ODD
    folder = written(files | {f"{ODD.replace('/', '')}.txt": "x"})
    source = report.page(replace(report.read(folder), folder=Path(ODD)))
    page = Page(source)
    assert page.text.count(ODD) > 8
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert ODD not in source


def test_the_page_needs_nothing_from_outside(made_up: Make, written: Write) -> None:
    folder = written(made_up())
    source = report.page(report.read(folder))
    assert not re.search(r"https?:|//\w|url\(|@import", source)
    for tag, attrs in Page(source).elements:
        assert tag not in {"link", "img", "iframe", "object", "base", "form"}
        assert not {"src", "href", "srcset", "action"} & set(attrs)


def test_hundreds_of_layers_stay_readable_and_small(made_up: Make, written: Write) -> None:
    page = page_of(written(made_up(400)))
    source = report.page(report.read(written(made_up(400))))
    assert len(source.encode()) < 300_000
    assert "stage7.399.norm" in page.text
    assert "Each layer" in page.text
    regions = [a for tag, a in page.elements if tag == "div" and a.get("role") == "region"]
    assert all(region["tabindex"] == "0" and region["aria-label"] for region in regions)


def test_charts_have_no_place_for_what_is_not_a_number(made_up: Make, written: Write) -> None:
    files = made_up()
    files["summary.json"]["history"][3]["objective"] = float("nan")
    page = page_of(written(files))
    for tag, attrs in page.elements:
        if tag in {"path", "circle", "text"}:
            assert "nan" not in " ".join(str(value) for value in attrs.values())


def test_a_long_training_is_drawn_in_means(made_up: Make, written: Write) -> None:
    files = made_up()
    files["summary.json"]["history"] = [
        {"step": i, "objective": float(i % 2), "sparsity": 0.5} for i in range(10_000)
    ]
    page = page_of(written(files))
    paths = [
        str(a["d"]) for tag, a in page.elements if tag == "path" and a["class"] == "line sparse"
    ]
    assert len(paths) == 2
    assert all(path.count("L") < 160 for path in paths)


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("model", "surgery.load(CurveNet(size=32), "),
        ("", "surgery.load(Mine(model=CurveNet(size=32)), "),
        ("net.body", "surgery.load(Mine(model=CurveNet(size=32)).net.body, "),
    ],
)
def test_the_slim_network_is_loaded_into_the_part_that_was_cut(
    made_up: Make, written: Write, where: str, line: str
) -> None:
    files = made_up()
    files["slim/report.json"]["path"] = where
    files["config.yaml"]["model"]["class_path"] = "my.project.Mine"
    code = loading(report.read(written(files)))
    assert line in code
    assert "from lightning_sparsity.models import CurveNet\n" in code
    assert ("from my.project import Mine\n" in code) == (where != "model")


def test_a_class_that_cannot_be_imported_is_left_to_the_reader(
    made_up: Make, written: Write
) -> None:
    cut = made_up()["slim/report.json"] | {"network": "__main__.Net"}
    assert "surgery.load(YourNetwork(...), " in loading(
        report.read(written({"slim/report.json": cut}))
    )


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither a summary\.json nor a slim/report\.json"):
        report.write_page(tmp_path)


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_damaged_file_is_named(written: Write, content: str) -> None:
    with pytest.raises(ValueError, match=r"summary\.json' is damaged: "):
        report.read(written({"summary.json": content}))
