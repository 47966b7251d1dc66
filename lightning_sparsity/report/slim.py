"""The figures of a cut: the network before it and the slim one, measured side by side."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_sparsity.callbacks.cut_callback import CutCallback
from lightning_sparsity.metrics.flops import LAYERS, FlopCount, flops
from lightning_sparsity.report.curve import Curve
from lightning_sparsity.report.latency import Timing, in_turns, once
from lightning_sparsity.sparse_file import FileSize, file_size

__all__ = ["Footprint", "Slim", "footprint", "measure", "work_of"]

BATCHES = (1, 64)


@final
@dataclass(frozen=True)
class Footprint:
    """What a network takes.

    Args:
        parameters: Its parameters.
        nonzero: How many of them are not zero.
        flops: FLOPs for one example, or None where they could not be counted.
        bytes_on_disk: Bytes of its state in a file, or None where it cannot be written to one.
        channels: Channels of each BatchNorm layer; in a network without, those that each
            convolution and linear layer makes.
        layers: Entries of the weight of each convolution and linear layer.
    """

    parameters: int
    nonzero: int
    flops: int | None
    bytes_on_disk: FileSize | None
    channels: Mapping[str, int]
    layers: Mapping[str, int]


@final
@dataclass(frozen=True)
class Slim:
    """The slim network, which the module holds, against the one that it was cut from.

    Args:
        metrics: Its metrics by name.
        behind: Optimizer steps that training went on for after the checkpoint of the other sides.
        before: What the network took before the cut.
        after: What the slim one takes.
        latency: Time per batch before and after, by the number of examples.
        proof: Relative difference between the outputs of the slim network and those of the one
            before the cut with what was cut at zero.
        curve: How good the network would be cut by other amounts, once that is measured.
    """

    metrics: Mapping[str, float]
    behind: int
    before: Footprint
    after: Footprint
    latency: Mapping[int, tuple[Timing, Timing]]
    proof: float
    curve: Curve | None = None


def measure(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    cutter: CutCallback,
    examples: Tensor | None,
    *,
    metrics: Mapping[str, float],
    behind: int,
) -> Slim:
    """Compare the network before the cut with the slim one.

    Args:
        trainer: The trainer, after `fit`.
        module: What it trained; it holds the slim network.
        cutter: The callback that cut it.
        examples: A batch that the module can be called with, if there is one.
        metrics: Metrics of the slim network.
        behind: Optimizer steps between the best checkpoint and the cut.
    """
    with cutter.uncut(module):
        before = footprint(module, examples)
    after = footprint(module, examples)
    record = json.loads(cutter.state_dict()["cut"]["plan"])
    times = {} if examples is None else _times(trainer, module, cutter, examples)
    return Slim(dict(metrics), behind, before, after, times, record["proof"])


def footprint(network: nn.Module, examples: Tensor | None) -> Footprint:
    """Count what a network is made of.

    Args:
        network: The network.
        examples: A batch for it; without one the FLOPs are not counted.
    """
    parts, work = dict(network.named_modules()), work_of(network, examples)
    return Footprint(
        parameters=sum(x.numel() for x in network.parameters()),
        nonzero=sum(int(x.count_nonzero()) for x in network.parameters()),
        flops=None if work is None else work.total,
        bytes_on_disk=file_size(network),
        channels=_channels(parts),
        layers={
            name: part.weight.numel() for name, part in parts.items() if isinstance(part, LAYERS)
        },
    )


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


def work_of(network: nn.Module, examples: Tensor | None) -> FlopCount | None:
    """FLOPs for one example, if the network takes one tensor; it ends up on the CPU."""
    try:
        return None if examples is None else flops(network.cpu(), examples[:1])
    except Exception:  # a module of the user's may take anything; the table then shows no FLOPs
        return None


def _times(
    trainer: pl.Trainer, module: pl.LightningModule, cutter: CutCallback, examples: Tensor
) -> dict[int, tuple[Timing, Timing]]:
    """The latencies on the device of the trainer, if the module takes one tensor."""
    device = trainer.strategy.root_device
    times = {}
    try:
        with cutter.uncut(module):
            module.to(device)
        module.to(device)
        for n in BATCHES:
            batch = examples[torch.arange(n) % len(examples)].to(device)
            times[n] = _latency(module, cutter, batch)
    except Exception:  # as above: the table then shows no times
        return {}
    finally:
        module.cpu()
    return times


def _latency(
    module: pl.LightningModule, cutter: CutCallback, batch: Tensor
) -> tuple[Timing, Timing]:
    """Times before and after the cut. Both networks have one place, so they change it in turns."""

    def dense() -> float:
        with cutter.uncut(module):
            return once(module, batch)

    found = in_turns({"dense": dense, "slim": lambda: once(module, batch)})
    return found.timing("dense"), found.timing("slim")
