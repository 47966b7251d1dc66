"""`lightning-sparsity bench`: how fast the slim network of a run is."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from lightning_sparsity import cli, surgery
from lightning_sparsity.cli.bench import masked
from lightning_sparsity.models import CurveNet

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
Bench = Callable[..., None]


@pytest.fixture
def bench(run: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    monkeypatch.setattr("sys.argv", ["lightning-sparsity"])
    given = ("--slim", str(run / "slim"), "--seconds", "0")
    return lambda *args: cli.main(["bench", *given, *args])


def places_of(shown: str) -> list[tuple[str, int]]:
    return [(place, int(n)) for place, n in re.findall(r"│ (cpu\b.*?) +│ +(\d+) │", shown)]


def test_every_batch_and_every_number_of_threads_has_a_row(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = torch.get_num_threads()
    path = tmp_path / "new/figures.json"
    given = ("--device", "cpu", "--batch", "1", "3", "5", "--threads", "1", "2")
    bench(*given, "--json", str(path))
    shown = capsys.readouterr().out
    expected = [(place, n) for place in ("cpu, 1 thread", "cpu, 2 threads") for n in (1, 3, 5)]
    assert places_of(shown) == expected
    figures = json.loads(path.read_text())
    assert [(row["threads"], row["batch"]) for row in figures["rows"]] == [
        (threads, n) for threads in (1, 2) for n in (1, 3, 5)
    ]
    for row in figures["rows"]:
        assert set(row["ms"]) == {"dense", "masked", "slim"}
        assert len({timing["runs"] for timing in row["ms"].values()}) == 1
        assert set(row["speed_up"]) == {"masked", "slim"}
    assert all(line in shown for line in figures["advice"])
    assert torch.get_num_threads() == before


def test_flops_stand_above_the_times(
    bench: Bench, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bench("--device", "cpu", "--batch", "1", "--json", str(tmp_path / "figures.json"))
    work = json.loads((tmp_path / "figures.json").read_text())["flops"]
    assert work["dense"] == work["masked"] > work["slim"]
    (line,) = re.findall("FLOPs of one example.*", capsys.readouterr().out)
    assert re.findall(r"[\d,.×]+", line) == [
        *(f"{work[name]:,}" for name in ("dense", "masked", "slim")),
        "1.00×",
        f"{work['dense'] / work['slim']:.2f}×",
    ]


def test_the_masked_network_has_zeros_where_the_slim_one_has_nothing(run: Path) -> None:
    dense = CurveNet(size=32)
    plan = surgery.trace(dense, torch.rand(2, 1, 32, 32)).plan_by(0.5)
    small, zeroed = surgery.slim(dense, plan), masked(dense, plan.cuts)
    for name, part in small.named_modules():
        if isinstance(part, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
            ones = part.select.ones if hasattr(part, "select") else 0
            columns = part.weight.shape[1:2]
            added = ones * part.weight.numel() // (columns[0] if columns else 1)
            left = zeroed.get_submodule(name).weight
            assert int(left.count_nonzero()) == part.weight.numel() - added
            full = dense.get_submodule(name).weight
            assert left.shape == full.shape
            assert torch.equal(left[left != 0], full[left != 0])
            assert full.count_nonzero() == full.numel()


def test_without_a_compiler_eager_figures_are_shown(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Uncompilable(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no compiler\nand many more lines")

    monkeypatch.setattr(torch, "compile", lambda network, **_: Uncompilable())
    bench("--device", "cpu", "--batch", "1", "2", "--threads", "1", "--compiled")
    shown = capsys.readouterr().out
    assert places_of(shown) == [("cpu, 1 thread", 1), ("cpu, 1 thread", 2)]
    sentence = (
        "Not measured: cpu, 1 thread, compiled, from batch 1 on (RuntimeError: no compiler).\n"
    )
    assert shown.count("Not measured") == shown.count(sentence) == 1


def test_compiled_networks_have_rows_of_their_own(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled = list[int]()
    monkeypatch.setattr(
        torch, "compile", lambda network, **_: compiled.append(id(network)) or network
    )
    bench("--device", "cpu", "--batch", "2", "--threads", "1", "--compiled")
    expected = [("cpu, 1 thread", 2), ("cpu, 1 thread, compiled", 2)]
    assert places_of(capsys.readouterr().out) == expected
    assert len(set(compiled)) == 3


@pytest.mark.gpu
def test_a_gpu_is_measured_by_default(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench("--batch", "1", "--threads", "1")
    shown = capsys.readouterr().out
    assert re.findall(r"│ (cpu|cuda)\b", shown) == ["cpu", "cuda"]
    assert torch.cuda.get_device_name() in shown


def change(run: Path, **parts: Any) -> list[str]:
    config = run / "config.yaml"
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), **parts}))
    return []


def no_weights(run: Path) -> list[str]:
    (run / "slim/model.safetensors").unlink()
    return []


def other_images(run: Path) -> list[str]:
    return change(run, data={"class_path": "CIFAR10"})


def no_data(run: Path) -> list[str]:
    return change(run, data=None)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda run: ["--slim", "gone"], "There is no plan.json in 'gone'"),
        (no_weights, "There is no model.safetensors in '.*slim'"),
        (lambda run: ["--config", "gone.yaml"], "There is no configuration 'gone.yaml'"),
        (no_data, r"give the data module an input_shape, or set self\.example_input_array"),
        (other_images, r"No network could be run\. Not measured: cpu, .*RuntimeError: "),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_bad_input_ends_in_one_sentence(
    spoil: Callable[[Path], list[str]], sentence: str, bench: Bench, run: Path
) -> None:
    with pytest.raises(SystemExit, match=f"^lightning-sparsity: .*{sentence}"):
        bench("--device", "cpu", *spoil(run))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch", "8", "0"], r'"batch" element 2:\s+Not of type PositiveInt: 0'),
        (["--threads", "-2"], r'"threads" element 1:\s+Not of type PositiveInt: -2'),
        (["--seconds", "nan"], r'"seconds":\s+Not of type NonNegativeFloat: nan'),
        (["--device", "gpu"], r"argument --device: invalid choice: 'gpu'"),
    ],
)
def test_flags_out_of_range_are_named(
    flags: list[str], message: str, bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        bench(*flags)
    assert re.search(message, capsys.readouterr().err)


def test_a_gpu_that_is_not_there_is_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"There is no CUDA device here\. Leave out --device cuda"):
        bench("--device", "cuda")
