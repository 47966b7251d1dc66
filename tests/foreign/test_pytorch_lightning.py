"""The callbacks in Trainers of the other import name, `pytorch_lightning`."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_sparsity import (
    NetworkSlimming,
    RelaxedVariableSplitting,
    SlimNetwork,
    SparsityMonitor,
    VarianceGuidance,
)
from lightning_sparsity.penalties import L0

other = pytest.importorskip("pytorch_lightning")
cli = pytest.importorskip("pytorch_lightning.cli")
IMAGES = DataLoader([torch.rand(3, 8, 8) for _ in range(8)], batch_size=4)  # type: ignore[arg-type]


class Theirs(other.LightningModule):  # type: ignore[misc, name-defined]
    """Layers in the module itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        nn.init.uniform_(self.norm.weight)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self(batch).square().mean()

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("width", float(self.norm.num_features))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


class Slimming(NetworkSlimming, other.Callback):  # type: ignore[misc, name-defined]
    """What somebody writes into a script whose command line is to know it."""


def trainer(folder: Path, *callbacks: Any, epochs: int = 2) -> Any:
    checkpoints = any(isinstance(c, other.callbacks.ModelCheckpoint) for c in callbacks)
    return other.Trainer(
        max_epochs=epochs, callbacks=[*callbacks], accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        enable_checkpointing=checkpoints,
    )  # fmt: skip


def slimming(folder: Path) -> NetworkSlimming:
    return NetworkSlimming(amount=0.5, dirpath=str(folder))


def test_slimming_files_checkpoints_of_both_shapes_and_fine_tuning(tmp_path: Path) -> None:
    net, callback = Theirs(), slimming(tmp_path)
    keep = other.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    run = trainer(tmp_path, callback, keep, epochs=4)
    run.fit(net, IMAGES)
    assert net.norm.num_features == 4
    run.save_checkpoint(tmp_path / "slim.ckpt")

    resumed = Theirs()
    trainer(tmp_path / "b", slimming(tmp_path / "b"), copy.deepcopy(keep), epochs=4).fit(
        resumed, IMAGES, ckpt_path=tmp_path / "epoch=1.ckpt"
    )
    for name, weight in net.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], weight), name

    fresh = Theirs()
    (found,) = trainer(tmp_path, slimming(tmp_path / "c"), copy.deepcopy(keep)).test(
        fresh, IMAGES, ckpt_path=tmp_path / "slim.ckpt", verbose=False
    )
    assert found["width"] == 4
    tuned = Theirs()
    trainer(tmp_path, SlimNetwork(str(tmp_path / "slim"))).fit(tuned, IMAGES)
    assert tuned.norm.num_features == 4
    assert not torch.equal(tuned.conv.weight, net.conv.weight)


def test_the_other_callbacks(tmp_path: Path) -> None:
    net, monitor = Theirs(), SparsityMonitor(every_n_steps=1)
    splitting = RelaxedVariableSplitting(L0(), 1e-3, 0.5)
    trainer(tmp_path, splitting, VarianceGuidance(1e-3), monitor).fit(net, IMAGES)
    zeros = sum(int((w == 0).sum()) for w in (net.conv.weight, net.head.weight))
    assert zeros > 0
    assert monitor.history[-1]["sparsity"] > 0


def test_averages_listed_after_it_are_refused(tmp_path: Path) -> None:
    average = other.callbacks.EMAWeightAveraging()
    with pytest.raises(Exception, match="NetworkSlimming needs to come after EMAWeightAveraging"):
        trainer(tmp_path, slimming(tmp_path), average).fit(Theirs(), IMAGES)


def test_a_child_of_both_classes_is_known_to_its_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    monkeypatch.setattr("sys.argv", ["train.py"])
    made = cli.LightningCLI(
        Theirs, run=False, seed_everything_default=False, save_config_callback=None,
        trainer_defaults={"logger": False, "enable_checkpointing": False},
        args=["--trainer.callbacks+=Slimming", "--trainer.callbacks.amount=0.25",
              "--trainer.callbacks.penalty=TransformedL1", "--trainer.callbacks.penalty.a=2"],
    )  # fmt: skip
    found = [c for c in made.trainer.callbacks if isinstance(c, Slimming)]
    assert found[0].settings()["penalty"] == "TransformedL1(a=2.0)"
