"""Histograms in the loggers that can show them: TensorBoard and W&B."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from lightning_sparsity.metrics.histogram import Histogram


def log_histograms(logger: Logger, found: Mapping[str, Histogram], step: int) -> None:
    """Show histograms, the zeros as one more bin to the left of 0; nothing in other loggers.

    Args:
        logger: Any logger.
        found: The histograms by the names that they get there.
        step: The optimizer step.
    """
    if isinstance(logger, TensorBoardLogger):
        for name, histogram in found.items():
            logger.experiment.add_histogram_raw(name, global_step=step, **_proto(histogram))
    elif isinstance(logger, WandbLogger):
        from wandb import Histogram as Shown  # there with such a logger

        logger.log_metrics({name: Shown(np_histogram=_bins(x)) for name, x in found.items()}, step)


def _bins(found: Histogram) -> tuple[list[int], list[float]]:
    """Counts and edges, beginning with the zeros."""
    return [found.zeros, *found.counts], [-found.edges[1], *found.edges]


def _proto(found: Histogram) -> dict[str, Any]:
    """What TensorBoard stores; sums as if entries lay in the middle of their bins."""
    counts, edges = _bins(found)
    middles = [0.0, *((a + b) / 2 for a, b in pairwise(found.edges))]
    full = [i for i, n in enumerate(counts) if n] or [0]
    return {
        # TensorBoard leaves empty bins at the ends out and takes these for the edges of the others.
        "min": edges[full[0]],
        "max": edges[full[-1] + 1],
        "num": sum(counts),
        "sum": sum(n * x for n, x in zip(counts, middles, strict=True)),
        "sum_squares": sum(n * x * x for n, x in zip(counts, middles, strict=True)),
        "bucket_limits": edges[1:],
        "bucket_counts": counts,
    }
