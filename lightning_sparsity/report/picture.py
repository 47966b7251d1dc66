"""A run as a picture: objective and sparsity over time, weights before and after."""

from itertools import cycle
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_sparsity.report.slim import Slim
from lightning_sparsity.report.summary import Summary

__all__ = ["draw"]

DENSE, SPARSE, SLIM = "#9aa5b1", "#d1495b", "#30638e"
MOST_NAMES = 24


def draw(run: Summary, path: Path) -> None:
    """Draw the run into a file.

    Args:
        run: What `summarize` found.
        path: The file; its ending chooses the format.
    """
    panels = 3 if run.slim is None else 4
    figure = Figure(figsize=(13 * panels / 3, 3.8), layout="constrained", dpi=120)
    objective, sparsity, weights, *rest = figure.subplots(1, panels)
    _over_time(objective, run, "objective")
    objective.set(title="Objective", ylabel=r"$f(w) + \lambda r(u) + \frac{\beta}{2} \|w-u\|^2$")
    _over_time(sparsity, run, "sparsity", scale=100)
    sparsity.set(title="Sparsity of the split weights", ylabel="exactly zero [%]", ylim=(-2, 102))
    _histogram(weights, run)
    if run.slim is not None:
        _channels(rest[0], run.slim)
    figure.savefig(path)


def _over_time(axes: Axes, run: Summary, name: str, scale: float = 1.0) -> None:
    """The figure of that name, and those of further callbacks, which say whose they are."""
    names = {k for point in run.history for k in point if k == name or k.startswith(f"{name}_")}
    steps = [point["step"] for point in run.history]
    for key, color in zip(sorted(names), cycle((SPARSE, SLIM, DENSE)), strict=False):
        values = [scale * point.get(key, float("nan")) for point in run.history]
        axes.plot(steps, values, color=color, linewidth=1.4, label=_whose(key, name))
    axes.set_xlabel("optimizer step")
    axes.grid(alpha=0.25)
    if len(names) > 1:
        axes.legend(frameon=False, fontsize=8)
    if not names:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)


def _whose(key: str, name: str) -> str:
    """Which callback a figure belongs to: `sparsity_splitting_fc` to the splitting of fc."""
    kind, _, pattern = key.removeprefix(name).lstrip("_").partition("_")
    return f"{kind} of {pattern}" if pattern else kind or "first callback"


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


def _channels(axes: Axes, slim: Slim) -> None:
    """How many channels of each layer are left."""
    before = slim.before.channels
    after = [slim.after.channels.get(name, 0) for name in before]
    places = list(range(len(before)))
    dense, left = sum(before.values()), sum(after)
    axes.bar(places, list(before.values()), 1, color=DENSE, alpha=0.5, label=f"dense ({dense:,})")
    axes.bar(places, after, 1, color=SLIM, label=f"slim ({left:,})")
    axes.set(title="Channels of each layer", ylabel="channels")
    axes.set_ylim(0, 1.2 * max(before.values()))  # room for the legend
    if len(before) <= MOST_NAMES:
        axes.set_xticks(places, list(before), rotation=30, ha="right", fontsize=8)
    else:
        axes.set_xlabel("layer")
    axes.legend(frameon=False, fontsize=8, loc="upper center", ncols=2)
