"""The order in which BatchNorm scales are removed, with a rule for equal ones."""

from collections.abc import Mapping

import torch
from torch import Tensor

Dead = dict[str, Tensor]
TELLING = 0.1
"""The fraction of all scales that a tie has to exceed to be worth a note."""


class Ranking:
    """All scales of a network from the smallest magnitude to the largest.

    Equal scales are spread over the layers: of those of one layer, the first are removed when the
    first of every other layer are, so that each layer loses the same fraction of the tie. A rank
    therefore says what a threshold could not: how many of the equal scales are removed.

    Args:
        scales: The scales, by BatchNorm layer.
        keep_at_least: How many of its last scales in this order every layer keeps.

    Attributes:
        magnitudes: The magnitudes in this order.

    Raises:
        ValueError: If a scale is NaN or infinite, or `keep_at_least` is no whole number >= 0.
    """

    def __init__(self, scales: Mapping[str, Tensor], keep_at_least: int) -> None:
        whole = isinstance(keep_at_least, int) and not isinstance(keep_at_least, bool)
        if not whole or keep_at_least < 0:
            raise ValueError(
                f"plan_by needs keep_at_least to be a whole number >= 0, got {keep_at_least!r}."
            )
        for name, scale in scales.items():
            if not bool(scale.isfinite().all()):
                raise ValueError(
                    f"plan_by needs finite scales to rank, got NaN or infinity in {name!r}: "
                    "take weights from before the training diverged."
                )
        self.names = list(scales)
        self.sizes = [scale.numel() for scale in scales.values()]
        flat = torch.cat([scale.flatten().abs() for scale in scales.values()])
        layers = torch.arange(len(self.sizes)).repeat_interleave(torch.tensor(self.sizes))
        order = spread(flat, layers)
        self.magnitudes = flat[order]
        self.zeros = int((flat == 0).sum())
        self.rank = torch.empty_like(order).scatter(0, order, torch.arange(order.numel()))
        by_layer = self.rank.split(self.sizes)
        last = [rank.topk(min(keep_at_least, rank.numel())).values for rank in by_layer]
        self.spared = torch.zeros_like(self.rank, dtype=torch.bool)
        self.spared[order[torch.cat(last)]] = True

    def __len__(self) -> int:
        return self.rank.numel()

    def dead(self, count: int) -> Dead:
        """The first `count` scales and all that are zero, but for those that every layer keeps."""
        dead = (self.rank < max(count, self.zeros)) & ~self.spared
        return dict(zip(self.names, dead.split(self.sizes), strict=True))

    def notes(self, count: int) -> list[str]:
        """What to know where mostly a tie decides which scales are among the first `count`."""
        if not self.zeros < count < len(self):
            return []
        border = self.magnitudes[count]
        equal = int((self.magnitudes == border).sum())
        if self.magnitudes[count - 1] != border or equal <= TELLING * len(self):
            return []
        return [
            f"{equal} of {len(self)} BatchNorm scales have the same magnitude {float(border):g}: "
            "which of them are removed is decided by their position alone, evenly over the layers"
        ]


def spread(flat: Tensor, layers: Tensor) -> Tensor:
    """The order of magnitudes; equal ones by how far they are in their layer's part of the tie."""
    order = flat.sort(stable=True).indices  # equal ones layer by layer, first ones first
    value, layer = flat[order], layers[order]
    if bool((value[1:] > value[:-1]).all()):
        return order
    begins = torch.ones_like(order, dtype=torch.bool)
    begins[1:] = (value[1:] != value[:-1]) | (layer[1:] != layer[:-1])
    part = begins.cumsum(0) - 1  # which part of a tie: one value in one layer
    size, start = part.bincount()[part], begins.nonzero().flatten()[part]
    # The middle of each one's place, so that small layers neither lead nor trail. Quotients of
    # whole numbers are rounded the same everywhere: the order is the same on every machine.
    place = (2 * (torch.arange(order.numel()) - start) + 1).double() / (2 * size)
    by_place = place.sort(stable=True).indices
    order = order[by_place]
    return order[flat[order].sort(stable=True).indices]
