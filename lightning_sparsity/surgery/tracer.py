"""The mode under which a model runs once while its channels are followed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_sparsity.surgery import ops
from lightning_sparsity.surgery.labels import ROOT, along, compact, compressed, plain, varying
from lightning_sparsity.surgery.moves import cuts_channels, fixes_channels, move
from lightning_sparsity.surgery.tape import Call, Kind, Site, Step, Tape, Unknown, Value, Weight, swapped

MARK = "_channel_flow"
SHARED = "(shared)"
LARGE = 1 << 16


@dataclass(eq=False)
class Frame:
    """A module that is running: what came in, and the layer call that it made."""

    module: nn.Module
    name: str
    source: Tensor | None
    call: Call | None = None


class Tracer(TorchFunctionMode):
    """Writes a tape while a model runs: labels beside activations, one rule per function.

    Args:
        model: The model that will run.
        tape: Where to write.
        training: Whether the run shows the model in training mode.
    """

    def __init__(self, model: nn.Module, tape: Tape, *, training: bool) -> None:
        super().__init__()
        self.tape = tape
        self.training = training
        self.names = {id(module): name for name, module in model.named_modules()}
        self.owned = dict(_owned(model))
        self.frames: list[Frame] = []
        self.paused = False
        self.numbers = True  # whether Python numbers are the same in every run

    # -- modules -------------------------------------------------------------------------------------------------

    def enter_module(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A module starts: remember what came in."""
        if id(module) not in self.names:
            return
        first = args[0] if args and isinstance(args[0], Tensor) else None
        self.frames.append(Frame(module, self.names[id(module)], first))
        self.paused = self.paused or _is_frozen_norm(module)

    def leave_module(self, module: nn.Module, args: tuple[Any, ...], result: Any) -> None:  # noqa: ANN401
        """A module ends: a layer whose result is not the module's own cannot be followed by a `Scatter`."""
        if id(module) not in self.names:
            return
        frame = self.frames[-1]
        if _is_frozen_norm(module):
            self.paused = False
            self._channel_site(frame, args[0], result, module.weight.numel(), folds=True)  # type: ignore[operator, union-attr]
        self.frames.pop()
        if frame.call is not None and self.value(result) is not frame.call.result:
            self.tape.sites[frame.name].can_scatter = False

    # -- values --------------------------------------------------------------------------------------------------

    def value(self, x: Any) -> Value | None:  # noqa: ANN401
        """The value that a tensor carries; None if it carries no channels."""
        mark = x.__dict__.get(MARK) if isinstance(x, Tensor) else None
        return mark if isinstance(mark, Value) else None

    def is_neutral(self, x: Tensor) -> bool:
        """Whether a tensor is independent of the model's inputs."""
        return id(x) in self.owned or x.__dict__.get(MARK) == "neutral"

    def freeze(self, values: list[Value], op: str, reason: str) -> None:
        """Keep every channel of these values, and say why."""
        module = self.frames[-1].name if self.frames else ""
        for value in values:
            labels = compact(value.labels, value.labels).flatten()
            labels = labels[(labels != ROOT) & ~self.tape.is_held(labels)].unique()
            if labels.numel():
                self.tape.hold(labels)
                self.tape.ties.append((labels, torch.zeros_like(labels)))
                self.tape.frozen.setdefault((module, op, reason), []).append(labels)

    # -- functions -----------------------------------------------------------------------------------------------

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        viewed = args[0] if args and isinstance(args[0], Tensor) and args[0]._is_view() else None
        version = None if viewed is None else viewed._version
        result = func(*args, **kwargs)
        if self.paused:
            return result
        results = list(_tensors(result))
        name = ops.name_of(func)
        if not results and name in ("item", "float", "tolist"):
            self.numbers = self.numbers and all(map(self.is_neutral, _tensors(args)))
        if not results and result is None and args and isinstance(args[0], Tensor):
            results = [args[0]]  # `x[...] = y`: the change happened in place
        if viewed is not None and viewed._version != version:
            self._changed_through(viewed, name)
        if results:
            self._follow(name, func, args, kwargs, results)
        return result

    def _follow(self, name: str, func: Any, args: Any, kwargs: Any, results: list[Tensor]) -> None:
        tensors = list(_tensors((args, kwargs)))
        values = [v for v in map(self.value, tensors) if v is not None]
        if name in ops.CONVOLUTIONS or name in ops.TRANSPOSED or name == "linear":
            self._dense(name, args, kwargs, results[0])
        elif name in ("batch_norm", "instance_norm", "prelu") and isinstance(args[0], Tensor):
            self._norm(name, func, args, kwargs, results[0])
        elif not values:
            self._unlabelled(tensors, results)
        else:
            self._labelled(name, func, args, kwargs, tensors, values, results)

    def _unlabelled(self, tensors: list[Tensor], results: list[Tensor]) -> None:
        mark = "neutral" if all(map(self.is_neutral, tensors)) else None
        for x in results:
            if id(x) not in self.owned and (mark or MARK in x.__dict__):
                setattr(x, MARK, mark)

    def _labelled(
        self, name: str, func: Any, args: Any, kwargs: Any, tensors: list[Tensor], values: list[Value], results: list[Tensor]
    ) -> None:
        others = [x for x in tensors if self.value(x) is None]
        if name in ops.MOVES or name in ops.CUTTING_MOVES or name in ops.MIXING_MOVES:
            self._move(name, func, args, kwargs, values, results)
        elif not all(x.is_floating_point() for x in results):
            self._opaque(name, values, results, "makes no floating point values")
        elif name in ops.SUMS | ops.PRODUCTS and len(tensors) == 2 and (len(values) == 2 or not self.is_neutral(others[0])):
            self._join(name, func, args, kwargs, tensors, results[0])
        elif name in ops.MAPS | ops.SUMS | ops.PRODUCTS and all(map(self.is_neutral, others)) and len(values) == 1:
            self._map(name, func, args, kwargs, values[0], others, results[0])
        elif name in ops.KEEPS and len(values) == 1:
            self._keep(name, func, args, kwargs, values[0], results)
        elif name in ops.REDUCTIONS and len(values) == 1 and not others:
            self._reduce(name, func, args, kwargs, values[0], results[0])
        elif name == "pad" and len(values) == 1:
            self._pad(func, args, kwargs, values[0], results[0])
        else:
            self._opaque(name, values, results, "is not a function that channels can be followed through")

    def _changed_through(self, view: Tensor, name: str) -> None:
        """A change through a view changes the tensor behind it, which this tape does not show."""
        behind = self.value(view._base)
        if view._base is not None and behind is not None:
            self._opaque(name, [behind], [view._base], "changes a tensor through a view of it")

    def _opaque(self, name: str, values: list[Value], results: list[Tensor], reason: str) -> None:
        self.freeze(values, name, reason)
        for value in values:
            value.uses += 1
        for x in results:
            if id(x) not in self.owned:
                setattr(x, MARK, None)

    def _record(
        self, kind: Kind, name: str, func: Any, args: Any, kwargs: Any, results: list[tuple[Tensor, Tensor | None]]
    ) -> None:
        inputs: list[Value] = []

        def swap(x: Any) -> Any:  # noqa: ANN401
            if not isinstance(x, Tensor):
                return Unknown() if isinstance(x, float) and not self.numbers else x
            value = self.value(x)
            if value is None:
                if self.owned.get(id(x), SHARED) != SHARED:
                    return Weight(self.owned[id(x)])
                if self.is_neutral(x) or not x.is_floating_point():
                    return Unknown() if x.is_floating_point() else x.detach().cpu()
                value = Value(plain(x.shape))
            value.uses += 1
            inputs.append(value)
            return value

        args, kwargs = swapped(tuple(args), swap), swapped(kwargs, swap)
        values: list[Value | None] = []
        for x, labels in results:
            values.append(None if labels is None else Value(labels))
            setattr(x, MARK, values[-1])
        self.tape.steps.append(Step(kind, name, func, args, kwargs, inputs, values, self.training))

    # -- rules ---------------------------------------------------------------------------------------------------

    def _move(self, name: str, func: Any, args: Any, kwargs: Any, values: list[Value], results: list[Tensor]) -> None:
        def swap(x: Any) -> Any:  # noqa: ANN401
            if not isinstance(x, Tensor):
                return x
            value = self.value(x)
            if value is not None:
                return value.labels
            return plain(x.shape) if x.is_floating_point() else x.detach().cpu()

        if name in ops.MIXING_MOVES or (name in ops.CUTTING_MOVES and cuts_channels(name, args, kwargs, values[0].labels)):
            self.freeze(values, name, "moves channels by position")
        if any(x.numel() == 0 for x in results) or self._is_hopeless(values, results):
            return self._opaque(name, values, results, "picks entries by their values")
        new_args, new_kwargs = swapped(tuple(args), swap), swapped(kwargs, swap)
        moved = move(name, func, new_args, new_kwargs, [x.shape for x in results], self.tape.tie)
        if moved is None:
            return self._opaque(name, values, results, "moves data in a way that could not be repeated")
        labels = [compressed(x) for x in moved]
        self._record("move", name, func, args, kwargs, list(zip(results, labels, strict=True)))
        for made in labels:
            if len(varying(made)) > 1:
                self.freeze([Value(made)], name, "spreads channels over several dimensions")
            elif name == "view" and fixes_channels(args, made.shape, made):
                self.freeze([Value(made)], name, "may count on the number of channels")
        return None

    def _is_hopeless(self, values: list[Value], results: list[Tensor]) -> bool:
        """Large tensors of frozen channels that are spread over several dimensions (a detector's boxes) cost too much."""
        spread = any(len(varying(value.labels)) > 1 for value in values)
        return spread and max(x.numel() for x in results) > LARGE and all(
            bool(self.tape.is_held(compact(value.labels, value.labels)).all()) for value in values
        )

    def _join(self, name: str, func: Any, args: Any, kwargs: Any, tensors: list[Tensor], result: Tensor) -> None:
        """A sum or product of two activations: their channels live and die together."""
        labels = []
        for x in tensors:
            value = self.value(x)
            own = plain(x.shape) if value is None else value.labels
            stretched = [d for d in range(-x.dim(), 0) if x.size(d) == 1 and result.size(d) > 1]
            labels.append((own, own.expand(result.shape), stretched))
        (own_a, a, stretched_a), (own_b, b, stretched_b) = labels
        if any(result.dim() + d in varying(b) for d in stretched_a) or own_a.dim() < own_b.dim():
            self.freeze([Value(own_a)], name, "spreads one channel over many")
            made = b
        elif any(result.dim() + d in varying(a) for d in stretched_b) or own_b.dim() < own_a.dim():
            self.freeze([Value(own_b)], name, "spreads one channel over many")
            made = a
        else:
            made = self._tied(a, b)
        self._record("map" if name in ops.SUMS else "product", name, func, args, kwargs, [(result, made)])
        if len(varying(made)) > 1:
            self.freeze([Value(made)], name, "spreads channels over several dimensions")

    def _tied(self, a: Tensor, b: Tensor) -> Tensor:
        for dim in range(a.dim()):
            if a.size(dim) > 1 and a.stride(dim) == 0 and b.stride(dim) == 0:
                a, b = a.narrow(dim, 0, 1).expand(a.shape), b.narrow(dim, 0, 1).expand(b.shape)
        both = set(varying(a)) | set(varying(b))
        keep = [slice(None) if d in both else slice(0, 1) for d in range(a.dim())]
        self.tape.tie(a[tuple(keep)], b[tuple(keep)])
        return a if len(varying(a)) >= len(varying(b)) else b

    def _map(self, name: str, func: Any, args: Any, kwargs: Any, value: Value, others: list[Tensor], result: Tensor) -> None:
        labels = value.labels.expand(result.shape)
        offset = result.dim()
        for x in others:
            if any(x.dim() >= offset - d and x.size(d - offset) > 1 for d in varying(labels)):
                self.freeze([value], name, "combines channels with a tensor that has one entry per channel")
        self._record("map", name, func, args, kwargs, [(result, labels)])

    def _keep(self, name: str, func: Any, args: Any, kwargs: Any, value: Value, results: list[Tensor]) -> None:
        made = [_resized(value.labels, x.shape) for x in results]
        if any(labels is None for labels in made):
            return self._opaque(name, [value], results, "works across channels")
        return self._record("keep", name, func, args, kwargs, list(zip(results, made, strict=True)))

    def _reduce(self, name: str, func: Any, args: Any, kwargs: Any, value: Value, result: Tensor) -> None:
        dims = ops.argument(args, kwargs, 1, "dim")
        keepdim = bool(ops.argument(args, kwargs, 2, "keepdim", False))
        rank = value.labels.dim()
        chosen = () if dims is None else (dims,) if isinstance(dims, int) else tuple(dims)
        chosen = tuple(d % rank for d in chosen if isinstance(d, int)) or tuple(range(rank))
        if set(chosen) & set(varying(value.labels)):
            return self._opaque(name, [value], [result], "works across channels")
        labels = value.labels
        for d in sorted(chosen, reverse=True):
            labels = labels.narrow(d, 0, 1) if keepdim else labels.select(d, 0)
        return self._record("reduce", name, func, (args[0], chosen, keepdim), {}, [(result, labels)])

    def _pad(self, func: Any, args: Any, kwargs: Any, value: Value, result: Tensor) -> None:
        labels = _resized(value.labels, result.shape)
        if labels is None:
            return self._opaque("pad", [value], [result], "adds channels")
        return self._record("pad", "pad", func, args, kwargs, [(result, labels)])

    # -- layers --------------------------------------------------------------------------------------------------

    def _dense(self, name: str, args: Any, kwargs: Any, result: Tensor) -> None:
        x, weight = args[0], ops.argument(args, kwargs, 1, "weight")
        frame = self._own_layer(weight)
        groups = 1 if name == "linear" else int(ops.argument(args, kwargs, 6, "groups", 1))
        depthwise = groups > 1 and groups == weight.size(0) and weight.size(1) == 1
        if frame is None or (groups > 1 and not depthwise):
            values = [v for v in map(self.value, (x, weight)) if v is not None]
            grouped = "is grouped: its channels stay together"
            reason = grouped if frame is not None else "uses a weight that is not the running layer's own"
            return self._opaque(name, values, [result], reason)
        folds = name == "linear" or (name in ops.CONVOLUTIONS and not _pads(args, kwargs, weight))
        dim = -1 if name == "linear" else -1 - (ops.CONVOLUTIONS.get(name) or ops.TRANSPOSED[name])
        if depthwise:
            return self._channel_site(frame, x, result, groups, folds=folds, dim=dim)
        weight_dims = (1, 0) if name in ops.TRANSPOSED else (0, 1)
        site = self._site(frame.name, "dense", weight.size(weight_dims[0]), (dim, dim), weight_dims)
        return self._call(site, frame, x, result, weight.size(weight_dims[1]), folds)

    def _norm(self, name: str, func: Any, args: Any, kwargs: Any, result: Tensor) -> None:
        frame = self.frames[-1] if self.frames else None
        expected = {"batch_norm": nn.modules.batchnorm._BatchNorm, "prelu": nn.PReLU, "instance_norm": nn.modules.instancenorm._InstanceNorm}
        x = args[0]
        shared = any(self.owned.get(id(t)) == SHARED for t in _tensors((args, kwargs)))
        if shared or frame is None or not isinstance(frame.module, expected[name]) or (name == "batch_norm" and func is not nn.functional.batch_norm):
            values = [v for v in map(self.value, _tensors((args, kwargs))) if v is not None]
            return self._opaque(name, values, [result], "uses weights that are not the running layer's own") if values else None
        if name == "prelu" and frame.module.weight.numel() == 1:  # type: ignore[union-attr, operator]
            value = self.value(x)
            return None if value is None else self._map(name, func, args, kwargs, value, [], result)
        dim = 1 if name != "instance_norm" else -1 - int(type(frame.module).__name__[-2])
        return self._channel_site(frame, x, result, result.size(dim), folds=True, dim=dim)

    def _own_layer(self, weight: Tensor) -> Frame | None:
        frame = self.frames[-1] if self.frames else None
        if frame is None or not isinstance(frame.module, _LAYERS):
            return None
        own = dict(frame.module.named_parameters(recurse=False)).get("weight")
        only = self.owned.get(id(weight)) == f"{frame.name}.weight".lstrip(".")
        return frame if own is weight and only else None

    def _channel_site(self, frame: Frame, x: Tensor, result: Tensor, n: int, *, folds: bool, dim: int = 1) -> None:
        site = self._site(frame.name, "channel", n, (dim, dim), (0, 0))
        self._call(site, frame, x, result, n, folds)

    def _site(self, name: str, kind: Any, n: int, dims: tuple[int, int], weight_dims: tuple[int, int]) -> Site:
        if name not in self.tape.sites:
            rows = self.tape.new_variables(n)
            self.tape.sites[name] = Site(name, kind, rows, torch.empty(0, dtype=torch.long), dims, weight_dims)
        return self.tape.sites[name]

    def _call(self, site: Site, frame: Frame, x: Tensor, result: Tensor, columns: int, folds: bool) -> None:
        value = self.value(x) or Value(plain(x.shape))
        read = _columns(value.labels, site.dims[0])
        source = self.value(frame.source) or Value(plain(frame.source.shape if frame.source is not None else ()))
        same = read is not None and read.numel() == columns and _equal(read, _columns(source.labels, site.dims[0]))
        if read is None or not same:
            self.freeze([value], "input", "does not reach the layer one channel per column")
            read = torch.zeros(columns, dtype=torch.long)
            site.can_select = False
            if site.kind == "channel":
                self.tape.tie(site.rows, torch.zeros_like(site.rows))
        site.can_append = site.can_append and frame.source is x
        if site.calls:
            self.tape.tie(read, site.columns)
        else:
            site.columns = read
        value.uses += 1
        made = Value(along(site.rows, site.dims[1], result.shape))
        call = Call(value, made, folds, result.numel() // max(result.size(site.dims[1]), 1), self.training)
        site.can_scatter = site.can_scatter and frame.call is None
        site.calls.append(call)
        frame.call = call
        setattr(result, MARK, made)
        self.tape.steps.append(Step("site", site.name, None, (), {}, [value], [made], self.training, site, call))


_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


def _owned(model: nn.Module) -> Iterator[tuple[int, str]]:
    """Parameters and buffers by id; those that several modules share have no name that a layer could call its own."""
    seen: dict[int, str] = {}
    for module_name, module in model.named_modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            seen[id(tensor)] = SHARED if id(tensor) in seen else f"{module_name}.{name}".lstrip(".")
    yield from seen.items()


def _is_frozen_norm(module: nn.Module) -> bool:
    return type(module).__name__ == "FrozenBatchNorm2d" and hasattr(module, "running_var")


def _tensors(item: Any) -> Iterator[Tensor]:  # noqa: ANN401
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, (tuple, list)) and not isinstance(item, torch.Size):
        for x in item:
            yield from _tensors(x)
    elif isinstance(item, dict):
        for x in item.values():
            yield from _tensors(x)


def _equal(a: Tensor, b: Tensor | None) -> bool:
    return b is not None and torch.equal(a, b)


def _columns(labels: Tensor, dim: int) -> Tensor | None:
    """The variable of each channel, if a channel carries the same one everywhere."""
    if labels.dim() < abs(dim) or labels.dim() <= dim or set(varying(labels)) - {dim % labels.dim()}:
        return None
    index = [0] * labels.dim()
    return labels[tuple(slice(None) if d == dim % labels.dim() else i for d, i in enumerate(index))]


def _resized(labels: Tensor, shape: torch.Size) -> Tensor | None:
    """The labels of a result with other sizes along the dimensions where labels are constant."""
    if len(shape) != labels.dim() or any(shape[d] != labels.size(d) for d in varying(labels)):
        return None
    return compact(labels, labels).expand(shape)


def _pads(args: Any, kwargs: Any, weight: Tensor) -> bool:
    """Whether a convolution adds zeros around its input."""
    padding = ops.argument(args, kwargs, 4, "padding", 0)
    if isinstance(padding, str):
        return padding == "same" and any(n > 1 for n in weight.shape[2:])
    return any(padding) if isinstance(padding, (tuple, list)) else bool(padding)
