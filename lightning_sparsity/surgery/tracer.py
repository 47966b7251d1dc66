"""The mode under which a model runs once while its channels are followed."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_sparsity.surgery import ops
from lightning_sparsity.surgery.layers import (
    follow_channels,
    follow_dense,
    follow_norm,
    follow_scatter,
    follow_select,
)
from lightning_sparsity.surgery.modules import Scatter, Select
from lightning_sparsity.surgery.recorder import NEUTRAL, Frame, Op, Recorder, tensors_of
from lightning_sparsity.surgery.rules import follow
from lightning_sparsity.surgery.tape import Tape


class Tracer(TorchFunctionMode):
    """Sees every function and every module of a run, and lets the rules write the tape.

    Args:
        model: The model that will run.
        tape: Where to write.
        kept: Tensors that modules keep as plain attributes.
        training: Whether the run shows the model in training mode.
    """

    def __init__(
        self, model: nn.Module, tape: Tape, kept: Iterable[Tensor], *, training: bool
    ) -> None:
        super().__init__()
        self.recorder = Recorder(model, tape, kept, training=training)
        self.modules = list(model.modules())  # known by their id, they have to stay
        self.as_one = {id(module) for module in self.modules if is_followed_as_one(module)}
        self.names = {id(module): name for name, module in model.named_modules()}
        self.paused = 0

    def enter_module(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A module starts: remember what came in."""
        if id(module) in self.names:
            first = args[0] if args and isinstance(args[0], Tensor) else None
            self.recorder.frames.append(Frame(module, self.names[id(module)], first))
            self.paused += id(module) in self.as_one

    def leave_module(self, module: nn.Module, args: tuple[Any, ...], result: object) -> None:
        """A module ends: a `Scatter` can follow if it does nothing across channels to its layer."""
        if id(module) not in self.names:
            return
        self.paused += 1  # what happens here is ours, not the model's
        self._leave(module, args, result)
        self.paused -= 1 + (id(module) in self.as_one)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], result: object) -> None:
        frame = self.recorder.frames[-1]
        if id(module) not in self.as_one:
            pass
        elif isinstance(module, Select):
            follow_select(self.recorder, frame, args[0], result)  # type: ignore[arg-type]
        elif isinstance(module, Scatter):
            follow_scatter(self.recorder, frame, args[0], result)  # type: ignore[arg-type]
        else:
            self._leave_frozen_norm(frame, args, result)
        self.recorder.frames.pop()
        self.recorder.look_for_strangers(list(tensors_of(result)))
        if frame.call is not None:
            value = self.recorder.value(result)
            if value is not None and self.recorder.tape.only_maps(frame.call.result, value):
                frame.call.leaving = value
            else:
                self.recorder.tape.sites[frame.name].can_scatter = False

    def _leave_frozen_norm(self, frame: Frame, args: tuple[Any, ...], result: object) -> None:
        """What was not followed inside: a norm, if it computed what a norm computes."""
        x = args[0] if len(args) == 1 and isinstance(args[0], Tensor) else None
        if x is not None and isinstance(result, Tensor) and is_normalised(frame.module, x, result):
            return follow_channels(self.recorder, frame, x, result, 1)
        tensors, results = list(tensors_of(args)), list(tensors_of(result))
        values = [v for v in map(self.recorder.value, tensors) if v is not None]
        name = type(frame.module).__name__
        op = Op(name, frame.module.forward, (), {}, tensors, values, results)
        return self.recorder.opaque(op, "looks like a BatchNorm, but computes something else")

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run the function, then write down what it did."""
        kwargs = kwargs or {}
        first = args[0] if args and isinstance(args[0], Tensor) else None
        version = first._version if first is not None and first._is_view() else None
        result = func(*args, **kwargs)
        if not self.paused:
            changed = version is not None and first is not None and first._version != version
            self._write(func, args, kwargs, result, first if changed else None)
        return result

    def _write(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: object,
        changed: Tensor | None,
    ) -> None:
        name, results = ops.name_of(func), list(tensors_of(result))
        tensors = list(tensors_of((args, kwargs)))
        self.recorder.look_for_strangers(tensors)
        if not results and name in ops.EXITS:
            self._write_exit(name, tensors)
        if result is None:
            results = tensors[:1]  # `x[...] = y` returns nothing
        if name in ops.TEMPLATES:
            tensors = tensors[:1]
        elif name in ops.NEW:
            tensors = []
        values = [v for v in map(self.recorder.value, tensors) if v is not None]
        if name in ops.SIZES:
            self.recorder.tape.sizes += [(len(self.recorder.tape.steps), v) for v in values]
        op = Op(name, func, args, kwargs, tensors, values, results)
        if changed is not None:
            self._write_behind(changed, op)
        if results:
            self._follow(op)

    def _write_exit(self, name: str, tensors: list[Tensor]) -> None:
        """Numbers leave for Python, where nobody sees what becomes of them."""
        self.recorder.numbers &= all(map(self.recorder.is_neutral, tensors))
        values = [v for v in map(self.recorder.value, tensors) if v is not None]
        self.recorder.freeze([v.labels for v in values], name, "takes values out of tensors")

    def _write_behind(self, view: Tensor, op: Op) -> None:
        """A change through a view changes the tensor behind it, which the tape would not show."""
        base = view._base
        value = self.recorder.value(base)
        if base is not None and value is not None:
            behind = Op(op.name, op.func, (), {}, [base], [value], [base])
            self.recorder.opaque(behind, "changes a tensor through a view of it")

    def _follow(self, op: Op) -> None:
        dense = op.name in ops.CONVOLUTIONS or op.name in ops.TRANSPOSED or op.name == "linear"
        norm = op.name in ("batch_norm", "instance_norm", "prelu")
        if (op.values or dense or norm) and not all(x.numel() for x in op.results):
            self.recorder.borrow(op)
            self.recorder.opaque(op, "makes nothing of these example inputs")
        elif dense:
            follow_dense(self.recorder, op)
        elif norm:
            follow_norm(self.recorder, op)
        elif op.values:
            self.recorder.borrow(op)
            follow(self.recorder, op)
        else:
            self.recorder.borrow(op)
            neutral = all(map(self.recorder.is_neutral, op.tensors))
            for x in op.results:
                self.recorder.mark(x, NEUTRAL if neutral else None)


def is_followed_as_one(module: nn.Module) -> bool:
    """Whether a module is followed by what it does as a whole, not by the functions in it."""
    return isinstance(module, (Select, Scatter)) or looks_like_frozen_norm(module)


def looks_like_frozen_norm(module: nn.Module) -> bool:
    """Whether a module keeps what a batch norm keeps, and is none of PyTorch's."""
    own = vars(module)
    tables = (own, own.get("_parameters", own), own.get("_buffers", own))
    if not any("running_mean" in table for table in tables):
        return False
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return False
    if not all(isinstance(child, (Select, Scatter)) for child in module.children()):
        return False
    kept = ("weight", "bias", "running_mean", "running_var")
    found = [x for name in kept if isinstance(x := getattr(module, name, None), Tensor)]
    return len(found) == len(kept) and found[0].dim() == 1 and len({x.shape for x in found}) == 1


def is_normalised(module: Any, x: Tensor, result: Tensor) -> bool:  # noqa: ANN401
    """Whether a result is the batch norm of `x` by a module's running mean and variance."""
    if x.dim() < 2 or x.size(1) != len(module.weight) or result.shape != x.shape:
        return False
    mean, var, weight, bias, x, found = (
        y.detach().double()
        for y in (module.running_mean, module.running_var, module.weight, module.bias, x, result)
    )
    eps = float(getattr(module, "eps", 1e-5))
    expected = torch.nn.functional.batch_norm(x, mean, var, weight, bias, eps=eps)
    scale = float(expected.abs().max())
    return bool((found - expected).abs().max() <= 1e3 * torch.finfo(result.dtype).eps * scale)
