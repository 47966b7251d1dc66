"""The search for how many scales have to go until a cost fits."""

from collections.abc import Callable
from math import prod

PATIENCE = 12
"""How often the search guesses before it turns to bisection."""


def crossing(
    cost: Callable[[int], float], allowed: float, above: tuple[int, float], below: tuple[int, float]
) -> int:
    """A count whose cost is at most `allowed`, while that of one less is not.

    Args:
        cost: The cost of a count between the two.
        allowed: What the cost may be.
        above: A count and its cost, more than allowed.
        below: A larger count and its cost, at most what is allowed.
    """
    ends, former, tries = [above, below], above, 0
    while ends[1][0] - ends[0][0] > 1:
        tries += 1
        middle = (ends[0][0] + ends[1][0]) // 2
        count = _guess([*ends, former], allowed) if tries <= PATIENCE else middle
        found = count, cost(count)
        fits = found[1] <= allowed
        former, ends[fits] = ends[fits], found
    return ends[1][0]


def _guess(points: list[tuple[int, float]], allowed: float) -> int:
    """Where the curve through three counts and their costs meets `allowed`, and a little further.

    Cost goes with width times width, so its root is nearly a line. A little further lies an end of
    the other side that is close: the wider part of the range goes.

    Args:
        points: The ends of the range, and an end that it had before.
        allowed: What the cost may be.
    """
    (low, _), (high, _), _ = points
    places = {cost**0.5: n for n, cost in points}
    target, at = allowed**0.5, 0.0
    for y, n in places.items():
        others = [x for x in places if x != y]
        at += n * prod((target - x) / (y - x) for x in others)
    guess = min(max(round(at), low + 1), high - 1)
    near = min(guess - low, high - guess)
    further = 1 + near // 16 if near else 0
    guess += further if guess - low < high - guess else -further
    return min(max(guess, low + 1), high - 1)
