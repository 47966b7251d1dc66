"""What every penalty can do: a value, a subgradient and a proximal operator."""

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor

Acts = Literal["entries", "rows", "tensor"]


class Penalty(ABC):
    r"""A penalty $r$ of unit strength: its weight `lam` stays with the caller.

    The public methods check what comes in and choose the precision, once for all penalties; a
    penalty itself is a frozen dataclass that fills in `_value`, `_slope` and `_prox`.

    `acts` says what the penalty is a function of: single `"entries"` (any shape will do), the
    `"rows"` of a matrix `(G, M)` with one row per group, or a whole `"tensor"` at once.

    Shape:
        `x` has any shape, except for penalties on rows, which take `(G, M)`.
    """

    acts: ClassVar[Acts] = "entries"

    def value(self, x: Tensor) -> Tensor:
        """The penalty `r(x)`, a scalar for autograd too (float32 for half precision)."""
        self._check(x)
        return self._value(_not_half(x))

    @property
    def has_metric_prox(self) -> bool:
        """Whether `prox` and `shrinkage` take one step per entry as well."""
        return False

    @torch.no_grad()
    def subgradient(self, x: Tensor) -> Tensor:
        """One subgradient of `r` at `x`: finite everywhere, and zero where `x` is zero.

        Computed in the precision of `x` (float32 for half precision): it runs at every step.
        """
        self._check(x)
        largest = torch.finfo(x.dtype).max
        return self._slope(_not_half(x)).clamp(-largest, largest).to(x.dtype)

    @torch.no_grad()
    def prox(self, x: Tensor, step: float | Tensor) -> Tensor:
        r"""The proximal operator: where a step of size `step` against the penalty leads from `x`.

        $$ \operatorname{prox}(x) = \arg\min_u \; r(u) + \tfrac12 \sum_i
           \frac{(u_i - x_i)^2}{\text{step}_i} $$

        Right for every `step`, also where the problem is not convex. A tensor has one step per
        entry, as adaptive optimizers take them: `lr * lam / (sqrt(v) + eps)` for Adam. Computed in
        float64 and rounded once to the type of `x` (float32 where a device has no float64). NaN
        stays NaN.

        Args:
            x: Where to start.
            step: Weight of the penalty, at least 0 (in relaxed splitting: `lam / beta`), or a
                tensor of the shape of `x` of such weights, all above 0.

        Returns:
            A new tensor with the shape, dtype and device of `x`.

        Raises:
            ValueError: If a number `step` is negative or not finite, if a tensor `step` has an
                entry that is not above 0 and finite, or another shape or device than `x`, if the
                prox is not known exactly for this combination of penalties or with one step per
                entry, if `x` is no matrix where rows are needed, or holds no floating point
                numbers.
        """
        self._check(x)
        if isinstance(step, Tensor):
            self._check_steps(x, step)
            bad = step[~((step > 0) & step.isfinite())]
            if bad.numel():
                raise ValueError(
                    f"{type(self).__name__}.prox needs finite steps > 0, got step={bad[0].item()}."
                )
            return self._prox(_wide(x), _wide(step)).to(x.dtype) if x.numel() else x.clone()
        if not (step >= 0 and math.isfinite(step)):
            raise ValueError(
                f"{type(self).__name__}.prox needs a finite step >= 0, got step={step}."
            )
        if step == 0 or x.numel() == 0:
            return x.clone()
        return self._prox(_wide(x), step).to(x.dtype)

    @torch.no_grad()
    def shrinkage(self, x: Tensor, step: float | Tensor) -> Tensor:
        """What the proximal operator takes away, `x - prox(x, step)`, in the precision of `x`.

        The fast way for training, where it is only subtracted; `prox` is the accurate one. With one
        step per entry, half precision is computed in float32, and the steps are not looked at: they
        must be above 0 and finite.

        Args:
            x: Where to start.
            step: As in `prox`.

        Returns:
            A new tensor with the shape, dtype and device of `x`.

        Raises:
            ValueError: As in `prox`, but for the range of `step`.
        """
        self._check(x)
        if isinstance(step, Tensor):
            self._check_steps(x, step)
            wide = _not_half(x)
            return (
                self._shrinkage(wide, step.to(wide.dtype)).to(x.dtype) if x.numel() else x.clone()
            )
        return self._shrinkage(x, step) if step > 0 else torch.zeros_like(x)

    def at(self, progress: float) -> "Penalty":
        """The penalty at a share of the training that is over, in [0, 1]; most never change."""
        return self

    @abstractmethod
    def _value(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _slope(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _prox(self, x: Tensor, step: float | Tensor) -> Tensor: ...

    @abstractmethod
    def _shrinkage(self, x: Tensor, step: float | Tensor) -> Tensor: ...

    def _check(self, x: Tensor) -> None:
        if not x.is_floating_point():
            raise ValueError(f"{type(self).__name__} needs floating point numbers, got {x.dtype}.")
        if self.acts == "rows" and x.dim() != 2:
            raise ValueError(
                f"{type(self).__name__} acts on rows: it needs a matrix (groups, entries), "
                f"got shape {tuple(x.shape)}. selection.rows(weight, groups) makes one."
            )

    def _check_steps(self, x: Tensor, step: Tensor) -> None:
        if not self.has_metric_prox:
            raise ValueError(
                f"{self!r} has no exact prox with one step per entry; "
                "use SGD, update='subgradient', or RelaxedVariableSplitting."
            )
        if not step.is_floating_point() or (step.shape, step.device) != (x.shape, x.device):
            raise ValueError(
                f"{type(self).__name__} needs a number as step, or floating point numbers of the "
                f"shape {tuple(x.shape)} of x on {x.device}, "
                f"got {step.dtype} of shape {tuple(step.shape)} on {step.device}."
            )


def _not_half(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _wide(x: Tensor) -> Tensor:
    """`x` in float64, or in float32 on the one device that lacks float64."""
    return x.float() if x.device.type == "mps" else x.double()
