"""The charts of the page: geometry and words; the template writes them as inline SVG."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, pairwise
from math import isfinite, sqrt
from typing import Any

from lightning_sparsity.report.svg import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Chart,
    Frame,
    Mark,
    Point,
    circle,
    path,
    percent,
    short,
    text,
    ticks,
)

__all__ = ["bars", "curve", "lines", "ridges", "rows"]

COLOURS = ("sparse", "slim", "dense")
MOST_POINTS = 160
MOST_ROWS = 12
NAME = 22  # characters of a layer's name


def lines(
    series: Mapping[str, Sequence[Point]], title: str, *, along: str, share: bool = False
) -> Chart | None:
    """Curves over the steps of a training.

    Args:
        series: Points of each curve by its name; those that are not finite leave a gap.
        title: What is drawn.
        along: What the horizontal axis is.
        share: Whether the values are fractions, from 0 to 1.
    """
    thin = {name: _thinned(points) for name, points in series.items()}
    found = [(x, y) for points in thin.values() for x, y in points if isfinite(y)]
    if not found:
        return None
    ys = [y for _, y in found]
    low, high = (0.0, 1.0) if share else (min(0.0, *ys), max(ys))
    frame = Frame((0.0, max(x for x, _ in found)), (low, high), percent if share else short)
    marks = [*frame.axes(along)]
    last = {n: [y for _, y in points if isfinite(y)][-1:] for n, points in thin.items()}
    for colour, points in zip(cycle(COLOURS), thin.values(), strict=False):
        marks.append(path(frame.line(points), f"line {colour}"))
    if len(thin) > 1:
        marks += _legend(thin)
    ends = "; ".join(f"{n} ends at {frame.form(y)}" for n, found in last.items() for y in found)
    return Chart(title, f"{ends}.", frame.height, marks)


def curve(points: Sequence[Point], chosen: Point, title: str, *, share: bool) -> Chart | None:
    """A metric against the fraction of channels removed, with the chosen one marked.

    Args:
        points: Fractions and values, the uncut network first.
        chosen: Fraction and value of the slim network.
        title: What is drawn.
        share: Whether the values are fractions, from 0 to 1.
    """
    good = [point for point in [*points, chosen] if isfinite(point[1])]
    if not good:
        return None
    top = 1.0 if share else max(y for _, y in good)
    frame = Frame((0.0, 1.0), (0.0, top), percent if share else short, percent)
    (x, y), start = chosen, points[0][1]
    level, place, low = frame.y_of(start), frame.x_of(x), frame.height - BOTTOM
    marks = [*frame.axes("fraction of channels removed")]
    marks.append(path(f"M{LEFT} {level:.1f}H{WIDTH - RIGHT}", "mark"))
    marks.append(path(f"M{place:.1f} {TOP}V{low}", "mark"))
    marks.append(path(frame.line(points), "line dense"))
    marks += [mark for point in points for mark in _dots(frame, point, "dense")]
    marks += _dots(frame, chosen, "slim", 5)
    side = "end" if x > 0.5 else "start"  # where there is room
    label = f"slim: {percent(x)} cut"
    marks.append(text(place + (-6 if side == "end" else 6), TOP - 9, label, f"slim {side}"))
    told = "; ".join(f"{percent(x)} cut: {frame.form(y)}" for x, y in points)
    told += f"; slim network, {percent(x)} cut: {frame.form(y)}."
    return Chart(title, told, frame.height, marks)


def rows(layers: Sequence[tuple[str, int, int]], title: str, *, most: int, longest: int) -> Chart:
    """A bar for every layer, with its name and its widths.

    Args:
        layers: Name of each layer, its channels before and after.
        title: What is drawn.
        most: The number of channels that fills the width.
        longest: Characters of the longest name.
    """
    step, start = 18, 12 + 6.8 * min(longest, NAME)
    room = WIDTH - start - 72
    outline, fill, words = "", "", list[Mark]()
    for i, (name, dense, slim) in enumerate(layers):
        y = 4 + i * step
        shown = name if len(name) <= NAME else f"…{name[1 - NAME :]}"
        outline += f"M{start} {y + 2}h{room * dense / most:.1f}v10h-{room * dense / most:.1f}z"
        fill += f"M{start} {y + 2}h{room * slim / most:.1f}v10h-{room * slim / most:.1f}z"
        words.append(text(start - 8, y + 11, shown, "end" if slim < dense else "end dim"))
        words.append(text(WIDTH - 4, y + 11, f"{slim:,} of {dense:,}", "end"))
    marks = [path(outline, "was"), path(fill, "is"), *words]
    total = sum(layer[1] for layer in layers), sum(layer[2] for layer in layers)
    told = f"{len(layers)} layers with {total[0]:,} channels before the cut and {total[1]:,} after."
    return Chart(title, told, 8 + step * len(layers), marks)


def bars(layers: Sequence[tuple[str, int, int]], title: str) -> Chart:
    """All layers at a glance, side by side, without names.

    Args:
        layers: Name of each layer, its channels before and after.
        title: What is drawn.
    """
    most = max(dense for _, dense, _ in layers)
    frame = Frame((0.0, len(layers)), (0.0, most), short, width=2 * WIDTH)
    base, was, left = frame.height - BOTTOM, "", ""
    width = frame.x_of(1) - frame.x_of(0)
    for i, (_, dense, slim) in enumerate(layers):
        x = frame.x_of(i)
        was += f"M{x:.1f} {base}V{frame.y_of(dense):.1f}h{width:.1f}V{base}z"
        left += f"M{x:.1f} {base}V{frame.y_of(slim):.1f}h{width:.1f}V{base}z"
    marks = [*frame.axes("layer"), path(was, "was flat"), path(left, "is")]
    told = f"{len(layers)} layers in the order of the network; the widest has {most:,} channels."
    return Chart(title, told, frame.height, marks, frame.width)


def ridges(histograms: Sequence[Mapping[str, Any]], title: str) -> Chart:
    """Histograms of magnitudes, one below the other, the first on top.

    The height is the square root of the density, so that few large values stay visible. Each line
    is as tall as the others: its fraction of zeros is written beside it.

    Args:
        histograms: Each with `epoch`, `edges`, `counts` and `zeros`.
        title: What is drawn.
    """
    chosen = _spread(histograms, MOST_ROWS)
    heights = [_densities(h) for h in chosen]
    reach = max(h["edges"][-1] for h in chosen) or 1.0
    step, tall, right = 19, 30, 58
    base, width = TOP + tall - step, WIDTH - LEFT - right
    marks = [text(LEFT - 6, 12, "epoch", "end dim"), text(WIDTH - 4, 12, "zero", "end dim")]
    for i, (found, height) in enumerate(zip(chosen, heights, strict=True)):
        y = base + step * (i + 1)
        tallest = max(height) or 1.0
        d = f"M{LEFT} {y}"
        for right_edge, value in zip(found["edges"][1:], height, strict=True):
            x = LEFT + width * right_edge / reach
            d += f"V{y - tall * value / tallest:.1f}H{x:.1f}"
        colour = "slim" if i == len(chosen) - 1 else "dense"
        marks.append(path(f"M{LEFT} {y}h{width}", "grid"))
        marks.append(path(f"{d}V{y}z", f"ridge {colour}"))
        marks.append(text(LEFT - 6, y, str(found["epoch"]), "end"))
        marks.append(text(WIDTH - 4, y, percent(_zero(found)), "end"))
    low = base + step * len(chosen)
    for tick in ticks(0, reach):
        marks.append(text(LEFT + width * tick / reach, low + 16, short(tick), "middle dim"))
    marks.append(text(LEFT + width / 2, low + 30, "magnitude, without exact zeros", "middle dim"))
    told = "; ".join(f"epoch {h['epoch']}: {percent(_zero(h))} exactly zero" for h in chosen)
    return Chart(title, f"{told}.", low + 36, marks)


def _dots(frame: Frame, point: Point, colour: str, radius: float = 3) -> Iterator[Mark]:
    """A dot; none where the value is not finite."""
    if isfinite(point[1]):
        yield circle(frame.x_of(point[0]), frame.y_of(point[1]), radius, colour)


def _legend(names: Mapping[str, object]) -> Iterator[Mark]:
    x = float(LEFT)
    for colour, name in zip(cycle(COLOURS), names, strict=False):
        yield path(f"M{x:.1f} 10h14", f"line {colour}")
        yield text(x + 18, 14, name, "")
        x += 30 + 6.2 * len(name)


def _thinned(points: Sequence[Point]) -> list[Point]:
    """At most so many points, each the mean of its neighbours."""
    size = -(-len(points) // MOST_POINTS)
    if size <= 1:
        return list(points)
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts]


def _spread(found: Sequence[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    """At most so many of them, evenly, with the first and the last."""
    if len(found) <= most:
        return list(found)
    return [found[round(i * (len(found) - 1) / (most - 1))] for i in range(most)]


def _densities(found: Mapping[str, Any]) -> list[float]:
    """The roots of the counts per unit of magnitude."""
    widths = [b - a for a, b in pairwise(found["edges"])]
    pairs = zip(found["counts"], widths, strict=True)
    return [sqrt(n / width) if width > 0 else 0.0 for n, width in pairs]


def _zero(found: Mapping[str, Any]) -> float:
    total = sum(found["counts"]) + found["zeros"]
    return float(found["zeros"] / total) if total else 0.0
