"""Tiny things to train, and the same training written out by hand."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback, Checkpoint
from torch import Tensor, nn
from torch.nn import functional as F

import lightning_sparsity
from lightning_sparsity import surgery
from lightning_sparsity.data import TensorLoader
from lightning_sparsity.models import CurveNet
from lightning_sparsity.penalties import Penalty


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class TinyCNN(nn.Sequential):
    """Two convolutions and a linear layer for images of 8 x 8 and three classes: 348 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("conv1", nn.Conv2d(1, 4, 3))
        self.add_module("relu1", nn.ReLU())
        self.add_module("conv2", nn.Conv2d(4, 6, 3, stride=2))
        self.add_module("relu2", nn.ReLU())
        self.add_module("flatten", nn.Flatten())
        self.add_module("fc", nn.Linear(24, 4))


class NormCNN(nn.Sequential):
    """Two convolutions with BatchNorm and a linear layer for images of 8 x 8: 14 scales."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("conv1", nn.Conv2d(1, 8, 3, padding=1, bias=False))
        self.add_module("norm1", nn.BatchNorm2d(8))
        self.add_module("relu1", nn.ReLU())
        self.add_module("conv2", nn.Conv2d(8, 6, 3, stride=2, bias=False))
        self.add_module("norm2", nn.BatchNorm2d(6))
        self.add_module("relu2", nn.ReLU())
        self.add_module("flatten", nn.Flatten())
        self.add_module("fc", nn.Linear(54, 4))


def sgd(weights: Iterable[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(weights, lr=0.1, momentum=0.9)


class TinyNet(pl.LightningModule):
    """A classifier that starts from the same weights every time and keeps what evaluations saw."""

    def __init__(
        self, optimizer: Callable[..., Any] = sgd, network: Callable[[], nn.Module] = TinyCNN
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.model = network()
        self.optimizer = optimizer
        self.seen: list[dict[str, Tensor]] = []

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))
        self.seen.append({n: p.detach().clone() for n, p in self.named_parameters()})

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters())

    def train_dataloader(self) -> TensorLoader:
        return tiny_data()

    def val_dataloader(self) -> TensorLoader:
        return tiny_data(20)

    test_dataloader = val_dataloader


def tiny_data(batch_size: int = 4) -> TensorLoader:
    """20 images of four classes, in an order that depends on the epoch alone."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(20) % 4
    images = torch.rand(20, 1, 8, 8, generator=generator) + labels.view(-1, 1, 1, 1) / 4
    return TensorLoader(images, labels, batch_size, shuffle=True)


def train_by_hand(
    splits: dict[str, tuple[Penalty, float, float]],
    *,
    net: TinyNet | None = None,
    epochs: int = 2,
    accumulate: int = 1,
    clip: float | None = None,
    autocast: torch.dtype | None = None,
    scaler: Any = None,
    update: str = "gradient",
) -> TinyNet:
    """Relaxed splitting in plain torch: `splits` gives penalty, lam and beta by name of weight."""
    net = TinyNet() if net is None else net
    optimizer, data = net.optimizer(net.parameters()), tiny_data()
    scaler = torch.amp.GradScaler("cpu", enabled=False) if scaler is None else scaler
    parameters = dict(net.named_parameters())
    for epoch in range(epochs):
        data.set_epoch(epoch)
        for i, batch in enumerate(data, start=1):
            with torch.autocast("cpu", autocast) if autocast else nullcontext():
                loss = net.loss(batch) / accumulate
            scaler.scale(loss).backward()
            if i % accumulate and i < len(data):
                continue
            scaler.unscale_(optimizer)
            with torch.no_grad():
                pulls = {
                    name: beta * (w - penalty.prox(w, lam / beta))
                    for name, (penalty, lam, beta) in splits.items()
                    for w in [parameters[name]]
                }
                if update == "gradient":
                    for name, pull in pulls.items():
                        parameters[name].grad += pull
            if clip is not None:
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            scaler.step(optimizer)
            if update == "decoupled":
                move_by_hand(splits, parameters, optimizer.param_groups[0]["lr"])
            scaler.update()
            optimizer.zero_grad()
    return net


