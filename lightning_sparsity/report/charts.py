"""Charts as inline SVG: plain strings, coloured by the style sheet of the page they stand in."""

from collections.abc import Mapping, Sequence
from itertools import cycle, pairwise
from math import isfinite, sqrt
from typing import Any

from lightning_sparsity.report.svg import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Frame,
    Point,
    percent,
    short,
    svg,
    text,
    ticks,
)

__all__ = ["bars", "curve", "lines", "ridges", "rows"]

COLOURS = ("sparse", "slim", "dense")
MOST_POINTS = 160
MOST_ROWS = 12
NAME = 22  # letters of a layer's name


def lines(
    series: Mapping[str, Sequence[Point]], title: str, *, along: str, share: bool = False
) -> str:
    """Curves over the steps of a training.

    Args:
        series: Points of each curve by its name; those that are not finite leave a gap.
        title: What is drawn.
        along: What the horizontal axis is.
        share: Whether the values are shares, from 0 to 1.
    """
    thin = {name: _thinned(points) for name, points in series.items()}
    found = [(x, y) for points in thin.values() for x, y in points if isfinite(y)]
    if not found:
        return ""
    ys = [y for _, y in found]
    low, high = (0.0, 1.0) if share else (min(0.0, *ys), max(ys))
    frame = Frame((0.0, max(x for x, _ in found)), (low, high), percent if share else short)
    body = frame.axes(along)
    last = {n: [y for _, y in points if isfinite(y)][-1:] for n, points in thin.items()}
    for colour, points in zip(cycle(COLOURS), thin.values(), strict=False):
        body += f'<path class="line {colour}" d="{frame.path(points)}"/>'
    if len(thin) > 1:
        body += _legend(thin)
    ends = "; ".join(f"{n} ends at {frame.form(y)}" for n, found in last.items() for y in found)
    return svg(title, f"{ends}.", frame.height, body)


def curve(points: Sequence[Point], chosen: Point, title: str, *, share: bool) -> str:
    """A metric against the share of channels that was cut, with the chosen share marked.

    Args:
        points: Shares and values, the uncut network first.
        chosen: Share and value of the slim network.
        title: What is drawn.
        share: Whether the values are shares, from 0 to 1.
    """
    good = [point for point in [*points, chosen] if isfinite(point[1])]
    if not good:
        return ""
    top = 1.0 if share else max(y for _, y in good)
    frame = Frame((0.0, 1.0), (0.0, top), percent if share else short, percent)
    (x, y), start = chosen, points[0][1]
    level, place, low = frame.y_of(start), frame.x_of(x), frame.height - BOTTOM
    body = frame.axes("share of channels cut")
    body += f'<path class="mark" d="M{LEFT} {level:.1f}H{WIDTH - RIGHT}"/>'
    body += f'<path class="mark" d="M{place:.1f} {TOP}V{low}"/>'
    body += f'<path class="line dense" d="{frame.path(points)}"/>'
    body += "".join(_dot(frame, point, "dense") for point in points)
    body += _dot(frame, chosen, "slim", 5)
    side = "end" if x > 0.5 else "start"  # where there is room
    label = f"slim: {percent(x)} cut"
    body += text(place + (-6 if side == "end" else 6), TOP - 9, label, f"slim {side}")
    told = "; ".join(f"{percent(x)} cut: {frame.form(y)}" for x, y in points)
    return svg(
        title, f"{told}; slim network, {percent(x)} cut: {frame.form(y)}.", frame.height, body
    )


