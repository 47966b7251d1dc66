"""All penalties in one figure: the value of each, and its proximal operator."""

import inspect

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_sparsity import penalties
from lightning_sparsity.penalties import L0, L1, Grouped, GroupLasso, Penalty, SparseGroup

__all__ = ["draw_penalties", "one_of_each"]

PARTS: dict[type[Penalty], tuple[Penalty, ...]] = {
    Grouped: (L0(),),
    SparseGroup: (L1(), GroupLasso()),
}
DENSE, SPARSE, SLIM = "#9aa5b1", "#d1495b", "#30638e"  # as on the page of a run
COLUMNS, REACH, TOP, POINTS = 4, 2.5, 3.5, 501
JUMP = 0.1  # between neighbouring points: there the line breaks


def one_of_each() -> list[Penalty]:
    """A penalty of every class with its default numbers: on entries, then on rows, then on tensors.

    Those made of other penalties get the simplest.
    """
    classes = [getattr(penalties, name) for name in penalties.__all__]
    made = [c(*PARTS.get(c, ())) for c in classes if not inspect.isabstract(c)]
    return sorted(made, key=lambda penalty: penalty.acts)


def draw_penalties(step: float = 0.4, neighbour: float = 0.3) -> Figure:
    r"""Draw every penalty and its proximal operator, for one weight $t$ beside a fixed one.

    $$ r(t, n) - r(0, n) \qquad \text{and the first entry of} \qquad
       \operatorname{prox}(t, n) $$

    For penalties on entries the neighbour $n$ does not matter. In penalties on rows both are one
    row, in penalties on tensors the whole tensor.

    Args:
        step: The step of the proximal operator, above 0.
        neighbour: The fixed weight $n$.

    Returns:
        A figure: `draw_penalties().savefig("penalties.svg")`.
    """
    drawn = one_of_each()
    rows = -(-len(drawn) // COLUMNS)
    figure = Figure(figsize=(12, 2.6 * rows), layout="constrained", dpi=100)
    panels = figure.subplots(rows, COLUMNS, sharex=True, sharey=True).flatten()
    for penalty, panel in zip(drawn, panels, strict=False):
        _draw(panel, penalty, step, neighbour)
    for panel in panels[len(drawn) :]:
        panel.axis("off")
    for panel in panels[max(0, len(drawn) - COLUMNS) : len(drawn)]:
        panel.tick_params(labelbottom=True)
        panel.set_xlabel("weight t")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    return figure


def _draw(panel: Axes, penalty: Penalty, step: float, neighbour: float) -> None:
    t = torch.linspace(-REACH, REACH, POINTS, dtype=torch.float64)
    pairs = torch.stack([t, torch.full_like(t, neighbour)], dim=1).unsqueeze(1)
    start = torch.tensor([[0.0, neighbour]], dtype=torch.float64)
    added = torch.stack([penalty.value(x) for x in pairs]) - penalty.value(start)
    made = torch.stack([penalty.prox(x, step)[0, 0] for x in pairs])
    panel.plot(t, t, "--", color=DENSE, linewidth=1, label="left alone")
    panel.plot(t, added, color=SLIM, linewidth=1.3, label="penalty r")
    panel.plot(t, _broken(made), color=SPARSE, linewidth=1.8, label=f"prox, step {step:g}")
    gone = (made == 0).numpy()
    panel.fill_between(t, -REACH, TOP, gone, color=SPARSE, alpha=0.1, label="vanishes", linewidth=0)
    panel.set_title(f"{type(penalty).__name__} on {penalty.acts}\n{_numbers(penalty)}", fontsize=9)
    panel.set_ylim(-REACH, TOP)
    panel.grid(alpha=0.25)


def _numbers(penalty: Penalty) -> str:
    """Its parts and numbers in short."""
    parts = [type(x).__name__ for x in vars(penalty).values() if isinstance(x, Penalty)]
    numbers = [f"{name}={x:g}" for name, x in vars(penalty).items() if type(x) is float]
    return ", ".join(parts or numbers)


def _broken(line: torch.Tensor) -> torch.Tensor:
    """The line with a gap where it jumps."""
    return line.where(line.diff(prepend=line[:1]).abs() < JUMP, torch.nan)
