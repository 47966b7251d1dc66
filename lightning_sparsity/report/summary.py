"""The figures of one run: its best checkpoint, dense and sparse, measured side by side."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from lightning_sparsity.callbacks import RelaxedVariableSplitting, SparsityMonitor
from lightning_sparsity.metrics.flops import LAYERS, FlopCount, flops

__all__ = ["Layer", "Size", "Summary", "summarize"]


@final
@dataclass(frozen=True)
class Size:
    """How many parameters a network has and how many are not exactly zero, dense and sparse.

    Args:
        parameters: All parameters.
        dense: Parameters of the dense network that are not zero.
        sparse: Parameters of the sparse network that are not zero.
    """

    parameters: int
    dense: int
    sparse: int


@final
@dataclass(frozen=True)
class Layer:
    """How many weights a layer has and how many are not zero.

    Args:
        name: Name of its weight.
        entries: All entries of the weight.
        nonzero: Entries that are not exactly zero.
    """

    name: str
    entries: int
    nonzero: int


@final
@dataclass(frozen=True, eq=False)
class Summary:
    """One run, dense (the weights w that learned) against sparse (their copy u, which ships).

    Args:
        checkpoint: File that both come from; empty for the network in memory.
        split: `"test"` or, where there is no test data, `"validation"`.
        metrics: Metrics by name, each dense and sparse.
        layers: Convolutions and linear layers of the sparse network.
        size: Parameters and non-zero parameters.
        work: FLOPs of the sparse network for one example, or None where they could not be counted.
        history: What the monitor measured over the run.
        weights: The split weights, dense and sparse, by name.
    """

    checkpoint: str
    split: str
    metrics: Mapping[str, tuple[float, float]]
    layers: tuple[Layer, ...]
    size: Size
    work: FlopCount | None
    history: tuple[Mapping[str, float], ...]
    weights: Mapping[str, tuple[Tensor, Tensor]]


def summarize(
    trainer: pl.Trainer, module: pl.LightningModule, data: pl.LightningDataModule | None
) -> Summary | None:
    """Evaluate the best checkpoint of a finished fit, dense and sparse; `module` ends up sparse.

    The best checkpoint is the one that the `ModelCheckpoint` of the trainer chose on validation;
    the test data is used here and nowhere before.

    Args:
        trainer: The trainer, after `fit`.
        module: The module that it trained.
        data: Where test or validation data comes from.

    Returns:
        The summary, or None if the module has no weight of a convolution or linear layer.
    """
    if not any(isinstance(part, LAYERS) for part in module.modules()):
        return None
    path, sparse, dense = _states(trainer, module)
    split, before = _evaluate(trainer, module, data, {**sparse, **dense})
    nonzero = _nonzero(module)
    _, after = _evaluate(trainer, module, data, sparse)
    return Summary(
        checkpoint=path,
        split=split,
        metrics={name: (before[name], after[name]) for name in after},
        layers=tuple(
            Layer(name, part.weight.numel(), int(part.weight.count_nonzero()))
            for name, part in module.named_modules()
            if isinstance(part, LAYERS)
        ),
        size=Size(sum(p.numel() for p in module.parameters()), nonzero, _nonzero(module)),
        work=_work(module, trainer),
        history=tuple(_history(trainer)),
        weights={name: (w.cpu(), sparse[name].cpu()) for name, w in dense.items()},
    )


State = dict[str, Tensor]


def _states(trainer: pl.Trainer, module: pl.LightningModule) -> tuple[str, State, State]:
    """The file, the sparse state and the dense weights of the best checkpoint, or of memory."""
    best = getattr(trainer.checkpoint_callback, "best_model_path", "")
    if not best:
        return "", {name: value.clone() for name, value in module.state_dict().items()}, {}
    content: dict[str, Any] = torch.load(best, map_location="cpu", weights_only=True)
    dense: State = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, RelaxedVariableSplitting):
            dense |= content.get("callbacks", {}).get(callback.state_key, {}).get("weights", {})
    return str(best), content["state_dict"], dense


def _evaluate(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    data: pl.LightningDataModule | None,
    state: State,
) -> tuple[str, dict[str, float]]:
    module.load_state_dict(state)
    if is_overridden("test_step", module) and (
        data is None or is_overridden("test_dataloader", data, pl.LightningDataModule)
    ):
        (metrics, *_) = trainer.test(module, datamodule=data, verbose=False)
        return "test", dict(metrics)
    (metrics, *_) = trainer.validate(module, datamodule=data, verbose=False)
    return "validation", dict(metrics)


def _nonzero(module: pl.LightningModule) -> int:
    return sum(int(p.count_nonzero()) for p in module.parameters())


def _work(module: pl.LightningModule, trainer: pl.Trainer) -> FlopCount | None:
    """FLOPs for the first example of an evaluation batch, if the module takes one tensor."""
    loaders = trainer.test_dataloaders or trainer.val_dataloaders
    try:
        batch = next(iter(loaders))  # type: ignore[arg-type]
        example = batch[0] if isinstance(batch, tuple | list) else batch
        return flops(module.cpu(), example[:1].cpu())
    except Exception:  # a module of the user's may take anything; the table then shows no FLOPs
        return None


def _history(trainer: pl.Trainer) -> list[dict[str, float]]:
    monitors = [c for c in trainer.callbacks if isinstance(c, SparsityMonitor)]  # type: ignore[attr-defined]
    return monitors[0].history if monitors else []
