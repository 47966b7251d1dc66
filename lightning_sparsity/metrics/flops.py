"""Counting the work of a network, by fvcore: one multiply-add is one FLOP."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import final

import torch
from torch import Tensor, nn

from lightning_sparsity.waiting import Waiting

__all__ = ["FlopCount", "flops"]

LAYERS = (
    nn.Linear,
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


@final
@dataclass(frozen=True)
class FlopCount:
    """The work of one forward pass. One multiply-add counts as 1.

    Args:
        total: All that fvcore counts: convolutions, matrix products, normalisation and some
            pooling, whatever the weights are.
        effective: The same, with each convolution and linear layer counted at its share of non-zero
            weights. It is what a perfect sparse kernel would do, not a measured speed: a dense
            kernel multiplies by zero as slowly as by anything else. Weights used outside their own
            layer's call count in full.
        by_module: `total` of each module by its name, submodules included.
        uncounted: Operations that are not counted at all, and how often each occurs.
    """

    total: int
    effective: int
    by_module: Mapping[str, int]
    uncounted: Mapping[str, int]


def flops(model: nn.Module, inputs: Tensor | Sequence[Tensor]) -> FlopCount:
    """Count the work of one forward pass of `model` on `inputs`, in eval mode.

    Nothing about the model changes: neither its mode, nor its hooks, nor the random state.

    Args:
        model: The network; it is run once, on the device where it is.
        inputs: One tensor, or all positional arguments in a sequence. The count grows with the
            batch: give a batch of one for the work per image.

    Returns:
        The count, in multiply-adds.

    Example:
        >>> flops(nn.Linear(3, 4, bias=False), torch.ones(1, 3)).total
        12
    """
    arguments = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    analysis = _fvcore().FlopCountAnalysis(model, arguments)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings(
        "none"
    )
    with _undisturbed(model), torch.no_grad(), Waiting("Counting FLOPs"):
        by_module = {name: int(count) for name, count in analysis.by_module().items()}
        uncounted = dict(analysis.unsupported_ops())
    skipped = _skipped(model, by_module)
    total = by_module.pop("")
    return FlopCount(total, total - skipped, by_module, uncounted)


def _fvcore() -> ModuleType:
    """The counter, loaded when first needed: other metrics work without it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it scripts functions as it loads, which torch deprecates
        return import_module("fvcore.nn")


def _skipped(model: nn.Module, by_module: Mapping[str, int]) -> int:
    """The multiply-adds with a zero weight: each weight of a layer takes part equally often."""
    skipped = 0
    for name, layer in model.named_modules():
        if isinstance(layer, LAYERS):
            zeros = layer.weight.numel() - int(layer.weight.count_nonzero())
            skipped += by_module[name] * zeros // layer.weight.numel()
    return skipped


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards modes, hooks and random state are as before."""
    before = [
        (module, module.training, set(module._forward_pre_hooks), set(module._forward_hooks))
        for module in model.modules()
    ]
    devices = {weight.device for weight in model.parameters() if weight.is_cuda}
    model.eval()
    try:
        with torch.random.fork_rng(list(devices)):
            yield
    finally:
        for module, training, *kept in before:
            module.training = training
            # fvcore leaves its hooks behind when the forward pass fails.
            for hooks, keys in zip(
                (module._forward_pre_hooks, module._forward_hooks), kept, strict=True
            ):
                for key in set(hooks) - keys:
                    del hooks[key]
