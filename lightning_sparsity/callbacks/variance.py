"""Variance guidance as a Lightning callback."""

from collections.abc import Sequence

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_sparsity import variance
from lightning_sparsity.callbacks.conditions import check_whole, epoch
from lightning_sparsity.callbacks.cut_callback import is_slim
from lightning_sparsity.groups import Groups, group_axis
from lightning_sparsity.schedules import Schedule, at
from lightning_sparsity.selection import (
    Select,
    Selected,
    check_finite,
    label,
    owned,
    select_weights,
)


class VarianceGuidance(Callback):
    r"""Spread the lengths of a layer's groups: most small, a few large.

    $$ \min_w \; f(w) + \lambda \sum_l R_l(w), \qquad R_l = \operatorname{KL}\bigl(p(s) \,\|\,
       p^*\bigr), \qquad s_g = \|w_g\|_2 / \sqrt{n_g} $$

    over the active groups of every layer $l$, with a target $p^*$ that is skewed. Groups that are
    zero stay out of it, so those that a sparse penalty has removed are not brought back. It makes
    no zeros of its own: give it beside a callback that does, in either order.

    Once per optimizer step its gradient is added, after gradients are accumulated and unscaled and
    before they are clipped. Nothing is stored. Once the network is cut there is nothing to guide.

    Args:
        lam: The weight $\lambda \ge 0$, a number or a schedule.
        target_cv: The coefficient of variation of the target, standard deviation over mean, above
            1 for a skewed one. A layer of $G$ groups cannot have more than $\sqrt{G - 1}$.
        select: Which weights: a name pattern, several, or a `Select`. Default: all convolutions and
            linear layers. Layers with a single group are left out.
        groups: `"output_channels"` or `"input_channels"`.
        version: `"moments"` compares Gamma laws of the same mean, a function of the coefficient of
            variation alone. `"histogram"` compares the lengths with a spike at zero and a slab.

    Raises:
        ValueError: If a number is out of range or `groups` are entries; before training, if a
            pattern matches nothing, no layer has two groups, or a weight is not finite.
        MisconfigurationException: If weights are sharded.

    Example:
        ```python
        from lightning_sparsity import RelaxedVariableSplitting, VarianceGuidance
        from lightning_sparsity.penalties import L0, Grouped

        sparse = RelaxedVariableSplitting(Grouped(L0()), 1e-3, 1.0, groups="output_channels")
        Trainer(callbacks=[sparse, VarianceGuidance(1e-2)])
        ```

    Reference: Variance-guided structured sparsity in deep neural networks, IEEE; the formula is our
        reading of its abstract.
    """

    def __init__(
        self,
        lam: float | Schedule,
        *,
        target_cv: float = 2.0,
        select: str | Sequence[str] | Select = Select(),  # noqa: B008 - frozen
        groups: Groups = "output_channels",
        version: variance.Version = "moments",
    ) -> None:
        variance.check(at(lam, 0), target_cv, version)
        if group_axis(groups) is None:
            raise ValueError(
                "VarianceGuidance needs groups of several weights, got groups='entries'. "
                "Choose groups='output_channels' or groups='input_channels'."
            )
        self.lam = lam
        self.target_cv = target_cv
        self.select = select
        self.groups: Groups = groups
        self.version = version
        self._weights: list[Selected] = []

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(
            select=repr(self.select), groups=self.groups, version=self.version
        )

    @property
    def label(self) -> str:
        """What figures end in whose plain name another callback has."""
        return label("variance", self.select)

    def acts_on(self) -> tuple[str, list[str]]:
        """What the histograms show: of what, and the names of the parameters."""
        return "weights", [s.name for s in self._weights]

    def measurements(self, trainer: pl.Trainer) -> dict[str, Tensor]:
        """Penalty, mean coefficient of variation of layers with two active groups, and `lam`."""
        if not self._weights:
            return {}
        lam = at(self.lam, epoch(trainer))
        lengths = [variance.lengths(s.weight.detach(), s.axis or 0) for s in self._weights]
        values = [
            float(variance.divergence(s, self.target_cv, version=self.version)) for s in lengths
        ]
        found = [variance.statistics(s) for s in lengths]
        cvs = [layer.cv for layer in found if layer.active > 1]
        return {
            "penalty": torch.tensor(lam * sum(values)),
            "cv": torch.tensor(sum(cvs) / max(1, len(cvs))),
            "lam": torch.tensor(lam),
        }

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the weights and check them; none if the network is cut already."""
        self._weights = []
        if is_slim(trainer, pl_module):
            return
        selected = select_weights(pl_module, self.select, self.groups)
        check_whole(self, selected)
        check_finite(selected)
        self._weights = [s for s in selected if s.weight.shape[s.axis or 0] > 1]
        if not self._weights:
            raise ValueError(
                f"VarianceGuidance needs a layer with at least two {self.groups}, got "
                f"{', '.join(s.name for s in selected)} with one. Select others."
            )

    @override
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Add the divergence's part to the gradients of the weights that `optimizer` owns."""
        lam = at(self.lam, epoch(trainer))
        for s in owned(self._weights, optimizer.param_groups):
            if s.weight.grad is not None:
                variance.push(
                    s.weight,
                    s.weight.grad,
                    lam,
                    target_cv=self.target_cv,
                    version=self.version,
                    axis=s.axis or 0,
                )
