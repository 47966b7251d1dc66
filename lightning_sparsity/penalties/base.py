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
        return self._value(x.float() if x.dtype in (torch.float16, torch.bfloat16) else x)

    @torch.no_grad()
    def subgradient(self, x: Tensor) -> Tensor:
        """One subgradient of `r` at `x`: finite everywhere, and zero where `x` is zero."""
        self._check(x)
        largest = torch.finfo(x.dtype).max
        return self._slope(_wide(x)).clamp(-largest, largest).to(x.dtype)

    @torch.no_grad()
    def prox(self, x: Tensor, step: float) -> Tensor:
        r"""The proximal operator: where a step of size `step` against the penalty leads from `x`.

        $$ \operatorname{prox}(x) = \arg\min_u \; \text{step} \cdot r(u) + \tfrac12 \|u - x\|^2 $$

        Right for every `step`, also where the problem is not convex. Computed in float64 and
        rounded once to the type of `x` (float32 where a device has no float64). NaN stays NaN.

        Args:
            x: Where to start.
            step: Weight of the penalty, at least 0 (in relaxed splitting: `lam / beta`).

        Returns:
            A new tensor with the shape, dtype and device of `x`.

        Raises:
            ValueError: If `step` is negative or not finite, if `x` is no matrix where rows are
                needed, or if the penalty is a combination whose prox is not known exactly.
        """
        self._check(x)
        if not (step >= 0 and math.isfinite(step)):
            raise ValueError(
                f"{type(self).__name__}.prox needs a finite step >= 0, got step={step}."
            )
        if step == 0 or x.numel() == 0:
            return x.clone()
        return self._prox(_wide(x), step).to(x.dtype)

    @torch.no_grad()
    def shrinkage(self, x: Tensor, step: float) -> Tensor:
        """What the proximal operator takes away, `x - prox(x, step)`, in the precision of `x`.

        The fast way for training, where it is only added to a gradient; `prox` is the accurate one.
        """
        self._check(x)
        return self._shrinkage(x, step) if step > 0 else torch.zeros_like(x)

    def at(self, progress: float) -> "Penalty":
        """The penalty at a share of the training that is over, in [0, 1]; most never change."""
        return self

    @abstractmethod
    def _value(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _slope(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _prox(self, x: Tensor, step: float) -> Tensor: ...

    @abstractmethod
    def _shrinkage(self, x: Tensor, step: float) -> Tensor: ...

    def _check(self, x: Tensor) -> None:
        if not x.is_floating_point():
            raise ValueError(f"{type(self).__name__} needs floating point numbers, got {x.dtype}.")
        if self.acts == "rows" and x.dim() != 2:
            raise ValueError(
                f"{type(self).__name__} acts on rows: it needs a matrix (groups, entries), "
                f"got shape {tuple(x.shape)}. selection.rows(weight, groups) makes one."
            )


def _wide(x: Tensor) -> Tensor:
    """`x` in float64, or in float32 on the one device that lacks float64."""
    return x.float() if x.device.type == "mps" else x.double()
