"""What the `Select` and `Scatter` of an earlier cut do to constants."""

import numpy as np
from torch import Tensor

from lightning_sparsity.surgery.layout import Floats, array


def picked(c: Floats, dim: int, index: Tensor | None, ones: bool) -> Floats:
    """Some of the constants along a dimension, and a one behind them if there is one."""
    c = c if index is None else c.take(index.cpu().numpy(), dim)
    one = np.ones([1 if d == dim else n for d, n in enumerate(c.shape)])
    return np.concatenate([c, one], dim) if ones else c


def placed(c: Floats, dim: int, index: Tensor, fill: Tensor) -> Floats:
    """The constants of computed channels among those that are filled in."""
    around = array(fill).reshape([-1 if d == dim else 1 for d in range(c.ndim)])
    shape = [fill.numel() if d == dim else n for d, n in enumerate(c.shape)]
    full = np.broadcast_to(around, shape).copy()
    full[tuple(index.numpy() if d == dim else slice(None) for d in range(c.ndim))] = c
    return full
