"""What callbacks have in common that cut the network when training ends: one of them does."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from lightning_sparsity.callbacks.cutting import Cutting
from lightning_sparsity.callbacks.trial import same_kind
from lightning_sparsity.groups import Groups
from lightning_sparsity.surgery import Budget


class CutCallback(Callback):
    """A callback that cuts the network when training ends, or leaves that to another one.

    In a Trainer one callback cuts, what all of them made zero: the one with a budget, if there is
    one (`NetworkSlimming`), or else the first that was given a `dirpath`, or else the first.
    """

    _cutting: Cutting | None

    def is_over(self, pl_module: pl.LightningModule) -> bool:
        """Whether the module holds the slim network that this callback has cut."""
        return self._cutting is not None and self._cutting.is_over(pl_module)

    def uncut(self, pl_module: pl.LightningModule) -> AbstractContextManager[None]:
        """Inside this context the module holds the network as it was right before the cut."""
        if self._cutting is None:
            raise ValueError(f"{type(self).__name__} does not cut networks.")
        return self._cutting.uncut(pl_module)

    @property
    def amount(self) -> float | Budget | None:
        """How much it cuts; None: what is zero."""
        return None if self._cutting is None else self._cutting.amount

    def recut(self, pl_module: pl.LightningModule, share: float) -> AbstractContextManager[float]:
        """Inside this context the module holds its network cut by another share of the channels.

        Args:
            pl_module: The module, with the slim network.
            share: The share of all BatchNorm channels to cut, in (0, 1).

        Returns:
            The context; it gives the share that was cut, more than asked for where more is zero.
        """
        if self._cutting is None:
            raise ValueError(f"{type(self).__name__} does not cut networks.")
        return self._cutting.recut(pl_module, share)

    def settle(self) -> None:
        """Let the module hold for good what this callback has made sparse."""

    def cut_state(self) -> dict[str, Any]:
        """What a checkpoint needs to know of the cut."""
        return {} if self._cutting is None else {"cut": self._cutting.state()}

    def settings(self) -> dict[str, str]:
        """What the report of a cut says of the arguments."""
        names = ("penalty", "lam", "beta", "select", "groups", "update")
        return {name: str(getattr(self, name)) for name in names if hasattr(self, name)}

    def _active(self, trainer: pl.Trainer) -> Cutting | None:
        """What cuts, if it is this callback that does."""
        return self._cutting if cutter(trainer) is self else None

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Make checkpoints of either shape fit."""
        if (cutting := self._active(trainer)) is not None:
            cutting.attach(pl_module)

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave nothing behind."""
        if (cutting := self._active(trainer)) is not None:
            cutting.detach(pl_module)

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember what the network is called with, unless it is cut already."""
        if (cutting := self._active(trainer)) is not None and not self.is_over(pl_module):
            cutting.begin(pl_module)

    @override
    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """After the first batch: make sure that the network can be cut and its files written."""
        if self._cutting is None:
            return
        try:
            self._cutting.check(trainer, pl_module)
        except (ValueError, RuntimeError) as error:
            if self._cutting.amount is not None:
                raise
            raise same_kind(error, f"{error} Training without a cut: cut=False.") from error

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Cut; the module then holds the slim network."""
        if self._cutting is None or not self._cutting.begun:
            return
        for callback in _cut_callbacks(trainer):
            callback.settle()
        self._cutting.cut(trainer, pl_module, self.settings())


def cuts_by_default(groups: Groups, cut: bool | None) -> bool:
    """Whether to cut: by default where whole channels become zero."""
    return groups != "entries" if cut is None else cut


def cutter(trainer: pl.Trainer) -> CutCallback | None:
    """The callback of a Trainer that cuts."""
    able = [(c, c._cutting) for c in _cut_callbacks(trainer) if c._cutting is not None]
    claims = [(x.amount is not None, x.dirpath is not None) for _, x in able]
    return able[claims.index(max(claims))][0] if able else None


def is_slim(trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
    """Whether the module holds a slim network that a callback of the Trainer has cut."""
    return any(callback.is_over(pl_module) for callback in _cut_callbacks(trainer))


def _cut_callbacks(trainer: pl.Trainer) -> Iterator[CutCallback]:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return (callback for callback in callbacks if isinstance(callback, CutCallback))
