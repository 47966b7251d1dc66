"""Run somebody's model without leaving a trace on it."""

import inspect
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_sparsity.surgery.tape import swapped

REGISTERED = frozenset(vars(nn.Module()))


def call(model: nn.Module, example_inputs: Any) -> Any:  # noqa: ANN401
    """Call a model, uncompiled, on example inputs in any of the forms that `trace` takes."""
    with uncompiled():
        if isinstance(example_inputs, tuple):
            return model(*example_inputs)
        if isinstance(example_inputs, Mapping):
            return model(**example_inputs)
        return model(example_inputs)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Here what `torch.compile` has made runs as it was written."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled; importing it takes seconds
        yield
        return
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        warnings.filterwarnings("ignore", ".*there are global hooks on modules")  # ours
        yield


def tensors_in(item: object, seen: set[int] | None = None) -> Iterator[Tensor]:
    """All tensors in a nest of containers and plain objects, each container once."""
    seen = set() if seen is None else seen
    if isinstance(item, Tensor):
        yield item
    elif id(item) not in seen and not isinstance(item, (nn.Module, type)):
        seen.add(id(item))
        for x in _parts(item):
            yield from tensors_in(x, seen)


def each_tensor(item: Any, change: Callable[[Tensor], Tensor]) -> Any:  # noqa: ANN401
    """The same containers with every tensor in them changed."""
    return swapped(item, lambda x: change(x) if isinstance(x, Tensor) else x)


def tensors_kept(model: nn.Module) -> Iterator[Tensor]:
    """The tensors that modules keep as plain attributes, in containers or not."""
    for module in model.modules():
        for name, x in vars(module).items():
            if isinstance(x, (Tensor, list, dict, tuple)) and name not in REGISTERED:
                yield from tensors_in(x)


def _parts(item: object) -> Iterable[object]:
    if isinstance(item, Mapping):
        return item.values()
    if isinstance(item, (list, tuple, set)):
        return item
    return vars(item).values() if hasattr(item, "__dict__") else ()


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Leave modes, buffers and random state as they were."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(x, x.clone()) for x in model.buffers()]
    devices = {x.device for x in model.parameters() if x.is_cuda}
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for x, before in buffers:
                if not torch.equal(x, before):
                    x.copy_(before)


class WithoutDropout(TorchFunctionMode):
    """Dropout by functions does nothing, so that runs of models with other widths compare."""

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
        return func(*args, **(kwargs or {}))


def show_heads(model: nn.Module) -> None:
    """Training mode for the model's own code only; dropout, norms and their like stay as in use."""
    for module in model.modules():
        module.training = not _is_library(type(module))


def asks_for_mode(model: nn.Module) -> bool:
    """Whether any code of the model's own reads `training`."""
    own = {type(module) for module in model.modules() if not _is_library(type(module))}
    return any(_mentions(cls, "training") for cls in own)


def _is_library(cls: type) -> bool:
    return cls.__module__.startswith(("torch.nn.", "torchvision.ops."))


def _mentions(cls: type, name: str) -> bool:
    bases = [base for base in inspect.getmro(cls) if not _is_library(base) and base is not object]
    functions = [f for base in bases for f in vars(base).values()]
    codes = [getattr(inspect.unwrap(f), "__code__", None) for f in functions if callable(f)]
    return any(_reads(code, name) for code in codes if code is not None)


def _reads(code: CodeType, name: str) -> bool:
    return name in code.co_names or any(
        _reads(c, name) for c in code.co_consts if isinstance(c, CodeType)
    )
