"""A slim model on disk: `plan.json` says how it was cut, `model.safetensors` holds its weights.

Each file knows the other's digest. Before anything is allocated, loading compares every width in
the plan with the model and the size of the weights with the plan. Nothing is unpickled.

A new pair replaces an older one in three steps: the weights under a name of their own, then the
plan, then the weights under their name. Whatever step a crash prevents, the plan that is there has
its weights beside it.
"""

import contextlib
import hashlib
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from lightning_sparsity.disk import first_line, move, read_header, write
from lightning_sparsity.sparse_file import unique
from lightning_sparsity.surgery.copying import own_tensors, shared_copy
from lightning_sparsity.surgery.cuts import Cut
from lightning_sparsity.surgery.flow import signature_of
from lightning_sparsity.surgery.plan import Plan, plan_of, remember
from lightning_sparsity.surgery.plan_file import (
    LARGEST_PLAN,
    OF_PLAN,
    check_form,
    content_of,
    cuts_of,
    damaged,
    digest_of,
)
from lightning_sparsity.surgery.plan_file import read_record as read_record
from lightning_sparsity.surgery.plan_file import to_record as to_record
from lightning_sparsity.surgery.shrinking import attach, shrink

PER_TENSOR = 1 << 10  # bytes in a header or plan for what is not listed by channel
PER_CHANNEL = 1 << 6
PER_LETTER = 1 << 6  # a name comes several times, its letters escaped at worst
PLAN, WEIGHTS, NEXT = "plan.json", "model.safetensors", "model.next.safetensors"


def save(
    small: nn.Module, plan: Plan | str | Path | None, folder: str | Path | None = None
) -> None:
    """Write a slim model and its plan into a folder, which is made if need be.

    `save(small, folder)` will do: what `slim` made knows its plan. If the model was cut more than
    once, the folder holds all cuts as one.

    Args:
        small: What `slim` made, trained further or not.
        plan: The plan that it carried out, or None for the one that it knows.
        folder: Where `plan.json` and `model.safetensors` go. Both are complete or not there.

    Raises:
        ValueError: If the model has other layers than the plan says, or state that is not tensors.
        OSError: If a file cannot be written. A model that was saved there before is unchanged.
    """
    if folder is None and isinstance(plan, (str, Path)):
        plan, folder = None, plan
    plan = plan_of(small) if plan is None else plan
    if folder is None or not isinstance(plan, Plan):
        what = "a folder" if folder is None else "a plan, or a model that surgery.slim made"
        raise ValueError(f"save needs {what}: write surgery.save(small, plan, folder).")
    if plan.rebuilt:
        raise ValueError(
            "save needs a model whose cuts start from a dense one, but layers were changed after "
            "an earlier cut. Store it with torch.save or surgery.export, or change layers before "
            "the first cut."
        )
    tensors, plan = _tensors(small), plan.from_dense()
    _check_widths(small, plan)
    record = to_record(plan)
    stored, aliases = unique(tensors)
    record |= {"aliases": aliases, "tensors": {name: _kind(x) for name, x in tensors.items()}}
    content = {name: x.detach().cpu().contiguous() for name, x in stored.items()}
    weights = save_tensors(content, metadata={"plan": digest_of(record)})
    record["weights"] = hashlib.sha256(weights).hexdigest()
    folder = Path(folder)
    write(folder / NEXT, weights)
    try:
        write(folder / PLAN, json.dumps(record).encode())
    except BaseException:
        with contextlib.suppress(OSError):
            (folder / NEXT).unlink()
        raise
    move(folder / NEXT, folder / WEIGHTS)


@torch.no_grad()
def load(model: nn.Module, folder: str | Path) -> nn.Module:
    """The slim model that was saved in a folder, built from a fresh dense model.

    Args:
        model: A model as it was before the cut, with any weights. It is not changed.
        folder: Where `save` wrote.

    Returns:
        The slim model, bit for bit as it was saved, on the model's device and in its mode.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is damaged, or belongs to another file or another model.
    """
    folder = Path(folder)
    record = read_record(folder / PLAN, most=_room_for_plan(model))
    small = rebuild(model, record, folder / PLAN)
    own = _tensors(small)  # whose devices and memory layouts stay
    _check_tensors(own, record, folder / PLAN)
    loaded = _read_weights(folder, record)
    state = {name: loaded[record["aliases"].get(name, name)] for name in record["tensors"]}
    placed = {n: torch.empty_like(own[n], dtype=x.dtype).copy_(x) for n, x in state.items()}
    small.load_state_dict(placed, assign=True)
    _tie(small, record["aliases"], model)
    return small


def rebuild(model: nn.Module, record: dict[str, Any], source: Path) -> nn.Module:
    """The slim model that a record describes, with the shapes of its weights but not their values.

    Args:
        model: A model as it was before the cut. It is not changed.
        record: What `to_record` made, perhaps read from a file.
        source: That file, for error messages.

    Raises:
        ValueError: If the record is damaged or belongs to another model.
    """
    check_form(record, OF_PLAN, source)
    signature, found = record["signature"], signature_of(model)
    for name in {**signature, **found}:
        if signature.get(name) != found.get(name):
            raise ValueError(
                f"{source} belongs to another model: {name!r} has shape {found.get(name)} here and "
                f"{signature.get(name)} there. Pass a model as it was before the cut."
            )
    cuts = cuts_of(record, source)
    small = _rebuilt(model, cuts, source)
    dead = {
        name: torch.zeros(record["widths"][name], dtype=torch.bool).index_fill(
            0, torch.tensor(index, dtype=torch.long), True
        )
        for name, index in record["dead"].items()
    }
    kept = {name: cuts[name].rows for name in dead}
    remember(small, Plan(dead, record["gather"], cuts, kept, signature, record["proof"]))
    return small


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    for name, x in state.items():
        if not isinstance(x, Tensor):
            raise ValueError(
                f"save needs a model whose state is tensors, but {name!r} is a {type(x).__name__}."
            )
    return dict(state)


