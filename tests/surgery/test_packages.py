"""Networks of other packages: cut exactly, or refused by a message that names the place."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from lightning_sparsity import surgery

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
LIMIT = 300
REFUSED: dict[str, tuple[str, ...]] = {}
"""Networks that cannot be cut, as "package name": the module and the function to be named."""
TOO_LARGE = {"vgg11_bn", "nasnetalarge", "pnasnet5large"}


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A file of the benchmarks as a module."""
    if not BENCHMARKS.is_dir():
        pytest.skip("needs the benchmarks, which an installed package does not have")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("zoo", monkeypatch)


def complaint(record: dict[str, Any]) -> str | None:
    """What is wrong with what became of a network; None if nothing is."""
    name = f"{record['package']} {record['name']}"
    if name in REFUSED:
        said = record.get("error", "")
        right = record["outcome"] == "refused" and all(word in said for word in REFUSED[name])
        return None if right else f"{name} should be refused at {REFUSED[name]}: {said}"
    if record["outcome"] in ("exact", "frozen", "none"):
        return None
    return f"{name}: {record['outcome']} {record.get('error', record.get('difference'))}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "package",
    ["timm", "ultralytics", "segmentation_models_pytorch", "monai", "transformers", "pytorchcv"],
)
def test_every_network_of_a_package_is_cut_exactly(package: str, zoo: Any) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed")
    networks = [x for x in zoo.PACKAGES[package]() if x.name not in TOO_LARGE]
    records = [zoo.run(network, LIMIT, {}) for network in networks]
    wrong = [said for said in map(complaint, records) if said]
    assert not wrong, "\n".join(wrong)
    cut = [x for x in records if x["outcome"] == "exact"]
    assert len(cut) > len(records) / 2


def one_norm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 3))


@pytest.mark.parametrize(
    ("build", "outcome"),
    [
        (one_norm, "exact"),
        (lambda: nn.Conv2d(3, 4, 1), "none"),
        (lambda: nn.Linear(3, 4), "not built"),
    ],
    ids=["with a norm", "without one", "does not run"],
)
def test_the_benchmark_says_what_became_of_a_network(
    build: Callable[[], nn.Module], outcome: str, zoo: Any
) -> None:
    record: dict[str, Any] = {}
    zoo.attempt(zoo.Network("ours", "small", build, lambda n: torch.randn(n, 3, 8, 8)), record, {})
    assert record["outcome"] == outcome
    assert record.get("spread", 1.0) > 1e-3


def test_the_benchmark_tells_a_refusal_from_another_error(zoo: Any) -> None:
    with pytest.raises(ValueError, match="trace needs example inputs") as refused:
        surgery.trace(one_norm(), torch.randn(1, 4, 8, 8))
    with pytest.raises(ValueError, match="invalid literal") as other:
        int("four")
    assert zoo.is_refusal(refused.value)
    assert not zoo.is_refusal(other.value)


def test_a_refusal_that_is_expected_has_to_name_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    record = {
        "package": "ours",
        "name": "net",
        "outcome": "refused",
        "error": "body.0: view counts",
    }
    assert complaint(record) == "ours net: refused body.0: view counts"
    monkeypatch.setitem(REFUSED, "ours net", ("body.0", "view"))
    assert complaint(record) is None
    assert complaint(record | {"error": "view counts"}) is not None
    assert complaint(record | {"outcome": "exact"}) is not None


def test_the_benchmark_finds_a_difference_that_is_there(zoo: Any) -> None:
    a = [torch.tensor([[1.0, 2.0], [3.0, -4.0]])]
    assert zoo.difference(a, [a[0] + 1e-3]) == pytest.approx(2.5e-4, rel=1e-3)
    assert zoo.difference(a, [a[0][:1]]) == float("inf")
    assert zoo.difference(a, [a[0].masked_fill(a[0] > 2, float("nan"))]) == float("inf")
    assert zoo.spread([torch.ones(2, 3)]) == 0
