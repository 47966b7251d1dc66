"""The proof that a slim model computes what the masked one does: both run in float64."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sparsity.surgery.flow import ChannelFlow
from lightning_sparsity.surgery.running import (
    WithoutDropout,
    call,
    preserved,
    show_heads,
    tensors_in,
)
from lightning_sparsity.surgery.tape import swapped
from lightning_sparsity.waiting import Waiting

TOLERANCE = 1e-9
ADVICE = (
    "so nothing was changed. The model's own code may count channels: keep the BatchNorm layers "
    "before that place whole."
)
Seen = tuple[list[Tensor], list[Tensor]]


def prove(masked: nn.Module, small: nn.Module, flow: ChannelFlow) -> float:
    """The relative difference of two models on the flow's example inputs.

    Raises:
        RuntimeError: If it is larger than rounding in float64.
    """
    masked = in_double(masked)
    train_only = any(all(c.training for c in site.calls) for site in flow.tape.sites.values())
    worst = 0.0
    for training in (False, True)[: 1 + train_only]:
        try:
            with Waiting("Proving that the slim network computes the same"):
                expected = _observe(masked, flow, training=training)
                got = _observe(small, flow, training=training)
        except Exception as error:
            raise RuntimeError(f"The slim model does not run ({error}), {ADVICE}") from error
        worst = max(worst, _difference(expected, got))
        if not worst <= TOLERANCE:
            raise RuntimeError(
                f"The slim model differs from the masked one by {worst:.1e} (relative), {ADVICE}"
            )
    return worst


def in_double(model: nn.Module) -> nn.Module:
    """A copy of a model in float64 that shares the tensors that are float64 already."""
    model = shared_copy(model)
    memo: dict[int, Any] = {}
    for module in model.modules():
        for name, x in [
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        ]:
            if x.is_floating_point() and id(x) not in memo:
                wide = x.detach().double()
                memo[id(x)] = (
                    nn.Parameter(wide, requires_grad=x.requires_grad)
                    if isinstance(x, nn.Parameter)
                    else wide
                )
            setattr(module, name, memo.get(id(x), x))
    return model


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy of the modules that shares all parameters and buffers with the original."""
    return copy.deepcopy(model, {id(x): x for x in [*model.parameters(), *model.buffers()]})


def relative_difference(expected: list[Tensor], got: list[Tensor]) -> float:
    """The largest difference, relative to each tensor's largest entry; inf if shapes differ."""
    if [x.shape for x in expected] != [x.shape for x in got]:
        return float("inf")
    worst = 0.0
    for a, b in zip(expected, got, strict=True):
        if a.numel():
            a, b = a.double(), b.double()
            difference = float((a - b).abs().max()) / (float(a.abs().max()) or 1.0)
            worst = max(worst, difference if difference == difference else float("inf"))
    return worst


def _difference(expected: Seen, got: Seen) -> float:
    """The difference of the outputs and of the uncut layers inside.

    Detectors end by sorting and dropping boxes, where rounding can decide. If their outputs differ,
    what counts is what goes into that end: the layers from which nothing was cut.
    """
    inside = relative_difference(expected[1], got[1])
    outputs = relative_difference(expected[0], got[0])
    return inside if outputs > TOLERANCE and expected[1] else max(outputs, inside)


def _observe(model: nn.Module, flow: ChannelFlow, *, training: bool) -> Seen:
    """A model's outputs, and what those of its layers make that nothing can be cut from."""
    modules = dict(model.named_modules())
    inside: list[Tensor] = []
    whole = [
        modules[name]
        for name, site in flow.tape.sites.items()
        if not bool(flow.classes[site.rows].any())
    ]
    hooks = [
        module.register_forward_hook(lambda _m, _a, result: inside.append(result.clone()))
        for module in whole
    ]
    inputs = swapped(flow.example_inputs, _widened)
    with preserved(model), WithoutDropout():
        torch.manual_seed(0)
        if training:
            show_heads(model)
        else:
            model.eval()
        outputs = list(tensors_in(call(model, inputs)))
    for hook in hooks:
        hook.remove()
    return outputs, inside


def _widened(x: Any) -> Any:  # noqa: ANN401
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x
