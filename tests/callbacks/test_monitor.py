import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.nn import functional as F

from lightning_sparsity import (
    NetworkSlimming,
    Regularization,
    RelaxedVariableSplitting,
    SparsityMonitor,
    VarianceGuidance,
)
from lightning_sparsity.penalties import L0, L1, GroupLasso, TransformedL1
from lightning_sparsity.schedules import Growing, Warmup

LAM, BETA = 2e-3, 0.5
NAMES = ["model.conv1.weight", "model.conv2.weight", "model.fc.weight"]
FIGURES = {"sparsity", "penalty", "split_gap", "lam", "beta", "objective"}


def split(**options: Any) -> RelaxedVariableSplitting:
    return RelaxedVariableSplitting(TransformedL1(1.0), LAM, BETA, **options)


class Recorder(Callback):
    """Keeps the weights and the loss of every batch."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.losses: list[float] = []

    def on_train_batch_start(self, trainer: Any, net: Any, batch: Any, batch_idx: int) -> None:
        with torch.no_grad():
            self.losses.append(F.cross_entropy(net.model(batch[0]), batch[1]).item())

    def on_train_batch_end(self, trainer: Any, net: Any, *_: Any) -> None:
        self.weights.append({n: p.detach().clone() for n, p in net.named_parameters()})


def steps(monitor: SparsityMonitor) -> list[float]:
    return [figures["step"] for figures in monitor.history]


def test_the_figures_are_those_by_hand(tiny_net: Any, trainer: Any) -> None:
    monitor, recorder = SparsityMonitor(1), Recorder()
    trainer(split(), monitor, recorder).fit(tiny_net())
    assert len(monitor.history) == 10
    for figures, weights, loss in zip(
        monitor.history, recorder.weights, recorder.losses, strict=True
    ):
        assert set(figures) == FIGURES | {"step"}
        w = torch.cat([weights[name].double().flatten() for name in NAMES])
        u = TransformedL1(1.0).prox(w, LAM / BETA)
        gap = (w - u).square().sum()
        penalty = LAM * (2 * u.abs() / (1 + u.abs())).sum() + BETA / 2 * gap
        assert figures["sparsity"] == pytest.approx((u == 0).double().mean().item(), abs=1e-6)
        assert figures["split_gap"] == pytest.approx(gap.sqrt().item(), rel=1e-5)
        assert figures["penalty"] == pytest.approx(penalty.item(), rel=1e-5)
        assert figures["objective"] == pytest.approx(loss + penalty.item(), rel=1e-5)
        assert (figures["lam"], figures["beta"]) == pytest.approx((LAM, BETA))


@pytest.mark.parametrize(
    ("every", "accumulate", "expected"),
    [(1, 1, range(1, 11)), (3, 1, [3, 6, 9]), (1, 2, range(1, 7)), (4, 2, [4]), (20, 1, [])],
)
def test_it_measures_once_per_so_many_optimizer_steps(
    every: int, accumulate: int, expected: Any, tiny_net: Any, trainer: Any
) -> None:
    monitor = SparsityMonitor(every)
    trainer(split(), monitor, accumulate_grad_batches=accumulate).fit(tiny_net())
    assert steps(monitor) == [*expected]


def test_the_objective_is_that_of_a_batch_under_accumulation(tiny_net: Any, trainer: Any) -> None:
    monitor, recorder = SparsityMonitor(1), Recorder()
    trainer(split(), monitor, recorder, accumulate_grad_batches=2, max_epochs=1).fit(tiny_net())
    losses = [recorder.losses[i] for i in (1, 3, 4)]  # the last batches of three steps
    found = [figures["objective"] - figures["penalty"] for figures in monitor.history]
    assert found == pytest.approx(losses, rel=1e-5)


def test_steps_of_several_optimizers_are_all_counted(tiny_net: Any, trainer: Any) -> None:
    class Manual(tiny_net):
        automatic_optimization = False

        def configure_optimizers(self) -> Any:
            return [self.optimizer(self.model.conv1.parameters()) for _ in range(2)]

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = self.loss(batch)
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
            return loss

    monitor = SparsityMonitor(3)
    trainer(split(), monitor).fit(Manual())
    assert steps(monitor) == [4, 6, 10, 12, 16, 18]
    assert "objective" in monitor.history[0]


def test_two_splittings_are_told_apart(tiny_net: Any, trainer: Any) -> None:
    monitor = SparsityMonitor(10)
    first = RelaxedVariableSplitting(L0(), 1.0, 2.0, select="conv*")
    second = RelaxedVariableSplitting(
        GroupLasso(), 0.01, 0.5, select="fc", groups="output_channels"
    )
    fitted = trainer(first, monitor, second)
    fitted.fit(tiny_net())
    (figures,) = monitor.history
    own = FIGURES - {"objective"}
    named = {f"{name}_splitting_fc" for name in own}
    assert set(figures) == {"step", "objective"} | own | named
    names = ("lam", "beta", "lam_splitting_fc", "beta_splitting_fc")
    assert [figures[name] for name in names] == pytest.approx([1.0, 2.0, 0.01, 0.5])
    assert figures["sparsity"] == 1
    assert figures["sparsity_splitting_fc"] < 1
    assert set(fitted.callback_metrics) >= set(figures) - {"step"}


def test_a_plain_name_belongs_to_the_first_callback_that_has_the_figure(
    tiny_net: Any, trainer: Any
) -> None:
    guidance = VarianceGuidance(0.01, select="conv2")
    lasso = Regularization(L1(), 0.1, select=["conv1", "fc"])
    monitor = SparsityMonitor(10)
    trainer(guidance, split(select="conv*"), split(), lasso, monitor).fit(tiny_net())
    (figures,) = monitor.history
    assert {name for name in figures if name.startswith(("sparsity", "lam", "cv"))} == {
        "cv", "lam", "lam_splitting_conv", "lam_splitting", "lam_regularization",
        "sparsity", "sparsity_splitting", "sparsity_regularization",
    }  # fmt: skip
    assert [figures[name] for name in ("lam", "lam_regularization")] == pytest.approx([0.01, 0.1])


def test_callbacks_that_are_called_the_same_are_numbered(tiny_net: Any, trainer: Any) -> None:
    monitor = SparsityMonitor(10)
    penalties = (L1(), TransformedL1(1.0), TransformedL1(2.0))
    lassos = [Regularization(r, lam, select="fc") for lam, r in enumerate(penalties, start=1)]
    trainer(split(), *lassos, monitor).fit(tiny_net())
    (figures,) = monitor.history
    names = (f"lam_regularization_fc{ending}" for ending in ("", "_2", "_3"))
    assert [figures[name] for name in names] == [1, 2, 3]


def test_schedules_show_their_value_of_the_moment(tiny_net: Any, trainer: Any) -> None:
    monitor = SparsityMonitor(1)
    lam, beta = Warmup(0.1, epochs=2.0), Growing(1.0, 3.0, every_n_epochs=1)
    trainer(RelaxedVariableSplitting(L0(), lam, beta), monitor).fit(tiny_net())
    assert [f["lam"] for f in monitor.history] == pytest.approx([0.01 * i for i in range(10)])
    assert [f["beta"] for f in monitor.history] == pytest.approx([1.0] * 5 + [3.0] * 5)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("step", [4, 5, 6])
def test_a_resumed_history_is_that_of_an_uninterrupted_run(
    step: int, tmp_path: Path, tiny_net: Any, trainer: Any
) -> None:
    def fit(folder: Path, resume: Path | None = None) -> SparsityMonitor:
        monitor = SparsityMonitor(2)
        saver = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
        net = tiny_net()
        trainer(split(), monitor, saver).fit(net, ckpt_path=resume, weights_only=True)
        return monitor

    whole = fit(tmp_path / "a")
    resumed = fit(tmp_path / "b", tmp_path / "a" / f"step={step}.ckpt")
    assert resumed.history == whole.history
    assert resumed.histograms == whole.histograms
    assert (len(whole.history), len(whole.histograms)) == (5, 3)


def test_a_second_run_of_the_same_monitor_counts_from_the_start(
    tiny_net: Any, trainer: Any
) -> None:
    monitor = SparsityMonitor(5)
    for _ in range(2):
        trainer(split(), monitor).fit(tiny_net())
    assert steps(monitor) == [5, 10, 5, 10]


@pytest.mark.parametrize("log_every_n_steps", [1, 3, 50])
def test_the_logger_gets_every_measurement_once(
    log_every_n_steps: int, tmp_path: Path, tiny_net: Any, trainer: Any
) -> None:
    monitor, logger = SparsityMonitor(2), CSVLogger(tmp_path)
    trainer(split(), monitor, logger=logger, log_every_n_steps=log_every_n_steps).fit(tiny_net())
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["sparsity"]]
    assert len(rows) == len(monitor.history) == 5
    for row, figures in zip(rows, monitor.history, strict=True):
        for name in FIGURES | {"step"}:
            assert float(row[name]) == pytest.approx(figures[name], rel=1e-5)
    assert [row["epoch"] for row in rows] == ["0", "0", "1", "1", "1"]


def test_stopping_and_saving_may_watch_the_sparsity(
    tmp_path: Path, tiny_net: Any, trainer: Any
) -> None:
    saver = ModelCheckpoint(tmp_path, "{sparsity:.3f}", monitor="sparsity", mode="max")
    stopper = EarlyStopping("sparsity", mode="max", stopping_threshold=0.0)
    monitor = SparsityMonitor(5)
    fitted = trainer(split(), monitor, saver, stopper, max_epochs=5)
    fitted.fit(tiny_net())
    assert fitted.current_epoch < 5
    assert saver.best_model_score == pytest.approx(monitor.history[-1]["sparsity"])


@pytest.mark.parametrize("progress_bar", [True, False])
def test_sparsity_and_objective_show_in_the_progress_bar(
    progress_bar: bool, tiny_net: Any, trainer: Any
) -> None:
    fitted = trainer(split(), SparsityMonitor(1, progress_bar=progress_bar))
    fitted.fit(tiny_net())
    assert set(fitted.progress_bar_metrics) == (
        {"sparsity", "objective"} if progress_bar else set()
    )


def test_without_a_sparse_callback_there_is_nothing_to_log(tiny_net: Any, trainer: Any) -> None:
    monitor = SparsityMonitor(1)
    fitted = trainer(monitor)
    fitted.fit(tiny_net())
    assert not monitor.history
    assert "sparsity" not in fitted.callback_metrics


def counted(*weights: Tensor) -> tuple[int, list[int]]:
    """Zeros, and the magnitudes of the others in 40 bins up to the largest one."""
    x = torch.cat([w.detach().double().flatten().abs() for w in weights])
    bins = x[x > 0].histogram(40, range=(0, float(x.max())))
    return int((x == 0).sum()), bins.hist.int().tolist()


def shown(monitor: SparsityMonitor) -> list[tuple[int, list[int]]]:
    return [(found["zeros"], found["counts"]) for found in monitor.histograms]


def test_histograms_show_the_sparse_copies_at_the_start_and_after_every_epoch(
    tiny_net: Any, trainer: Any
) -> None:
    monitor, recorder, net = SparsityMonitor(), Recorder(), tiny_net()
    begin = {name: p.detach().clone() for name, p in net.named_parameters()}
    trainer(split(), monitor, recorder).fit(net)
    penalty, seen = TransformedL1(1.0), [begin, recorder.weights[4], recorder.weights[9]]
    assert shown(monitor) == [
        counted(*(penalty.prox(weights[name], LAM / BETA) for name in NAMES)) for weights in seen
    ]
    assert shown(monitor)[-1] == counted(*(net.get_parameter(name) for name in NAMES))
    assert shown(monitor)[-1][0] > 0
    places = [(found["epoch"], found["step"], found["of"]) for found in monitor.histograms]
    assert places == [(0, 0, "weights"), (1, 5, "weights"), (2, 10, "weights")]
    for found in monitor.histograms:
        edges = found["edges"]
        assert (len(edges), edges[0]) == (41, 0)
        assert edges == sorted(set(edges))


@pytest.mark.parametrize("first", [True, False])
def test_where_there_is_a_copy_histograms_show_it_alone(
    first: bool, tiny_net: Any, trainer: Any
) -> None:
    monitor, net = SparsityMonitor(), tiny_net()
    lasso = Regularization(L1(), 1e-4, select="conv*")
    callbacks = (split(), lasso) if first else (lasso, split())
    trainer(*callbacks, monitor).fit(net)
    assert shown(monitor)[-1] == counted(*(net.get_parameter(name) for name in NAMES))


def test_weights_without_a_copy_are_shown_themselves(tiny_net: Any, trainer: Any) -> None:
    monitor, net = SparsityMonitor(), tiny_net()
    trainer(VarianceGuidance(0.01, select="conv2"), monitor).fit(net)
    assert shown(monitor)[-1] == counted(net.model.conv2.weight)


@pytest.mark.parametrize("update", ["subgradient", "splitting", "proximal"])
def test_histograms_of_scales_are_those_of_the_checkpoint_and_end_with_the_cut(
    update: Any, tmp_path: Path, norm_net: Any, trainer: Any
) -> None:
    monitor, net = SparsityMonitor(), norm_net()
    saver = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    slimming = NetworkSlimming(TransformedL1(1.0), 0.3, update=update, dirpath=str(tmp_path))
    trainer(slimming, monitor, saver).fit(net)
    saved = [torch.load(tmp_path / f"epoch={i}.ckpt")["state_dict"] for i in (0, 1)]
    assert {found["of"] for found in monitor.histograms} == {"BatchNorm scales"}
    assert shown(monitor)[1:] == [
        counted(*(state[f"model.norm{i}.weight"] for i in (1, 2))) for state in saved
    ]
    trainer(slimming, monitor).fit(net)  # fine-tuning
    assert len(monitor.histograms) == 3


def test_each_kind_has_a_histogram_of_its_own(norm_net: Any, trainer: Any) -> None:
    monitor = SparsityMonitor()
    trainer(split(), NetworkSlimming(), monitor, max_epochs=1).fit(norm_net())
    assert [found["of"] for found in monitor.histograms] == ["weights", "BatchNorm scales"] * 2


@pytest.mark.parametrize("every", [0, -3])
def test_a_cadence_below_one_is_refused(every: int) -> None:
    with pytest.raises(ValueError, match=f"needs every_n_steps >= 1, got {every}"):
        SparsityMonitor(every)
