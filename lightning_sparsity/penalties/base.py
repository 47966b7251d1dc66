"""What every penalty can do: a value, a subgradient and a proximal operator."""

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor

Acts = Literal["entries", "rows", "tensor"]


class Penalty(ABC):
    r"""A penalty $r$ of unit strength: its weight `lam` stays with the caller.

    The classes below it are frozen dataclasses that fill in `_value`, `_slope` and `_prox`; the public methods
    check what comes in and choose the precision, once for all of them.

    `acts` says what the penalty is a function of: single `"entries"` (any shape will do), the `"rows"` of a
    matrix `(G, M)` with one row per group, or a whole `"tensor"`.

    Shape:
        `x` has any shape, except for penalties on rows, which take `(G, M)`.
    """

    acts: ClassVar[Acts] = "entries"

    def value(self, x: Tensor) -> Tensor:
        """The penalty `r(x)`, a scalar through which autograd can differentiate."""
        self._check_shape(x)
        return self._value(_at_least_float32(x)).to(x.dtype)

    @torch.no_grad()
    def subgradient(self, x: Tensor) -> Tensor:
        """One subgradient of `r` at `x`: finite everywhere, and zero where `x` is zero."""
        self._check_shape(x)
        wide = _at_least_float32(x)
        largest = torch.finfo(x.dtype).max
        return self._slope(wide).clamp(-largest, largest).to(x.dtype)

    @torch.no_grad()
    def prox(self, x: Tensor, step: float) -> Tensor:
        r"""The proximal operator: where a step of size `step` against the penalty leads from `x`.

        $$ \operatorname{prox}(x) = \arg\min_u \; \text{step} \cdot r(u) + \tfrac12 \|u - x\|^2 $$

        Holds for every `step`, also where the problem is not convex; NaN stays NaN. Half precision is computed in
        float32 and rounded once.

        Args:
            x: Where to start.
            step: Weight of the penalty, at least 0 (relaxed splitting: `lam / beta`).

        Returns:
            A new tensor with the shape, dtype and device of `x`.

        Raises:
            ValueError: If `step` is negative or not finite, or if `x` is no matrix and the penalty needs rows.
        """
        self._check_shape(x)
        check_step(step, type(self).__name__)
        if step == 0 or x.numel() == 0:
            return x.clone()
        return self._prox(_at_least_float32(x), step).to(x.dtype)

    @torch.no_grad()
    def shrinkage(self, x: Tensor, step: float) -> Tensor:
        """What the proximal operator takes away, `x - prox(x, step)`, by the fastest way there is.

        Works in the precision of `x` (relative error about 1e-6 in float32), which is all that a gradient needs.
        """
        return self._shrinkage(x, step) if step > 0 else torch.zeros_like(x)

    @abstractmethod
    def _value(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _slope(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _prox(self, x: Tensor, step: float) -> Tensor: ...

    def _shrinkage(self, x: Tensor, step: float) -> Tensor:
        return x - self._prox(x, step)

    def _check_shape(self, x: Tensor) -> None:
        if self.acts == "rows" and x.dim() != 2:
            raise ValueError(
                f"{type(self).__name__} acts on rows: it needs a matrix (groups, entries of a group), got shape "
                f"{tuple(x.shape)}. `selection.rows(weight, groups)` makes one of a weight."
            )
        if not x.is_floating_point():
            raise ValueError(f"{type(self).__name__} needs floating point numbers, got {x.dtype}.")


def check_step(step: float, who: str) -> None:
    """Refuse a step that is negative, infinite or NaN."""
    if not (step >= 0 and math.isfinite(step)):
        raise ValueError(f"{who} needs a finite step >= 0, got step={step}.")


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
