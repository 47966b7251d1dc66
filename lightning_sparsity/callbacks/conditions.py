"""What the callbacks ask of a Trainer: how far it is, and that nothing in it works against them."""

import math
from collections.abc import Iterable, Sequence

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch.distributed.tensor import DTensor

from lightning_sparsity.groups import Groups
from lightning_sparsity.penalties import Penalty
from lightning_sparsity.selection import Selected


def epoch(trainer: pl.Trainer) -> float:
    """The epoch with the share of its batches that are over."""
    batches = trainer.num_training_batches
    share = trainer.fit_loop.batch_idx / batches if 0 < batches < math.inf else 0.0
    return trainer.current_epoch + max(share, 0.0)


def progress(trainer: pl.Trainer) -> float:
    """The share of the training's optimizer steps that are over; 0 if it has no end."""
    steps = trainer.estimated_stepping_batches
    return min(1.0, trainer.global_step / steps) if 0 < steps < math.inf else 0.0


def check_end(callback: Callback, trainer: pl.Trainer, penalty: Penalty) -> None:
    """Refuse a penalty that follows the progress of a training without an end."""
    if penalty.at(0.0) != penalty and math.isinf(trainer.estimated_stepping_batches):
        raise MisconfigurationException(
            f"{type(callback).__name__}({penalty!r}) needs to know how long training takes, "
            "got a Trainer without an end. Set max_epochs or max_steps."
        )


def check_order(callback: Callback, trainer: pl.Trainer) -> None:
    """Refuse averages of weights that would be put in the place of what `callback` leaves."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for later in callbacks[callbacks.index(callback) + 1 :]:
        if any(cls.__name__.endswith("WeightAveraging") for cls in type(later).__mro__):
            name, average = type(callback).__name__, type(later).__name__
            raise MisconfigurationException(
                f"{name} needs to come after {average}, whose averages it makes sparse. "
                f"Swap them: callbacks=[{average}(...), {name}(...)]."
            )


def check_rates(rates: Iterable[float], beta: float) -> None:
    """Refuse a decoupled update that would move weights beyond their copies."""
    for rate in rates:
        if rate * beta > 1:
            raise MisconfigurationException(
                f"update='decoupled' needs lr * beta <= 1, got lr={rate} and beta={beta}. "
                "Lower beta."
            )


def warn_of_death(callback: Callback, lam: float, groups: Groups, name: str) -> None:
    """Say that a penalty leaves nothing of a weight."""
    kept = "" if groups == "entries" else ", so the largest is kept"
    rank_zero_warn(
        f"{type(callback).__name__} with lam={lam:g} leaves none of the "
        f"{groups.replace('_', ' ')} of {name!r}{kept}. Lower lam, or exclude the weight."
    )


def check_whole(callback: Callback, weights: Sequence[Selected]) -> None:
    """Refuse weights of which every process has a part only."""
    for s in weights:
        if isinstance(s.weight, DTensor):
            raise MisconfigurationException(
                f"{type(callback).__name__} needs whole weights, but {s.name} is sharded. Use "
                "strategy='ddp'."
            )
