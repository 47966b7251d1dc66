"""The measurements of a cut: the network before it and the slim one, side by side."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_sparsity.callbacks.cut_callback import CutCallback
from lightning_sparsity.metrics.footprint import Footprint, footprint
from lightning_sparsity.report.curve import Curve
from lightning_sparsity.report.latency import Timing, in_turns, once

__all__ = ["Slim", "measure"]

BATCHES = (1, 64)


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
        proof: Relative difference between the outputs of the slim network and those of the network
            before the cut with everything removed set to zero.
        curve: Its quality if it were cut by other amounts, once that is measured.
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
    except Exception:  # a module of the user's may take anything; the table then has no times
        return {}
    finally:
        module.cpu()
    return times


def _latency(
    module: pl.LightningModule, cutter: CutCallback, batch: Tensor
) -> tuple[Timing, Timing]:
    """Times before and after the cut; both networks have one place, which they take by turns."""

    def dense() -> float:
        with cutter.uncut(module):
            return once(module, batch)

    found = in_turns({"dense": dense, "slim": lambda: once(module, batch)})
    return found.timing("dense"), found.timing("slim")
