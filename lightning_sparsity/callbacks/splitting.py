"""Relaxed variable splitting as a Lightning callback."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from lightning_sparsity import splitting
from lightning_sparsity.callbacks.arguments import (
    check_flag,
    check_penalty,
    check_strength_kind,
)
from lightning_sparsity.callbacks.conditions import (
    check_end,
    check_order,
    check_rates,
    progress,
    warn_of_death,
)
from lightning_sparsity.callbacks.copies import Copies, SplitCallback, figures
from lightning_sparsity.callbacks.cut_callback import CutCallback, cuts_by_default, is_slim
from lightning_sparsity.callbacks.cutting import Cutting
from lightning_sparsity.groups import Groups, check_fit
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

# Compiling takes seconds and saves up to a nanosecond per weight and step: it pays from here on.
_WORTH_COMPILING = 2e10


class RelaxedVariableSplitting(CutCallback, SplitCallback):
    r"""Train weights sparse by splitting them: $w$ learns, its copy $u$ is sparse.

    $$ \min_{w, u} \; f(w) + \lambda\, r(u) + \tfrac{\beta}{2} \|w - u\|^2, \qquad u =
       \operatorname{prox}_{(\lambda / \beta) r}(w), \qquad \nabla_w \mathrel{+}= \beta (w - u) $$

    Once per optimizer step, after gradients are accumulated and unscaled and before they are
    clipped. Nothing is stored: $u$ is a function of $w$. Validation, testing and prediction see
    $u$; so does every checkpoint (`load_from_checkpoint` gives the sparse network), which keeps $w$
    beside it so that a resumed run goes on exactly. When training ends, $u$ takes the place of $w$:
    exact zeros.

    Args:
        penalty: The penalty $r$, for example `L0()` or `TransformedL1(1.0)`.
        lam: The weight $\lambda \ge 0$ of the penalty, a number or a schedule. What vanishes
            depends on `lam / beta` alone: for l0, entries up to $\sqrt{2 \lambda / \beta}$ do.
        beta: The coupling $\beta > 0$, a number or a schedule. With a learning rate $\eta$ keep
            $\eta \beta$ well below 2.
        select: Which weights: a name pattern, several, or a `Select`. Default: all convolutions and
            linear layers.
        groups: `"entries"`, or for penalties on rows `"output_channels"` or `"input_channels"`.
        update: `"gradient"` adds the pull to the gradient (the papers; momentum and clipping see
            it). `"decoupled"` moves the weights after the step, as AdamW does with weight decay,
            $w \mathrel{-}= \eta \beta (w - u)$: right for adaptive optimizers.
        compiled: Run the step as one compiled kernel. `"auto"`: for penalties on entries in runs
            long enough to earn the compile time back.
        cut: Whether what is zero then leaves the network: whole rows and columns of weights. The
            module holds the slim network, and the folder `slim` its files, as for
            `NetworkSlimming`. Default: for groups of channels yes, for entries no.

    Raises:
        ValueError: Before training, if a number is out of range, a pattern matches nothing, the
            penalty does not fit the groups, or a weight is not finite.

    Example:
        ```python
        Trainer(callbacks=[RelaxedVariableSplitting(L0(), lam=1e-6, beta=1e-2, select="fc")])
        ```

    Reference: F. Xue, J. Xin, Learning sparse neural networks via l0 and Tl1 by a relaxed variable
        splitting method with application to multi-scale curve classification, 2019,
        arXiv:1902.07419.
    """

    def __init__(
        self,
        penalty: Penalty,
        lam: float | Schedule = 1e-6,
        beta: float | Schedule = 1e-2,
        *,
        select: str | Sequence[str] | Select = Select(),  # noqa: B008 - frozen
        groups: Groups = "entries",
        update: Literal["gradient", "decoupled"] = "gradient",
        compiled: bool | Literal["auto"] = "auto",
        cut: bool | None = None,
    ) -> None:
        check_penalty(penalty, number="lam")
        check_strength_kind("lam", lam)
        check_strength_kind("beta", beta)
        check_flag("compiled", compiled, also=("auto",))
        check_flag("cut", cut, also=(None,))
        splitting.check_strengths(at(lam, 0), at(beta, 0))
        check_fit(penalty, groups)
        penalty.prox(torch.ones(1, 1), 1.0)  # a combination without an exact prox says so here
        if update not in ("gradient", "decoupled"):
            raise ValueError(f"update must be 'gradient' or 'decoupled', got {update!r}.")
        self.penalty = penalty
        self.lam = lam
        self.beta = beta
        self.select = select
        self.groups: Groups = groups
        self.update = update
        self.compiled = compiled
        self._cutting = Cutting(self, None) if cuts_by_default(groups, cut) else None
        self._copies = Copies(self, self._make_copies)
        self._handles: list[RemovableHandle] = []
        self._step: float | None = None  # lam / beta of the last update; None if never trained
        self._progress = 0.0  # share of the training that was over then
        self._use_kernel = False

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(
            penalty=repr(self.penalty), select=repr(self.select), groups=self.groups
        )

    @property
    def weights(self) -> list[Selected]:
        """The selected weights, known from the start of training on."""
        return self._copies.weights

    @property
    def _penalty(self) -> Penalty:
        """The penalty as it is at this point of the training."""
        return self.penalty.at(self._progress)

    @property
    def label(self) -> str:
        """What figures end in whose plain name another callback has."""
        return label("splitting", self.select)

    def acts_on(self) -> tuple[str, list[str]]:
        """What the histograms show: of what, and the names of the parameters."""
        return "weights", [s.name for s in self.weights]

    def measurements(self, trainer: pl.Trainer) -> dict[str, Tensor]:
        """Sparsity, penalty, gap and strengths of the current split, as scalars."""
        if not self.weights:
            return {}
        lam, beta = self.strengths(trainer)
        parts = [
            splitting.measure(s.weight.detach(), self._penalty, lam / beta, axis=s.axis)
            for s in self.weights
        ]
        return figures(parts, lam, beta)

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Make `state_dict` give `u`, and take note when weights are loaded."""
        check_order(self, trainer)
        self.teardown(trainer, pl_module, stage)  # what an interrupted run has left
        self._copies.attach(pl_module)
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._step = None

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave nothing behind."""
        self._copies.detach()
        super().teardown(trainer, pl_module, stage)
        while self._handles:
            self._handles.pop().remove()

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the weights, check them, and start from `w`; none if their channels are cut."""
        self._copies.start([])
        if self.groups != "entries" and is_slim(trainer, pl_module):
            return
        super().on_fit_start(trainer, pl_module)
        self._copies.start(select_weights(pl_module, self.select, self.groups))
        check_finite(self.weights)
        lam, beta = self.strengths(trainer)
        check_end(self, trainer, self.penalty)
        if self._step is None:  # else a checkpoint knows: the epoch is not restored yet
            self._step = lam / beta
        if self.update == "decoupled":
            for optimizer in trainer.optimizers:
                groups = [group for group in optimizer.param_groups if owned(self.weights, [group])]
                check_rates((float(group["lr"]) for group in groups), beta)
                move = partial(self._move_weights, trainer)
                self._handles.append(optimizer.register_step_post_hook(move))

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compile the kernel now, where that pays, so that no step is a slow one."""
        lam, beta = self.strengths(trainer)
        entries = sum(s.weight.numel() for s in self.weights)
        worth = entries * trainer.estimated_stepping_batches >= _WORTH_COMPILING
        wanted = worth if self.compiled == "auto" else self.compiled
        if not self.weights:
            return
        largest = max((s.weight.detach() for s in self.weights), key=Tensor.numel)
        step = lam / beta or 1e-6  # a schedule may begin at zero
        in_place = self.update == "decoupled"
        self._use_kernel = bool(wanted) and splitting.compiles(
            largest, self.penalty, step, in_place=in_place
        )

    @override
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Add `beta * (w - u)` to the gradients of the weights that `optimizer` owns."""
        lam, beta = self.strengths(trainer)
        self._step, self._progress = lam / beta, progress(trainer)
        if self.update == "gradient":
            for s in owned(self.weights, optimizer.param_groups):
                if s.weight.grad is not None:
                    self._pull(s, s.weight.grad, beta)

    @torch.no_grad()
    def _move_weights(self, trainer: pl.Trainer, optimizer: Optimizer, *_: object) -> None:
        """The decoupled update `w -= lr * beta * (w - u)`, run after a step that took place."""
        beta = self.strengths(trainer)[1]
        for group in optimizer.param_groups:
            for s in owned(self.weights, [group]):
                self._pull(s, s.weight, -min(1.0, float(group["lr"]) * beta))

    def _pull(self, s: Selected, target: Tensor, scale: float) -> None:
        assert self._step is not None
        weight = s.weight.detach()
        target = weight if target is s.weight else target.detach()
        pull = partial(splitting.pull, axis=s.axis, compiled=self._use_kernel)
        pull(weight, target, self._penalty, self._step, scale)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say which weights have no channel left in their copy."""
        lam, beta = self.strengths(trainer)
        for s in self.weights:
            if s.axis is not None:
                weight = s.weight.detach()
                found = splitting.measure(weight, self._penalty, lam / beta, axis=s.axis)
                if int(found.zeros) == found.entries:
                    warn_of_death(self, lam, self.groups, s.name)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the sparse copy take the place of the weights; what is saved now holds both.

        After a cut the module holds the slim network, and nothing else.
        """
        super().on_train_end(trainer, pl_module)
        self._copies.hold()

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """For good, also where there was nothing left to train."""
        self.settle()

    @override
    def settle(self) -> None:
        """Let the module hold the sparse copy for good; there is no way back to `w`."""
        self._copies.settle()

    def _make_copies(self, weights: Sequence[Selected]) -> Iterator[Tensor]:
        assert self._step is not None
        for s in weights:
            yield splitting.split(s.weight.detach(), self._penalty, self._step, axis=s.axis)

    @override
    def state_dict(self) -> dict[str, Any]:
        weights = self._copies.state()
        return {
            "step": self._step,
            "progress": self._progress,
            "weights": weights,
            **self.cut_state(),
        }

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put `w` back into the module when training is resumed."""
        state = checkpoint["callbacks"].get(self.state_key)
        if state is not None and trainer.state.fn == TrainerFn.FITTING:
            self._copies.load(pl_module, state["weights"])
            self._step, self._progress = state["step"], state.get("progress", 0.0)
