import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from lightning_sparsity import RelaxedVariableSplitting, SparsityMonitor
from lightning_sparsity.callbacks.loggers import log_histograms
from lightning_sparsity.metrics.histogram import histograms
from lightning_sparsity.penalties import L0

LAYERS = ["model.conv1.weight", "model.conv2.weight", "model.fc.weight"]
TAGS = [f"weights/{name}" for name in ["all", *LAYERS]]


class Silent(Logger):
    """Keeps figures; what every logger has."""

    name = version = None

    def __init__(self) -> None:
        self.logged: list[tuple[dict[str, Any], int]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.logged.append((dict(metrics), step or 0))

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...


class Board(Silent, TensorBoardLogger):
    """Keeps what a TensorBoard would be told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[dict[str, Any]] = []

    @property
    def experiment(self) -> Any:
        return SimpleNamespace(
            add_histogram_raw=lambda tag, **found: self.told.append({"tag": tag, **found})
        )

    log_dir = save_dir = None
    save = finalize = log_graph = lambda *_: None


class Weights(Silent, WandbLogger):
    """Keeps what W&B would be told."""

    experiment = save_dir = None
    finalize = after_save_checkpoint = lambda *_: None


def fit(tiny_net: Any, trainer: Any, logger: Any) -> tuple[Any, SparsityMonitor]:
    net, monitor = tiny_net(), SparsityMonitor(5)
    splitting = RelaxedVariableSplitting(L0(), 0.01, 1.0)
    trainer(splitting, monitor, logger=logger).fit(net)
    return net, monitor


def test_tensorboard_gets_every_layer_with_its_zeros_left_of_0(tiny_net: Any, trainer: Any) -> None:
    board = Board()
    net, monitor = fit(tiny_net, trainer, board)
    assert [found["tag"] for found in board.told] == 3 * TAGS
    assert [found["global_step"] for found in board.told] == [0] * 4 + [5] * 4 + [10] * 4
    for found, name in zip(board.told[-3:], LAYERS, strict=True):
        weight = net.get_parameter(name).detach()
        zeros = int((weight == 0).sum())
        assert 0 < zeros < weight.numel()
        assert (found["bucket_counts"][0], found["bucket_limits"][0]) == (zeros, 0)
        assert found["min"] == -found["bucket_limits"][1] < 0
        assert found["max"] >= float(weight.abs().max())
        assert found["num"] == sum(found["bucket_counts"]) == weight.numel()
        assert len(found["bucket_limits"]) == len(found["bucket_counts"]) == 41
        assert found["sum"] == pytest.approx(float(weight.abs().sum()), rel=0.05)
        assert found["sum_squares"] == pytest.approx(float(weight.square().sum()), rel=0.05)
    assert board.told[-4]["bucket_counts"][1:] == monitor.histograms[-1]["counts"]


def test_tensorboard_draws_bins_from_the_first_that_is_not_empty_to_the_last() -> None:
    board = Board()
    log_histograms(board, histograms({"far": torch.tensor([2.0, 3.3, 4.0]) / 4}), 1)
    log_histograms(board, histograms({"near": torch.tensor([0.0, 0.1]), "": torch.ones(1)}), 2)
    log_histograms(board, histograms({"none": torch.zeros(0)}), 3)
    far, near, _, none = board.told
    assert (far["min"], far["max"]) == (0.5, 1.0)
    assert (near["min"], near["max"]) == pytest.approx((-0.025, 0.125))
    assert none["num"] == 0


def test_weights_and_biases_get_their_own_histograms(
    tiny_net: Any, trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = lambda np_histogram: np_histogram  # noqa: E731
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Histogram=made))
    logger = Weights()
    _, monitor = fit(tiny_net, trainer, logger)
    found = [(x, step) for x, step in logger.logged if "weights/all" in x]
    assert [(list(x), step) for x, step in found] == [(TAGS, 0), (TAGS, 5), (TAGS, 10)]
    counts, edges = found[-1][0]["weights/all"]
    last = monitor.histograms[-1]
    assert counts == [last["zeros"], *last["counts"]]
    assert edges == [-last["edges"][1], *last["edges"]]


def test_other_loggers_get_figures_only(tiny_net: Any, trainer: Any) -> None:
    logger = Silent()
    _, monitor = fit(tiny_net, trainer, logger)
    (first, step), *_ = logger.logged
    assert step == 5
    assert first == {"epoch": 0, **{n: x for n, x in monitor.history[0].items() if n != "step"}}
    assert all(type(x) in (int, float) for found, _ in logger.logged for x in found.values())


def test_a_real_event_file_holds_the_histograms(
    tmp_path: Path, tiny_net: Any, trainer: Any
) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard to read its files")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    net, monitor = fit(tiny_net, trainer, logger)
    events = EventAccumulator(logger.log_dir, size_guidance={"histograms": 0}).Reload()
    assert sorted(events.Tags()["histograms"]) == sorted(TAGS)
    assert {"sparsity", "objective", "penalty", "epoch"} <= set(events.Tags()["scalars"])
    for event, kept in zip(events.Histograms("weights/all"), monitor.histograms, strict=True):
        found = event.histogram_value
        assert event.step == kept["step"]
        assert found.bucket == [kept["zeros"], *kept["counts"]]
        assert found.bucket_limit == pytest.approx(kept["edges"])
    fc = events.Histograms("weights/model.fc.weight")[-1].histogram_value
    assert fc.bucket[0] == int((net.model.fc.weight == 0).sum())
    assert fc.num == torch.numel(net.model.fc.weight)
