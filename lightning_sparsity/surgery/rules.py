"""One rule per kind of function: what it does to the channels that go through it."""

from typing import Any

import torch
from torch import Tensor

from lightning_sparsity.surgery import ops
from lightning_sparsity.surgery.labels import compact, compressed, plain, varying
from lightning_sparsity.surgery.moves import cuts_channels, fixes_channels, move, pad_channels
from lightning_sparsity.surgery.recorder import Op, Recorder
from lightning_sparsity.surgery.tape import swapped

LARGE = 1 << 16
SPREADS = "spreads channels over several dimensions"
ACROSS = "works across channels"


def follow(recorder: Recorder, op: Op) -> None:
    """Apply the rule of a function to activations that carry channels."""
    others = [x for x in op.tensors if recorder.value(x) is None]
    neutral = all(map(recorder.is_neutral, others))
    if op.name in ops.MOVES | ops.CUTTING_MOVES | ops.MIXING_MOVES:
        _follow_move(recorder, op)
    elif not all(x.is_floating_point() for x in op.results):
        recorder.opaque(op, "makes no floating point values")
    elif len(op.tensors) == 1 and op.name in ops.LIKE:
        recorder.record("map", op, [op.values[0].labels])
    elif len(op.tensors) == 1 and op.name in ops.LIKE_UNKNOWN:
        recorder.record("opaque", op, [op.values[0].labels])
    elif len(op.values) == 1 and neutral and op.name in ops.MAPS | ops.SUMS | ops.PRODUCTS:
        follow_map(recorder, op)
    elif len(op.tensors) == 2 and op.name in ops.SUMS | ops.PRODUCTS:
        _follow_join(recorder, op)
    elif len(op.values) == 1 and op.name in ops.KEEPS:
        _follow_keep(recorder, op)
    elif len(op.values) == 1 and op.name in ops.REDUCTIONS and not others:
        _follow_reduction(recorder, op)
    elif len(op.values) == 1 and op.name == "pad":
        _follow_pad(recorder, op)
    else:
        recorder.opaque(op, "is not a function that channels can be followed through")


def follow_map(recorder: Recorder, op: Op) -> None:
    """A function of one entry at a time, the other operands being weights or numbers."""
    labels = op.values[0].labels.expand(op.results[0].shape)
    for x in op.tensors:
        offset = labels.dim() - x.dim()
        own = recorder.value(x) is None and op.name != "prelu"
        if own and any(d >= offset and x.size(d - offset) > 1 for d in varying(labels)):
            recorder.freeze([labels], op.name, "meets a tensor with one entry per channel")
    if varying(labels) and not all(recorder.has_name(x) for x in op.tensors):
        recorder.note([labels], op.name, "meets a computed tensor: no constant goes on from here")
    recorder.record("map", op, [labels])


def _follow_move(recorder: Recorder, op: Op) -> None:
    """Data movement: the labels go where the data go."""
    labels = [value.labels for value in op.values]
    cutting = op.name in ops.CUTTING_MOVES and cuts_channels(op.name, op.args, op.kwargs, labels[0])
    if op.name in ops.MIXING_MOVES or cutting:
        recorder.freeze(labels, op.name, "moves channels by position")
    if any(x.numel() == 0 for x in op.results) or _is_hopeless(recorder, op):
        return recorder.opaque(op, "picks entries by their values")

    def swap(x: object) -> object:
        if not isinstance(x, Tensor):
            return x
        value = recorder.value(x)
        if value is not None:
            return value.labels
        return plain(x.shape) if x.is_floating_point() else x.detach().cpu()

    args, kwargs = swapped(tuple(op.args), swap), swapped(op.kwargs, swap)
    shapes = [x.shape for x in op.results]
    moved = move(op.name, op.func, args, kwargs, shapes, recorder.tape.tie)
    if moved is None:
        return recorder.opaque(op, "moves data in a way that cannot be repeated")
    made = [compressed(x) for x in moved]
    if getattr(op.func, "__name__", "") in ops.SHAPED and len(op.tensors) == 2:
        made = [_tied(recorder, made[0], labels[-1]) if len(op.values) == 2 else made[0]]
        recorder.freeze([] if len(op.values) == 2 else labels, op.name, "shapes another tensor")
    recorder.record("move", op, made)
    for some in made:
        _hold_spread(recorder, op, some)
        if op.name == "view" and fixes_channels(op.args, some.shape, some):
            recorder.freeze([some], op.name, "may count on the number of channels")
    return None


