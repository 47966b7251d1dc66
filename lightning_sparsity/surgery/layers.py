"""Convolutions, linear layers and norms: where channels are made and read."""

from typing import Literal

import torch
from torch import Tensor, nn

from lightning_sparsity.surgery.labels import along, plain, varying, whole_along
from lightning_sparsity.surgery.modules import Scatter, Select
from lightning_sparsity.surgery.ops import CONVOLUTIONS, TRANSPOSED
from lightning_sparsity.surgery.recorder import SHARED, Frame, Op, Recorder
from lightning_sparsity.surgery.rules import follow_map
from lightning_sparsity.surgery.tape import Call, Function, Layer, Site, Step, Value

Kind = Literal["dense", "grouped", "channel"]
_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
_NORMS = {
    "batch_norm": nn.modules.batchnorm._BatchNorm,
    "instance_norm": nn.modules.instancenorm._InstanceNorm,
    "prelu": nn.PReLU,
}
FOREIGN = "uses weights that are not the running layer's own"


def follow_dense(recorder: Recorder, op: Op) -> None:
    """A convolution or linear layer."""
    weight: Tensor = op.argument(1, "weight")
    groups = 1 if op.name == "linear" else int(op.argument(6, "groups", 1))
    frame = _own_layer(recorder, weight)
    # A convolution of groups that was cut down to one of them is still what it was.
    former = recorder.former.get(frame.name, "dense") if frame is not None else "dense"
    alone = groups == weight.size(0) and weight.size(1) == 1
    depthwise = alone and (groups > 1 or former == "channel")
    rank = CONVOLUTIONS.get(op.name) or TRANSPOSED.get(op.name) or 0
    if frame is None:
        return _hold_layer(recorder, op, -1 - rank, FOREIGN)
    x: Tensor = op.argument(0, "input")
    value = recorder.value(x)
    border = () if value is None or frame.entered is not x else recorder.borders.get(value, ())
    folds = op.name == "linear" or (op.name in CONVOLUTIONS and not _pads(op, weight))
    folds = folds and not border
    moved = (x, op.results[0])
    if depthwise:
        layer = Layer("channel", (groups, groups), -1 - rank)
        return _call(recorder, _site(recorder, frame, layer), frame, moved, folds=folds)
    weight_dims = (1, 0) if op.name in TRANSPOSED else (0, 1)
    sizes = (weight.size(0), weight.size(1) * groups)
    widths = (sizes[weight_dims[0]], sizes[weight_dims[1]])
    kind: Kind = "dense" if groups == 1 and former != "grouped" else "grouped"
    ones = frame.name in recorder.ones
    layer = Layer(kind, widths, -1 - rank, weight_dims, groups, border, ones)
    return _call(recorder, _site(recorder, frame, layer), frame, moved, folds=folds)


def _hold_layer(recorder: Recorder, op: Op, dim: int, reason: str) -> None:
    """A layer that stays whole, with all channels that it reads and makes."""
    weight, result = op.argument(1, "weight"), op.results[0]
    if not recorder.training:
        entries = op.argument(0, "input") if op.name in TRANSPOSED else result
        recorder.tape.fixed_flops += entries.numel() * weight[0].numel()
    recorder.borrow(op)
    recorder.opaque(op, reason)
    made = along(recorder.tape.new_variables(result.size(dim)), dim, result.shape)
    recorder.freeze([made], op.name, reason)
    recorder.mark(result, Value(made))


def follow_norm(recorder: Recorder, op: Op) -> None:
    """A batch norm, instance norm or PReLU."""
    frame = recorder.frames[-1] if recorder.frames else None
    shared = any(recorder.owned.get(id(x)) == SHARED for x in op.tensors)
    right = frame is not None and isinstance(frame.module, _NORMS[op.name])
    wrong = op.name == "batch_norm" and op.func is not nn.functional.batch_norm
    if frame is None or not right or shared or wrong:
        recorder.borrow(op)
        return recorder.opaque(op, FOREIGN)
    cut_before = any(isinstance(x, (Select, Scatter)) for x in frame.module.children())
    if op.name == "prelu" and op.argument(1, "weight").numel() == 1 and not cut_before:
        return follow_map(recorder, op) if op.values else recorder.opaque(op, "")
    dim = -1 - int(type(frame.module).__name__[-2]) if op.name == "instance_norm" else 1
    return follow_channels(recorder, frame, op.argument(0, "input"), op.results[0], dim)


def follow_channels(recorder: Recorder, frame: Frame, x: Tensor, result: Tensor, dim: int) -> None:
    """A layer that works on each channel alone."""
    layer = Layer("channel", (result.size(dim), result.size(dim)), dim)
    _call(recorder, _site(recorder, frame, layer), frame, (x, result), folds=True)


def _own_layer(recorder: Recorder, weight: Tensor) -> Frame | None:
    """The running module, if it is a layer and the weight is its own and nobody else's."""
    frame = recorder.frames[-1] if recorder.frames else None
    if frame is None or not isinstance(frame.module, _LAYERS):
        return None
    own = recorder.owned.get(id(weight)) == f"{frame.name}.weight".lstrip(".")
    bias = frame.module.bias
    return (
        frame if own and (bias is None or recorder.owned.get(id(bias), SHARED) != SHARED) else None
    )


def _site(recorder: Recorder, frame: Frame, layer: Layer) -> Site:
    sites = recorder.tape.sites
    if frame.name not in sites:
        rows = recorder.tape.new_variables(layer.widths[0])
        unread = torch.empty(0, dtype=torch.long)
        sites[frame.name] = Site(frame.name, layer, rows, unread)
    return sites[frame.name]


