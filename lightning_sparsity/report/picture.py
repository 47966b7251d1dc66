"""A run as a picture: objective and sparsity over time, weights before and after."""

from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_sparsity.report.summary import Summary

__all__ = ["draw"]

DENSE, SPARSE = "#9aa5b1", "#d1495b"


def draw(run: Summary, path: Path) -> None:
    """Draw the run into a file.

    Args:
        run: What `summarize` found.
        path: The file; its ending chooses the format.
    """
    figure = Figure(figsize=(13, 3.8), layout="constrained", dpi=120)
    objective, sparsity, weights = figure.subplots(1, 3)
    steps = [point["step"] for point in run.history]
    _over_time(objective, steps, [point.get("objective", float("nan")) for point in run.history])
    objective.set(title="Objective", ylabel=r"$f(w) + \lambda r(u) + \frac{\beta}{2} \|w-u\|^2$")
    _over_time(sparsity, steps, [100 * point.get("sparsity", 0.0) for point in run.history])
    sparsity.set(title="Sparsity of the split weights", ylabel="exactly zero [%]", ylim=(-2, 102))
    _histogram(weights, run)
    figure.savefig(path)


def _over_time(axes: Axes, steps: list[float], values: list[float]) -> None:
    axes.plot(steps, values, color=SPARSE, linewidth=1.4)
    axes.set_xlabel("optimizer step")
    axes.grid(alpha=0.25)
    if not steps:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)


def _histogram(axes: Axes, run: Summary) -> None:
    """The largest split weight, dense and sparse, on a logarithmic scale."""
    if not run.weights:
        axes.text(0.5, 0.5, "no split weights", ha="center", transform=axes.transAxes)
        return
    name, (dense, sparse) = max(run.weights.items(), key=lambda item: item[1][0].numel())
    reach = float(torch.cat([dense.flatten(), sparse.flatten()]).abs().max()) or 1.0
    kept = sparse[sparse != 0]
    bins = 80 if dense.numel() > 2000 else 20
    edges = torch.linspace(-reach, reach, bins + 1)
    tallest = 1.0
    for values, label, color in (
        (dense, f"dense w ({dense.numel():,})", DENSE),
        (kept, f"sparse u, non-zero ({kept.numel():,})", SPARSE),
    ):
        counts = torch.histc(values.float().flatten(), bins, -reach, reach)
        tallest = max(tallest, float(counts.max()))
        axes.stairs(counts.tolist(), edges.tolist(), fill=True, alpha=0.7, color=color, label=label)
    axes.set(title=f"Weights of {name}", xlabel="value", ylabel="count", yscale="log")
    axes.set_ylim(0.5, 20 * tallest)  # room for the legend
    axes.legend(frameon=False, fontsize=8, loc="upper center", ncols=2)
