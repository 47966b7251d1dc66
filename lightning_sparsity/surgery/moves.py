"""Data movement on labels: the function that moved the activation, applied to its labels."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_sparsity.surgery.labels import varying
from lightning_sparsity.surgery.recorder import argument

Tie = Callable[[Tensor, Tensor], None]


def cuts_channels(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], labels: Tensor) -> bool:
    """Whether a movement that counts positions counts them along the channels."""
    along = set(varying(labels))
    if name == "getitem":
        return bool(along & _indexed_dims(args[1], labels.dim()))
    if name == "roll":
        dims = argument(args, kwargs, 2, "dims")
    elif name in ("select", "narrow", "index_select", "unbind"):
        dims = argument(args, kwargs, 1, "dim", 0)
    else:
        dims = argument(args, kwargs, 2, "dim", 0)
    if dims is None or not all(isinstance(d, int) for d in _sequence(dims)):
        return bool(along)
    return bool(along & {d % labels.dim() for d in _sequence(dims)})


def fixes_channels(args: Sequence[Any], shape: Sequence[int], labels: Tensor) -> bool:
    """Whether a view leaves a dimension open (-1), but not that of the channels."""
    sizes = args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:]
    if len(sizes) != len(shape) or not all(isinstance(n, int) for n in sizes):
        return False
    return -1 in sizes and any(sizes[d] != -1 for d in varying(labels))


def move(
    name: str,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    shapes: list[torch.Size],
    tie: Tie | None = None,
) -> list[Tensor] | None:
    """What the function makes of the tensors that stand beside its arguments.

    Returns:
        One tensor per result, or None if the function cannot be repeated on them.
    """
    if name == "contiguous":
        moved: Any = args[0]
    elif name == "view":
        moved = args[0].reshape(shapes[0]) if args[0].numel() == shapes[0].numel() else args[0]
    elif name in ("cat", "stack"):
        moved = _joined(name, args, kwargs, tie)
    else:
        moved = func(*args, **kwargs)
    results = [moved] if isinstance(moved, Tensor) else list(moved)
    return results if [x.shape for x in results] == list(shapes) else None


def pad_channels(values: Tensor, labels: Tensor, pad: Sequence[int], filled: float) -> Tensor:
    """`values` padded along the dimensions where labels vary, and only there."""
    along = varying(labels)
    own = [n if labels.dim() - 1 - i // 2 in along else 0 for i, n in enumerate(pad)]
    return torch.nn.functional.pad(values, own, value=filled)


def _joined(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], tie: Tie | None) -> Tensor:
    """`cat` or `stack`, without spelling out the dimensions along which every part is constant."""
    dim = argument(args, kwargs, 1, "dim", kwargs.get("axis", 0))
    parts = list(argument(args, kwargs, 0, "tensors"))
    if name == "stack":
        parts = [x.unsqueeze(dim) for x in parts]
    parts = [x for x in parts if x.numel()] or parts[:1]
    dim %= parts[0].dim()
    shape = list(parts[0].shape)
    shape[dim] = sum(x.size(dim) for x in parts)
    for d in range(len(shape)):
        if d != dim and shape[d] > 1 and all(x.stride(d) == 0 for x in parts):
            parts = [x.narrow(d, 0, 1) for x in parts]
    if tie is not None and any(set(varying(x)) - {dim} for x in parts):
        for x in parts[1:]:
            tie(parts[0].select(dim, 0), x.select(dim, 0))
    return torch.cat(parts, dim).expand(shape)


def _sequence(dims: Any) -> Sequence[Any]:  # noqa: ANN401
    return dims if isinstance(dims, (tuple, list)) else (dims,)


def _indexed_dims(index: Any, rank: int) -> set[int]:  # noqa: ANN401
    """The dimensions that an index does not take whole."""
    items = list(index) if isinstance(index, tuple) else [index]
    used = sum(_consumed(item) for item in items)
    dims, at = set(), 0
    for item in items:
        if item is Ellipsis:
            at += rank - used
        elif item is not None:
            whole = isinstance(item, slice) and item == slice(None)
            dims |= set() if whole else set(range(at, at + _consumed(item)))
            at += _consumed(item)
    return dims


def _consumed(item: Any) -> int:  # noqa: ANN401
    if item is None or item is Ellipsis or isinstance(item, bool):
        return 0
    return item.dim() if isinstance(item, Tensor) and item.dtype in (torch.bool, torch.uint8) else 1