def _is_hopeless(recorder: Recorder, op: Op) -> bool:
    """Frozen channels spread over a large tensor (a detector's boxes) cost more than they bring."""
    if max(x.numel() for x in op.results) <= LARGE:
        return False
    held = all(bool(recorder.tape.is_held(compact(v.labels, v.labels)).all()) for v in op.values)
    return held and any(len(varying(value.labels)) > 1 for value in op.values)


def _hold_spread(recorder: Recorder, op: Op, labels: Tensor) -> None:
    """A tensor can only become narrower along one dimension."""
    if len(varying(labels)) > 1:
        recorder.freeze([labels], op.name, SPREADS)


def _follow_join(recorder: Recorder, op: Op) -> None:
    """A sum or product of two activations: their channels live and die together."""
    shape = op.results[0].shape
    own = [
        plain(x.shape) if v is None else v.labels for x in op.tensors for v in [recorder.value(x)]
    ]
    wide = [labels.expand(shape) for labels in own]
    for i, j in ((0, 1), (1, 0)):
        if _is_spread(own[i], own[j], shape):
            recorder.freeze([own[i]], op.name, "spreads one channel over many")
            made = wide[j]
            break
    else:
        made = _tied(recorder, *wide)
    recorder.record("map" if op.name in ops.SUMS else "product", op, [made])
    _hold_spread(recorder, op, made)


def _is_spread(a: Tensor, b: Tensor, shape: torch.Size) -> bool:
    """Whether `a` is repeated along the channels of `b`."""
    offset = len(shape) - a.dim()
    repeated = {d for d in range(len(shape)) if d < offset or a.size(d - offset) < shape[d]}
    return bool(repeated & set(varying(b.expand(shape))))


def _tied(recorder: Recorder, a: Tensor, b: Tensor) -> Tensor:
    both = set(varying(a)) | set(varying(b))
    first = tuple(slice(None) if d in both else slice(0, 1) for d in range(a.dim()))
    recorder.tape.tie(a[first], b[first])
    return a if len(varying(a)) >= len(varying(b)) else b


def _follow_keep(recorder: Recorder, op: Op) -> None:
    """Pooling, resizing, dropout, casts: channels stay, positions change."""
    made = [_resized(op.values[0].labels, x.shape) for x in op.results]
    found = [labels for labels in made if labels is not None]
    if len(found) < len(made):
        return recorder.opaque(op, ACROSS)
    return recorder.record("keep", op, found)


def _follow_reduction(recorder: Recorder, op: Op) -> None:
    labels = op.values[0].labels
    dims: Any = op.argument(1, "dim", op.kwargs.get("axis"))
    keepdim = bool(op.argument(2, "keepdim", op.kwargs.get("keepdims", False)))
    asked = () if dims is None else (dims,) if isinstance(dims, int) else tuple(dims)
    chosen = tuple(d % labels.dim() for d in asked) or tuple(range(labels.dim()))
    if set(chosen) & set(varying(labels)):
        return recorder.opaque(op, ACROSS)
    for d in sorted(chosen, reverse=True):
        labels = labels.narrow(d, 0, 1) if keepdim else labels.select(d, 0)
    return recorder.record("reduce", op, [labels])


def _follow_pad(recorder: Recorder, op: Op) -> None:
    """Padding of positions keeps the channels; channels that it adds belong to the root."""
    labels, shape = op.values[0].labels, op.results[0].shape
    pad, constant = op.argument(1, "pad"), op.argument(2, "mode", "constant") == "constant"
    on_channels = any(n and labels.dim() - 1 - i // 2 in varying(labels) for i, n in enumerate(pad))
    made = None if on_channels else _resized(labels, shape)
    if on_channels and constant:
        made = pad_channels(compact(labels, labels), labels, pad, 0).expand(shape)
    if made is None:
        return recorder.opaque(op, "adds channels")
    recorder.record("pad", op, [made])
    value = recorder.value(op.results[0])
    zeros = constant and not on_channels and not (op.argument(3, "value", None) or 0)
    if value is not None and zeros and min(pad) >= 0 and len(pad) <= 2 * (labels.dim() - 2):
        recorder.borders[value] = tuple(pad)
    return None


def _resized(labels: Tensor, shape: torch.Size) -> Tensor | None:
    """The labels of a result that has other sizes where labels are constant."""
    if len(shape) != labels.dim() or any(shape[d] != labels.size(d) for d in varying(labels)):
        return None
    return compact(labels, labels).expand(shape)
