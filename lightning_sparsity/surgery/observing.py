"""Look at what a model returns, and tell how far two results are apart."""

from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_sparsity.surgery.running import show_heads, tensors_in


def set_mode(model: nn.Module, *, training: bool) -> None:
    """Evaluation, or training for the model's own code alone."""
    if training:
        show_heads(model)
    else:
        model.eval()


class Observer(TorchFunctionMode):
    """Sees the lowest precision of a run, and lets dropout by functions do nothing.

    Dropout of a narrower activation draws other numbers, so runs would not compare.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lowest = torch.float64

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """The first argument instead of its dropout; everything else as it is."""
        if "dropout" in getattr(func, "__name__", "") and args:
            return args[0]
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.is_floating_point():
            self.lowest = min(self.lowest, result.dtype, key=lambda x: -torch.finfo(x).eps)
        return result


def leaves_of(item: object) -> Iterator[Any]:
    """All tensors and numbers of what a model returns."""
    if isinstance(item, (int, float, complex)):
        yield item
    elif isinstance(item, dict):
        for x in item.values():
            yield from leaves_of(x)
    elif isinstance(item, (list, tuple)):
        for x in item:
            yield from leaves_of(x)
    elif is_dataclass(item):
        yield from leaves_of(vars(item))
    else:
        yield from tensors_in(item)


def relative_difference(expected: list[Any], got: list[Any], *, floor: float = 0.0) -> float:
    """The largest difference, relative to each tensor's largest entry; inf if shapes differ.

    Args:
        expected: Tensors and numbers.
        got: As many.
        floor: The least magnitude to be relative to: what is smaller is rounding itself.
    """
    if len(expected) != len(got):
        return float("inf")
    worst = 0.0
    for a, b in zip(expected, got, strict=True):
        if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
            worst = max(worst, 0.0 if a is b or a == b else float("inf"))
        elif a.shape != b.shape:
            return float("inf")
        elif a.numel():
            worst = max(worst, _difference(a, b, floor))
    return worst


def _difference(a: Tensor, b: Tensor, floor: float) -> float:
    if a.is_complex() or b.is_complex():
        a, b = (torch.view_as_real(x.to(torch.complex128)) for x in (a, b))
    a, b = a.detach().double(), b.detach().double()
    same = (a == b) | (a.isnan() & b.isnan())
    if bool(same.all()):
        return 0.0
    difference = float((a - b).abs().masked_fill(same, 0).max())
    scale = max(float(a.abs().nan_to_num(posinf=0.0).max()), floor) or 1.0
    return difference / scale if difference == difference else float("inf")
