"""`lightning-sparsity export`: the slim network of a run as one file."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from lightning_sparsity import cli, surgery
from lightning_sparsity.classifier import ImageClassifier
from lightning_sparsity.models import CurveNet

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
Export = Callable[..., None]
MISSING = [
    name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None
]


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch) -> Export:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    monkeypatch.setattr("sys.argv", ["lightning-sparsity"])
    return lambda *args: cli.main(["export", *args])


def expected(run: Path, images: Tensor) -> Tensor:
    return surgery.load(CurveNet(size=32), run / "slim").eval()(images).detach()


def test_the_file_holds_the_slim_network(
    export: Export, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "small.pt2"
    export("--slim", str(run / "slim"), "--to", str(path))
    images = torch.rand(3, 1, 32, 32)
    torch.testing.assert_close(torch.export.load(path).module()(images), expected(run, images))
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{path.stat().st_size:,} bytes, largest relative difference" in shown


@pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not installed")
def test_an_onnx_file_holds_it_too(export: Export, run: Path, tmp_path: Path) -> None:
    import onnxruntime

    export("--slim", str(run / "slim"), "--to", str(tmp_path / "small.onnx"))
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx")
    images = torch.rand(3, 1, 32, 32)
    (got,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), expected(run, images))


def test_without_data_the_module_names_its_examples(
    export: Export, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(run, data=None)
    monkeypatch.setattr(ImageClassifier, "example_input_array", torch.rand(1, 1, 32, 32))
    export("--slim", str(run / "slim"), "--to", str(tmp_path / "small.pt2"))
    images = torch.rand(3, 1, 32, 32)
    got = torch.export.load(tmp_path / "small.pt2").module()(images)
    torch.testing.assert_close(got, expected(run, images))


def change(run: Path, **parts: Any) -> list[str]:
    config = run / "config.yaml"
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), **parts}))
    return []


def no_data(run: Path) -> list[str]:
    return change(run, data=None)


def other_network(run: Path) -> list[str]:
    return change(run, model={"class_path": "ImageClassifier", "init_args": {"model": "LeNet5"}})


def other_images(run: Path) -> list[str]:
    return change(run, data={"class_path": "CIFAR10"})


def no_weights(run: Path) -> list[str]:
    (run / "slim/model.safetensors").unlink()
    return []


def no_config(run: Path) -> list[str]:
    (run / "config.yaml").unlink()
    return []


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda run: ["--slim", "gone"], "There is no plan.json in 'gone'"),
        (no_weights, "There is no model.safetensors in '.*slim'"),
        (no_config, "There is no config.yaml in the folders above"),
        (lambda run: ["--config", "gone.yaml"], "There is no configuration 'gone.yaml'"),
        (other_network, "There is nothing in ImageClassifier that the network in .*was cut from"),
        (no_data, r"give the data module an input_shape, or set self\.example_input_array"),
        (other_images, "CurveNet cannot be exported to small.pt2: "),
        (lambda run: ["--to", "small.pth"], r"ending in \.pt2 or \.onnx, got 'small.pth'"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_bad_input_ends_in_one_sentence_and_writes_nothing(
    spoil: Callable[[Path], list[str]], sentence: str, export: Export, run: Path
) -> None:
    extra = spoil(run)
    before = sorted(run.rglob("*"))
    with pytest.raises(SystemExit, match=f"^lightning-sparsity: .*{sentence}"):
        export("--slim", str(run / "slim"), "--to", str(run / "small.pt2"), *extra)
    assert sorted(run.rglob("*")) == before
