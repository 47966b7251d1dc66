"""Beside each activation its value: who carries one, and how a call gets on the tape."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sparsity.surgery.labels import ROOT, compact, plain
from lightning_sparsity.surgery.tape import (
    Call,
    Function,
    Kind,
    Step,
    Tape,
    Unknown,
    Value,
    Weight,
    own_tensors_of,
    swapped,
)

MARK = "_channel_flow"
NEUTRAL = "neutral"
SHARED = "(shared)"


@dataclass(eq=False)
class Frame:
    """A module that is running: what came in, and the layer call that it made."""

    module: nn.Module
    name: str
    source: Tensor | None
    call: Call | None = None
    selected: Tensor | None = None
    """What a `Select` made of the source, in a network that was cut before."""

    @property
    def entered(self) -> Tensor | None:
        """What the layer itself gets: the source, or what its `Select` made of it."""
        return self.source if self.selected is None else self.selected


@dataclass(eq=False)
class Op:
    """One function call under way."""

    name: str
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: list[Tensor]
    values: list[Value]
    results: list[Tensor]

    def argument(self, position: int, name: str, default: object = None) -> Any:  # noqa: ANN401
        """An argument that may have been given by position or by name."""
        return argument(self.args, self.kwargs, position, name, default)


class Recorder:
    """Knows which tensors carry channels and writes what happens to them on a tape.

    A tensor carries a value (it is marked with it), is neutral (independent of the inputs), or
    neither: then it carries data without channels, as everything does that nobody has seen being
    made.
    """

    def __init__(
        self, model: nn.Module, tape: Tape, kept: Iterable[Tensor], *, training: bool
    ) -> None:
        self.token = (
            object()
        )  # tensors that outlive a trace keep its marks: they are not this one's
        self.strangers = 0
        self.former: dict[str, str] = {}
        """The kinds of layers in the dense model, if this one was cut before."""
        self.tape = tape
        self.training = training
        # Known by their id, they have to live for as long: the model may replace them on the way,
        # and a new tensor would take over the id of an old one.
        self.alive = [*model.parameters(), *model.buffers(), *kept]
        self.owned = dict(_owned(model))
        for x in self.alive:
            self.owned.setdefault(id(x), SHARED)  # plain attributes are constants without a name
        self.frames: list[Frame] = []
        self.ones: dict[str, Tensor] = {}
        """By layer the variable of the channel of ones that an earlier cut appended."""
        self.borders: dict[Value, tuple[int, ...]] = {}
        """The zeros around values, as `F.pad` has put them there."""
        self.numbers = True  # whether Python numbers are the same in every run

    def value(self, x: object) -> Value | None:
        """The value that a tensor carries; None if it carries no channels."""
        mark = self._mark_of(x) if isinstance(x, Tensor) else None
        return mark if isinstance(mark, Value) else None

    def _mark_of(self, x: Tensor) -> Value | str | None:
        token, mark = x.__dict__.get(MARK, (None, None))
        return mark if token is self.token else None

    def has_seen(self, x: Tensor) -> bool:
        """Whether a tensor is the model's, or was made in this run by a function that was seen."""
        return id(x) in self.owned or x.__dict__.get(MARK, (None,))[0] is self.token

    def is_neutral(self, x: Tensor) -> bool:
        """Whether a tensor is independent of the model's inputs."""
        return id(x) in self.owned or self._mark_of(x) == NEUTRAL

    def mark(self, x: Tensor, mark: Value | str | None) -> None:
        """Say what a tensor carries from now on."""
        if id(x) not in self.owned:
            setattr(x, MARK, (self.token, mark))

    def freeze(self, labels: Sequence[Tensor], op: str, reason: str) -> None:
        """Keep every channel of these labels, and say why."""
        module = self.frames[-1].name if self.frames else ""
        for some in labels:
            variables = compact(some, some).flatten()
            fresh = (variables != ROOT) & ~self.tape.is_held(variables)
            self.tape.hold(variables[fresh], (module, op, reason))

    def has_name(self, x: Tensor) -> bool:
        """Whether the values of a tensor are known when they are needed: activations, weights."""
        named = self.owned.get(id(x), SHARED) != SHARED or not x.is_floating_point()
        return named or self.value(x) is not None

    def note(self, labels: Sequence[Tensor], op: str, reason: str) -> None:
        """Say why constants end, of channels that are not frozen for that."""
        module = self.frames[-1].name if self.frames else ""
        for some in labels:
            variables = compact(some, some).flatten()
            self.tape.noted.setdefault((module, op, reason), []).append(variables)

    def look_for_strangers(self, tensors: list[Tensor]) -> None:
        """A tensor that nobody has seen being made may come from any channel so far: keep them all.

        Compiled code, custom autograd functions and iteration over a tensor make such tensors.
        """
        for x in tensors:
            if not self.has_seen(x):
                self.strangers += 1
                self.mark(x, None)
                made = torch.arange(1, self.tape.variables)
                self.freeze([made], "unseen code", "makes a tensor out of sight")

    def borrow(self, op: Op) -> None:
        """Remember whose weights a function uses that is not their layer's own call."""
        for x in op.tensors:
            name = self.owned.get(id(x))
            if name is not None and x.dim() > 0:
                self.tape.borrowed.add(name.rpartition(".")[0])

    def opaque(self, op: Op, reason: str) -> None:
        """A function that channels cannot be followed through."""
        self.freeze([value.labels for value in op.values], op.name, reason)
        for value in op.values:
            value.uses += 1
        for x in op.results:
            self.mark(x, None)

    def record(self, kind: Kind, op: Op, labels: Sequence[Tensor]) -> None:
        """Write a call on the tape and mark its results."""
        inputs: list[Value] = []

        def swap(x: object) -> object:
            if isinstance(x, float) and not self.numbers:
                return Unknown()
            if not isinstance(x, Tensor):
                return x
            stand_in = self._stand_in(x)
            if isinstance(stand_in, Value):
                stand_in.uses += 1
                inputs.append(stand_in)
            return stand_in

        args, kwargs = swapped(tuple(op.args), swap), swapped(op.kwargs, swap)
        made = [Value(some) for some in labels]
        for x, value in zip(op.results, made, strict=True):
            self.mark(x, value)
        step = Step(kind, Function(op.name, op.func, args, kwargs), inputs, made, self.training)
        self.tape.steps.append(step)

    def _stand_in(self, x: Tensor) -> Value | Weight | Unknown | Tensor:
        """What stands for a tensor on the tape."""
        value = self.value(x)
        if value is not None:
            return value
        if self.owned.get(id(x), SHARED) != SHARED:
            return Weight(self.owned[id(x)])
        if not x.is_floating_point():
            return x.detach().cpu()
        return Unknown(tuple(x.shape)) if self.is_neutral(x) else Value(plain(x.shape))


def tensors_of(item: object) -> Iterator[Tensor]:
    """The tensors among arguments or results."""
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, (tuple, list)) and not isinstance(item, torch.Size):
        for x in item:
            yield from tensors_of(x)
    elif isinstance(item, dict):
        for x in item.values():
            yield from tensors_of(x)


def argument(
    args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str, default: object = None
) -> Any:  # noqa: ANN401
    """An argument that may have been given by position or by name."""
    return args[position] if len(args) > position else kwargs.get(name, default)


def _owned(model: nn.Module) -> Iterator[tuple[int, str]]:
    """Names of parameters and buffers by id; what several modules share belongs to none."""
    seen: dict[int, str] = {}
    for layer, module in model.named_modules():
        for name, tensor in own_tensors_of(module):
            seen[id(tensor)] = SHARED if id(tensor) in seen else f"{layer}.{name}".lstrip(".")
    yield from seen.items()
