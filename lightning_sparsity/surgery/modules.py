"""The two modules that surgery adds: pick channels before a layer, fill in constants after one.

They sit inside the layer that they serve, as its children `select` and `scatter`, and work through
its hooks: the model's own code, its module names and the keys of its weights stay what they were.
"""

from typing import Any, final

import torch
from torch import Tensor, nn


@final
class Select(nn.Module):
    """Picks the channels that the layer still reads; may add one channel of ones.

    The layer's zero padding surrounds the channel of ones as it surrounded the constant channels
    that it stands for, so what they added to the layer's result comes out the same, border
    included.

    Args:
        index: The channels to pick, or None for all of them.
        dim: The channel dimension.
        ones: Whether to append a channel of ones.
        border: How many zeros are around the input already, as `F.pad` takes them: around the ones
            then are as many.
        width: How many channels come in; None if that is not to be checked.

    Raises:
        ValueError: If another number of channels comes in.
    """

    index: Tensor | None

    def __init__(
        self,
        index: Tensor | None,
        dim: int,
        *,
        ones: bool = False,
        border: tuple[int, ...] = (),
        width: int | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("index", index)
        self.dim = dim
        self.ones = ones
        self.border = border
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """The picked channels of `x`."""
        dim = self.dim if self.dim < 0 else self.dim - x.dim()
        if self.width is not None and x.size(dim) != self.width:
            raise ValueError(
                f"The slim layer needs {self.width} channels, got {x.size(dim)} in an input of "
                f"shape {tuple(x.shape)}: give inputs of the size that the network was made for."
            )
        picked = x if self.index is None else x.index_select(dim, self.index)
        if self.ones and self.border:
            inside = nn.functional.pad(x.narrow(dim, 0, 1), [-n for n in self.border])
            one = nn.functional.pad(torch.ones_like(inside), self.border)
            return torch.cat([picked, one], dim)
        if self.ones:
            return nn.functional.pad(picked, [0, 0] * (-1 - dim) + [0, 1], value=1.0)
        return picked

    def extra_repr(self) -> str:
        """How many channels are picked."""
        picked = "all" if self.index is None else str(self.index.numel())
        return f"{picked} channels{' and one of ones' if self.ones else ''}, dim={self.dim}"


@final
class Scatter(nn.Module):
    """Puts the channels that a layer computes among the constant ones that it need not compute.

    Args:
        index: Where the computed channels go.
        fill: One constant per channel of the result.
        dim: The channel dimension.
    """

    index: Tensor
    fill: Tensor

    def __init__(self, index: Tensor, fill: Tensor, dim: int) -> None:
        super().__init__()
        self.register_buffer("index", index)
        self.register_buffer("fill", fill)
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """All channels: the computed ones of `x` and the constants."""
        dim = self.dim % x.dim()
        fill = self.fill.to(x.dtype).view([-1 if d == dim else 1 for d in range(x.dim())])
        shape = [self.fill.numel() if d == dim else n for d, n in enumerate(x.shape)]
        return fill.expand(shape).index_copy(dim, self.index, x)

    def extra_repr(self) -> str:
        """How many channels are computed, of how many."""
        return f"{self.index.numel()} of {self.fill.numel()} channels, dim={self.dim}"


def detach_both(layer: nn.Module) -> None:
    """Take away what an earlier cut has attached."""
    for name, kind in (("select", Select), ("scatter", Scatter)):
        if isinstance(layer._modules.get(name), kind):
            del layer._modules[name]
    for hooks, own in ((layer._forward_pre_hooks, _select), (layer._forward_hooks, _scatter)):
        for key in [key for key, hook in hooks.items() if hook is own]:
            del hooks[key]


def attach_select(layer: nn.Module, select: Select) -> None:
    """Let a layer pick its inputs."""
    layer.add_module("select", select)
    layer.register_forward_pre_hook(_select)


def attach_scatter(layer: nn.Module, scatter: Scatter) -> None:
    """Let a layer fill in constants, before anybody else sees its result."""
    layer.add_module("scatter", scatter)
    layer.register_forward_hook(_scatter, prepend=True)


def _select(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (layer.select(args[0]), *args[1:])  # type: ignore[operator]


def _scatter(layer: nn.Module, args: tuple[Any, ...], result: Tensor) -> Tensor:
    scattered: Tensor = layer.scatter(result)  # type: ignore[operator]
    return scattered
