"""Network slimming as a Lightning callback."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from lightning_sparsity import amounts, slimming
from lightning_sparsity.callbacks.arguments import check_ball, check_penalty, check_strength_kind
from lightning_sparsity.callbacks.conditions import check_end, check_order, check_whole, progress
from lightning_sparsity.callbacks.copies import Copies, SplitCallback, figures
from lightning_sparsity.callbacks.cut_callback import CutCallback
from lightning_sparsity.callbacks.cutting import Cutting
from lightning_sparsity.penalties import Penalty
from lightning_sparsity.schedules import Schedule, at
from lightning_sparsity.selection import Select, Selected, check_finite, owned, select_weights
from lightning_sparsity.splitting import check_strengths
from lightning_sparsity.surgery import Budget
from lightning_sparsity.surgery.budget import budget_of

SCALES = Select(types=("BatchNorm", "SyncBatchNorm"))


class NetworkSlimming(CutCallback, SplitCallback):
    r"""Train the scales of BatchNorm sparse, then cut their channels out of the network.

    $$ \min_{W, \gamma} \; f(W, \gamma) + \lambda\, r(\gamma) $$

    over the scales $\gamma$ of all BatchNorm layers. When training ends, the channels with the
    smallest scales of the whole network leave it, exactly: the slim network computes what the one
    with these scales at zero does. The module then holds the slim network, and the folder `slim`
    has `plan.json` and `model.safetensors` (for `surgery.load`) and `report.json`. Checkpoints
    written before stay dense; with this callback in the Trainer both kinds load. A further `fit` of
    the slim network with the same callback fine-tunes it, without penalty and without another cut.

    Args:
        penalty: The penalty $r$ of all scales as one vector. Default: `L0Ball` of the share that
            `amount` names, without a weight to tune; `TransformedL1(1.0)` for other budgets.
        lam: Its weight $\lambda \ge 0$, a number or a schedule. Any above 0 will do for `L0Ball`.
        amount: The fraction of all BatchNorm channels to remove, in (0, 1), or a budget:
            `Flops(keep)`, `Params(keep)`, `Threshold(at)`, as an object or as text such as
            `"Flops(0.5)"`; `"zeros"`: what is exactly zero and nothing else. Where at least this
            fraction of the scales is exactly zero after training, exactly those are removed. A
            budget or a `Share` with `round_to=8` leaves widths that are multiples of 8.
        update: `"subgradient"` adds $\lambda r'(\gamma)$ to the gradient (the papers).
            `"splitting"` pulls the scales towards their sparse copy: relaxed variable splitting,
            with evaluations and checkpoints holding the copy. `"proximal"` takes a proximal step on
            such a copy after the optimizer's step (proximal network slimming). Default: splitting
            for `L0Ball`, subgradient for others.
        beta: The coupling $\beta > 0$ of scales and copies, a number or a schedule. Default: 3
            for splitting, 100 for proximal. With SGD keep the learning rate times it below 1.
        gather: Whether layers may pick their inputs, so that every dead channel goes: see
            `ChannelFlow.plan`.
        compensate: What makes up for channels that are cut although their scale is not zero. Their
            `"shift"` stays, or their `"mean"` activation, or their shift with new `"statistics"`:
            all running means and variances estimated anew. The last two take the last batches of
            the training, up to 32 in 256 MB.
        dirpath: Where the folder `slim` goes. Default: the folder of the logger.

    Raises:
        ValueError: If an argument is out of range or has no meaning for `update`; when training
            starts, if there is no BatchNorm with scales; after the first batch, when a cut is tried
            on a copy, if the network cannot be traced or the budget cannot be met.
        RuntimeError: After the first batch, if that cut fails the equivalence check.
        OSError: After the first batch, if its files cannot be written.
        MisconfigurationException: If another callback or the strategy works against it.

    Example:
        ```python
        from lightning.pytorch import Trainer
        from lightning_sparsity import NetworkSlimming
        from lightning_sparsity.penalties import TransformedL1

        Trainer(callbacks=[NetworkSlimming(amount=0.5)])
        Trainer(callbacks=[NetworkSlimming(TransformedL1(1.0), lam=1e-4, amount=0.5)])
        ```

    Reference: Z. Liu et al., Learning efficient convolutional networks through network slimming,
        ICCV 2017. K. Bui, F. Park, S. Zhang, Y. Qi, J. Xin, Improving network slimming with
        nonconvex regularization, IEEE Access 9, 2021. K. Bui et al., A proximal algorithm for
        network slimming, 2023, arXiv:2307.00684.
    """

    def __init__(
        self,
        penalty: Penalty | None = None,
        lam: float | Schedule = 1e-4,
        *,
        amount: float | Budget | str = 0.5,
        update: slimming.Update | None = None,
        beta: float | Schedule | None = None,
        gather: bool = True,
        compensate: slimming.Compensate = "shift",
        dirpath: str | None = None,
    ) -> None:
        if amount is None:
            raise ValueError(
                "NetworkSlimming needs an amount, got amount=None: for what is exactly zero, and "
                'nothing else, write amount="zeros".'
            )
        how_much = amounts.parse(amount)
        budget = None if how_much is None else budget_of(how_much)
        self.penalty = slimming.default_penalty(how_much) if penalty is None else penalty
        check_penalty(self.penalty, number="amount")
        check_strength_kind("lam", lam)
        check_strength_kind("beta", 1.0 if beta is None else beta)
        if budget is not None:
            check_ball(self.penalty, budget)
        self.update = slimming.default_update(self.penalty) if update is None else update
        slimming.check(self.penalty, self.update, coupled=beta is not None)
        self.lam = lam
        self.beta = slimming.BETA[self.update] if beta is None else beta
        check_strengths(at(lam, 0), at(self.beta, 0))
        self._cutting = Cutting(
            self, how_much, gather=gather, compensate=compensate, dirpath=dirpath
        )
        self._copies = Copies(self, self._make_copies)
        self._scales: list[Selected] = []  # empty once they are cut
        self._proximal: list[Tensor] = []  # the copies of the proximal update
        self._step = 0.0  # lam / beta of the last update
        self._progress = 0.0  # share of the training that was over then
        self._handles: list[RemovableHandle] = []

    @property
    def label(self) -> str:
        """What figures end in whose plain name another callback has."""
        return "scales"

    def acts_on(self) -> tuple[str, list[str]]:
        """What the histograms show: of what, and the names of the parameters."""
        return "BatchNorm scales", [s.name for s in self._scales]

    def measurements(self, trainer: pl.Trainer) -> dict[str, Tensor]:
        """Share of scales (or of their copies) that are exactly zero, penalty and strengths."""
        if not self._scales:
            return {}
        lam, beta = self.strengths(trainer)
        scales = [s.weight for s in self._scales]
        copies = scales if self.update == "subgradient" else self._make_copies(self._scales)
        found = slimming.measure(scales, copies, self.penalty)
        return figures([found], lam, beta)

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Make checkpoints of either shape fit, and hold the copies."""
        check_order(self, trainer)
        self.teardown(trainer, pl_module, stage)  # what an interrupted run has left
        if stage == "fit":
            self._proximal = []
        self._copies.attach(pl_module)
        super().setup(trainer, pl_module, stage)

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave nothing behind."""
        self._copies.detach()
        super().teardown(trainer, pl_module, stage)
        while self._handles:
            self._handles.pop().remove()

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the scales; none if they are cut already."""
        self._scales = []
        if self.is_over(pl_module):
            return
        check_end(self, trainer, self.penalty)
        self._scales = select_weights(pl_module, SCALES)
        check_finite(self._scales)
        check_whole(self, self._scales)
        super().on_fit_start(trainer, pl_module)
        if self.update == "subgradient":
            return
        self._copies.start(self._scales)
        if self.update == "proximal":
            begin = self._proximal or [s.weight.detach().clone() for s in self._scales]
            self._proximal = [x.to(pl_module.device) for x in begin]
            for optimizer in trainer.optimizers:
                move = partial(self._take_proximal_step, trainer)
                self._handles.append(optimizer.register_step_post_hook(move))

    @override
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Add the penalty's part to the gradients of the scales that `optimizer` owns."""
        lam, beta = self.strengths(trainer)
        self._step, self._progress = lam / beta, progress(trainer)
        places = self._places(optimizer.param_groups)
        scales = [self._scales[i].weight for i in places]
        if places and self.update == "subgradient":
            slimming.push(scales, self.penalty, lam)
        elif places and self.update == "splitting":
            copies = self._make_copies(self._scales)
            slimming.pull(scales, [copies[i] for i in places], beta)

    def _places(self, param_groups: Iterable[Mapping[str, Any]]) -> list[int]:
        """Which of the scales are in parameter groups."""
        mine = {s.name for s in owned(self._scales, param_groups)}
        return [i for i, s in enumerate(self._scales) if s.name in mine]

    def _take_proximal_step(self, trainer: pl.Trainer, optimizer: Optimizer, *_: object) -> None:
        """The proximal step, run after an optimizer's step that took place."""
        lam, beta = self.strengths(trainer)
        for group in optimizer.param_groups:
            if places := self._places([group]):
                slimming.proximal_step(
                    [self._scales[i].weight for i in places],
                    [self._proximal[i] for i in places],
                    self.penalty.at(self._progress),
                    lam=lam,
                    beta=beta,
                    rate=float(group["lr"]),
                )

    def _make_copies(self, scales: Sequence[Selected]) -> list[Tensor]:
        if self.update == "proximal":
            return self._proximal
        weights = [s.weight.detach() for s in scales]
        return slimming.split(weights, self.penalty.at(self._progress), self._step)

    @override
    def settle(self) -> None:
        """Let the module hold the copies of the scales for good."""
        self._copies.settle()

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Cut; the module then holds the slim network."""
        super().on_train_end(trainer, pl_module)
        self._copies.start([])
        self._scales, self._proximal = [], []

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self._step,
            "progress": self._progress,
            "weights": self._copies.state(),
            "copies": list(self._proximal),
            **self.cut_state(),
        }

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the scales back when training is resumed."""
        state = checkpoint["callbacks"].get(self.state_key)
        if state is not None and trainer.state.fn == TrainerFn.FITTING:
            self._copies.load(pl_module, state["weights"])
            self._step, self._progress = state["step"], state["progress"]
            self._proximal = list(state["copies"])
