"""Carry an optimizer over to the slim model: moments are cut like their weights."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_sparsity.surgery.arguments import check_model_kind, check_optimizer, check_plan
from lightning_sparsity.surgery.cuts import Cut
from lightning_sparsity.surgery.plan import Plan


@torch.no_grad()
def transplant(optimizer: Optimizer, model: nn.Module, small: nn.Module, plan: Plan) -> None:
    """Hand an optimizer of the dense model over to the slim one, state included.

    Its groups then hold the slim model's parameters; step counts stay, state with one entry per
    weight is cut the same way as the weight. What surgery added starts at zero: a new bias joins
    the group of its layer's weight. Weights that are not the model's stay as they are.

    Args:
        optimizer: Changed in place; left alone if an error is raised.
        model: The dense model, of which it holds parameters.
        small: What `slim` made of it.
        plan: The plan that `slim` carried out.

    Raises:
        ValueError: If it holds no parameter of the model, or state that cannot be cut.
    """
    check_optimizer(optimizer)
    check_plan(model, plan)
    check_model_kind("small", small)
    names = {id(x): name for name, x in model.named_parameters()}
    slim_weights = dict(small.named_parameters())
    groups: list[list[nn.Parameter]] = []
    state: defaultdict[Any, Any] = defaultdict(dict)
    if not any(id(x) in names for group in optimizer.param_groups for x in group["params"]):
        raise ValueError("transplant needs an optimizer of `model`, but it holds other weights.")
    for group in optimizer.param_groups:
        groups.append([])
        for x in group["params"]:
            if id(x) not in names:
                groups[-1].append(x)
                if x in optimizer.state:
                    state[x] = optimizer.state[x]
                continue
            name = names[id(x)]
            groups[-1].append(slim_weights[name])
            if x in optimizer.state:
                state[slim_weights[name]] = _cut_state(optimizer.state[x], x, name, plan)
            layer, _, own = name.rpartition(".")
            if own == "weight" and layer in plan.cuts and plan.cuts[layer].bias:
                groups[-1].append(slim_weights[f"{layer}.bias"])
    for group, params in zip(optimizer.param_groups, groups, strict=True):
        group["params"] = params
    optimizer.state = state


def _cut_state(state: dict[str, Any], x: Tensor, name: str, plan: Plan) -> dict[str, Any]:
    layer, _, own = name.rpartition(".")
    made = {}
    for key, entry in state.items():
        if isinstance(entry, Tensor) and entry.shape == x.shape:
            made[key] = _cut(entry, own, plan.cuts.get(layer))
        elif isinstance(entry, (int, float, bool, type(None))) or _is_number(entry):
            made[key] = entry
        else:
            raise ValueError(
                f"transplant needs state with one entry per weight, but {key!r} of {name!r} has "
                "another form. Start a new optimizer for the slim model."
            )
    return made


def _is_number(entry: object) -> bool:
    return isinstance(entry, Tensor) and entry.numel() == 1


def _cut(entry: Tensor, own: str, cut: Cut | None) -> Tensor:
    if cut is None or entry.dim() == 0:
        return entry.clone()
    if entry.numel() == 1 and cut.rows.numel() > 1:
        return entry.clone()
    if own != "weight":
        return entry.index_select(0, cut.rows.to(entry.device))
    entry = cut.of_weight(entry)
    if cut.ones:
        shape = list(entry.shape)
        shape[cut.layer.weight_dims[1]] = 1
        entry = torch.cat([entry, entry.new_zeros(shape)], cut.layer.weight_dims[1])
    return entry
