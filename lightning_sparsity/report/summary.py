"""The measurements of one run: its best checkpoint, dense and sparse, side by side."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, final

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from lightning_sparsity.callbacks import SparsityMonitor
from lightning_sparsity.callbacks.copies import SplitCallback
from lightning_sparsity.callbacks.cut_callback import CutCallback
from lightning_sparsity.metrics.flops import LAYERS, FlopCount
from lightning_sparsity.metrics.footprint import nonzero, parameters, work
from lightning_sparsity.report.curve import by_amount
from lightning_sparsity.report.slim import Slim, measure
from lightning_sparsity.sparse_file import FileSize, file_size

__all__ = ["Layer", "Size", "Summary", "summarize"]


@final
@dataclass(frozen=True)
class Size:
    """How large a network is, dense and sparse.

    Args:
        layers: Convolutions and linear layers of the sparse network.
        parameters: All parameters.
        dense: Parameters of the dense network that are not zero.
        sparse: Parameters of the sparse network that are not zero.
        work: FLOPs of the sparse network for one example, or None where they could not be counted.
        bytes_on_disk: Bytes of the sparse network in a file with its zeros and in one without, or
            None where it cannot be written to one.
    """

    layers: tuple["Layer", ...]
    parameters: int
    dense: int
    sparse: int
    work: FlopCount | None
    bytes_on_disk: FileSize | None


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

    After a cut there is a third side, the slim network, and sparse is what it was before the cut.

    Args:
        checkpoint: File that both come from; empty for the network in memory.
        split: `"test"` or, where there is no test data, `"validation"`.
        metrics: Metrics by name, each dense and sparse.
        size: Layers, parameters, non-zero parameters and FLOPs.
        history: What the monitor measured over the run.
        histograms: The magnitudes that the monitor counted over the run.
        weights: The split weights, dense and sparse, by name.
        slim: The network after the cut, if there was one.
    """

    checkpoint: str
    split: str
    metrics: Mapping[str, tuple[float, float]]
    size: Size
    history: tuple[Mapping[str, float], ...]
    histograms: tuple[Mapping[str, Any], ...]
    weights: Mapping[str, tuple[Tensor, Tensor]]
    slim: Slim | None = None


def summarize(
    trainer: pl.Trainer, module: pl.LightningModule, data: pl.LightningDataModule | None
) -> Summary | None:
    """Evaluate what a finished fit made: dense, sparse and, after a cut, slim.

    Dense and sparse are the two sides of the best checkpoint, the one that the `ModelCheckpoint` of
    the trainer chose on validation. Slim is the network in the module. The test data is used here
    and nowhere before. Afterwards `module` is slim or, without a cut, sparse.

    Args:
        trainer: The trainer, after `fit`.
        module: The module that it trained.
        data: Where test or validation data comes from.

    Returns:
        The summary, or None if the module has no weight of a convolution or linear layer.
    """
    if not any(isinstance(part, LAYERS) for part in module.modules()):
        return None
    best = _best(trainer)
    cutter = _cut_by(trainer, module, best)
    if cutter is None:
        return _both_sides(trainer, module, data, best)
    with cutter.uncut(module), _brought_back(module):
        run = _both_sides(trainer, module, data, best)
    _, metrics = _evaluate(trainer, module, data)
    behind = trainer.global_step - best.step if best.path else 0
    examples = _example(trainer)
    slim = measure(trainer, module, cutter, examples, metrics=metrics, behind=behind)
    curve = by_amount(trainer, module, data, cutter)
    return replace(run, slim=replace(slim, curve=curve))


State = dict[str, Tensor]


class _Best(NamedTuple):
    """The best checkpoint; without one, nothing."""

    path: str = ""
    step: int = 0
    sparse: State = {}  # noqa: RUF012 - never changed
    dense: State = {}  # noqa: RUF012


def _best(trainer: pl.Trainer) -> _Best:
    path = getattr(trainer.checkpoint_callback, "best_model_path", "")
    if not path:
        return _Best()
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    dense: State = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, SplitCallback):
            dense |= content.get("callbacks", {}).get(callback.state_key, {}).get("weights", {})
    return _Best(str(path), content["global_step"], content["state_dict"], dense)


def _cut_by(trainer: pl.Trainer, module: pl.LightningModule, best: _Best) -> CutCallback | None:
    """The callback that cut the module in this fit; none if the fit began with a slim network."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, CutCallback) and callback.is_over(module):
            slim = {name: x.shape for name, x in module.state_dict().items()}
            tuned = {name: x.shape for name, x in best.sparse.items()} == slim
            return None if tuned else callback
    return None


@contextmanager
def _brought_back(module: pl.LightningModule) -> Iterator[None]:
    """Afterwards the module has the weights again that it has now."""
    state = {name: x.clone() for name, x in module.state_dict().items()}
    try:
        yield
    finally:
        module.load_state_dict(state)


def _both_sides(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    data: pl.LightningDataModule | None,
    best: _Best,
) -> Summary:
    """Dense and sparse; the module ends up sparse."""
    sparse = best.sparse or {name: x.clone() for name, x in module.state_dict().items()}
    module.load_state_dict({**sparse, **best.dense})
    split, before = _evaluate(trainer, module, data)
    filled = nonzero(module)
    module.load_state_dict(sparse)
    _, after = _evaluate(trainer, module, data)
    monitor = _monitor(trainer)
    return Summary(
        checkpoint=best.path,
        split=split,
        metrics={name: (before[name], after[name]) for name in after},
        size=Size(
            tuple(
                Layer(name, part.weight.numel(), int(part.weight.count_nonzero()))
                for name, part in module.named_modules()
                if isinstance(part, LAYERS)
            ),
            parameters(module),
            dense=filled,
            sparse=nonzero(module),
            work=work(module, _example(trainer)),
            bytes_on_disk=file_size(module),
        ),
        history=tuple(monitor.history),
        histograms=tuple(monitor.histograms),
        weights={name: (w.cpu(), sparse[name].cpu()) for name, w in best.dense.items()},
    )


def _evaluate(
    trainer: pl.Trainer, module: pl.LightningModule, data: pl.LightningDataModule | None
) -> tuple[str, dict[str, float]]:
    if is_overridden("test_step", module) and (
        data is None or is_overridden("test_dataloader", data, pl.LightningDataModule)
    ):
        (metrics, *_) = trainer.test(module, datamodule=data, verbose=False)
        return "test", dict(metrics)
    (metrics, *_) = trainer.validate(module, datamodule=data, verbose=False)
    return "validation", dict(metrics)


def _example(trainer: pl.Trainer) -> Tensor | None:
    """The first tensor of an evaluation batch, on the CPU."""
    try:
        batch = next(iter(trainer.test_dataloaders or trainer.val_dataloaders))  # type: ignore[arg-type]
        example: Tensor = (batch[0] if isinstance(batch, tuple | list) else batch).cpu()
        return example
    except Exception:  # data of the user's may be anything; the table then does without
        return None


def _monitor(trainer: pl.Trainer) -> SparsityMonitor:
    """The first monitor of a trainer, or one that has measured nothing."""
    monitors = (c for c in trainer.callbacks if isinstance(c, SparsityMonitor))  # type: ignore[attr-defined]
    return next(monitors, SparsityMonitor())
