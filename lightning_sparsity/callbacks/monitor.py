"""Sparsity and objective in the logger and the progress bar."""

from typing import Any, Protocol, runtime_checkable

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from typing_extensions import override


@runtime_checkable
class Measured(Protocol):
    """A callback that the monitor can ask for figures."""

    def measurements(self, trainer: pl.Trainer) -> dict[str, Tensor]:
        """Scalars by name; `"penalty"` is its part of the objective."""
        ...


class SparsityMonitor(Callback):
    r"""Log how sparse the network is and what it costs, every few steps.

    Names: `sparsity` (share of the selected weights that are exactly zero), `objective` ($f(w) +
    \lambda\, r(u) + \tfrac{\beta}{2} \|w - u\|^2$), `penalty` (its last two terms), `split_gap`
    ($\|w - u\|$), `lam`, `beta`. With several sparse callbacks the names of the second end in `_2`.

    Args:
        every_n_steps: Optimizer steps between two measurements, at least 1. A measurement costs
            about as much as ten splitting steps.
        progress_bar: Whether `sparsity` and `objective` show in the progress bar.

    Raises:
        ValueError: If `every_n_steps` is below 1.
    """

    def __init__(self, every_n_steps: int = 50, progress_bar: bool = True) -> None:
        if every_n_steps < 1:
            raise ValueError(f"SparsityMonitor needs every_n_steps >= 1, got {every_n_steps}.")
        self.every_n_steps = every_n_steps
        self.progress_bar = progress_bar
        self.history: list[dict[str, float]] = []
        self._seen = 0  # optimizer steps when last looked at

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count from the step at which training starts or goes on."""
        self._seen = trainer.global_step

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
            logger.log_metrics(numbers, step)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = list(state_dict["history"])


def _figures(trainer: pl.Trainer) -> dict[str, Tensor]:
    """The measurements of every callback that has some, numbered from the second on."""
    figures: dict[str, Tensor] = {}
    measured = [c for c in trainer.callbacks if isinstance(c, Measured)]  # type: ignore[attr-defined]
    for i, callback in enumerate(measured, start=1):
        suffix = "" if i == 1 else f"_{i}"
        found = callback.measurements(trainer)
        figures.update({name + suffix: figure for name, figure in found.items()})
    return figures
