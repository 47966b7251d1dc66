"""Many constants per channel at once, through steps that treat every entry by itself."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_sparsity.surgery import ops
from lightning_sparsity.surgery.labels import compact
from lightning_sparsity.surgery.tape import Step, Unknown, Value, Weight, swapped

NAN = float("nan")


class NotEntrywiseError(Exception):
    """A step in which the constant of a channel depends on more than this channel's own."""


class Entrywise:
    """The steps behind a layer as functions of one number per channel.

    `Constants` runs the tape on one constant per channel, with every movement of the data carried
    out. Where all steps work entry by entry, the movements do not matter, and a tensor of any shape
    goes through the same functions in one go.

    Args:
        steps: The steps, in order, that follow the layer; none is a layer itself.
        sources: What the layer makes.
        wanted: The values whose constants are asked for.

    Raises:
        NotEntrywiseError: If one of the steps mixes channels, has other numbers for every channel,
            or depends on zeros around the data.
    """

    def __init__(
        self, steps: Sequence[Step], sources: Sequence[Value], wanted: Sequence[Value]
    ) -> None:
        self.sources = sources
        self.wanted = wanted
        self.steps: list[tuple[Step, list[Value]]] = []
        """Each step with those of its inputs that depend on the layer."""
        reached = set(sources)
        for step in steps:
            inputs = [value for value in step.inputs if value in reached]
            _check(step, inputs)
            self.steps.append((step, inputs))
            reached.update(step.results)

    def __call__(self, made: Tensor) -> list[Tensor]:
        """The constants of the wanted values, given those that the layer makes; NaN: none."""
        known = dict.fromkeys(self.sources, made)
        for step, inputs in self.steps:
            c = _mapped(step, known) if step.kind in ("map", "product") else known[inputs[0]]
            known.update(dict.fromkeys(step.results, c.where(c.isfinite(), NAN)))
        return [known[value] for value in self.wanted]


def _check(step: Step, inputs: list[Value]) -> None:
    name, first = step.function.name, inputs[0]
    if step.kind in ("map", "product"):
        own = compact(first.labels, first.labels)
        alike = all(torch.equal(own, compact(other.labels, other.labels)) for other in inputs[1:])
        fine = alike and not _has_tensors(step)
    elif step.kind == "move":
        fine = len(set(inputs)) == 1
    else:  # an average of padding, and a sum, keep nothing but zeros
        keeps = step.kind == "keep" and not name.startswith("avg_pool")
        fine = keeps or (step.kind == "reduce" and name != "sum")
    if not fine:
        raise NotEntrywiseError(name)


def _has_tensors(step: Step) -> bool:
    """Whether a function has weights or other tensors among its arguments."""
    found: list[object] = []
    swapped((step.function.args, step.function.kwargs), found.append)
    return any(isinstance(x, (Weight, Tensor)) for x in found)


def _mapped(step: Step, known: dict[Value, Tensor]) -> Tensor:
    """The function of the constants, as `Constants` has it: zero times anything is zero."""
    unknown = torch.tensor(NAN, dtype=torch.float64)

    def swap(x: Any) -> Any:  # noqa: ANN401
        if isinstance(x, Unknown):
            return unknown
        return known.get(x, unknown).clone() if isinstance(x, Value) else x

    function = step.function
    args, kwargs = swapped(function.args, swap), swapped(function.kwargs, swap)
    entrywise = function.name in ops.SUMS | ops.PRODUCTS
    func = getattr(torch, function.name) if entrywise else function.func
    made: Tensor = func(*args, **kwargs)
    if function.name == "mul" and len(step.inputs) == 2:
        made = torch.where((args[0] == 0) | (args[1] == 0), 0.0, made)
    return made