def _call(
    recorder: Recorder, site: Site, frame: Frame, moved: tuple[Tensor, Tensor], *, folds: bool
) -> None:
    x, result = moved
    value = recorder.value(x) or Value(plain(x.shape))
    read = _read(recorder, site, frame, value)
    entered = frame.entered is x
    border = recorder.borders.get(value, ()) if entered and site.layer.kind == "dense" else ()
    site.can_append = site.can_append and entered and border == site.layer.border
    site.can_scatter = site.can_scatter and frame.call is None
    if site.calls:
        recorder.tape.tie(read, site.columns)
    else:
        site.columns = read
        _arrive(recorder, site, frame, read)
    value.uses += 1
    made = Value(along(site.rows, site.layer.dim, result.shape))
    positions = result.numel() // max(result.size(site.layer.dim), 1)
    if isinstance(frame.module, nn.modules.conv._ConvTransposeNd):
        positions = x.numel() // max(x.size(site.layer.dim), 1)
    frame.call = Call(site, value, made, folds, positions, recorder.training, border)
    site.calls.append(frame.call)
    recorder.mark(result, made)
    function = Function(site.name, None, (), {})
    step = Step("site", function, [value], [made], recorder.training, frame.call)
    recorder.tape.steps.append(step)


def _read(recorder: Recorder, site: Site, frame: Frame, value: Value) -> Tensor:
    """The variable that each column reads; the root where a column reads several."""
    outside = recorder.value(frame.entered) or (value if frame.entered is not None else None)
    read = _variables(value.labels, site.layer.dim)
    same = None if outside is None else _variables(outside.labels, site.layer.dim)
    fits = read is not None and read.numel() == site.layer.widths[1]
    if read is not None and fits and same is not None and torch.equal(read, same):
        return read
    recorder.freeze([value.labels], "input", "does not reach the layer one channel per column")
    site.can_select = False
    if site.layer.kind == "channel":
        recorder.tape.tie(site.rows, torch.zeros_like(site.rows))
    return torch.zeros(site.layer.widths[1], dtype=torch.long)


def _arrive(recorder: Recorder, site: Site, frame: Frame, read: Tensor) -> None:
    """Which variables come to a layer, in front of its `Select` if it has one."""
    select = getattr(frame.module, "select", None)
    if not isinstance(select, Select) or frame.selected is None or frame.source is None:
        return site.arrive(read)
    source = recorder.value(frame.source) or Value(plain(frame.source.shape))
    arriving = _variables(source.labels, site.layer.dim)
    if arriving is None:  # `_read` has frozen the layer
        return site.arrive(read)
    index = select.index
    return site.arrive(arriving, None if index is None else index.cpu())


def follow_select(recorder: Recorder, frame: Frame, x: Tensor, result: Tensor) -> None:
    """The channels that a slim layer picks, with one of ones if it has one."""
    select: Select = frame.module  # type: ignore[assignment]
    layer = recorder.frames[-2]
    layer.selected = result
    value = recorder.value(x) or Value(plain(x.shape))
    dim = select.dim % x.dim()
    labels = whole_along(value.labels, dim)
    if select.index is not None:
        labels = labels.index_select(dim, select.index.cpu())
    if select.ones:
        if layer.name not in recorder.ones:
            recorder.ones[layer.name] = recorder.tape.new_variables(1)
        one = along(recorder.ones[layer.name], dim, [1] * x.dim())
        sizes = [1 if d == dim else n for d, n in enumerate(labels.shape)]
        labels = torch.cat([labels, one.expand(sizes)], dim)
    made = Value(labels.expand(result.shape))
    value.uses += 1
    if value in recorder.borders:
        recorder.borders[made] = recorder.borders[value]
    recorder.mark(result, made)
    function = Function("select", None, (dim, select.index, select.ones), {})
    recorder.tape.steps.append(Step("select", function, [value], [made], recorder.training))


def follow_scatter(recorder: Recorder, frame: Frame, x: Tensor, result: Tensor) -> None:
    """The constants that a slim layer fills in around its rows."""
    scatter: Scatter = frame.module  # type: ignore[assignment]
    site = recorder.tape.sites[frame.name.rpartition(".")[0]]
    value = recorder.value(x)
    assert value is not None
    dim, index = scatter.dim % x.dim(), scatter.index.cpu()
    if site.leaving is site.rows:
        others = recorder.tape.new_variables(scatter.fill.numel())
        site.leaving, site.placed = others.index_copy(0, index, site.rows), index
    made = Value(along(site.leaving, dim, result.shape))
    value.uses += 1
    recorder.mark(result, made)
    function = Function("scatter", None, (dim, index, scatter.fill), {})
    recorder.tape.steps.append(Step("scatter", function, [value], [made], recorder.training))


def _variables(labels: Tensor, dim: int) -> Tensor | None:
    """The variable of each channel, if a channel carries the same one everywhere."""
    if not -labels.dim() <= dim < labels.dim() or set(varying(labels)) - {dim % labels.dim()}:
        return None
    if labels.numel() == 0:
        return torch.zeros(labels.size(dim), dtype=torch.long)
    chosen = dim % labels.dim()
    return labels[tuple(slice(None) if d == chosen else 0 for d in range(labels.dim()))]


def _pads(op: Op, weight: Tensor) -> bool:
    """Whether a convolution adds zeros around its input."""
    padding = op.argument(4, "padding", 0)
    if isinstance(padding, str):
        return padding == "same" and any(n > 1 for n in weight.shape[2:])
    return any(padding) if isinstance(padding, (tuple, list)) else bool(padding)
