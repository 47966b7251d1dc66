from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.nn import functional as F

from lightning_sparsity import NetworkSlimming, Regularization, surgery
from lightning_sparsity.data import TensorLoader
from lightning_sparsity.penalties import GroupLasso, TransformedL1
from lightning_sparsity.report.curve import by_amount, telling


@pytest.fixture
def slimming() -> NetworkSlimming:
    return NetworkSlimming(TransformedL1(1.0), lam=1e-3, amount=0.4)


def loss_of(network: torch.nn.Module, loader: TensorLoader) -> float:
    images, labels = next(iter(loader))
    with torch.no_grad():
        return F.cross_entropy(network.eval()(images), labels).item()


def test_each_point_is_the_network_cut_by_hand(
    norm_net: Callable[..., Any], trainer: Callable[..., pl.Trainer], slimming: NetworkSlimming
) -> None:
    made, net = trainer(slimming), norm_net()
    made.fit(net)
    slim = net.model
    curve = by_amount(made, net, None, slimming)
    assert net.model is slim
    assert (curve.metric, curve.examples, curve.skipped) == ("val_loss", 20, "")
    assert [round(14 * share) for share, _ in curve.points] == [0, 2, 3, 5, 6, 8, 9, 10, 12]
    loader = net.val_dataloader()
    with slimming.uncut(net):
        dense = net.model
        flow = surgery.trace(dense, torch.zeros(1, 1, 8, 8))
    assert curve.points[0][1] == pytest.approx(loss_of(dense, loader), abs=1e-6)
    for i, (_, loss) in enumerate(curve.points[1:8], start=1):
        small = surgery.slim(dense, flow.plan_by(i / 10))
        assert loss == pytest.approx(loss_of(small, loader), abs=1e-6)
    assert curve.chosen is not None
    assert round(14 * curve.chosen[0]) == 6
    assert curve.chosen[1] == pytest.approx(loss_of(slim, loader), abs=1e-6)


def test_scales_that_are_zero_are_cut_at_every_share(
    norm_net: Callable[..., Any], trainer: Callable[..., pl.Trainer]
) -> None:
    slimming = NetworkSlimming(amount=0.5, beta=9.0)
    made, net = trainer(slimming, max_epochs=20), norm_net()
    made.fit(net)
    with slimming.uncut(net):
        zeros = sum(int((net.model.get_submodule(n).weight == 0).sum()) for n in ("norm1", "norm2"))
    shares = [share for share, _ in by_amount(made, net, None, slimming).points]
    assert zeros >= 6
    assert shares[:2] == pytest.approx([0, zeros / 14])
    assert shares == sorted(set(shares))


def test_nothing_is_left_in_the_log_and_the_trainer_is_as_before(
    norm_net: Callable[..., Any],
    trainer: Callable[..., pl.Trainer],
    slimming: NetworkSlimming,
    tmp_path: Any,
) -> None:
    logger = CSVLogger(tmp_path)
    made, net = trainer(slimming, logger=logger, limit_val_batches=3), norm_net()
    made.fit(net)
    callbacks, logged = list(made.callbacks), (tmp_path / "metrics.csv", logger.log_dir)  # type: ignore[attr-defined]
    before = (tmp_path / logged[1] / "metrics.csv").read_text()
    by_amount(made, net, None, slimming)
    assert (tmp_path / logged[1] / "metrics.csv").read_text() == before
    assert made.callbacks == callbacks  # type: ignore[attr-defined]
    assert made.loggers == [logger]
    assert made.limit_val_batches == 3


class Many(TensorLoader):
    """Batches of 64 examples, 40 of them."""

    def __init__(self) -> None:
        images = torch.rand(2560, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        super().__init__(images, torch.arange(2560) % 4, 64, shuffle=False)


def test_about_a_thousand_examples_of_validation_are_enough(
    norm_net: Callable[..., Any], trainer: Callable[..., pl.Trainer], slimming: NetworkSlimming
) -> None:
    made, net = trainer(slimming), norm_net()
    made.fit(net)
    net.val_dataloader = Many

    def test_step(batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        raise AssertionError("test data was used")

    net.test_step = test_step
    assert by_amount(made, net, None, slimming).examples == 1024


def test_what_cannot_be_measured_is_skipped_with_the_reason(
    norm_net: Callable[..., Any], trainer: Callable[..., pl.Trainer], slimming: NetworkSlimming
) -> None:
    made, net = trainer(slimming, limit_val_batches=0), norm_net()
    made.fit(net)
    assert by_amount(made, net, None, slimming).skipped == "the run has no validation data"
    made.limit_val_batches = 1.0
    net.validation_step = lambda batch, batch_idx: None
    skipped = by_amount(made, net, None, slimming).skipped
    assert skipped == "the validation of the run logs nothing"
    net.validation_step = lambda batch, batch_idx: 1 / 0
    assert by_amount(made, net, None, slimming).skipped == "division by zero"


def test_a_cut_of_zeros_has_no_amount(
    norm_net: Callable[..., Any], trainer: Callable[..., pl.Trainer]
) -> None:
    lasso = Regularization(GroupLasso(), lam=0.0, groups="output_channels", select="conv*")
    made, net = trainer(lasso, max_epochs=1), norm_net()
    with torch.no_grad():
        net.model.conv1.weight[0] = 0
    made.fit(net)
    curve = by_amount(made, net, None, lasso)
    assert curve.skipped == "the cut took what was zero, not an amount"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["val_loss", "val_acc", "val_f1"], "val_acc"),
        (["val_f1", "val_loss"], "val_loss"),
        (["val_f1", "val_iou"], "val_f1"),
        ([], ""),
    ],
)
def test_an_accuracy_says_more_than_a_loss(names: list[str], expected: str) -> None:
    assert telling(dict.fromkeys(names)) == expected
