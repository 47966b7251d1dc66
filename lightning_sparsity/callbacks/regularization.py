"""Any penalty on any weights as a Lightning callback."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from lightning_sparsity import regularization
from lightning_sparsity.callbacks.arguments import (
    check_flag,
    check_penalty,
    check_strength_kind,
)
from lightning_sparsity.callbacks.conditions import (
    check_end,
    check_order,
    check_whole,
    epoch,
    progress,
    warn_of_death,
)
from lightning_sparsity.callbacks.cut_callback import CutCallback, cuts_by_default, is_slim
from lightning_sparsity.callbacks.cutting import Cutting
from lightning_sparsity.groups import Groups, check_fit, groups_first
from lightning_sparsity.penalties import Penalty
from lightning_sparsity.schedules import Schedule, at
from lightning_sparsity.selection import (
    Select,
    Selected,
    check_finite,
    label,
    owned,
    select_weights,
)


class Regularization(CutCallback):
    r"""Add a penalty on weights to the objective, and cut the channels that it makes zero.

    $$ \min_w \; f(w) + \lambda\, r(w) $$

    Once per optimizer step. Several of these, and the other callbacks of this package, work side by
    side: `Regularization(GroupLasso(weighted=True), groups="output_channels")` next to
    `RelaxedVariableSplitting(TransformedL1(1.0))` is the nonconvex sparse group lasso. When
    training ends, rows and columns of weights that are zero leave the network, exactly: a channel
    without weights is a constant, which moves into the layers that read it.

    Args:
        penalty: The penalty $r$, for example `GroupLasso(weighted=True)`.
        lam: Its weight $\lambda \ge 0$, a number or a schedule.
        select: Which weights: a name pattern, several, or a `Select`. Default: all convolutions and
            linear layers.
        groups: `"entries"`, or for penalties on rows `"output_channels"` or `"input_channels"`.
        update: `"subgradient"` adds $\lambda r'(w)$ to the gradient (the papers; momentum and
            clipping see it; weights come close to zero and not there). `"proximal"` lets the
            weights take a proximal step after the optimizer's, in the optimizer's own metric: exact
            zeros. It needs SGD, Adam or AdamW. With both, and every optimizer, $\lambda$ is that of
            the objective above: `lam` carries over.
        cut: Whether what is zero then leaves the network; the module holds the slim network, and
            the folder `slim` its files, as for `NetworkSlimming`. A channel counts as zero whose
            entries have a mean magnitude of at most 1e-5 (the papers' rule): subgradients come no
            closer, and after proximal steps the noise of the last gradients has moved some off
            zero. Default: for groups of channels yes, for entries no.
        dirpath: Where the folder `slim` goes. Default: the folder of the logger.

    Raises:
        ValueError: Before training, if a number is out of range, a pattern matches nothing, the
            penalty does not fit the groups or the update, a weight is not finite, or the metric of
            an optimizer is not known.

    Example:
        ```python
        from lightning.pytorch import Trainer
        from lightning_sparsity import Regularization
        from lightning_sparsity.penalties import GroupLasso

        lasso = Regularization(
            GroupLasso(weighted=True), 1e-4, groups="output_channels", update="proximal"
        )
        Trainer(callbacks=[lasso])
        ```

    Reference: K. Bui, F. Park, S. Zhang, Y. Qi, J. Xin, Structured sparsity of convolutional neural
        networks via nonconvex sparse group regularization, Front. Appl. Math. Stat. 6, 2021. J.
        Yun, A. Lozano, E. Yang, Adaptive proximal gradient methods for structured neural networks,
        NeurIPS 2021.
    """

    def __init__(
        self,
        penalty: Penalty,
        lam: float | Schedule = 1e-4,
        *,
        select: str | Sequence[str] | Select = Select(),  # noqa: B008 - frozen
        groups: Groups = "entries",
        update: regularization.Update = "subgradient",
        cut: bool | None = None,
        dirpath: str | None = None,
    ) -> None:
        check_penalty(penalty, number="lam")
        check_strength_kind("lam", lam)
        check_flag("cut", cut, also=(None,))
        regularization.check_strength(at(lam, 0))
        check_fit(penalty, groups)
        regularization.check(penalty, update)
        self.penalty = penalty
        self.lam = lam
        self.select = select
        self.groups: Groups = groups
        self.update = update
        self.weights: list[Selected] = []
        """The selected weights, known from the start of training on."""
        cuts = cuts_by_default(groups, cut)
        self._cutting = Cutting(self, None, dirpath=dirpath) if cuts else None
        self._handles: list[RemovableHandle] = []
        self._progress = 0.0  # share of the training that was over at the last step
        self._dead: dict[str, Tensor] = {}  # by weight, whether the last step left nothing of it

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(
            penalty=repr(self.penalty), select=repr(self.select), groups=self.groups
        )

    def strength(self, trainer: pl.Trainer) -> float:
        """The weight of the penalty now; a schedule sees the fraction of the epoch that is over."""
        lam = at(self.lam, epoch(trainer))
        regularization.check_strength(lam)
        return lam

    @property
    def label(self) -> str:
        """What figures end in whose plain name another callback has."""
        return label("regularization", self.select)

    def acts_on(self) -> tuple[str, list[str]]:
        """What the histograms show: of what, and the names of the parameters."""
        return "weights", [s.name for s in self.weights]

    def measurements(self, trainer: pl.Trainer) -> dict[str, Tensor]:
        """Share of entries that are zero, penalty and strength, as scalars."""
        if not self.weights:
            return {}
        lam = self.strength(trainer)
        penalty = self.penalty.at(self._progress)
        parts = [
            regularization.measure(s.weight.detach(), penalty, axis=s.axis) for s in self.weights
        ]
        return {
            "sparsity": torch.stack([p.zeros for p in parts]).sum() / sum(p.entries for p in parts),
            "penalty": lam * torch.stack([p.penalty for p in parts]).sum(),
            "lam": torch.tensor(lam),
        }

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Make checkpoints of either shape fit."""
        check_order(self, trainer)
        self.teardown(trainer, pl_module, stage)  # what an interrupted run has left
        super().setup(trainer, pl_module, stage)

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave nothing behind."""
        super().teardown(trainer, pl_module, stage)
        while self._handles:
            self._handles.pop().remove()

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the weights and check them; none if their channels are cut already."""
        self.weights, self._dead = [], {}
        if self.groups != "entries" and is_slim(trainer, pl_module):
            return
        super().on_fit_start(trainer, pl_module)
        self.weights = select_weights(pl_module, self.select, self.groups)
        check_whole(self, self.weights)
        check_finite(self.weights)
        check_end(self, trainer, self.penalty)
        if self.update == "proximal":
            for optimizer in trainer.optimizers:
                if owned(self.weights, optimizer.param_groups):
                    regularization.check_optimizer(optimizer, self.penalty)
                    move = partial(self._take_proximal_step, trainer)
                    self._handles.append(optimizer.register_step_post_hook(move))

    @override
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Add the subgradient to the gradients of the weights that `optimizer` owns."""
        self._progress = progress(trainer)
        if self.update == "subgradient":
            lam = self.strength(trainer)
            penalty = self.penalty.at(self._progress)
            for s in owned(self.weights, optimizer.param_groups):
                if s.weight.grad is not None:
                    target = s.weight.grad.detach()
                    regularization.push(s.weight.detach(), target, penalty, lam, axis=s.axis)

    def _take_proximal_step(self, trainer: pl.Trainer, optimizer: Optimizer, *_: object) -> None:
        """The proximal step, run after an optimizer's step that took place."""
        lam = self.strength(trainer)
        penalty = self.penalty.at(self._progress)
        for group in optimizer.param_groups:
            for s in owned(self.weights, [group]):
                if s.weight.grad is not None:
                    self._dead[s.name] = regularization.proximal_step(
                        s.weight.detach(),
                        penalty,
                        regularization.rate_of(optimizer, group) * lam,
                        metric=regularization.metric_of(optimizer, group, s.weight),
                        axis=s.axis,
                    )

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say which weights the penalty has wiped out."""
        for name in [name for name, dead in self._dead.items() if bool(dead)]:
            warn_of_death(self, self.strength(trainer), self.groups, name)

    @torch.no_grad()
    @override
    def settle(self) -> None:
        """Let channels be zero that the penalty has brought close to it."""
        for s in self.weights:
            if s.axis is not None:
                tiny = regularization.tiny_groups(s.weight.detach(), s.axis)
                groups_first(s.weight, s.axis)[tiny] = 0.0

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Cut; the module then holds the slim network."""
        super().on_train_end(trainer, pl_module)
        if is_slim(trainer, pl_module):
            self.weights = []

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"progress": self._progress, **self.cut_state()}

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on where the penalty was when training is resumed."""
        state = checkpoint["callbacks"].get(self.state_key)
        if state is not None and trainer.state.fn == TrainerFn.FITTING:
            self._progress = state["progress"]
