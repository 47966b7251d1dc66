"""How good a network would be cut by other amounts: the curve that shows where it collapses."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Any, final

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.data import extract_batch_size
from typing_extensions import override

from lightning_sparsity.callbacks.cut_callback import CutCallback
from lightning_sparsity.waiting import Waiting

__all__ = ["Curve", "by_amount", "telling"]

SHARES = tuple(i / 10 for i in range(1, 10))
EXAMPLES = 1000


@final
@dataclass(frozen=True)
class Curve:
    """A metric of the validation split against the share of channels that was cut.

    Nothing is fine-tuned: each point is the network before the cut, cut once.

    Args:
        metric: Its name.
        examples: How many examples each point was measured on, the first ones of the split.
        points: Shares and values, from the uncut network on.
        chosen: Share and value of the slim network.
        skipped: Why there are no points, if there are none.
    """

    metric: str = ""
    examples: int = 0
    points: tuple[tuple[float, float], ...] = ()
    chosen: tuple[float, float] | None = None
    skipped: str = ""


def by_amount(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    data: pl.LightningDataModule | None,
    cutter: CutCallback,
) -> Curve:
    """Cut the network by several shares of its channels, and validate each.

    Only validation data is used, at most about 1000 examples. The module holds the slim network
    before and after.

    Args:
        trainer: The trainer, after `fit`.
        module: What it trained; it holds the slim network.
        data: Where validation data comes from.
        cutter: The callback that cut it.
    """
    if cutter.amount is None:
        return Curve(skipped="the cut took what was zero, not an amount")
    if not trainer.limit_val_batches:
        return Curve(skipped="the run has no validation data")
    try:
        return _measured(trainer, module, data, cutter)
    except Exception as error:  # a module of the user's may do anything: the run is not lost by it
        return Curve(skipped=str(error).partition("\n")[0] or type(error).__name__)


def telling(metrics: Mapping[str, Any]) -> str:
    """The name of the metric that says most: an accuracy, or else a loss, or else the first."""
    for ending in ("acc", "accuracy", "loss", ""):
        for name in metrics:
            if name.endswith(ending):
                return name
    return ""


def _measured(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    data: pl.LightningDataModule | None,
    cutter: CutCallback,
) -> Curve:
    count = _Count()

    def metrics() -> dict[str, float]:
        count.examples = 0
        (found, *_) = trainer.validate(module, datamodule=data, verbose=False) or [{}]
        return {name: float(value) for name, value in found.items()}

    with _quiet(trainer, count), Waiting("Cutting by other amounts") as waiting:
        trainer.limit_val_batches = 1
        metric = telling(metrics())
        if not metric:
            return Curve(skipped="the validation of the run logs nothing")
        trainer.limit_val_batches = ceil(EXAMPLES / count.examples)
        chosen = _share(cutter), metrics()[metric]
        with cutter.uncut(module):
            points = {0.0: metrics()[metric]}
        for share in SHARES:
            waiting.far = f"{share:.0%}"
            if share > max(points):  # where more is zero, more was cut already
                with cutter.recut(module, share) as cut:
                    points[cut] = metrics()[metric]
    return Curve(metric, count.examples, tuple(points.items()), chosen)


class _Count(Callback):
    """Counts the examples of a validation."""

    def __init__(self) -> None:
        self.examples = 0

    @override
    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.examples += extract_batch_size(batch) * trainer.world_size


@contextmanager
def _quiet(trainer: pl.Trainer, count: _Count) -> Iterator[None]:
    """Inside, validations are counted and leave nothing in logs, files and on the screen."""
    kept = trainer.callbacks, trainer.loggers, trainer.limit_val_batches  # type: ignore[attr-defined]
    trainer.callbacks, trainer.loggers = [count], []  # type: ignore[attr-defined]
    try:
        yield
    finally:
        trainer.callbacks, trainer.loggers, trainer.limit_val_batches = kept  # type: ignore[attr-defined]


def _share(cutter: CutCallback) -> float:
    """The share of channels that the plan of a cut takes for dead."""
    record = json.loads(cutter.state_dict()["cut"]["plan"])
    dead = sum(len(channels) for channels in record["dead"].values())
    return float(dead / sum(record["widths"].values()))
