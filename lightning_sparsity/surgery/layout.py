"""All layers of a network in one vector, so that one call of NumPy serves them all.

A network has hundreds of layers of a few hundred channels: a loop over tensors of that size spends
its time on the calls, not on the numbers.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats: TypeAlias = NDArray[np.float64]
Bools: TypeAlias = NDArray[np.bool_]
Ints: TypeAlias = NDArray[np.int64]


class Side:
    """The rows of all layers one after another, or the columns.

    Args:
        variables: For each layer the variables of its rows (or columns).

    Attributes:
        variables: The same in one vector.
        slices: Where each layer lies in such a vector.
        layer: For each entry of such a vector the number of its layer.
    """

    def __init__(self, variables: Sequence[Tensor]) -> None:
        sizes = np.array([own.numel() for own in variables], dtype=np.int64)
        self._ends = ends = sizes.cumsum()
        self.slices = [
            slice(end - n, end) for n, end in zip(sizes.tolist(), ends.tolist(), strict=True)
        ]
        self.layer: Ints = np.repeat(np.arange(len(sizes)), sizes)
        self.variables: Ints = torch.cat([torch.empty(0, dtype=torch.long), *variables]).numpy()

    def spread(self, of_layers: Sequence[bool] | Bools) -> Bools:
        """What holds for a layer, for each of its entries."""
        spread: Bools = np.asarray(of_layers, dtype=np.bool_)[self.layer]
        return spread

    def count(self, mask: Bools) -> Ints:
        """How many entries of each layer are set."""
        until = np.searchsorted(mask.nonzero()[0], self._ends)  # how many until a layer ends
        return np.diff(until, prepend=0)

    def joined(self, masks: dict[int, Tensor]) -> Bools:
        """Masks of some layers, by number, in one vector; False elsewhere."""
        flat = np.zeros(self.layer.size, dtype=np.bool_)
        for i, mask in masks.items():
            flat[self.slices[i]] = mask.numpy()
        return flat


def array(x: Tensor) -> Floats:
    """A parameter or buffer in float64, wherever it lies and whatever its dtype."""
    numbers: Floats = x.detach().cpu().double().numpy()
    return numbers


def tensor(x: NDArray[Any]) -> Tensor:
    """A tensor that shares the numbers of an array."""
    return torch.from_numpy(x)


def blocks(mask: Bools, groups: int) -> Bools:
    """One row per group."""
    return mask.reshape(groups, -1)


def evened(chosen: Bools, exists: Bools, stays: Bools) -> Bools:
    """Equally many in every group that stays, at least one: chosen first, then what exists."""
    chosen = chosen & stays[:, None]
    count = max(int(chosen.sum(1).max()), 1)
    n = chosen.shape[1]
    order = (2 * chosen.astype(np.int64) + exists) * n - np.arange(n)
    picked = np.zeros_like(chosen)
    np.put_along_axis(picked, (-order).argsort(1)[:, :count], True, 1)
    return (picked & stays[:, None]).ravel()
