"""Weights and their sparse copies: who is in the module when, and what a checkpoint holds."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from lightning_sparsity.callbacks.conditions import epoch
from lightning_sparsity.schedules import Schedule, at
from lightning_sparsity.selection import Selected
from lightning_sparsity.splitting import Measurement, check_strengths

Make = Callable[[Sequence[Selected]], Iterable[Tensor]]


class Copies:
    """Puts sparse copies $u$ in the place of weights $w$, for evaluations and in files.

    Args:
        owner: The callback that splits the weights.
        make: Computes the copies of weights.
    """

    def __init__(self, owner: Callback, make: Make) -> None:
        self.owner = owner
        self.make = make
        self.weights: list[Selected] = []
        self.dense: list[Tensor] = []  # w, while the module holds u
        self.final = False  # whether the module's weights are u for good
        self._handles: list[RemovableHandle] = []

    def attach(self, pl_module: pl.LightningModule) -> None:
        """Make `state_dict` give `u`, and take note when weights are loaded."""
        self.detach()  # what an interrupted run has left
        self._handles = [
            pl_module.register_state_dict_post_hook(partial(self._put_into)),  # torch marks it
            pl_module.register_load_state_dict_post_hook(self._note_loaded),
        ]

    def detach(self) -> None:
        """Leave nothing behind."""
        self.restore()
        while self._handles:
            self._handles.pop().remove()

    def start(self, weights: list[Selected]) -> None:
        """Split these weights, which are dense."""
        self.weights = weights
        self.final = False

    @property
    def differ(self) -> bool:
        """Whether the module holds `w`, of which there is a copy."""
        return bool(self.weights) and not self.dense and not self.final

    @torch.no_grad()
    def hold(self) -> None:
        """Let the module hold `u`."""
        if self.differ:
            dense = [s.weight.detach().clone() for s in self.weights]
            for s, copy in zip(self.weights, self.make(self.weights), strict=True):
                s.weight.copy_(copy)
            self.dense = dense

    @torch.no_grad()
    def restore(self) -> None:
        """Bring `w` back, bit for bit."""
        for s, dense in zip(self.weights, self.dense, strict=False):
            s.weight.copy_(dense)
        self.dense = []

    def settle(self) -> None:
        """Let the module hold `u` for good."""
        self.hold()
        self.dense = []
        self.final = True

    def state(self) -> dict[str, Tensor]:
        """The weights `w` by name; empty if there are none but `u`."""
        dense = [s.weight.detach() for s in self.weights] if self.differ else self.dense
        names = [s.name for s in self.weights[: len(dense)]]
        return dict(zip(names, dense, strict=True))

    @torch.no_grad()
    def load(self, pl_module: pl.LightningModule, state: Mapping[str, Tensor]) -> None:
        """Put `w` back into the module when training is resumed."""
        parameters = dict(pl_module.named_parameters())
        for name, dense in state.items():
            parameters[name].copy_(dense)
        self.final = False

    def _put_into(
        self, module: pl.LightningModule, state: dict[str, Any], prefix: str, *_: object
    ) -> None:
        trainer = module._trainer  # none, or another one's: this callback was of an earlier run
        if trainer is None or self.owner not in trainer.callbacks:  # type: ignore[attr-defined]
            return
        if self.differ:
            for s, copy in zip(self.weights, self.make(self.weights), strict=True):
                state[prefix + s.name] = copy

    def _note_loaded(self, module: nn.Module, incompatible: Any) -> None:  # noqa: ANN401
        self.final = True


def figures(parts: Sequence[Measurement], lam: float, beta: float) -> dict[str, Tensor]:
    """Sparsity, penalty, gap and strengths of all splits together, as scalars for the monitor."""
    gap = torch.stack([p.gap for p in parts]).sum()
    penalty = torch.stack([p.penalty for p in parts]).sum()
    return {
        "sparsity": torch.stack([p.zeros for p in parts]).sum() / sum(p.entries for p in parts),
        "penalty": lam * penalty + beta / 2 * gap,
        "split_gap": gap.sqrt(),
        "lam": torch.tensor(lam),
        "beta": torch.tensor(beta),
    }


class SplitCallback(Callback):
    """A callback that splits weights: what is evaluated is the sparse copy."""

    lam: float | Schedule
    beta: float | Schedule
    _copies: Copies

    def strengths(self, trainer: pl.Trainer) -> tuple[float, float]:
        """`lam` and `beta` now; schedules see the fraction of the epoch that is over."""
        now = epoch(trainer)
        lam, beta = at(self.lam, now), at(self.beta, now)
        check_strengths(lam, beta)
        return lam, beta

    @override
    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Bring `w` back if an evaluation was interrupted."""
        self._copies.restore()

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the module hold `u`."""
        self._copies.hold()

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Bring `w` back, bit for bit."""
        self._copies.restore()

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end
