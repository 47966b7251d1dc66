"""The mode under which a model runs once while its channels are followed."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_sparsity.surgery import ops
from lightning_sparsity.surgery.layers import follow_channels, follow_dense, follow_norm
from lightning_sparsity.surgery.recorder import NEUTRAL, Frame, Op, Recorder, tensors_of
from lightning_sparsity.surgery.rules import follow
from lightning_sparsity.surgery.tape import Tape


class Tracer(TorchFunctionMode):
    """Sees every function and every module of a run, and lets the rules write the tape.

    Args:
        model: The model that will run.
        tape: Where to write.
        training: Whether the run shows the model in training mode.
    """

    def __init__(self, model: nn.Module, tape: Tape, *, training: bool) -> None:
        super().__init__()
        self.recorder = Recorder(model, tape, training=training)
        self.names = {id(module): name for name, module in model.named_modules()}
        self.paused = 0

    def enter_module(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A module starts: remember what came in."""
        if id(module) in self.names:
            first = args[0] if args and isinstance(args[0], Tensor) else None
            self.recorder.frames.append(Frame(module, self.names[id(module)], first))
            self.paused += is_frozen_norm(module)

    def leave_module(self, module: nn.Module, args: tuple[Any, ...], result: object) -> None:
        """A module ends: a `Scatter` can follow if it does nothing across channels to its layer."""
        if id(module) not in self.names:
            return
        frame = self.recorder.frames[-1]
        if is_frozen_norm(module) and isinstance(result, Tensor):
            self.paused -= 1
            follow_channels(self.recorder, frame, args[0], result, 1)
        self.recorder.frames.pop()
        self.recorder.look_for_strangers(list(tensors_of(result)))
        if frame.call is not None:
            value = self.recorder.value(result)
            if value is not None and self.recorder.tape.only_maps(frame.call.result, value):
                frame.call.leaving = value
            else:
                self.recorder.tape.sites[frame.name].can_scatter = False

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
        values = [v for v in map(self.recorder.value, tensors) if v is not None]
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


def is_frozen_norm(module: nn.Module) -> bool:
    """Whether a module is torchvision's batch norm of buffers, made of sums and products."""
    return type(module).__name__ == "FrozenBatchNorm2d" and hasattr(module, "running_var")
