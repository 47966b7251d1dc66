"""Where a slim model first computes something else: the layer before, and the layer after."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_sparsity.surgery import ops
from lightning_sparsity.surgery.modules import Scatter, Select
from lightning_sparsity.surgery.observing import Observer, relative_difference, set_mode
from lightning_sparsity.surgery.proof import MismatchError
from lightning_sparsity.surgery.running import call, each_tensor, preserved
from lightning_sparsity.surgery.tape import Tape

Calls = list[tuple[str, Tensor]]
"""Which modules ran, in the order in which they ended, and what they made."""
Live = dict[str, tuple[Tensor, Tensor, int]]
"""By layer: the dense rows whose values matter, where the slim layer has them, and along which
dimension."""


@dataclass(frozen=True)
class Place:
    """A stretch of a tape in which something counts channels.

    Attributes:
        first: The first step that may do it.
        last: The step before which it has happened.
        module: The module in which it shows.
        op: The function that failed there, if one did.
        reason: What was seen, in words.
    """

    first: int
    last: int
    module: str
    op: str
    reason: str


class _DifferenceFoundError(Exception):
    """A run has shown what it was for."""


def locate(mismatch: MismatchError, tape: Tape, live: Live) -> Place:
    """Run both models again, layer by layer, up to the first that differs."""
    rerun = mismatch.rerun
    slim_calls, module, op = _calls_of_slim(mismatch, live)
    good = list[str]()

    def compare(name: str, result: Tensor) -> None:
        at = len(good)
        own, made = slim_calls[at] if at < len(slim_calls) else ("", result)
        if name in live:
            rows, _, dim = live[name]
            result = result.index_select(dim, rows.to(result.device))
        elif made.shape != result.shape:  # narrower, as it should be
            made = result
        if own != name or relative_difference([result], [made]) > rerun.tolerance:
            raise _DifferenceFoundError
        good.append(name)

    with suppress(_DifferenceFoundError):
        _run(rerun.masked, mismatch, live, compare)
    if len(good) < len(slim_calls):
        module = slim_calls[len(good)][0]
    layers = [name for name in good if name in live]
    following = [name for name, _ in slim_calls[len(good) :] if name in live]
    steps = _steps_of(tape, [*layers, *following[:1]], training=rerun.training)
    first = steps[len(layers) - 1] + 1 if 0 < len(layers) <= len(steps) else 0
    last = steps[-1] + 1 if following and len(steps) > len(layers) else len(tape.steps)
    why = f"raises {mismatch.error}" if mismatch.error is not None else "returns something else"
    return Place(first, last, module, op, why)


def _calls_of_slim(mismatch: MismatchError, live: Live) -> tuple[Calls, str, str]:
    """What the slim layers make, in order; and where the model failed, by module and function."""
    found: Calls = []

    def look(name: str, result: Tensor) -> None:
        if name in live:
            _, places, dim = live[name]
            if not places.numel() or int(places.max()) < result.size(dim):
                result = result.index_select(dim, places.to(result.device))
        found.append((name, result.clone()))

    module, op = _run(mismatch.rerun.small, mismatch, live, look)
    return found, module, op


def _run(
    model: nn.Module, mismatch: MismatchError, live: Live, look: Callable[[str, Tensor], None]
) -> tuple[str, str]:
    """Run a model, and show what its layers make; where it failed, if it did."""
    modules, running = dict(model.named_modules()), list[str]()
    hooks: list[Any] = []
    for name, module in modules.items():
        hooks.append(module.register_forward_pre_hook(lambda _m, _a, n=name: running.append(n)))

        def leave(own: nn.Module, __: object, result: object, name: str = name) -> None:
            running.pop()
            if isinstance(result, Tensor) and name and not isinstance(own, (Select, Scatter)):
                look(name, result)

        hooks.append(module.register_forward_hook(leave))
    watch = _Watch()
    try:
        with preserved(model), Observer(), watch:
            torch.manual_seed(0)
            set_mode(model, training=mismatch.rerun.training)
            call(model, each_tensor(mismatch.rerun.inputs, Tensor.clone))
    except _DifferenceFoundError:
        raise
    except Exception as error:
        return running[-1] if running else "", watch.failed or type(error).__name__
    finally:
        for hook in hooks:
            hook.remove()
    return "", ""


class _Watch(TorchFunctionMode):
    """Remembers the function that failed."""

    failed = ""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run the function."""
        try:
            return func(*args, **(kwargs or {}))
        except Exception:
            self.failed = self.failed or ops.name_of(func)
            raise


def _steps_of(tape: Tape, calls: list[str], *, training: bool) -> list[int]:
    """The steps of a tape that stand for calls of layers, in order, as far as they are there."""
    found: list[int] = []
    at = 0
    for name in calls:
        while at < len(tape.steps):
            step, at = tape.steps[at], at + 1
            if step.call is not None and step.training == training and step.call.site.name == name:
                found.append(at - 1)
                break
    return found
