"""What a network takes: parameters, FLOPs, bytes, channels. The one definition of each."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from lightning_sparsity.metrics.flops import LAYERS, FlopCount, flops
from lightning_sparsity.sparse_file import FileSize, file_size
from lightning_sparsity.surgery.running import uncompiled

__all__ = ["Footprint", "footprint", "nonzero", "parameters", "work"]


@final
@dataclass(frozen=True)
class Footprint:
    """What a network takes.

    Args:
        parameters: Its parameters.
        nonzero: How many of them are not zero.
        flops: FLOPs for one example, or None where they could not be counted.
        bytes_on_disk: Bytes of its state in a file, or None where it cannot be written to one.
        channels: Channels of each BatchNorm layer; in a network without, the outputs of each
            convolution and linear layer.
        layers: Entries of the weight of each convolution and linear layer.
    """

    parameters: int
    nonzero: int
    flops: int | None
    bytes_on_disk: FileSize | None
    channels: Mapping[str, int]
    layers: Mapping[str, int]

    @property
    def plain_bytes(self) -> int | None:
        """Bytes of a safetensors file that holds the zeros as well."""
        return None if self.bytes_on_disk is None else self.bytes_on_disk.dense


def footprint(network: nn.Module, inputs: Any = None) -> Footprint:  # noqa: ANN401
    """Measure what a network takes.

    Args:
        network: The network.
        inputs: What it is called with: a tensor or a tuple of them; without, FLOPs are not counted.

    Example:
        >>> import torch
        >>> found = footprint(nn.Conv2d(1, 8, 3, bias=False), torch.rand(4, 1, 5, 5))
        >>> found.parameters, found.flops, found.channels
        (72, 648, {'': 8})
    """
    parts, count = dict(network.named_modules()), work(network, inputs)
    layers = {name: part for name, part in parts.items() if isinstance(part, LAYERS)}
    return Footprint(
        parameters=parameters(network),
        nonzero=nonzero(network),
        flops=None if count is None else count.total,
        bytes_on_disk=file_size(network),
        channels=_channels(parts),
        layers={name: layer.weight.numel() for name, layer in layers.items()},
    )


def parameters(network: nn.Module) -> int:
    """The number of parameters."""
    return sum(x.numel() for x in network.parameters())


def nonzero(network: nn.Module) -> int:
    """The number of parameters that are not zero."""
    return sum(int(x.count_nonzero()) for x in network.parameters())


def work(network: nn.Module, inputs: Any) -> FlopCount | None:  # noqa: ANN401
    """FLOPs for one example.

    Args:
        network: The network.
        inputs: What it is called with: a tensor or a tuple of them, on any device.

    Returns:
        The count, or None where the inputs have another form or fvcore cannot count.
    """
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    if not all(isinstance(x, Tensor) and x.dim() for x in given):
        return None
    device = next((x.device for x in network.parameters()), given[0].device)
    try:
        with uncompiled():
            return flops(network, [x[:1].to(device) for x in given])
    except Exception:  # a network of the user's may do anything; the table then has no FLOPs
        return None


def _channels(parts: Mapping[str, nn.Module]) -> dict[str, int]:
    norms = {
        name: part.num_features
        for name, part in parts.items()
        if isinstance(part, nn.modules.batchnorm._BatchNorm)
    }
    return norms or {
        name: part.out_features if isinstance(part, nn.Linear) else part.out_channels
        for name, part in parts.items()
        if isinstance(part, LAYERS)
    }
