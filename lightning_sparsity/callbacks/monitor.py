"""Sparsity and objective in the logger and the progress bar, and histograms of what ships."""

from collections.abc import Iterable
from dataclasses import asdict
from itertools import chain, count
from typing import Any, Protocol, runtime_checkable

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from typing_extensions import override

from lightning_sparsity.callbacks.loggers import log_histograms
from lightning_sparsity.metrics.histogram import Histogram, histograms, joined


@runtime_checkable
class Measured(Protocol):
    """A callback that the monitor can ask what to log."""

    @property
    def label(self) -> str:
        """What its figures end in where another callback has their plain names."""
        ...

    def measurements(self, trainer: pl.Trainer) -> dict[str, Tensor]:
        """Scalars by name; `"penalty"` is its part of the objective."""
        ...

    def acts_on(self) -> tuple[str, list[str]]:
        """What it makes sparse, `"BatchNorm scales"` or `"weights"`, and the parameters' names."""
        ...


class SparsityMonitor(Callback):
    r"""Log how sparse the network is and what it costs, every few steps; once an epoch, histograms.

    Names: `sparsity` (share of the selected weights that are exactly zero), `objective` ($f(w) +
    \lambda\, r(u) + \tfrac{\beta}{2} \|w - u\|^2$), `penalty` (its last two terms), `split_gap`
    ($\|w - u\|$), `lam`, `beta`. With several sparse callbacks the first one in the list that has a
    figure gives it its plain name; those of others end in what they are (`sparsity_scales`,
    `penalty_regularization`, `lam_variance`) and in their pattern (`sparsity_splitting_fc`).

    Histograms show magnitudes of what ships, at the start of training and after every epoch: the
    copy $u$ where there is one, exact zeros counted apart. TensorBoard and W&B get them for
    everything together and for every layer; `histograms` holds those of everything together.

    Args:
        every_n_steps: Optimizer steps between two measurements, at least 1. A measurement costs
            about as much as ten splitting steps.
        progress_bar: Whether `sparsity` and `objective` show in the progress bar.

    Attributes:
        history: The figures of every measurement, with its `step`.
        histograms: For every epoch and kind the dict of `epoch` (epochs that are over), `step`,
            `of` (`"BatchNorm scales"` or `"weights"`), `edges` (41, rising from 0), `counts` (40,
            magnitudes of entries that are not zero) and `zeros`.

    Raises:
        ValueError: If `every_n_steps` is below 1.
    """

    def __init__(self, every_n_steps: int = 50, progress_bar: bool = True) -> None:
        if every_n_steps < 1:
            raise ValueError(f"SparsityMonitor needs every_n_steps >= 1, got {every_n_steps}.")
        self.every_n_steps = every_n_steps
        self.progress_bar = progress_bar
        self.history: list[dict[str, float]] = []
        self.histograms: list[dict[str, Any]] = []
        self._seen = 0  # optimizer steps when last looked at

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count from the step at which training starts or goes on."""
        self._seen = trainer.global_step
        resumed = trainer.global_step > 0 and bool(self.histograms)
        if not resumed or self.histograms[-1]["epoch"] < trainer.current_epoch:
            self._count(trainer, pl_module, trainer.current_epoch)

    @override
    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Measure after every `every_n_steps`-th optimizer step."""
        step = trainer.global_step
        # Several optimizers take several steps a batch, accumulation none.
        due = step // self.every_n_steps > self._seen // self.every_n_steps
        self._seen = step
        figures = _figures(trainer) if due else {}
        if not figures:
            return
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            # Lightning divides the loss of a batch by the number of batches that make a step.
            figures["objective"] = loss.detach() * trainer.accumulate_grad_batches + sum(
                figure for name, figure in figures.items() if name.startswith("penalty")
            )
        numbers = {name: float(figure) for name, figure in figures.items()}
        self.history.append({"step": step, **numbers})
        for name, figure in figures.items():
            shown = self.progress_bar and name in ("sparsity", "objective")
            pl_module.log(name, figure, prog_bar=shown, logger=False)
        # Not by `log`, which has a cadence of its own and would repeat old figures in between.
        for logger in trainer.loggers:
            logger.log_metrics({"epoch": trainer.current_epoch, **numbers}, step)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count magnitudes."""
        self._count(trainer, pl_module, trainer.current_epoch + 1)

    def _count(self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: int) -> None:
        step = trainer.global_step
        for of, layers in _layers(trainer, pl_module).items():
            whole = joined(layers.values())
            self.histograms.append({"epoch": epoch, "step": step, "of": of, **asdict(whole)})
            kind = of.replace(" ", "_")
            named = {f"{kind}/{name}": found for name, found in {"all": whole, **layers}.items()}
            for logger in trainer.loggers:
                log_histograms(logger, named, step)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "histograms": self.histograms}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = list(state_dict["history"])
        self.histograms = list(state_dict.get("histograms", []))


def _measured(trainer: pl.Trainer) -> list[Measured]:
    return [c for c in trainer.callbacks if isinstance(c, Measured)]  # type: ignore[attr-defined]


def _figures(trainer: pl.Trainer) -> dict[str, Tensor]:
    """The measurements of every callback that has some, each under a name of its own."""
    figures: dict[str, Tensor] = {}
    for callback in _measured(trainer):
        found = callback.measurements(trainer)
        figures.update(
            {_free(name, callback.label, figures): figure for name, figure in found.items()}
        )
    return figures


def _free(name: str, label: str, taken: Iterable[str]) -> str:
    """The name; or, if it is taken, with what the callback is called; or with a number as well."""
    longer = f"{name}_{label}"
    names = chain((name, longer), (f"{longer}_{i}" for i in count(2)))
    return next(candidate for candidate in names if candidate not in taken)


def _layers(trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, dict[str, Histogram]]:
    """For each kind the histograms of its parameters, as a checkpoint would hold them now."""
    kinds: dict[str, dict[str, Tensor]] = {}
    shipped = pl_module.state_dict()
    for callback in _measured(trainer):
        of, names = callback.acts_on()
        kinds.setdefault(of, {}).update({name: shipped[name] for name in names if name in shipped})
    return {of: histograms(tensors) for of, tensors in kinds.items() if tensors}
