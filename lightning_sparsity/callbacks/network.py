"""The network inside a LightningModule: which module it is, what it is called with, its place."""

import copy
import inspect
from collections import OrderedDict, deque
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_sparsity.surgery.running import each_tensor, tensors_in

EXAMPLES = 2
COMPILED = "_orig_mod"  # the name of a network inside what `torch.compile` makes of it
BATCHES, BYTES = 32, 1 << 28  # at most so many calls are remembered, in at most so much memory


class Inputs:
    """Remembers what the network of a LightningModule is called with.

    The network is the innermost module that holds all weights and is called as a whole; the
    LightningModule itself, if its own `forward` puts the parts together. If a step calls parts and
    nothing that holds them all, it is the part with most weights to train.

    Args:
        several: Whether to remember the last calls, up to 32 in 256 MB, or one.
    """

    def __init__(self, *, several: bool = False) -> None:
        self.seen: dict[str, deque[Any]] = {}
        self.most = BATCHES if several else 1
        self._handles: dict[str, RemovableHandle] = {}

    def watch(self, pl_module: pl.LightningModule) -> None:
        """Begin to remember."""
        self.stop()
        self.seen = {}
        for path in [*chain(pl_module), *_parts(pl_module)]:
            wrapper, _, name = path.rpartition(".")
            if name == COMPILED:
                self.seen[path] = self.seen[wrapper]  # a hook inside would be compiled as well
                continue
            module = pl_module.get_submodule(path)
            self.seen[path] = deque(maxlen=self.most)
            remember = _Remember(self.seen[path])
            self._handles[path] = module.register_forward_pre_hook(remember, with_kwargs=True)

    def stop(self, *, but: str | None = None) -> None:
        """Leave no hook behind, but for the one on the module at a path."""
        kept = None if but is None else self.seen[but]
        for path in [*self._handles]:
            if self.seen[path] is not kept:
                self._handles.pop(path).remove()
        if but is not None:
            self.seen = {path: calls for path, calls in self.seen.items() if calls is kept}

    def found(self, pl_module: pl.LightningModule) -> tuple[str, list[Any]]:
        """The path of the network and its inputs, the oldest first.

        Raises:
            ValueError: If no call was seen and there is no `example_input_array`.
        """
        called = [path for path in reversed(_parts(pl_module)) if self.seen.get(path)]
        for path in reversed(chain(pl_module)):
            if self.seen.get(path):
                return path, list(self.seen[path])
        if pl_module.example_input_array is not None:
            given = pl_module.example_input_array
            return "", [each_tensor(given, lambda x: x.to(pl_module.device))]
        parts = {path: pl_module.get_submodule(path) for path in called}
        sizes = {path: _to_train(part) for path, part in parts.items() if [*part.children()]}
        if sizes:  # a layer alone has nothing inside that could go
            path = max(sizes, key=lambda path: sizes[path])
            return path, list(self.seen[path])
        raise ValueError(
            f"A cut needs to see what the network of {type(pl_module).__name__} is called with, "
            "but its step calls layers one by one. Call the module itself, `self(batch)`, or set "
            "self.example_input_array in its constructor."
        )

    def beside(self, path: str) -> list[str]:
        """The paths of modules that were called neither inside nor around the one at `path`."""
        called = [f"{other}." for other, calls in self.seen.items() if calls and other]
        own = f"{path}."
        return [x[:-1] for x in called if path and not (own.startswith(x) or x.startswith(own))]


class _Remember:
    """A forward hook; a class, so that what it belongs to can be copied and pickled."""

    def __init__(self, seen: deque[Any]) -> None:
        self.seen = seen

    def __deepcopy__(self, memo: object) -> "_Remember":
        """A copy of the network forgets: batches are large, and may hang on the graph of a loss."""
        return _Remember(deque(maxlen=0))

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the arguments."""
        if torch.is_grad_enabled():  # a training step, not an evaluation in between
            self.seen.append(_arguments(module, args, kwargs))
            while len(self.seen) > 1 and len(self.seen) * _bytes(self.seen[-1]) > BYTES:
                self.seen.popleft()


def _arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    """The arguments of a call in the form that `surgery.trace` takes."""
    if kwargs:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
        args, kwargs = bound.args, bound.kwargs
        if kwargs:
            return dict(bound.arguments)
    return each_tensor(args, Tensor.detach)


def _bytes(inputs: Any) -> int:  # noqa: ANN401
    return sum(x.numel() * x.element_size() for x in tensors_in(inputs))


def first_examples(inputs: Any) -> Any:  # noqa: ANN401
    """The same inputs with a batch of at most two: those tensors cut that are as long as the first.

    Two, because batches of one behave in ways of their own.
    """
    sizes = [x.size(0) for x in tensors_in(inputs) if x.dim() > 0]
    if not sizes:
        return inputs

    def narrowed(x: Tensor) -> Tensor:
        return x[:EXAMPLES] if x.dim() > 0 and x.size(0) == sizes[0] else x

    return each_tensor(inputs, narrowed)


def chain(pl_module: nn.Module) -> list[str]:
    """The module itself and, one in the other, those that hold all of its weights: their paths."""
    paths, module = [""], pl_module
    while not module._parameters:
        inner = [
            (n, m) for n, m in module.named_children() if next(m.parameters(), None) is not None
        ]
        if len(inner) != 1:
            break
        name, module = inner[0]
        paths.append(f"{paths[-1]}.{name}".lstrip("."))
    return paths


def _parts(pl_module: nn.Module) -> list[str]:
    """What lies inside the innermost module of the chain, each with a chain of its own: paths."""
    inmost = chain(pl_module)[-1]
    module = pl_module.get_submodule(inmost)
    if inmost.endswith(COMPILED) or module._compiled_call_impl is not None:
        return []  # called as a whole, and no place for hooks
    inner = [
        (f"{inmost}.{name}".lstrip("."), part)
        for name, part in module.named_children()
        if _to_train(part)
    ]
    return [f"{path}.{deeper}".rstrip(".") for path, part in inner for deeper in chain(part)]


def _to_train(module: nn.Module) -> int:
    return sum(x.numel() for x in module.parameters() if x.requires_grad)


def bare(module: nn.Module) -> nn.Module:
    """A module that can be copied: a LightningModule without its Trainer and its hooks."""
    if not hasattr(module, "_trainer"):  # a LightningModule has one, of either import name
        return module
    shell: Any = copy.copy(module)
    shell._trainer = None
    for own in ("_modules", "_parameters", "_buffers"):
        setattr(shell, own, dict(getattr(module, own)))
    for name, value in vars(module).items():
        if name.endswith("_hooks") and isinstance(value, OrderedDict):
            setattr(shell, name, OrderedDict())
    shell.__dict__.pop("on_load_checkpoint", None)
    network: nn.Module = shell
    return network


def place(pl_module: pl.LightningModule, path: str, network: nn.Module) -> None:
    """Put a network into the place of the one at `path`."""
    if path:
        pl_module.set_submodule(path, network)
        wrapper, _, name = path.rpartition(".")
        if name == COMPILED:  # it would go on to run the network that it was made for
            compiled: Any = pl_module.get_submodule(wrapper)
            compiled.__setstate__(compiled.__getstate__())
        return
    for name, child in network.named_children():
        if next(iter([*child.parameters(), *child.buffers()]), None) is not None:
            setattr(pl_module, name, child)
    for name, x in [
        *network.named_parameters(recurse=False),
        *network.named_buffers(recurse=False),
    ]:
        setattr(pl_module, name, x)
