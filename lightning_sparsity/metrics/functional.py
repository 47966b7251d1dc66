"""Counting zeros: the functions behind the metrics, on plain tensors."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["Weights", "channel_sparsity", "count_zero_channels", "count_zeros", "sparsity"]

Weights: TypeAlias = Tensor | Iterable[Tensor] | Mapping[str, Tensor]


def sparsity(weights: Weights) -> Tensor:
    r"""The share of entries that are exactly zero.

    $$ \frac{\#\{i : w_i = 0\}}{\#\{i\}} $$

    Args:
        weights: A tensor, several, or several by name. All entries count the same.

    Returns:
        A scalar in [0, 1]; 0 if there are no entries.

    Example:
        >>> sparsity([torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.0])])
        tensor(0.7500)
    """
    return share(*count_zeros(weights))


def channel_sparsity(weights: Weights) -> Tensor:
    """The share of output channels whose weights are all exactly zero.

    Output channels lie along the first dimension, as in convolutions and linear layers. For a
    transposed convolution give `weight.transpose(0, 1)`.

    Args:
        weights: A tensor with at least one dimension, several, or several by name.

    Returns:
        A scalar in [0, 1]; 0 if there are no channels.

    Raises:
        ValueError: If a tensor has no dimension.

    Example:
        >>> channel_sparsity(torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
        tensor(0.5000)
    """
    return share(*count_zero_channels(weights))


def count_zeros(weights: Weights) -> tuple[Tensor, int]:
    """How many entries are exactly zero (a scalar on the device of the weights), of how many."""
    tensors = list(_each(weights))
    zeros = [tensor.numel() - tensor.count_nonzero() for tensor in tensors]
    return _total(zeros), sum(tensor.numel() for tensor in tensors)


def count_zero_channels(weights: Weights) -> tuple[Tensor, int]:
    """How many output channels are exactly zero (a scalar, as above), of how many."""
    tensors = list(_each(weights))
    for tensor in tensors:
        if tensor.dim() == 0:
            raise ValueError("channel sparsity needs weights with a dimension, got a scalar.")
    zeros = [
        tensor.eq(0).flatten(1).all(1).sum() if tensor.dim() > 1 else tensor.eq(0).sum()
        for tensor in tensors
    ]
    return _total(zeros), sum(len(tensor) for tensor in tensors)


def share(part: Tensor, whole: int | Tensor) -> Tensor:
    """One count over another, and 0 over nothing."""
    return part.float() / max(int(whole), 1)


def _each(weights: Weights) -> Iterator[Tensor]:
    if isinstance(weights, Tensor):
        yield weights.detach()
        return
    for weight in weights.values() if isinstance(weights, Mapping) else weights:
        yield weight.detach()


def _total(counts: list[Tensor]) -> Tensor:
    return torch.stack(counts).sum() if counts else torch.zeros((), dtype=torch.int64)