def _kind(x: Tensor) -> list[Any]:
    return [str(x.dtype).removeprefix("torch."), list(x.shape)]


def _room_for_plan(model: nn.Module) -> int:
    """The most bytes that the plan of a model can have."""
    channels, names = 0, [*model.state_dict()]
    for name, module in model.named_modules():
        names.append(name)
        groups = module.groups if isinstance(module, nn.modules.conv._ConvNd) else 1
        for x in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            channels += sum(x.shape[:1]) + sum(x.shape[1:2]) * groups
        channels += 2 * _features(module)
    letters = sum(len(name) for name in names)
    room = PER_TENSOR * (len(names) + 1) + PER_LETTER * letters + PER_CHANNEL * channels
    return min(room, LARGEST_PLAN)


def _features(module: nn.Module) -> int:
    """How many channels a norm without weights works on; 0 for other modules."""
    n = getattr(module, "num_features", 0)
    return n if isinstance(n, int) else 0


def _rebuilt(model: nn.Module, cuts: Mapping[str, Cut], path: Path) -> nn.Module:
    """The model with the shapes of the slim one and no weights yet."""
    small = shared_copy(model)
    modules: dict[str, Any] = dict(small.named_modules())
    for name, cut in cuts.items():
        if name not in modules or not _belongs(cut, modules[name]):
            raise damaged(path, f"layer {name!r} cannot be cut like this")
    for name, cut in cuts.items():
        module = modules[name]
        shrink(module, cut)
        if cut.bias:
            weight = module.weight
            bias = weight.new_zeros(cut.rows.numel())
            module.bias = nn.Parameter(bias, requires_grad=weight.requires_grad)
        attach(module, cut, torch.zeros(cut.width))
    own_tensors(small, model)
    return small


def _belongs(cut: Cut, module: nn.Module) -> bool:
    """Whether a module can be cut like this, so that nothing becomes wider than it is."""
    width, weight = cut.layer.widths[0], getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return cut.fits(module) and _features(module) == width >= cut.width and not cut.bias
    fits = weight.dim() > 0 and weight.is_floating_point() and cut.fits(module)
    return fits and width >= cut.width and (cut.layer.kind != "channel" or len(weight) == width)


def _check_tensors(own: Mapping[str, Tensor], record: Mapping[str, Any], path: Path) -> None:
    """Refuse a plan that lists other tensors than those of the model that it makes."""
    listed = record["tensors"]
    for name in {**own, **listed}:
        dtype, shape = listed.get(name, (None, None))
        found = list(own[name].shape) if name in own else None
        if shape != found:
            raise damaged(path, f"{name!r} is listed with shape {shape}, the model has {found}")
        if not _same_kind(getattr(torch, dtype, None), own[name].dtype):
            raise damaged(path, f"{name!r} is listed with dtype {dtype!r}")
    for name, first in record["aliases"].items():
        if name not in listed or first in record["aliases"] or listed[name] != listed.get(first):
            raise damaged(path, f"{name!r} cannot be the same tensor as {first!r}")


def _same_kind(listed: object, own: torch.dtype) -> bool:
    """Whether values of one dtype can take the place of another's: floats that of floats."""
    same = isinstance(listed, torch.dtype) and listed.is_floating_point == own.is_floating_point
    return listed == own or (same and own.is_floating_point)


def _read_weights(folder: Path, record: Mapping[str, Any]) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    stored = {n: entry for n, entry in record["tensors"].items() if n not in record["aliases"]}
    room = PER_TENSOR + sum(
        PER_TENSOR + PER_LETTER * len(name) + 8 * math.prod(shape)
        for name, (_, shape) in stored.items()
    )
    content = _matching(folder, room, record["weights"])
    try:
        about = read_header(io.BytesIO(content))["__metadata__"]
        tensors = load_tensors(content)
        digest = digest_of(record)
    except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise damaged(path, f"its form is wrong ({first_line(error)})") from error
    if about.get("plan") != digest:
        raise damaged(folder / PLAN, f"it is not the plan that {WEIGHTS} was saved with")
    if {name: _kind(x) for name, x in tensors.items()} != stored:
        raise damaged(path, "its tensors are not those that plan.json lists")
    return tensors


def _matching(folder: Path, room: int, digest: str) -> bytes:
    """The weights that a plan was saved with: after a crash they may have their first name yet."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        content = content_of(folder / NEXT, room)
        if hashlib.sha256(content).hexdigest() == digest:
            return content
    try:
        content = content_of(folder / WEIGHTS, room)
        if hashlib.sha256(content).hexdigest() != digest:
            raise ValueError("it is not the file that plan.json was saved with")
    except ValueError as error:
        raise damaged(folder / WEIGHTS, str(error)) from error
    return content


def _check_widths(small: nn.Module, plan: Plan) -> None:
    modules: dict[str, Any] = dict(small.named_modules())
    for name, cut in plan.cuts.items():
        if name not in modules or not cut.made(modules[name]):
            raise ValueError(
                f"save needs the model that the plan made, but {name!r} has other channels."
            )


def _tie(small: nn.Module, aliases: dict[str, str], model: nn.Module) -> None:
    """Tensors that the dense model shares stay shared."""
    before = dict(model.named_parameters(remove_duplicate=False))
    for alias, first in aliases.items():
        if alias in before and before[alias] is before.get(first):
            module, _, name = alias.rpartition(".")
            setattr(small.get_submodule(module), name, small.get_parameter(first))
