import io
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from torch import distributed, nn

from lightning_sparsity import surgery, waiting
from lightning_sparsity.waiting import Waiting


class Terminal(io.StringIO):
    """Notes when something is written; a script has no columns, so it takes 80."""

    def __init__(self, *, is_one: bool = True) -> None:
        super().__init__()
        self.is_one = is_one
        self.written = threading.Event()

    def isatty(self) -> bool:
        return self.is_one

    def write(self, text: str) -> int:
        made = super().write(text)
        self.written.set()
        return made

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.getvalue().split("\r")]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal whose user has no patience."""
    made = Terminal()
    # pytest puts a stream of its own into `sys` after this.
    monkeypatch.setattr(waiting, "sys", SimpleNamespace(stderr=made))
    monkeypatch.setattr(waiting, "PATIENCE", 0.0)
    monkeypatch.setattr(waiting, "EVERY", 0.0)
    monkeypatch.setenv("COLUMNS", "60")
    return made


def test_the_line_tells_what_goes_on_and_how_far_and_then_goes(terminal: Terminal) -> None:
    with Waiting("Tracing the network") as shown:
        assert terminal.written.wait(30)
        shown.far = "3 of 12"
        terminal.written.clear()
        assert terminal.written.wait(30)
        terminal.written.clear()
        assert terminal.written.wait(30)
    assert terminal.lines[1].startswith("Tracing the network …  (")
    assert "Tracing the network … 3 of 12 (0 s)" in terminal.lines
    assert terminal.getvalue().endswith("\r" + 59 * " " + "\r")


def test_a_line_is_no_longer_than_the_terminal(terminal: Terminal) -> None:
    with Waiting("long " * 100):
        assert terminal.written.wait(30)
    assert max(len(line) for line in terminal.lines) == 59


def test_the_line_goes_after_an_error_too(terminal: Terminal) -> None:
    def fail() -> None:
        with Waiting("Tracing"):
            assert terminal.written.wait(30)
            raise RuntimeError("no network")

    with pytest.raises(RuntimeError, match="no network"):
        fail()
    assert terminal.lines[-1] == ""


def test_what_is_quick_shows_nothing(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "PATIENCE", 600.0)
    with Waiting("Tracing"):
        pass
    assert not terminal.getvalue()


def test_files_and_further_processes_get_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_running(shown: Waiting) -> bool:
        with shown:
            return shown._thread.is_alive()

    monkeypatch.setattr(sys, "stderr", Terminal())
    assert is_running(Waiting("Tracing"))
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    assert not is_running(Waiting("Tracing"))
    monkeypatch.setattr(distributed, "get_rank", lambda: 0)
    assert is_running(Waiting("Tracing"))
    for stream in (Terminal(is_one=False), None):
        monkeypatch.setattr(sys, "stderr", stream)
        assert not is_running(Waiting("Tracing"))


def test_everything_slow_in_surgery_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    class Noted(Waiting):
        def __init__(self, what: str) -> None:
            super().__init__(what)
            seen.append(what)

    for name, module in list(sys.modules.items()):
        if name.startswith("lightning_sparsity.surgery") and hasattr(module, "Waiting"):
            monkeypatch.setattr(module, "Waiting", Noted)
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 1, 3))
    network[1].weight.data.uniform_(0.1, 1.0)
    images = torch.randn(2, 1, 6, 6)
    plan = surgery.trace(network, images).plan_by(surgery.Params(0.5))
    surgery.compensate(network, plan, [images])
    surgery.slim(network, plan)
    assert seen == [
        "Tracing the network",
        "Looking for Params(keep=0.5)",
        "Measuring what dead channels carry",
        "Cutting the network",
        "Checking that the slim network returns the same",
    ]
