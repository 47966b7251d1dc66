"""Run a model once and follow its channels: what `ChannelFlow` is made from."""

import gc
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.parameter import is_lazy

from lightning_sparsity.surgery.flow import ChannelFlow
from lightning_sparsity.surgery.labels import ROOT, compact
from lightning_sparsity.surgery.plan import plan_of
from lightning_sparsity.surgery.recorder import MARK, Recorder
from lightning_sparsity.surgery.running import (
    Inputs,
    Snapshot,
    call,
    preserved,
    reads_of_mode,
    show_heads,
    tensors_in,
)
from lightning_sparsity.surgery.tape import Tape, own_tensors_of, swapped
from lightning_sparsity.surgery.tracer import Tracer
from lightning_sparsity.waiting import Waiting


def trace(model: nn.Module, example_inputs: Inputs) -> ChannelFlow:
    """Run a model once and follow its channels.

    The model runs in evaluation mode, and once more in training mode if its own code asks for the
    mode, so heads that only train are seen. Its weights, buffers, modes and hooks stay as they are,
    and so does the random state.

    Args:
        model: The model. Any Python control flow will do; what depends on the data is seen as it
            happens in this run.
        example_inputs: A tensor or list (the only argument), a tuple (all arguments) or a dict
            (keyword arguments). A batch of one will do.

    Returns:
        The flow, which makes plans.

    Raises:
        ValueError: If the model cannot run on the inputs, or has no layer that can be cut.
    """
    tape, notes = Tape(), list[str]()
    _check_modules(model)
    try:
        with reads_of_mode(model) as asked:
            if _run(model, tape, example_inputs, training=False):
                tape = Tape()
                _run(model, tape, example_inputs, training=False, there=_all_tensors())
    except Exception as error:
        raise ValueError(
            "trace needs example inputs that the model runs on, but it raised "
            f"{type(error).__name__}: {error}"
        ) from error
    if asked:
        try:
            _run(model, tape, example_inputs, training=True)
        except Exception as error:  # the heads of torchvision's detectors need targets to train
            tape.forget_training()
            notes.append(
                f"layers that only run in training were not seen: {type(error).__name__}: {error}"
            )
    if not tape.sites:
        raise ValueError(
            "trace needs a model with convolutions, linear or norm layers, but no such layer ran "
            f"in {type(model).__name__}."
        )
    return ChannelFlow(model, tape, example_inputs, notes)


def _check_modules(model: nn.Module) -> None:
    """Refuse what cannot be looked into."""
    for name, module in model.named_modules():
        if any(is_lazy(x) for _, x in own_tensors_of(module)):
            raise ValueError(
                f"trace needs weights, but those of {name!r} ({type(module).__name__}) have no "
                "shape yet: run the model once on example inputs first."
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"trace needs Python modules, but {name!r} is compiled by TorchScript: give the "
                "model as it was before torch.jit.script or torch.jit.trace."
            )


def _all_tensors() -> list[Tensor]:
    """Every tensor of the process: none of them can come from channels of a run yet to be.

    Code may keep constants anywhere, in a cache or a global, where a model does not show them.
    """
    return [x for x in gc.get_objects() if issubclass(type(x), Tensor)]


def _run(
    model: nn.Module,
    tape: Tape,
    example_inputs: Inputs,
    *,
    training: bool,
    there: Sequence[Tensor] = (),
) -> bool:
    """Write a run on the tape; whether tensors turned up that nobody has seen being made."""
    inputs = swapped(example_inputs, lambda x: x.detach() if isinstance(x, Tensor) else x)
    with preserved(model) as before:
        kept = [*(x for x, _ in before.values), *there]
        tracer = Tracer(model, tape, kept, training=training)
        if (earlier := plan_of(model)) is not None:
            tracer.recorder.former = {n: cut.layer.kind for n, cut in earlier.cuts.items()}
        if training:
            show_heads(model)
        else:
            model.eval()
        enter = register_module_forward_pre_hook(tracer.enter_module)
        leave = register_module_forward_hook(tracer.leave_module)
        given = list(tensors_in(inputs))
        for x in given:
            tracer.recorder.mark(x, None)
        try:
            with tracer, Waiting("Tracing the network"):
                result = call(model, inputs)
        finally:
            enter.remove()
            leave.remove()
            for x in given:
                x.__dict__.pop(MARK, None)
        _hold(tracer.recorder, result, before)
    return tracer.recorder.strangers > 0


def _hold(recorder: Recorder, result: object, before: Snapshot) -> None:
    """What the model returns, or keeps for later, stays whole."""
    for x in [*tensors_in(result), *before.new_tensors()]:
        value = recorder.value(x)
        x.__dict__.pop(MARK, None)
        if value is not None:
            variables = compact(value.labels, value.labels).flatten()
            recorder.tape.hold(variables[variables != ROOT])
