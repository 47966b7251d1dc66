"""A slim model on disk: `plan.json` says how it was cut, `model.safetensors` holds its weights.

Each file knows the other's digest, and loading checks both against the model before it believes a
number. Nothing is unpickled.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from lightning_sparsity.sparse_file import unique, write
from lightning_sparsity.surgery.copying import own_tensors, shared_copy
from lightning_sparsity.surgery.plan import Cut, Plan
from lightning_sparsity.surgery.slim import attach, check_model, shrink

FORMAT, VERSION = "lightning-sparsity slim model", 1
LARGEST_PLAN = 1 << 26
HEADER_PER_TENSOR = 1 << 10
PLAN, WEIGHTS = "plan.json", "model.safetensors"


def save(small: nn.Module, plan: Plan, folder: str | Path) -> None:
    """Write a slim model and its plan into a folder, which is made if need be.

    Args:
        small: What `slim` made.
        plan: The plan that it carried out.
        folder: Where `plan.json` and `model.safetensors` go. Both are complete or not there.

    Raises:
        ValueError: If the model has other layers than the plan says, or state that is not tensors.
    """
    tensors = _tensors(small)
    _check_widths(small, plan)
    record = to_record(plan)
    stored, aliases = unique(tensors)
    record |= {"aliases": aliases, "tensors": {name: _kind(x) for name, x in tensors.items()}}
    content = {name: x.detach().cpu().contiguous() for name, x in stored.items()}
    weights = save_tensors(content, metadata={"plan": _digest(record)})
    record["weights"] = hashlib.sha256(weights).hexdigest()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / WEIGHTS, weights)
    write(folder / PLAN, json.dumps(record).encode())


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
    record = read_record(folder / PLAN)
    small = rebuild(model, record, folder / PLAN)
    if not all(isinstance(record.get(table), dict) for table in ("aliases", "tensors")):
        raise _damaged(folder / PLAN, "aliases and tensors have to be tables")
    _check_tensors(small, record, folder / PLAN)
    loaded = _read_weights(folder / WEIGHTS, record)
    own = _tensors(small)  # whose devices and memory layouts stay
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
    plan = _plan(record, source)
    check_model(model, plan)
    return _rebuilt(model, plan, source)


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


def to_record(plan: Plan) -> dict[str, Any]:
    """All of a plan in numbers, strings and lists."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "gather": plan.gather,
        "proof": plan.proof,
        "signature": plan.signature,
        "dead": {name: mask.nonzero().flatten().tolist() for name, mask in plan.dead.items()},
        "widths": {name: mask.numel() for name, mask in plan.dead.items()},
        "layers": {name: cut.to_json() for name, cut in plan.cuts.items()},
    }


def _digest(record: dict[str, Any]) -> str:
    content = {key: entry for key, entry in record.items() if key != "weights"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(f"{path} cannot be trusted: {what}. Save the slim model again.")


def read_record(path: Path) -> dict[str, Any]:
    """What `plan.json` says, with its form checked.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no plan of a slim model, or damaged.
    """
    if path.stat().st_size > LARGEST_PLAN:
        raise _damaged(path, f"it has more than {LARGEST_PLAN} bytes")
    try:
        record = json.loads(path.read_bytes())
    except ValueError as error:
        raise _damaged(path, f"it is not JSON ({error})") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise _damaged(path, "it is not the plan of a slim model")
    if record.get("version") != VERSION:
        raise _damaged(path, f"it has version {record.get('version')}, this is version {VERSION}")
    return record


def _plan(record: dict[str, Any], path: Path) -> Plan:
    try:
        signature = {str(k): [int(n) for n in shape] for k, shape in record["signature"].items()}
        cuts = {str(name): Cut.from_json(entry) for name, entry in record["layers"].items()}
        dead = {
            name: torch.zeros(_bounded(record["widths"][name]))
            .bool()
            .index_fill(0, torch.tensor(index, dtype=torch.long), True)
            for name, index in record["dead"].items()
        }
        kept = {name: cuts[name].rows for name in dead}
        return Plan(dead, bool(record["gather"]), cuts, kept, signature, record["proof"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise _damaged(
            path, f"an entry is missing or malformed ({type(error).__name__}: {error})"
        ) from error


def _bounded(n: object) -> int:
    if not isinstance(n, int) or not 0 < n <= 1 << 24:
        raise ValueError(f"a width of {n}")
    return n


def _rebuilt(model: nn.Module, plan: Plan, path: Path) -> nn.Module:
    """The model with the shapes of the slim one and no weights yet."""
    small = shared_copy(model)
    modules: dict[str, Any] = dict(small.named_modules())
    for name, cut in plan.cuts.items():
        if name not in modules or not cut.fits(modules[name]):
            raise _damaged(path, f"layer {name!r} cannot be cut like this")
    for name, cut in plan.cuts.items():
        module = modules[name]
        shrink(module, cut)
        if cut.bias:
            weight = module.weight
            bias = weight.new_zeros(cut.rows.numel())
            module.bias = nn.Parameter(bias, requires_grad=weight.requires_grad)
        attach(module, cut, torch.zeros(cut.width))
    own_tensors(small, model)
    return small


def _check_tensors(small: nn.Module, record: dict[str, Any], path: Path) -> None:
    found = {name: list(x.shape) for name, x in _tensors(small).items()}
    listed = record["tensors"]
    for name in {**found, **listed}:
        entry = listed.get(name)
        shape = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if name not in found or shape != found[name]:
            raise _damaged(
                path, f"{name!r} is listed with shape {shape}, the model has {found.get(name)}"
            )


def _read_weights(path: Path, record: dict[str, Any]) -> dict[str, Tensor]:
    listed = record["tensors"]
    stored = {name: entry for name, entry in listed.items() if name not in record["aliases"]}
    room = HEADER_PER_TENSOR * (len(stored) + 1) + sum(
        8 * _count(shape) for _, shape in stored.values()
    )
    if path.stat().st_size > room:
        raise _damaged(path, "it is larger than the plan says")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != record.get("weights"):
        raise _damaged(path, "it is not the file that plan.json was saved with")
    try:
        tensors = load_tensors(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except (SafetensorError, ValueError) as error:
        raise _damaged(path, f"it is not a safetensors file ({error})") from error
    if header.get("__metadata__", {}).get("plan") != _digest(record):
        raise _damaged(
            path.with_name(PLAN), "it is not the plan that model.safetensors was saved with"
        )
    if {name: _kind(x) for name, x in tensors.items()} != stored:
        raise _damaged(path, "its tensors are not those that plan.json lists")
    if not all(alias in listed and first in tensors for alias, first in record["aliases"].items()):
        raise _damaged(path, "a shared tensor is missing")
    return tensors


def _count(shape: list[int]) -> int:
    count = 1
    for n in shape:
        count *= n
    return count


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
