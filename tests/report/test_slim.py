import json
import re
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_sparsity import NetworkSlimming, RelaxedVariableSplitting, SparsityMonitor, report
from lightning_sparsity.data import TensorLoader
from lightning_sparsity.penalties import L0, L0Ball
from lightning_sparsity.sparse_file import file_size


class Module(pl.LightningModule):
    def __init__(self, depth: int = 1) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            blocks = [
                nn.Sequential(nn.Conv2d(8 if i else 1, 8, 3, padding=1), nn.BatchNorm2d(8))
                for i in range(depth)
            ]
            self.net = nn.Sequential(*blocks, nn.ReLU(), nn.Flatten(), nn.Linear(128, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        logits = self(batch[0])
        self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]))
        self.log("val_epoch", float(self.current_epoch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)


class Data(pl.LightningDataModule):
    def train_dataloader(self) -> TensorLoader:
        images = torch.randn(24, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        return TensorLoader(images, (images.sum((1, 2, 3)) > 0).long(), 8)

    val_dataloader = train_dataloader


Run = tuple[pl.Trainer, Module, report.Summary]


def ball() -> NetworkSlimming:
    return NetworkSlimming(L0Ball(0.5), amount=0.5, update="splitting", beta=5.0)


@pytest.fixture
def finish(trainer: Callable[..., pl.Trainer]) -> Callable[..., Run]:
    def fit(*callbacks: pl.Callback, module: Module | None = None) -> Run:
        used, module, data = trainer(*callbacks, max_epochs=4), module or Module(), Data()
        used.fit(module, data)
        run = report.summarize(used, module, data)
        assert run is not None
        return used, module, run

    return fit


def loss(module: Module) -> float:
    with torch.no_grad():
        batches = list(Data().val_dataloader())
        losses = [nn.functional.cross_entropy(module.eval()(x), y) for x, y in batches]
    return float(torch.stack(losses).mean())


def test_after_a_cut_the_slim_network_is_the_third_side(finish: Callable[..., Run]) -> None:
    _, module, run = finish(ball(), ModelCheckpoint())
    assert run.slim is not None
    assert run.slim.metrics["val_loss"] == pytest.approx(loss(module), abs=1e-6)
    assert run.slim.before.channels == {"net.0.1": 8}
    assert run.slim.after.channels == {"net.0.1": module.net[0][1].num_features} == {"net.0.1": 4}
    assert run.slim.before.parameters == run.size.parameters == 8 * 9 + 8 + 16 + 128 * 2 + 2
    assert run.slim.after.parameters == sum(p.numel() for p in module.parameters())
    assert run.slim.after.layers["net.3"] == 64 * 2
    assert run.slim.after.flops < run.slim.before.flops == run.size.work.total  # type: ignore[operator, union-attr]
    assert run.slim.before.bytes_on_disk == run.size.bytes_on_disk
    assert run.slim.after.bytes_on_disk == file_size(module)
    assert run.slim.proof < 1e-12
    assert set(run.slim.latency) == {1, 64}


def test_the_networks_before_and_after_the_cut_are_timed_in_turns(
    finish: Callable[..., Run],
) -> None:
    widths = list[int]()

    class Watched(Module):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) == 64:  # other batches have at most 24 images
                widths.append(self.net[0][1].num_features)
            return super().forward(x)

    _, _, run = finish(ball(), ModelCheckpoint(), module=Watched())
    assert run.slim is not None
    assert widths.count(8) == widths.count(4) > run.slim.latency[64][0].runs
    assert all(sorted(widths[i : i + 2]) == [4, 8] for i in range(0, len(widths), 2))


def test_dense_and_sparse_are_those_of_before_the_cut(finish: Callable[..., Run]) -> None:
    _, _, run = finish(ball(), ModelCheckpoint())
    dense, sparse = run.weights["net.0.1.weight"]
    assert int((dense != 0).sum()) == 8
    assert int((sparse == 0).sum()) == 4
    assert run.slim is not None
    assert run.slim.metrics["val_loss"] == pytest.approx(run.metrics["val_loss"][1], abs=1e-5)
    assert run.slim.behind == 0


def test_the_network_before_the_cut_is_left_as_it_was(finish: Callable[..., Run]) -> None:
    slimming = ball()
    kept: list[dict[str, Tensor]] = []

    class Keep(pl.Callback):
        def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            with slimming.uncut(pl_module):
                kept.append({n: x.clone() for n, x in pl_module.state_dict().items()})

    first = ModelCheckpoint(monitor="val_epoch", mode="min")  # the first epoch, not the last
    _, module, run = finish(slimming, first, Keep())
    assert run.slim is not None
    assert run.slim.behind == 3 * 3
    with slimming.uncut(module):
        torch.testing.assert_close(module.state_dict(), kept[0], rtol=0, atol=0)
    assert module.net[0][1].num_features == 4


def test_the_title_says_when_the_sides_are_of_different_epochs(
    finish: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, run = finish(ball(), ModelCheckpoint(monitor="val_epoch", mode="min"))
    report.print_table(run)
    assert "cut at the end of training, 9 steps later" in capsys.readouterr().out


def test_a_cut_without_checkpoints_is_summarised_from_memory(finish: Callable[..., Run]) -> None:
    _, _, run = finish(ball())
    assert run.checkpoint == ""
    assert run.slim is not None
    assert run.slim.behind == 0
    assert run.metrics["val_loss"][0] == run.metrics["val_loss"][1]


def test_fine_tuning_a_slim_network_has_two_sides(
    finish: Callable[..., Run], trainer: Callable[..., pl.Trainer]
) -> None:
    slimming = ball()
    used, module = trainer(slimming), Module()
    used.fit(module, Data())
    _, _, run = finish(slimming, ModelCheckpoint(), module=module)
    assert run.slim is None
    assert run.size.parameters == sum(p.numel() for p in module.parameters())
    assert module.net[0][1].num_features == 4


def test_files_and_table_show_the_slim_network(
    finish: Callable[..., Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = RelaxedVariableSplitting(L0(), lam=1e-5, beta=0.1, select="net.3")
    _, _, run = finish(ball(), large, SparsityMonitor(every_n_steps=1), ModelCheckpoint())
    report.print_table(run)
    shown = capsys.readouterr().out
    files = {path.name: path for path in report.save(run, tmp_path / "run")}
    figures = json.loads(files["summary.json"].read_text())["slim"]
    assert run.slim is not None
    assert f"{run.slim.after.parameters:,}" in shown
    assert f"largest relative difference {figures['proof']:.1e}" in shown
    assert figures["latency"]["64"][1]["median"] == run.slim.latency[64][1].median
    assert figures["after"]["channels"] == {"net.0.1": 4}
    before, after = (figures[side]["bytes_on_disk"]["dense"] for side in ("before", "after"))
    (row,) = re.findall("bytes on disk.*", shown)
    numbers = re.findall(r"[\d,.%]*\d[\d,.%]*", row)
    assert numbers[0] == f"{before:,}"
    assert numbers[2:] == [f"{after:,}", f"{1 - after / before:.2%}"]
    assert "the time stays the same" not in shown


def test_a_deep_network_shows_its_largest_layers(
    finish: Callable[..., Run], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _, _, run = finish(ball(), ModelCheckpoint(), module=Module(depth=30))
    report.print_table(run)
    shown = capsys.readouterr().out
    assert "… and 19 smaller layers" in shown
    assert shown.count("  net.") == 12
    assert len({path.name for path in report.save(run, tmp_path)}) == 3
