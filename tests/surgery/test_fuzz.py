"""A slice of the fuzzer in `benchmarks`: random networks from fixed seeds."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SEEDS = (0, 1, 2, 3, 5, 6, 8, 9, 11, 12, 13, 15, 16, 17, 19, 20, 22, 23, 24, 26, 27, 28, 30, 31, 33)


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The checks of the fuzzer."""
    return module("fuzz_checks", monkeypatch)


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What makes programs and networks from seeds."""
    return module("fuzz_networks", monkeypatch)


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return importlib.import_module(name)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_networks_are_cut_exactly(fuzz: ModuleType, networks: ModuleType, seed: int) -> None:
    case = fuzz.draw(seed)
    found = fuzz.judge(case, networks.source_of(case.program), fuzz.Options())
    assert found.outcome.startswith("exact"), f"{found.text}\n{found.source}"


def test_a_seed_always_makes_the_same_network(fuzz: ModuleType, networks: ModuleType) -> None:
    first, second = fuzz.draw(3), fuzz.draw(3)
    assert first == second
    assert networks.source_of(first.program) == networks.source_of(second.program)
    assert first != fuzz.draw(4)


def test_a_wrong_cut_is_found_and_made_small(
    fuzz: ModuleType, networks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    slim = fuzz.surgery.slim

    def wrong(model: nn.Module, plan: object) -> nn.Module:
        small = slim(model, plan)
        for module in small.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.data += 0.01
        return small

    monkeypatch.setattr(fuzz.surgery, "slim", wrong)
    case = replace(fuzz.draw(5), training=False)
    found = fuzz.judge(case, networks.source_of(case.program), fuzz.Options())
    assert (found.outcome, found.kind) == ("WRONG", "values")
    small = module("fuzz_surgery", monkeypatch).shrink(found, again=False)
    assert (small.outcome, small.kind) == ("WRONG", "values")
    assert len(small.case.program.nodes) <= 2 < len(case.program.nodes)
    assert small.source.count("BatchNorm2d(") >= 1


def test_results_of_another_shape_or_type_are_differences(fuzz: ModuleType) -> None:
    x = torch.ones(2, 3)
    assert fuzz.difference({"a": [x, None]}, {"a": [x + 1, None]}) == 1.0
    with pytest.raises(fuzz.WrongError, match="shape"):
        fuzz.difference(x, x[:1])
    with pytest.raises(fuzz.WrongError, match="shape"):
        fuzz.difference(x, x.double())
    with pytest.raises(fuzz.WrongError, match="structure"):
        fuzz.difference((x, x), [x, x])


def test_anything_that_changes_on_a_model_is_found(fuzz: ModuleType) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    before = fuzz.fingerprint(model)
    fuzz.check_untouched(before, model)
    model[1].running_mean[2] = 1
    with pytest.raises(fuzz.WrongError, match="running_mean"):
        fuzz.check_untouched(before, model)
    before = fuzz.fingerprint(model)
    model[0].register_forward_hook(lambda *_: None)
    with pytest.raises(fuzz.WrongError, match="hooks"):
        fuzz.check_untouched(before, model)
