"""Some of the mutations of `benchmarks/fuzz_files.py`, and what its watch finds."""

import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "fuzz_files.py"
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory has no limit here")


@pytest.fixture(scope="module")
def fuzz_files() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_files", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclass looks for it
    spec.loader.exec_module(module)
    return module


def test_mutated_files_load_as_they_were_saved_or_say_why_not(fuzz_files: Any) -> None:
    outcomes = fuzz_files.fuzz(range(200), seed=0)
    assert [o for o in outcomes if o.is_finding] == []
    assert {(o.name, o.resealed) for o in outcomes} == {
        (name, new)
        for name in ("plan.json", "model.safetensors", "model.sparse")
        for new in (False, True)
    }
    assert {o.result for o in outcomes} == {"right", "refused"}
    assert fuzz_files.summary(outcomes).splitlines()[-2].split()[:2] == ["all", "200"]


def refuse(error: type[Exception], text: str) -> Callable[[], Any]:
    def load() -> Any:
        raise error(text)

    return load


@pytest.mark.parametrize(
    ("load", "result"),
    [
        (lambda: {"x": torch.ones(2)}, "right"),
        (refuse(ValueError, "/folder/plan.json is damaged"), "refused"),
        (refuse(FileNotFoundError, "there is no /folder/plan.json"), "refused"),
        (refuse(ValueError, "damaged"), "the error is not one line that names the file"),
        (refuse(UnicodeError, "/folder"), "UnicodeError: /folder"),
        (refuse(KeyError, "x"), "KeyError: 'x'"),
        (lambda: {"x": -torch.ones(2)}, "other tensors"),
        (lambda: {"x": torch.ones(2).double()}, "other tensors"),
        (lambda: {"x": torch.ones(2, 1)}, "other tensors"),
        (lambda: {}, "other tensors"),
        pytest.param(lambda: {"x": torch.empty(1 << 32)}, "too much memory", marks=linux),
        pytest.param(lambda: bytearray(1 << 33), "too much memory", marks=linux),
        pytest.param(lambda: time.sleep(1), "too long", marks=linux),
    ],
)
def test_what_should_not_happen_is_found(
    load: Callable[[], Any], result: str, fuzz_files: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if result == "too long":
        monkeypatch.setattr(fuzz_files, "SECONDS", 0.1)
    found, *_ = fuzz_files.judge(Path("/folder"), load, lambda: {"x": torch.ones(2)})
    assert found == result


@pytest.mark.parametrize(
    ("results", "found"),
    [
        (["right"], ("right", 0)),
        (["too long", "refused"], ("refused", 1)),
        (["too long", "too long", "other tensors"], ("other tensors", 2)),
        (["too long", "too long", "too long", "right"], ("too long", 2)),
        (["too much memory", "right"], ("too much memory", 0)),
    ],
)
def test_only_what_is_too_slow_each_time_is_too_slow(
    results: list[str], found: tuple[str, int], fuzz_files: Any
) -> None:
    left = iter(results)
    judged, times = fuzz_files.repeated(lambda: (next(left), 0.0, 0.0, None))
    assert (judged[0], times) == found
