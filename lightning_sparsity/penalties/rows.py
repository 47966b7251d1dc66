"""What proximal operators do to the rows of a matrix, as free functions."""

import torch
from torch import Tensor


def lengths(x: Tensor) -> Tensor:
    """The lengths of the rows, shape `(G, 1)`."""
    lengths: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return lengths


def directions(x: Tensor, length: Tensor) -> Tensor:
    """Rows divided by their lengths; a zero row stays zero."""
    return x / length.clamp(min=tiny(x))


def tiny(x: Tensor) -> float:
    """The least normal number of the type of `x`: a floor for what is divided by."""
    return torch.finfo(x.dtype).tiny


def metric_length(x: Tensor, step: Tensor) -> Tensor:
    r"""The $\theta$ of the group lasso with one step per entry, at least 0, shape `(G, 1)`.

    Newton's method for $1 / \|x / (\theta + \text{step})\| = 1$, whose left side is concave and
    rises: monotone from every bound below, and done at once where all steps of a row are equal.
    """
    theta = lengths(x) - step.amax(1, keepdim=True)
    if not (theta > 0).all():  # a weaker bound, but above zero wherever the root is
        theta = torch.maximum(theta, (x.abs() - step).amax(1, keepdim=True)).clamp(min=0.0)
    close = 0.25 * torch.finfo(x.dtype).eps ** 0.5  # what is left is its square
    for _ in range(_NEWTON_STEPS):
        inverse = (theta + step).reciprocal_()
        shares = x * inverse
        length = lengths(shares)
        rise = shares.square_().mul_(inverse).sum(1, keepdim=True).clamp(min=tiny(x))
        # Never back, or rows whose last digits come and go would keep the others waiting.
        gain = (length.square() * (length - 1) / rise).clamp(min=0.0)
        theta = theta + gain
        if not (gain > close * theta).any():
            break
    return theta


# A bound: where it is slowest, a step still gains a factor of 3/2.
_NEWTON_STEPS = 200


def prox_l1_minus_l2(x: Tensor, step: float, gain: float) -> Tensor:
    """The prox of `step * l1 - gain * l2` on every row; a negative `gain` is a group lasso."""
    t = x.abs()
    top = t.max(1, keepdim=True)
    shrunk = (t - step).clamp(min=0.0)
    length = lengths(shrunk)
    many = shrunk * ((length + gain).clamp(min=0.0) / length.clamp(min=tiny(x)))
    one = torch.zeros_like(x).scatter(1, top.indices, top.values - step + gain)
    kept = torch.where(top.values <= step, one, many)
    return x.sign() * torch.where(top.values <= step - max(gain, 0.0), 0.0, kept)
