"""Label tensors: beside an activation, which channel variable each of its entries carries.

Positions of one channel nearly always carry the same label, so labels are stored with stride 0
along every dimension where they are constant: they cost one number per channel, and views of them
stay as cheap.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

ROOT = 0
"""The variable of all that must stay: inputs, outputs, and what could not be followed."""


def varying(labels: Tensor) -> tuple[int, ...]:
    """The dimensions along which labels differ."""
    return tuple(
        d for d, (n, s) in enumerate(zip(labels.shape, labels.stride(), strict=True)) if n > 1 and s
    )


def compact(values: Tensor, like: Tensor) -> Tensor:
    """`values` with size 1 along every dimension where the labels `like` are constant."""
    for dim in range(like.dim()):
        if like.size(dim) > 1 and like.stride(dim) == 0:
            values = values.narrow(dim, 0, 1)
    return values


def compressed(labels: Tensor) -> Tensor:
    """The same labels, with stride 0 along every dimension where they are constant."""
    shape = labels.shape
    if labels.numel() == 0:
        return labels
    for dim in varying(labels):
        first = labels.narrow(dim, 0, 1)
        if bool((labels == first).all()):
            labels = first
    return labels.expand(shape)


def along(variables: Tensor, dim: int, shape: Sequence[int]) -> Tensor:
    """Labels of `shape` that carry one variable per index of dimension `dim`."""
    view = [1] * len(shape)
    view[dim] = -1
    return variables.view(view).expand(tuple(shape))


def whole_along(labels: Tensor, dim: int) -> Tensor:
    """Labels with all their entries along one dimension, and size 1 where others are constant."""
    sizes = list(compact(labels, labels).shape)
    for d in range(labels.dim()):
        if d != dim and sizes[d] < labels.size(d):
            labels = labels.narrow(d, 0, 1)
    return labels


def plain(shape: Sequence[int]) -> Tensor:
    """Labels of an activation that carries nothing but the root."""
    return torch.zeros((), dtype=torch.long).expand(tuple(shape))


def components(n: int, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """For each of `n` variables the smallest one that it is tied to, directly or not."""
    parent = torch.arange(n)
    if not pairs:
        return parent
    left, right = (torch.cat(side) for side in zip(*pairs, strict=True))
    while True:
        a, b = parent[left], parent[right]
        if torch.equal(a, b):
            return parent
        parent.scatter_reduce_(0, torch.maximum(a, b), torch.minimum(a, b), "amin")
        while not torch.equal(parent, parent[parent]):
            parent = parent[parent]
