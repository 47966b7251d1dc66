"""Synthetic handwriting: smooth pen strokes, drawn with a steady hand or a trembling one."""

import numpy as np
from PIL import Image, ImageDraw

from lightning_sparsity.data.shaking import drift

__all__ = ["write_strokes"]

OVERSAMPLING = 2  # lines have hard edges: draw them larger, then average


def write_strokes(
    rng: np.random.Generator, canvas: int, wavelength: float, rms: float
) -> np.ndarray:
    """A grey picture of random handwriting: rows of cursive loops, or a few free curves.

    Args:
        rng: Chooses the curves, their scale, and the width of the pen.
        canvas: Height and width of the picture in pixels.
        wavelength: Of the hand's motion across the path, in units of 1/64 of the picture.
        rms: Of that motion, in the same unit.

    Returns:
        Bytes of shape `(canvas, canvas)`, 255 where there is ink.
    """
    scale = canvas * OVERSAMPLING / 64
    picture = Image.new("L", (canvas * OVERSAMPLING, canvas * OVERSAMPLING))
    draw = ImageDraw.Draw(picture)
    width = rng.uniform(1.2, 3.5)
    for path in _cursive(rng) if rng.random() < 0.6 else _free_curves(rng):
        arc = np.cumsum(np.hypot(*np.diff(path, axis=0, prepend=path[:1]).T))
        _line(draw, (path + drift(rng, arc, wavelength, rms)) * scale, round(width * scale))
    return np.asarray(picture.reduce(OVERSAMPLING))


def _cursive(rng: np.random.Generator) -> list[np.ndarray]:
    """Paths of one to three rows of leaning loops, or waves, of changing height."""
    rows = rng.integers(1, 4)
    height = 54 / rows
    period = height * rng.uniform(0.45, 0.8)
    loop, lean = rng.uniform(0.0, 0.4) * period, rng.uniform(-0.2, 0.5)
    paths = []
    for row in range(rows):
        loops = int(rng.uniform(0.6, 1.0) * 54 / period) + 1
        t = np.linspace(0, loops, 60 * loops)
        tall = np.interp(t, np.arange(loops + 1), rng.uniform(0.35, 0.9, loops + 1))
        up = 0.5 * height * tall * np.sin(2 * np.pi * t)
        x = 32 + period * (t - loops / 2) + loop * np.cos(2 * np.pi * t) + lean * up
        paths.append(np.stack([x, 32 + height * (row - (rows - 1) / 2) - up], 1))
    return paths


def _free_curves(rng: np.random.Generator) -> list[np.ndarray]:
    """Paths of three to five splines that cross the picture in wide turns."""
    paths = []
    for _ in range(rng.integers(3, 6)):
        turns = np.cumsum(rng.uniform(-1, 1, rng.integers(3, 7))) + rng.uniform(0, 2 * np.pi)
        steps = rng.uniform(11, 18) * np.stack([np.cos(turns), np.sin(turns)], 1)
        knots = np.cumsum(steps, 0)
        paths.append(_spline(knots - knots.mean(0) + rng.uniform(16, 48, 2)))
    return paths


def _spline(knots: np.ndarray, samples: int = 24) -> np.ndarray:
    """Catmull-Rom spline through the knots."""
    padded = np.concatenate([2 * knots[:1] - knots[1:2], knots, 2 * knots[-1:] - knots[-2:-1]])
    p0, p1, p2, p3 = (padded[i : len(padded) - 3 + i, None] for i in range(4))
    t = np.linspace(0, 1, samples, endpoint=False)[None, :, None]
    cubic = 3 * (p1 - p2) + p3 - p0
    path = p1 + 0.5 * t * (p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * cubic))
    return np.asarray(path.reshape(-1, 2))


def _line(draw: ImageDraw.ImageDraw, path: np.ndarray, width: int) -> None:
    """One stroke with round ends."""
    draw.line([tuple(point) for point in path.tolist()], 255, width)
    for x, y in (path[0], path[-1]):
        draw.ellipse([x - width / 2, y - width / 2, x + width / 2, y + width / 2], 255)
