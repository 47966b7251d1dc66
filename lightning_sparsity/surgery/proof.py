"""The proof that a slim model returns what the masked one returns, on more than one input.

Both run in float64 on the example inputs and on fresh ones. Detectors end by sorting and dropping
boxes, where rounding decides, so outputs alone do not tell wrong from right. Where they differ, the
masked model runs again with the result of every whole layer (one from which nothing can be cut)
replaced by the slim model's. Each of those layers, and the outputs, then have to agree: whatever
stands between two whole layers is compared on the same inputs, and nothing is forgiven.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sparsity.surgery.copying import in_double, own_tensors, shared_copy
from lightning_sparsity.surgery.inputs import fresh_inputs
from lightning_sparsity.surgery.observing import Observer, leaves_of, relative_difference, set_mode
from lightning_sparsity.surgery.running import Inputs, call, each_tensor, preserved, tensors_in
from lightning_sparsity.waiting import Waiting

TOLERANCE = 1e-9
NOISE = 1e-6
"""Outputs smaller than this share of the inputs may be nothing but rounding."""
ROUNDINGS = 32
"""How many roundings of a lower precision outputs may be apart, relative to their largest entry."""
Seen = list[tuple[str, Tensor]]
Run = tuple[list[Any], Seen]
"""What a model returns, and what its whole layers make, in order."""


class MismatchError(Exception):
    """A slim model that fails, or returns something else than the masked one.

    Args:
        difference: The relative difference; infinite where shapes differ or the slim model fails.
        error: What the slim model raised, if it did.
        rerun: Both models in the precision of the comparison, and the inputs, to look closer.
    """

    def __init__(self, difference: float, error: Exception | None, rerun: "Rerun") -> None:
        super().__init__(f"differs by {difference:.1e}" if error is None else f"raises {error}")
        self.difference = difference
        self.error = error
        self.rerun = rerun


@dataclass(frozen=True, eq=False)
class Rerun:
    """Two models and the inputs on which they differ."""

    masked: nn.Module
    small: nn.Module
    inputs: Inputs
    training: bool
    tolerance: float


@dataclass(frozen=True)
class Proof:
    """How a slim model was compared with the masked one.

    Attributes:
        difference: The largest relative difference of all outputs and whole layers.
        inputs: What both were run on, in words.
        precision: What both were run in, in words.
    """

    difference: float
    inputs: str
    precision: str

    def __str__(self) -> str:
        return f"relative difference {self.difference:.1e} on {self.inputs}, in {self.precision}"


class Pair:
    """A masked and a slim model in the highest precision that the masked one runs in.

    Args:
        masked: The model with dead scales at zero, in its own precision.
        small: The slim model, in its own precision or wider where constants were folded in.
        example_inputs: What both run on.
        whole: Names of the layers from which nothing can be cut.
    """

    def __init__(
        self, masked: nn.Module, small: nn.Module, example_inputs: Inputs, whole: list[str]
    ) -> None:
        self.whole = whole
        self.lowest = torch.float64
        self.wide = True
        self.masked, self.small = in_double(masked), in_double(small)
        self.inputs = each_tensor(example_inputs, _widened)
        try:
            self.expected = self.observe(self.masked, self.inputs, training=False)
        except Exception:  # the model's code makes another precision by itself
            self.wide = False
            self.masked, self.small = masked, shared_copy(small)
            own_tensors(self.small, masked)
            self.inputs = example_inputs
            self.expected = self._run_masked(self.inputs, training=False)

    def prove(self, *, training: bool) -> tuple[float, str]:
        """The largest difference on the example and on fresh inputs; and which those are, in words.

        Raises:
            MismatchError: If the two differ by more than rounding.
            RuntimeError: If the masked model does not run, or not twice alike.
        """
        expected = self._run_masked(self.inputs, training=True) if training else self.expected
        worst = self._compare(self.inputs, expected, training=training)
        for inputs, words in fresh_inputs(self.inputs):
            try:
                expected = self.observe(self.masked, inputs, training=training)
            except Exception:  # it does not take inputs like these
                continue
            worst = max(worst, self._compare(inputs, expected, training=training))
            return worst, f"the example and {words}"
        return worst, "the example alone, since the model runs on no other inputs"

    def heads(self) -> str:
        """What is to be said of the layers that run in training only.

        They have to run. Code that asks for the mode may see other constants in training than those
        that were folded away, so what they return is compared and said, and no more than that.
        """
        try:
            difference = self.prove(training=True)[0]
        except MismatchError as mismatch:
            if mismatch.error is not None:
                raise
            return f" (heads that only train differ by {mismatch.difference:.1e})"
        return f" (heads that only train: {difference:.1e})"

    def precision(self) -> str:
        """What the comparison ran in."""
        names = [str(x).removeprefix("torch.") for x in (torch.float64, self.lowest)]
        if not self.wide:
            return f"{names[1]}, since the model does not run in float64"
        inside = f", with {names[1]} in the model's own code"
        return names[0] + (inside if self.lowest != torch.float64 else "")

    def _run_masked(self, inputs: Inputs, *, training: bool) -> Run:
        try:
            return self.observe(self.masked, inputs, training=training)
        except Exception as error:
            raise RuntimeError(
                "The model with its dead scales at zero, uncut, does not run on the example "
                f"inputs: {type(error).__name__}: {error}"
            ) from error

    def _compare(self, inputs: Inputs, expected: Run, *, training: bool) -> float:
        rerun = Rerun(self.masked, self.small, inputs, training, TOLERANCE)
        try:
            got = self.observe(self.small, inputs, training=training)
        except Exception as error:
            raise MismatchError(float("inf"), error, rerun) from error
        floor = NOISE * max([float(x.abs().max()) for x in _floats(inputs)], default=1.0)
        worst = max(
            relative_difference(expected[0], got[0], floor=floor),
            relative_difference([x for _, x in expected[1]], [x for _, x in got[1]], floor=floor),
        )
        if worst > TOLERANCE:
            worst = min(worst, self._replaced(inputs, got, floor, training=training))
        if worst > TOLERANCE:
            allowed = self._rounding(inputs, expected, training=training)
            if not worst <= allowed:
                raise MismatchError(
                    worst, None, Rerun(self.masked, self.small, inputs, training, allowed)
                )
        return worst

    def _replaced(self, inputs: Inputs, got: Run, floor: float, *, training: bool) -> float:
        """The difference when whole layers of the masked model return the slim one's results."""
        waiting, worst = list(got[1])[::-1], 0.0

        def replace(name: str, result: Tensor) -> Tensor:
            nonlocal worst
            known, own = waiting.pop() if waiting else ("", result)
            apart = relative_difference([result], [own], floor=floor)
            worst = max(worst, apart if known == name else torch.inf)
            return own if known == name and own.shape == result.shape else result

        try:
            outputs, _ = self.observe(self.masked, inputs, training=training, change=replace)
        except Exception:  # it went another way on other values
            return float("inf")
        worst = max(worst, relative_difference(outputs, got[0], floor=floor))
        return torch.inf if waiting else worst

    def _rounding(self, inputs: Inputs, expected: Run, *, training: bool) -> float:
        """How far rounding may move the outputs: some roundings, or ten times what one does."""
        again = self.observe(self.masked, inputs, training=training)
        if relative_difference(expected[0], again[0]) > 0:
            raise RuntimeError(
                "The model returns something else each time that it runs on the same inputs, so no "
                "equivalence check can be made. Seed it, or switch off what is random in forward."
            )
        eps = torch.finfo(self.lowest).eps
        base = TOLERANCE if self.lowest == torch.float64 else ROUNDINGS * eps
        generator = torch.Generator().manual_seed(0)

        def moved(x: Tensor) -> Tensor:
            if not x.is_floating_point():
                return x
            noise = torch.randn(x.shape, generator=generator).to(x)
            return x * (1 + eps * noise)

        try:
            near = self.observe(self.masked, each_tensor(inputs, moved), training=training)
        except Exception:
            return base
        difference = relative_difference(expected[0], near[0])
        return max(base, 10 * difference) if difference < eps**0.5 else base

    def observe(
        self,
        model: nn.Module,
        inputs: Inputs,
        *,
        training: bool,
        change: Callable[[str, Tensor], Tensor] | None = None,
    ) -> Run:
        """A model's outputs, and what its whole layers make; `change` may replace the latter."""
        modules, seen = dict(model.named_modules()), list[tuple[str, Tensor]]()

        def watch(name: str) -> Callable[..., Tensor | None]:
            def look(_: nn.Module, __: object, result: object) -> Tensor | None:
                if not isinstance(result, Tensor):
                    return None
                if change is not None:
                    return change(name, result)
                seen.append((name, result.clone()))
                return None

            return look

        hooks = [modules[name].register_forward_hook(watch(name)) for name in self.whole]
        look = Observer()
        try:
            with preserved(model), look:
                torch.manual_seed(0)
                set_mode(model, training=training)
                outputs = list(leaves_of(call(model, each_tensor(inputs, Tensor.clone))))
        finally:
            for hook in hooks:
                hook.remove()
        self.lowest = min(self.lowest, look.lowest, key=lambda x: -torch.finfo(x).eps)
        return outputs, seen


def prove(
    masked: nn.Module, small: nn.Module, example_inputs: Inputs, whole: list[str], *, heads: bool
) -> Proof:
    """Compare two models on the example inputs and on fresh ones.

    Args:
        masked: The model with dead scales at zero.
        small: The slim model.
        example_inputs: In a form that `trace` takes.
        whole: Names of the layers from which nothing can be cut.
        heads: Whether some layers run in training mode only.

    Raises:
        MismatchError: If they differ by more than rounding.
        RuntimeError: If the masked model does not run, or not twice alike.
    """
    with Waiting("Checking that the slim network returns the same"):
        pair = Pair(masked, small, example_inputs, whole)
        worst, words = pair.prove(training=False)
        if heads:
            words += pair.heads()
    return Proof(worst, words, pair.precision())


def _floats(inputs: Inputs) -> Iterator[Tensor]:
    return (x for x in tensors_in(inputs) if x.is_floating_point() and x.numel())


def _widened(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x
