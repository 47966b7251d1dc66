"""One table for the terminal, the page and the command `slim`."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_sparsity import report
from lightning_sparsity.report.rows import layer_rows, number, rows_of

Files = dict[str, Any]


def cells(shown: str) -> dict[str, list[str]]:
    """The cells of a table on the terminal by the name of the row."""
    lines = (re.split(" *│ *", line.strip("│ ")) for line in shown.splitlines() if "│" in line)
    return {name: rest for name, *rest in lines}


def test_the_terminal_and_the_page_show_the_same_numbers_of_a_cut(
    made_up: Callable[..., Files],
    written: Callable[[Files], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    cut = {**made_up()["slim/report.json"], "metrics": {"val_acc": [0.9895, 0.989]}}
    report.print_cut(cut)
    shown = cells(capsys.readouterr().out)
    page = report.page(report.read(written({"slim/report.json": cut})))
    rows = rows_of({}, cut)
    names = ["val_acc (validation split)", "parameters", "FLOPs", "bytes on disk", "channels"]
    assert [row.name for row in rows] == names
    for row in rows:
        for i, value in ((0, row.values[0]), (1, row.values[2])):
            text = number(value, row.form)
            assert shown[row.name][i] == text.replace("\u202f", "")
            assert f"<td>{text}" in page or f'<td class="ship">{text}' in page
    assert shown["val_acc (validation split)"][:2] == ["98.95%", "98.90%"]
    assert shown["parameters"][2] == "86.87%"


def test_rows_of_a_summary_say_what_is_zero_and_what_is_saved(
    made_up: Callable[..., Files],
) -> None:
    summary = made_up()["summary.json"]
    slim = summary["slim"]
    slim["before"], slim["after"]["channels"] = {"channels": {"a": 40, "b": 16}}, {"a": 34}
    rows = {row.name: row for row in rows_of(summary, {})}
    assert rows["non-zero"].zero == pytest.approx(1 - 20569 / 278842)
    assert rows["FLOPs"].zero == pytest.approx(1 - 7491637 / 7749888)
    assert rows["channels"].values == (56, None, 34)
    assert rows["parameters"].saved == pytest.approx(1 - 36625 / 278842)
    assert rows["ms per batch of 64"].saved == pytest.approx(1 - 6.0 / 9.5)
    assert rows["test_acc (test split)"].saved is None


def test_the_largest_layers_come_in_the_order_of_the_network() -> None:
    layers = [
        {"name": n, "entries": size, "nonzero": size // 4}
        for n, size in zip("abc", (8, 4, 16), strict=True)
    ]
    slim = {"after": {"layers": {"a": 2}}}
    rows = layer_rows({"layers": layers, "slim": slim}, most=2)
    assert [(row.name, row.values, row.zero) for row in rows] == [
        ("a", (8, 2, 2), 0.75),
        ("c", (16, 4, 0), 0.75),
    ]
    assert rows[1].saved == 1  # the layer is not in the slim network
    assert [row.values[2] for row in layer_rows({"layers": layers}, most=2)] == [None, None]
