"""How large the entries of tensors are: histograms in which exact zeros are counted apart."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Histogram", "histograms", "joined"]

BINS = 40
CHUNK = 2**18  # entries looked at in one go, for the caches of a CPU; the result is the same


@dataclass(frozen=True)
class Histogram:
    """Magnitudes in bins of equal width, and the exact zeros beside them.

    Attributes:
        edges: Edges of the bins, one more than there are bins, rising from 0.
        counts: Entries in each bin that are not zero. The last bin holds its right edge too.
        zeros: Entries that are exactly zero.
    """

    edges: list[float]
    counts: list[int]
    zeros: int


@torch.no_grad()
def histograms(tensors: Mapping[str, Tensor]) -> dict[str, Histogram]:
    """One histogram per tensor, all over the same bins, up to the largest magnitude of all.

    Infinities and NaN are left out.

    Args:
        tensors: Floating-point tensors of any shapes, by name.

    Returns:
        The histograms by the same names.

    Example:
        >>> made = histograms({"weight": torch.tensor([0.0, -1.0, 0.1])})["weight"]
        >>> made.zeros, made.counts[4], made.counts[39], made.edges[-1]
        (1, 1, 1, 1.0)
    """
    largest = [_largest(x.detach()) for x in tensors.values() if x.numel()]
    reach = max((float(x) for x in largest), default=0.0) or 1.0
    edges = [reach * i / BINS for i in range(BINS + 1)]
    made = {}
    for name, x in tensors.items():
        *counts, zeros, _ = _counts(x.detach(), reach).tolist()
        made[name] = Histogram(edges, counts, zeros)
    return made


def joined(parts: Iterable[Histogram]) -> Histogram:
    """The histogram of all entries together; the parts, at least one, have the same edges."""
    parts = list(parts)
    counts = [sum(bins) for bins in zip(*(part.counts for part in parts), strict=True)]
    return Histogram(parts[0].edges, counts, sum(part.zeros for part in parts))


def _largest(x: Tensor) -> Tensor:
    return torch.stack([_magnitudes(part).max() for part in x.flatten().split(CHUNK)]).max()


def _magnitudes(x: Tensor) -> Tensor:
    return x.float().abs().nan_to_num(0.0, posinf=0.0)


def _counts(x: Tensor, reach: float) -> Tensor:
    """Entries in each bin, then the zeros, then what is not finite."""
    total = torch.zeros(BINS + 2, dtype=torch.int64, device=x.device)
    for part in x.flatten().split(CHUNK):
        place = (_magnitudes(part) / reach * BINS).clamp(max=BINS - 1)
        place = place.where(part != 0, BINS).where(part.isfinite(), BINS + 1)
        total += place.to(torch.uint8).bincount(minlength=BINS + 2)
    return total
