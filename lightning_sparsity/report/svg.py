"""What every chart is made of: axes with round numbers, letters, and words for who cannot see."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from math import floor, isfinite, log10
from typing import final

__all__ = [
    "BOTTOM",
    "LEFT",
    "RIGHT",
    "TOP",
    "WIDTH",
    "Frame",
    "Point",
    "percent",
    "short",
    "svg",
    "text",
    "ticks",
]

Point = tuple[float, float]
WIDTH = 360  # at this width letters are of the size of the text on a phone
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 26, 32


def short(value: float) -> str:
    """A number in few letters: 12k, 1.5M, 0.05."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"


def percent(value: float) -> str:
    """A share in whole percent."""
    return f"{value:.0%}".replace("%", "\u202f%")


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

    def path(self, points: Sequence[Point]) -> str:
        """A line through the points, with gaps where one is not finite."""
        path, move = "", "M"
        for x, y in points:
            if isfinite(y):
                path, move = f"{path}{move}{self.x_of(x):.1f} {self.y_of(y):.1f}", "L"
            else:
                move = "M"
        return path

    def axes(self, along: str) -> str:
        """Grid lines, their numbers, and what the horizontal axis is."""
        body, low = "", self.height - BOTTOM
        for tick in ticks(*self.y):
            y = self.y_of(tick)
            body += f'<path class="grid" d="M{LEFT} {y:.1f}H{self.width - RIGHT}"/>'
            body += text(LEFT - 6, y + 4, self.form(tick), "end dim")
        for tick in ticks(*self.x):
            side = "end" if self.x_of(tick) > self.width - 20 else "middle"
            body += text(self.x_of(tick), low + 15, self.form_x(tick), f"{side} dim")
        return body + text((LEFT + self.width) / 2, self.height - 3, along, "middle dim")


def svg(title: str, told: str, height: float, body: str, width: int = WIDTH) -> str:
    """A chart that says in words what it shows."""
    name, words = escape(title), escape(told)
    return (
        f'<svg viewBox="0 0 {width} {height:.0f}" role="img" aria-label="{name}. {words}">'
        f"<title>{name}</title><desc>{words}</desc>{body}</svg>"
    )


def text(x: float, y: float, words: str, kind: str) -> str:
    """Words at a place, of the classes `kind`."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(words)}</text>'


def ticks(low: float, high: float, count: int = 4) -> Iterator[float]:
    """Round numbers from `low` to `high`."""
    span = (high - low) or 1.0
    unit = 10 ** floor(log10(span / count))
    step = next(unit * k for k in (1, 2, 2.5, 5, 10) if unit * k >= span / count * 0.999)
    first = -floor(-low / step)
    for i in range(first, floor(high / step + 1e-9) + 1):
        yield i * step
