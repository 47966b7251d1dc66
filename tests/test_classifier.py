from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI, ReduceLROnPlateau
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_sparsity.classifier import ImageClassifier
from lightning_sparsity.data import TensorLoader
from lightning_sparsity.models import LeNet5


class Toy(pl.LightningDataModule):
    """Two classes that differ in brightness."""

    def __init__(self, count: int = 50) -> None:
        super().__init__()
        self.labels = torch.arange(count) % 2
        self.images = torch.rand(count, 1, 28, 28) * 0.2 + self.labels.view(-1, 1, 1, 1) * 0.5

    def _loader(self) -> TensorLoader:
        return TensorLoader(self.images, self.labels, 16)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = _loader


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    defaults = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(default_root_dir=folder, **{**defaults, **options})


def by_hand(net: nn.Module, data: Toy) -> tuple[float, float]:
    with torch.no_grad():
        logits = net(data.images)
    right = logits.argmax(1).eq(data.labels).double().mean()
    return F.cross_entropy(logits, data.labels).item(), right.item()


@pytest.mark.parametrize("channels_last", [False, True])
def test_it_logs_losses_and_accuracies_under_stable_names(
    tmp_path: Path, channels_last: bool
) -> None:
    data, net = Toy(), LeNet5(2)
    module = ImageClassifier(net, 2, label_smoothing=0.1, channels_last=channels_last)
    fitted = trainer(tmp_path)
    fitted.fit(module, data)
    assert {"train_loss", "train_acc", "val_loss", "val_acc"} <= set(fitted.logged_metrics)
    loss, acc = by_hand(net, data)
    assert fitted.logged_metrics["val_loss"].item() == pytest.approx(loss, rel=1e-5)
    assert fitted.logged_metrics["val_acc"].item() == pytest.approx(acc)
    (tested,) = fitted.test(module, data, verbose=False)
    assert tested == pytest.approx({"test_loss": loss, "test_acc": acc}, rel=1e-5)


def test_it_learns(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data, net = Toy(), LeNet5(2)
    before, _ = by_hand(net, data)
    trainer(tmp_path, max_epochs=4).fit(ImageClassifier(net, 2), data)
    after, acc = by_hand(net, data)
    assert after < before / 2
    assert acc == 1


def test_predictions_are_probabilities(tmp_path: Path) -> None:
    data, net = Toy(), LeNet5(2)
    found = trainer(tmp_path).predict(ImageClassifier(net, 2), data)
    assert found is not None
    with torch.no_grad():
        expected = F.softmax(net(data.images), 1)
    assert torch.allclose(torch.cat([*found]), expected, atol=1e-6)


def test_smoothing_is_for_training_only() -> None:
    net, data = LeNet5(2), Toy()
    module = ImageClassifier(net, 2, label_smoothing=0.3)
    module.log = lambda *_, **__: None
    loss = module.training_step((data.images, data.labels))
    smooth = F.cross_entropy(net(data.images), data.labels, label_smoothing=0.3)
    assert torch.allclose(loss, smooth)


def test_channels_last_reaches_weights_and_images(tmp_path: Path) -> None:
    layouts: list[bool] = []
    net = LeNet5(2)

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))

    net.conv2.register_forward_pre_hook(note)
    trainer(tmp_path, fast_dev_run=1).fit(ImageClassifier(net, 2, channels_last=True), Toy())
    assert net.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(layouts)


def test_the_schedule_steps_once_per_epoch(tmp_path: Path) -> None:
    module = ImageClassifier(
        LeNet5(2),
        2,
        optimizer=lambda weights: torch.optim.SGD(weights, lr=1.0),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5),
    )
    fitted = trainer(tmp_path, max_epochs=3)
    fitted.fit(module, Toy())
    assert fitted.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.5**3)


@pytest.mark.parametrize(
    ("make", "watched"),
    [
        (torch.optim.lr_scheduler.ReduceLROnPlateau, "val_loss"),
        (lambda optimizer: ReduceLROnPlateau(optimizer, "train_loss"), "train_loss"),
    ],
    ids=["torch", "Lightning"],
)
def test_a_schedule_on_a_plateau_watches_its_metric(
    tmp_path: Path, make: Any, watched: str
) -> None:
    fitted = trainer(tmp_path)
    fitted.fit(ImageClassifier(LeNet5(2), 2, lr_scheduler=make), Toy())
    assert fitted.lr_scheduler_configs[0].monitor == watched


def test_a_checkpoint_from_python_loads_with_the_network_passed(tmp_path: Path) -> None:
    module = ImageClassifier(LeNet5(2), 2, label_smoothing=0.1, channels_last=True)
    fitted = trainer(tmp_path)
    fitted.fit(module, Toy())
    fitted.save_checkpoint(path := tmp_path / "saved.ckpt")
    torch.load(path, weights_only=True)
    loaded = ImageClassifier.load_from_checkpoint(path, model=LeNet5(2), weights_only=True)
    assert (loaded.label_smoothing, loaded.layout) == (0.1, torch.channels_last)
    for ours, theirs in zip(loaded.parameters(), module.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_checkpoint_from_the_command_line_loads_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of calls in Lightning itself
    monkeypatch.setattr("sys.argv", ["fit"])  # Lightning warns of two sources of arguments
    checkpoints = ModelCheckpoint(tmp_path, "saved")
    cli = LightningCLI(
        ImageClassifier,
        Toy,
        trainer_defaults={
            "max_epochs": 1, "accelerator": "cpu", "logger": False, "callbacks": [checkpoints],
            "enable_progress_bar": False, "enable_model_summary": False,
        },
        save_config_callback=None,
        seed_everything_default=False,
        args=[
            "fit", "--model.model=lightning_sparsity.models.LeNet5", "--model.model.num_classes=2",
            "--model.num_classes=2", "--model.optimizer=torch.optim.SGD",
            "--model.optimizer.lr=0.25",
            "--model.lr_scheduler=torch.optim.lr_scheduler.StepLR",
            "--model.lr_scheduler.step_size=7",
        ],
    )  # fmt: skip
    path = tmp_path / "saved.ckpt"
    torch.load(path, weights_only=True)
    loaded = ImageClassifier.load_from_checkpoint(path, weights_only=True)
    assert isinstance(loaded.model, LeNet5)
    for ours, theirs in zip(loaded.parameters(), cli.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    made: Any = loaded.configure_optimizers()
    assert made["optimizer"].defaults["lr"] == 0.25
    assert made["lr_scheduler"]["scheduler"].step_size == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 1}, "num_classes >= 2, got num_classes=1"),
        ({"label_smoothing": 1.0}, "label_smoothing < 1, got label_smoothing=1.0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_named(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageClassifier(LeNet5(), **change)