def rows(layers: Sequence[tuple[str, int, int]], title: str, *, most: int, longest: int) -> str:
    """A bar for every layer, with its name and its numbers.

    Args:
        layers: Name of each layer, its channels before and after.
        title: What is drawn.
        most: The number of channels that fills the width.
        longest: Letters of the longest name.
    """
    step, start = 18, 12 + 6.8 * min(longest, NAME)
    room = WIDTH - start - 72
    outline, fill, words = "", "", ""
    for i, (name, dense, slim) in enumerate(layers):
        y = 4 + i * step
        shown = name if len(name) <= NAME else f"…{name[1 - NAME :]}"
        outline += f"M{start} {y + 2}h{room * dense / most:.1f}v10h-{room * dense / most:.1f}z"
        fill += f"M{start} {y + 2}h{room * slim / most:.1f}v10h-{room * slim / most:.1f}z"
        words += text(start - 8, y + 11, shown, "end" if slim < dense else "end dim")
        words += text(WIDTH - 4, y + 11, f"{slim:,} of {dense:,}", "end")
    body = f'<path class="was" d="{outline}"/><path class="is" d="{fill}"/>{words}'
    total = sum(layer[1] for layer in layers), sum(layer[2] for layer in layers)
    told = f"{len(layers)} layers with {total[0]:,} channels before the cut and {total[1]:,} after."
    return svg(title, told, 8 + step * len(layers), body)


def bars(layers: Sequence[tuple[str, int, int]], title: str) -> str:
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
    body = f'<path class="was flat" d="{was}"/><path class="is" d="{left}"/>'
    told = f"{len(layers)} layers in the order of the network; the widest has {most:,} channels."
    return svg(title, told, frame.height, frame.axes("layer") + body, frame.width)


def ridges(histograms: Sequence[Mapping[str, Any]], title: str) -> str:
    """Histograms of magnitudes, one below the other, the first on top.

    The height is the square root of the density, so that few large values stay visible. Each line
    is as tall as the others: how much is left of it says its share of zeros.

    Args:
        histograms: Each with `epoch`, `edges`, `counts` and `zeros`.
        title: What is drawn.
    """
    chosen = _spread(histograms, MOST_ROWS)
    heights = [_densities(h) for h in chosen]
    reach = max(h["edges"][-1] for h in chosen) or 1.0
    step, tall, right = 19, 30, 58
    base, width = TOP + tall - step, WIDTH - LEFT - right
    body = text(LEFT - 6, 12, "epoch", "end dim") + text(WIDTH - 4, 12, "zero", "end dim")
    for i, (found, height) in enumerate(zip(chosen, heights, strict=True)):
        y = base + step * (i + 1)
        tallest = max(height) or 1.0
        path = f"M{LEFT} {y}"
        for right_edge, value in zip(found["edges"][1:], height, strict=True):
            x = LEFT + width * right_edge / reach
            path += f"V{y - tall * value / tallest:.1f}H{x:.1f}"
        colour = "slim" if i == len(chosen) - 1 else "dense"
        body += f'<path class="grid" d="M{LEFT} {y}h{width}"/>'
        body += f'<path class="ridge {colour}" d="{path}V{y}z"/>'
        body += text(LEFT - 6, y, str(found["epoch"]), "end")
        body += text(WIDTH - 4, y, percent(_zero(found)), "end")
    low = base + step * len(chosen)
    for tick in ticks(0, reach):
        body += text(LEFT + width * tick / reach, low + 16, short(tick), "middle dim")
    body += text(LEFT + width / 2, low + 30, "magnitude, exact zeros left out", "middle dim")
    told = "; ".join(f"epoch {h['epoch']}: {percent(_zero(h))} exactly zero" for h in chosen)
    return svg(title, f"{told}.", low + 36, body)


def _dot(frame: Frame, point: Point, colour: str, radius: float = 3) -> str:
    if not isfinite(point[1]):
        return ""
    x, y = frame.x_of(point[0]), frame.y_of(point[1])
    return f'<circle class="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>'


def _legend(names: Mapping[str, object]) -> str:
    body, x = "", float(LEFT)
    for colour, name in zip(cycle(COLOURS), names, strict=False):
        body += f'<path class="line {colour}" d="M{x:.1f} 10h14"/>' + text(x + 18, 14, name, "")
        x += 30 + 6.2 * len(name)
    return body


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
