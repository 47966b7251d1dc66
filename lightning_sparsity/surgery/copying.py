"""Copies of somebody's model: with its weights or sharing them, whatever else it holds."""

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sparsity.surgery.running import TABLES
from lightning_sparsity.surgery.tape import own_tensors_of

USUAL = {
    name: getattr(nn.Module, name, None)
    for name in ("__deepcopy__", "__copy__", "__reduce__", "__reduce_ex__", "__getstate__")
}
"""How modules are copied that say nothing else."""
NAMES = ("weight", "bias", "running_mean")
ATOMS = (int, float, bool, str, type(None), tuple)


def full_copy(model: nn.Module) -> nn.Module:
    """A copy with weights of its own; what cannot be copied, such as a lock, is shared."""
    return _copied(model, ())


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy of the modules that shares all parameters and buffers with the original."""
    return _copied(model, [*model.parameters(), *model.buffers()])


def _copied(model: nn.Module, shared: Iterable[Tensor]) -> nn.Module:
    memo: dict[int, Any] = {id(x): x for x in shared}
    try:
        return _twin(model, dict(memo)) if memo else copy.deepcopy(model)
    except Exception:  # anything may be an attribute, and refuse in its own way
        return copy.deepcopy(model, memo | dict(_stubborn(model)))


def _twin(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """What `deepcopy` makes, with shared tensors, but fast where a module is nothing special."""
    if id(module) in memo:
        return memo[id(module)]  # type: ignore[no-any-return]
    if not _is_plain(module):
        twin: nn.Module = copy.deepcopy(module, memo)
        return twin
    twin = memo[id(module)] = type(module).__new__(type(module))
    for name, x in vars(module).items():
        vars(twin)[name] = x if type(x) in ATOMS else x.copy()
    for name, child in module._modules.items():
        vars(twin)["_modules"][name] = child if child is None else _twin(child, memo)
    return twin


def _is_plain(module: nn.Module) -> bool:
    """Whether a module is copied as all are, and has no hooks and no attributes but numbers."""
    kind = type(module)
    if any(getattr(kind, name, None) is not own for name, own in USUAL.items()):
        return False
    if not kind.__setstate__.__module__.startswith("torch.nn.modules."):  # those fill in defaults
        return False
    return all(
        type(x) in ATOMS or (isinstance(x, (dict, set)) and (name in TABLES or not x))
        for name, x in vars(module).items()
    )


def _stubborn(model: nn.Module) -> Iterator[tuple[int, Any]]:
    """What `deepcopy` refuses, by id, with what stands for it in a copy."""
    for module in model.modules():
        for name, x in vars(module).items():
            if name not in TABLES:
                yield from _replaced(x)
        for x in module._buffers.values():
            if x is not None and not x.is_leaf:
                yield id(x), x.detach().clone()


def _replaced(x: Any) -> Iterator[tuple[int, Any]]:  # noqa: ANN401
    if isinstance(x, Tensor):
        if not x.is_leaf:  # it belongs to the graph of a training step
            yield id(x), x.detach().clone()
    elif isinstance(x, (list, tuple, set, dict)):
        for part in x.values() if isinstance(x, dict) else x:
            yield from _replaced(part)
    elif not isinstance(x, nn.Module):
        try:
            copy.deepcopy(x)
        except Exception:
            yield id(x), x


def in_double(model: nn.Module) -> nn.Module:
    """A copy of a model in float64 that shares the tensors that are float64 already."""
    model = shared_copy(model)
    memo: dict[int, Any] = {}
    for module in model.modules():
        for name, x in own_tensors_of(module):
            if x.is_floating_point() and id(x) not in memo:
                wide = x.detach().double()
                memo[id(x)] = (
                    nn.Parameter(wide, requires_grad=x.requires_grad)
                    if isinstance(x, nn.Parameter)
                    else wide
                )
            setattr(module, name, memo.get(id(x), x))
    return model


def own_tensors(small: nn.Module, model: nn.Module) -> None:
    """Give the slim model its own tensors, in the model's dtypes and memory layouts."""
    originals = {id(x) for x in [*model.parameters(), *model.buffers()]}
    named: dict[str, Tensor] = dict(model.named_buffers(remove_duplicate=False))
    named.update(model.named_parameters(remove_duplicate=False))
    floats = {name: x for name, x in named.items() if x.is_floating_point()}
    memo: dict[int, Any] = {}
    for module_name, module in small.named_modules():
        for name, x in own_tensors_of(module):
            full_name = f"{module_name}.{name}".lstrip(".")
            like = named.get(full_name)
            like = _neighbour(full_name, floats, x) if like is None else like
            own = _own(x, memo) if id(x) in originals else x
            dtype = like.dtype if own.is_floating_point() else own.dtype
            own.data = own.data.to(like.device, dtype)
            own.data = own.data.contiguous(memory_format=_layout(named.get(full_name, own)))
            table: dict[str, Any] = module._parameters
            table = table if name in table else module._buffers
            table[name] = own


def _own(x: Tensor, memo: dict[int, Any]) -> Tensor:
    """A copy of a weight, the same one wherever it is shared."""
    if type(x) is not nn.Parameter:
        own: Tensor = copy.deepcopy(x, memo)
        return own
    if id(x) not in memo:
        memo[id(x)] = nn.Parameter(x.detach().clone(), requires_grad=x.requires_grad)
    return memo[id(x)]  # type: ignore[no-any-return]


def _layout(x: Tensor) -> torch.memory_format:
    """With the channels innermost, if that is how a tensor lies in memory."""
    if not x.is_contiguous():
        for layout, dims in ((torch.channels_last, 4), (torch.channels_last_3d, 5)):
            if x.dim() == dims and x.is_contiguous(memory_format=layout):
                return layout
    return torch.contiguous_format


def _neighbour(name: str, floats: dict[str, Tensor], x: Tensor) -> Tensor:
    """The tensor whose dtype and device something new takes: of its layer, or of any."""
    layer = name.partition(".scatter.")[0].partition(".select.")[0].removesuffix(".bias")
    names = [f"{layer}.{own}".lstrip(".") for own in NAMES]
    own = (floats[name] for name in names if name in floats)
    return next(own, next(iter(floats.values()), x))
