"""Run somebody's model without leaving a trace on it."""

import copy
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lightning_sparsity.surgery.tape import swapped

REGISTERED = frozenset(vars(nn.Module()))
TABLES = ("_parameters", "_buffers", "_modules")
CONTAINERS = (list, dict, set)

Inputs: TypeAlias = Any
"""What a model is called with: a tensor or list, a tuple of all arguments, or a dict by name."""


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


def _parts(item: object) -> Iterable[object]:
    if isinstance(item, Mapping):
        return item.values()
    if isinstance(item, (list, tuple, set)):
        return item
    return vars(item).values() if hasattr(item, "__dict__") else ()


class Snapshot:
    """A model's modes, buffers and attributes as they are now, and the random state.

    Args:
        model: The model. Its tensors are referred to and, where a run may write into them, copied.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modes = [(module, vars(module)["training"]) for module in model.modules()]
        self.attributes: list[tuple[nn.Module, dict[str, Any]]] = []
        self.containers: dict[int, tuple[Any, Any]] = {}
        written = list(model.buffers())
        for module, _ in self.modes:
            if _is_still(module):
                written += [x for x in vars(module).values() if isinstance(x, Tensor)]
                continue
            self.attributes.append((module, dict(vars(module))))
            for name, x in vars(module).items():
                if name not in REGISTERED and isinstance(x, (Tensor, tuple, *CONTAINERS)):
                    self._remember(x)
                    written += [] if _is_of_numbers(x) else tensors_in(x)
        self.tables = [
            (table, dict(table))
            for _, own in self.attributes
            for table in (own[name] for name in TABLES)
        ]
        self.values = [(x, x.detach().clone()) for x in written]

    def _remember(self, item: object) -> None:
        """Containers are filled in place: their contents have to be written down as well."""
        if isinstance(item, CONTAINERS) and id(item) not in self.containers:
            self.containers[id(item)] = (item, copy.copy(item))
        if isinstance(item, (*CONTAINERS, tuple)):
            for x in item.values() if isinstance(item, dict) else item:
                if isinstance(x, (*CONTAINERS, tuple)):
                    self._remember(x)

    def new_tensors(self) -> Iterator[Tensor]:
        """The tensors that modules keep now and did not keep then."""
        before = {id(x) for x, _ in self.values}
        for module, own in self.attributes:
            for name, x in vars(module).items():
                filled = isinstance(x, CONTAINERS)
                if name not in REGISTERED and (filled or x is not own.get(name)):
                    yield from (y for y in tensors_in(x) if id(y) not in before)
        for table, own in self.tables:
            for name, x in table.items():
                if isinstance(x, Tensor) and x is not own.get(name):
                    yield x

    def restore(self) -> None:
        """Put everything back."""
        for module, mode in self.modes:
            vars(module)["training"] = mode
        for module, own in self.attributes:
            now = vars(module)
            if len(now) != len(own) or any(now.get(name) is not x for name, x in own.items()):
                now.clear()
                now.update(own)
        for table, own in [*self.tables, *self.containers.values()]:
            if isinstance(table, list):
                table[:] = own
            elif table != own if isinstance(table, set) else not _same(table, own):
                table.clear()
                table.update(own)
        with torch.no_grad():
            for x, before in self.values:
                if not torch.equal(x, before):
                    x.copy_(before)


def _same(table: dict[Any, Any], own: dict[Any, Any]) -> bool:
    return list(table) == list(own) and all(table[key] is x for key, x in own.items())


def _is_still(module: nn.Module) -> bool:
    """Whether a module is a layer of PyTorch's, which changes nothing but its buffers' values."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    return type(module).__module__.startswith("torch.nn.modules.") and not hooks


def _is_of_numbers(x: object) -> bool:
    """A kernel size, a stride and the like: nearly all containers that layers keep."""
    return isinstance(x, (tuple, list)) and all(type(n) is int for n in x)


@contextmanager
def preserved(model: nn.Module) -> Iterator[Snapshot]:
    """Leave modes, buffers, attributes and random state as they were; no gradients inside."""
    before = Snapshot(model)
    devices = {x.device for x in model.parameters() if x.is_cuda}
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            yield before
    finally:
        before.restore()


def show_heads(model: nn.Module) -> None:
    """Training mode for the model's own code only; dropout, norms and their like stay as in use."""
    for module in model.modules():
        module.training = not _is_library(type(module))


@contextmanager
def reads_of_mode(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Which modules of the model's own code read `training` inside; the list fills as they do.

    A model whose code never asks does in training what it does in evaluation, but for the layers of
    libraries. The classes carry a property in the place of the attribute for as long.
    """
    asked: list[nn.Module] = []

    def read(module: nn.Module) -> bool:
        asked.append(module)
        return bool(vars(module)["training"])

    def write(module: nn.Module, mode: bool) -> None:
        vars(module)["training"] = mode

    own = {type(module) for module in model.modules() if not _is_library(type(module))}
    own = {cls for cls in own if "training" not in vars(cls)}
    for cls in own:
        cls.training = property(read, write)  # type: ignore[assignment]
    try:
        yield asked
    finally:
        for cls in own:
            del cls.training


def _is_library(cls: type) -> bool:
    return cls.__module__.startswith(("torch.nn.", "torchvision.ops."))