@torch.no_grad()
def move_by_hand(
    splits: dict[str, tuple[Penalty, float, float]], parameters: dict[str, Any], lr: float
) -> None:
    for name, (penalty, lam, beta) in splits.items():
        w = parameters[name]
        w -= lr * beta * (w - penalty.prox(w, lam / beta))


@pytest.fixture
def tiny_cnn() -> type[TinyCNN]:
    return TinyCNN


@pytest.fixture
def tiny_net() -> type[TinyNet]:
    return TinyNet


@pytest.fixture
def norm_net() -> Callable[..., TinyNet]:
    """A `TinyNet` with BatchNorm, its scales spread so that no two are equal."""

    def make(optimizer: Callable[..., Any] = sgd) -> TinyNet:
        net = TinyNet(optimizer, NormCNN)
        with torch.no_grad():
            for i, norm in enumerate((net.model.norm1, net.model.norm2)):
                norm.weight.copy_(torch.linspace(0.3, 1.1, norm.num_features) + 0.01 * i)
                norm.bias.copy_(torch.linspace(-0.4, 0.5, norm.num_features))
        return net

    return make


@pytest.fixture
def data() -> Callable[..., TensorLoader]:
    return tiny_data


@pytest.fixture
def by_hand() -> Callable[..., TinyNet]:
    return train_by_hand


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., pl.Trainer]:
    """Makes quiet Trainers on the CPU, with the callbacks given."""

    def make(*callbacks: Callback, **options: Any) -> pl.Trainer:
        quiet = {
            "max_epochs": 2,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": any(isinstance(c, Checkpoint) for c in callbacks),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": tmp_path,
        }
        return pl.Trainer(callbacks=[*callbacks], **{**quiet, **options})

    return make


@pytest.fixture
def in_two_processes(tmp_path: Path) -> Callable[[str], list[Any]]:
    """Runs a script that saves `rank0.pt`, `rank1.pt` and `alone.pt` into its first argument.

    In the script `tiny` is this module.
    """

    def run(source: str) -> list[Any]:
        script = tmp_path / "train.py"
        script.write_text(LOAD_TINY + source)
        package = str(Path(lightning_sparsity.__file__).parent.parent)
        done = subprocess.run(
            [sys.executable, str(script), str(tmp_path), __file__],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": package},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return [torch.load(tmp_path / f"{name}.pt") for name in ("rank0", "rank1", "alone")]

    return run


LOAD_TINY = """
import importlib.util, sys, torch
import lightning.pytorch as pl
from lightning_sparsity.data import TensorLoader

torch.set_num_threads(1)
folder, conftest = sys.argv[1:]
spec = importlib.util.spec_from_file_location("tiny", conftest)
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)

def shared_data(trainer):
    whole = tiny.tiny_data()
    return TensorLoader(whole.images, whole.labels, 4 // trainer.world_size, shuffle=True,
                        rank=trainer.global_rank, world_size=trainer.world_size)
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run as LightningCLI and `NetworkSlimming` leave it, made on another machine."""
    network = CurveNet(size=32).eval()
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight)
    plan = surgery.trace(network, torch.rand(2, 1, 32, 32)).plan_by(0.5)
    surgery.save(surgery.slim(network, plan), plan, tmp_path / "run/slim")
    curve_net = {"class_path": "CurveNet", "init_args": {"size": 32}}
    config = {
        "trainer": {"accelerator": "gpu", "precision": "16-mixed"},
        "model": {"class_path": "ImageClassifier", "init_args": {"model": curve_net}},
        "data": {"class_path": "Curves", "init_args": {"size": 32}},
    }
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "run"
