import json
import re
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_sparsity import RelaxedVariableSplitting, SparsityMonitor, report, sparse_file
from lightning_sparsity.penalties import L0, L1
from lightning_sparsity.report.summary import _best
from lightning_sparsity.sparse_file import FileSize


class Module(pl.LightningModule):
    """Not ours, and without a test step."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.05)


class Data(pl.LightningDataModule):
    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(6, 8, 1, 4, 4, generator=generator)
        batches = [(x, (x.sum((1, 2, 3)) > 0).long()) for x in images]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]

    val_dataloader = train_dataloader


Fit = Callable[..., tuple[pl.Trainer, Module, Data]]


@pytest.fixture
def fit(tmp_path: Path) -> Fit:
    def run(*callbacks: pl.Callback, checkpoint: bool = True) -> tuple[pl.Trainer, Module, Data]:
        trainer = pl.Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            callbacks=list(callbacks),
            enable_checkpointing=checkpoint,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        module, data = Module(), Data()
        trainer.fit(module, data)
        return trainer, module, data

    return run


def splitting() -> RelaxedVariableSplitting:
    return RelaxedVariableSplitting(L1(), lam=0.01, beta=0.1, select="net.1")


def test_dense_and_sparse_are_the_two_sides_of_one_checkpoint(fit: Fit) -> None:
    trainer, module, data = fit(splitting(), SparsityMonitor(every_n_steps=1))
    run = report.summarize(trainer, module, data)
    assert run is not None
    dense, sparse = run.weights["net.1.weight"]
    assert torch.equal(sparse, L1().prox(dense, 0.01 / 0.1))
    assert torch.equal(module.net[1].weight, sparse)
    assert 0 < (sparse == 0).sum() == run.size.dense - run.size.sparse
    assert run.split == "validation"
    before, after = run.metrics["val_loss"]
    assert before != after
    assert [point["step"] for point in run.history] == list(range(1, 13))


def test_the_metrics_are_those_of_the_two_networks(fit: Fit) -> None:
    trainer, module, data = fit(splitting())
    run = report.summarize(trainer, module, data)
    assert run is not None
    images = torch.stack([x for x, _ in data.val_dataloader()])
    labels = torch.stack([y for _, y in data.val_dataloader()])
    for side in (0, 1):
        with torch.no_grad():
            module.net[1].weight.copy_(run.weights["net.1.weight"][side])
            logits = module(images.flatten(0, 1))
        expected = nn.functional.cross_entropy(logits, labels.flatten()).item()
        assert run.metrics["val_loss"][side] == pytest.approx(expected, abs=1e-6)


def test_counts_match_those_by_hand(fit: Fit) -> None:
    trainer, module, data = fit(splitting())
    run = report.summarize(trainer, module, data)
    assert run is not None
    kept = int(module.net[1].weight.count_nonzero())
    assert run.size.parameters == 16 * 8 + 8 + 8 * 2 + 2
    assert {layer.name: (layer.entries, layer.nonzero) for layer in run.size.layers} == {
        "net.1": (128, kept),
        "net.3": (16, 16),
    }
    assert run.size.work is not None
    assert (run.size.work.total, run.size.work.effective) == (128 + 16, kept + 16)


def test_bytes_on_disk_are_those_of_the_files(fit: Fit, tmp_path: Path) -> None:
    trainer, module, data = fit(splitting())
    run = report.summarize(trainer, module, data)
    assert run is not None
    save_file(module.state_dict(), tmp_path / "dense")
    sparse_file.save(module.state_dict(), tmp_path / "sparse")
    assert run.size.bytes_on_disk == FileSize(
        (tmp_path / "dense").stat().st_size, (tmp_path / "sparse").stat().st_size
    )


def test_state_that_no_file_can_hold_has_no_row(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer, module, data = fit(checkpoint=False)
    module.register_buffer("odd", torch.zeros(3, dtype=torch.complex128))
    run = report.summarize(trainer, module, data)
    assert run is not None
    assert run.size.bytes_on_disk is None
    report.print_table(run)
    shown = capsys.readouterr().out
    figures, *_ = report.save(run, tmp_path / "run")
    assert "non-zero" in shown
    assert "ytes on disk" not in shown
    assert json.loads(figures.read_text())["bytes_on_disk"] is None


def test_a_run_without_checkpoints_or_splitting_is_summarised_from_memory(fit: Fit) -> None:
    trainer, module, data = fit(checkpoint=False)
    run = report.summarize(trainer, module, data)
    assert run is not None
    assert run.checkpoint == ""
    assert not run.weights
    assert run.metrics["val_loss"][0] == run.metrics["val_loss"][1]


def test_two_splittings_are_both_found(fit: Fit) -> None:
    other = RelaxedVariableSplitting(L0(), lam=1e-3, beta=0.1, select="net.3")
    trainer, _, _ = fit(splitting(), other)
    assert set(_best(trainer).dense) == {"net.1.weight", "net.3.weight"}


def test_the_files_say_what_the_table_says(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = report.summarize(*fit(splitting(), SparsityMonitor(every_n_steps=2)))
    assert run is not None
    report.print_table(run)
    shown = capsys.readouterr().out
    files = {path.name: path for path in report.save(run, tmp_path / "run")}
    figures = json.loads(files["summary.json"].read_text())
    assert f"{figures['nonzero']['sparse']:,}" in shown
    assert "val_loss (validation split)" in shown
    assert re.search(
        "bytes on disk +│ +{dense:,} │ +{sparse:,} │".format(**figures["bytes_on_disk"]), shown
    )
    assert figures["flops"] == {"dense": run.size.work.total, "sparse": run.size.work.effective}  # type: ignore[union-attr]
