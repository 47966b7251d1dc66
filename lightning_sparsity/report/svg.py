"""What every chart is made of: axes with round numbers, marks, and a description in words."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import floor, isfinite, log10
from typing import final

__all__ = [
    "BOTTOM",
    "LEFT",
    "RIGHT",
    "TOP",
    "WIDTH",
    "Chart",
    "Frame",
    "Mark",
    "Point",
    "circle",
    "path",
    "percent",
    "short",
    "text",
    "ticks",
]

Point = tuple[float, float]
WIDTH = 360  # at this width letters are of the size of the text on a phone
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 26, 32


def short(value: float) -> str:
    """A number in few characters: 12k, 1.5M, 0.05."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"


def percent(value: float) -> str:
    """A fraction in whole percent."""
    return f"{value:.0%}".replace("%", "\u202f%")


@final
@dataclass(frozen=True)
class Mark:
    """An element of a chart, which the template of the page writes.

    Args:
        tag: `"path"`, `"circle"` or `"text"`.
        kind: Its classes in the style sheet.
        at: Its other attributes.
        words: What a text says.
    """

    tag: str
    kind: str
    at: Mapping[str, str]
    words: str = ""


@final
@dataclass(frozen=True)
class Chart:
    """A chart, and in words what it shows.

    Args:
        title: What is drawn.
        told: Its description, for readers who do not see it.
        height: Its height at that width.
        marks: What it consists of, in the order of drawing.
        width: Its width.
    """

    title: str
    told: str
    height: float
    marks: Sequence[Mark]
    width: int = WIDTH


@final
@dataclass(frozen=True)
class Frame:
    """Where numbers lie in a chart with two axes."""

    x: Point
    y: Point
    form: Callable[[float], str]
    form_x: Callable[[float], str] = short
    height: int = 210
    width: int = WIDTH

    def x_of(self, value: float) -> float:
        """How far to the right a number lies."""
        low, high = self.x
        return LEFT + (self.width - LEFT - RIGHT) * (value - low) / ((high - low) or 1.0)

    def y_of(self, value: float) -> float:
        """How far down a number lies."""
        low, high = self.y
        room = self.height - TOP - BOTTOM
        return TOP + room * (1 - (value - low) / ((high - low) or 1.0))

    def line(self, points: Sequence[Point]) -> str:
        """A line through the points, with gaps where one is not finite."""
        d, move = "", "M"
        for x, y in points:
            if isfinite(y):
                d, move = f"{d}{move}{self.x_of(x):.1f} {self.y_of(y):.1f}", "L"
            else:
                move = "M"
        return d

    def axes(self, along: str) -> Iterator[Mark]:
        """Grid lines, their numbers, and what the horizontal axis is."""
        low = self.height - BOTTOM
        for tick in ticks(*self.y):
            y = self.y_of(tick)
            yield path(f"M{LEFT} {y:.1f}H{self.width - RIGHT}", "grid")
            yield text(LEFT - 6, y + 4, self.form(tick), "end dim")
        for tick in ticks(*self.x):
            side = "end" if self.x_of(tick) > self.width - 20 else "middle"
            yield text(self.x_of(tick), low + 15, self.form_x(tick), f"{side} dim")
        yield text((LEFT + self.width) / 2, self.height - 3, along, "middle dim")


def path(d: str, kind: str) -> Mark:
    """A line or an area of the classes `kind`."""
    return Mark("path", kind, {"d": d})


def circle(x: float, y: float, radius: float, kind: str) -> Mark:
    """A dot of the classes `kind`."""
    return Mark("circle", kind, {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": f"{radius}"})


def text(x: float, y: float, words: str, kind: str) -> Mark:
    """Words at a place, of the classes `kind`."""
    return Mark("text", kind, {"x": f"{x:.1f}", "y": f"{y:.1f}"}, words)


def ticks(low: float, high: float, count: int = 4) -> Iterator[float]:
    """Round numbers from `low` to `high`."""
    span = (high - low) or 1.0
    unit = 10 ** floor(log10(span / count))
    step = next(unit * k for k in (1, 2, 2.5, 5, 10) if unit * k >= span / count * 0.999)
    first = -floor(-low / step)
    for i in range(first, floor(high / step + 1e-9) + 1):
        yield i * step
