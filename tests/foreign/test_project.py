"""Somebody's own project, run as its user would: `project/train.py`, which knows nothing of us."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import lightning_sparsity
from lightning_sparsity.cli import main

SCRIPT = Path(__file__).parent / "project" / "train.py"
IMPORT = "import lightning_sparsity.callbacks\n"
SHORT = ("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false")
YAML = """
trainer:
  max_epochs: 3
  callbacks:
    - class_path: NetworkSlimming
      init_args:
        amount: 0.5
    - class_path: ModelCheckpoint
      init_args: {save_top_k: -1}
"""
LOAD = """
from train import Blocks
from lightning_sparsity import surgery
print(sum(x.numel() for x in surgery.load(Blocks(), "lightning_logs/version_0/slim").parameters()))
"""
Run = Callable[..., str]


def python(folder: Path, *args: str) -> str:
    """The output of a process of the user's."""
    package = str(Path(lightning_sparsity.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, *args],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": package},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def report(folder: Path, version: int = 0) -> dict[str, dict[str, int]]:
    path = folder / "lightning_logs" / f"version_{version}" / "slim" / "report.json"
    return json.loads(path.read_text())


def checkpoint(folder: Path, epoch: int) -> Path:
    (path,) = folder.glob(f"lightning_logs/version_0/checkpoints/epoch={epoch}-*.ckpt")
    return path


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project after a run with the callback added by a flag, and not a line of code."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "train.py").write_text(SCRIPT.read_text())
    slimming = "--trainer.callbacks+=lightning_sparsity.NetworkSlimming"
    checkpoints = "--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.save_top_k=-1"
    python(
        folder, "train.py", "fit", slimming, "--trainer.callbacks.amount=0.5", *checkpoints,
        "--trainer.max_epochs=3", *SHORT,
    )  # fmt: skip
    return folder


def test_a_flag_is_all_it_takes_and_the_slim_network_loads_elsewhere(project: Path) -> None:
    found = report(project)
    assert found["channels"] == {"dense": 16, "slim": 8}
    assert found["parameters"]["dense"] == 732
    assert int(python(project, "-c", LOAD)) == found["parameters"]["slim"] < 366


def test_a_file_and_one_import_line_and_a_run_that_goes_on_from_its_middle(
    project: Path, tmp_path: Path
) -> None:
    (tmp_path / "train.py").write_text(IMPORT + SCRIPT.read_text())
    (tmp_path / "slimming.yaml").write_text(YAML)
    middle = f"--ckpt_path={checkpoint(project, 0)}"
    python(tmp_path, "train.py", "fit", "--config", "slimming.yaml", middle, *SHORT)
    assert report(tmp_path)["channels"] == {"dense": 16, "slim": 8}


def test_its_test_command_reads_checkpoints_of_the_run(project: Path) -> None:
    said = python(
        project, "train.py", "test", "--config", "lightning_logs/version_0/config.yaml",
        f"--ckpt_path={checkpoint(project, 2)}",
    )  # fmt: skip
    assert "test/hits" in said


@pytest.mark.slow
def test_a_flag_with_the_bare_name_after_one_import_line(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(IMPORT + SCRIPT.read_text())
    slimming = "--trainer.callbacks+=NetworkSlimming", "--trainer.callbacks.amount=Flops"
    flags = *slimming, "--trainer.callbacks.amount.keep=0.5", "--trainer.max_epochs=2"
    python(tmp_path, "train.py", "fit", *flags, *SHORT)
    flops = report(tmp_path)["flops"]
    assert flops["slim"] <= 0.5 * flops["dense"]


@pytest.fixture
def inside(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the project is where our command runs."""
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of calls in Lightning itself
    monkeypatch.setattr(sys, "argv", ["lightning-sparsity"])
    monkeypatch.delitem(sys.modules, "train", raising=False)
    return project


def test_our_command_asks_for_classes_that_their_configuration_leaves_out(inside: Path) -> None:
    given = ["--checkpoint", str(checkpoint(inside, 1)), "--amount", "0.5", "--dirpath", "other"]
    with pytest.raises(SystemExit, match=r"config.yaml' does not say which class .* class_path"):
        main(["slim", *given])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_our_command_slims_and_exports_what_their_folder_holds(
    inside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "classes.yaml"
    config.write_text("model: {class_path: train.Task}\ndata: {class_path: train.Squares}\n")
    given = ["--checkpoint", str(checkpoint(inside, 1)), "--config", str(config)]
    main(["slim", *given, "--amount", "0.5", "--dirpath", str(tmp_path)])
    assert "val/hits" in capsys.readouterr().out
    slim, file = str(tmp_path / "slim"), tmp_path / "small.pt2"
    main(["export", "--slim", slim, "--to", str(file), "--config", str(config)])
    assert torch.export.load(file).module()(torch.zeros(5, 1, 8, 8)).shape == (5, 4)
