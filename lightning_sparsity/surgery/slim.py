"""Carry out a plan: a new, smaller model that computes what the masked one computes, and the proof of it."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sparsity.surgery.constants import Constants
from lightning_sparsity.surgery.flow import call, preserved, show_heads, signature_of, tensors_in
from lightning_sparsity.surgery.modules import Scatter, Select, attach_scatter, attach_select
from lightning_sparsity.surgery.plan import Cut, Plan, cut
from lightning_sparsity.surgery.solver import Solved, Solver
from lightning_sparsity.surgery.tape import Site, Tape, swapped

TOLERANCE = 1e-9


@torch.no_grad()
def mask(model: nn.Module, plan: Plan) -> nn.Module:
    """The model with the plan's dead scales set to zero: same shapes, shifts kept. What `slim` has to reproduce."""
    _check_model(model, plan)
    masked = copy.deepcopy(model)
    _mask(masked, plan)
    return masked


@torch.no_grad()
def slim(model: nn.Module, plan: Plan, *, verify: bool = True) -> nn.Module:
    """A new model without the channels that the plan removes.

    The result computes what `mask(model, plan)` computes in evaluation mode. Its modules keep their names, dtype, device,
    mode, hooks and `requires_grad`; `model` is not touched.

    Args:
        model: The model that was traced, or one with the same layers.
        plan: Made by `ChannelFlow.plan` or `ChannelFlow.plan_by`.
        verify: Whether to compare both models on the example inputs in float64, and store the difference in `plan.proof`.

    Raises:
        ValueError: If the plan belongs to another model or was loaded from disk, or if the constants that it folds are no
            longer constant.
        RuntimeError: If the slim model does not reproduce the masked one. Nothing has changed then.
    """
    _check_model(model, plan)
    if plan.flow is None:
        raise ValueError("slim needs a plan made by ChannelFlow.plan; for one read from disk use surgery.load.")
    masked = copy.deepcopy(model).double()
    _mask(masked, plan)
    small = copy.deepcopy(masked)
    cuts = _Surgeon(masked, small, plan).operate()
    proof = _prove(masked, small, plan.flow.example_inputs, plan.flow.tape) if verify else None
    _restore_dtypes(small, model)
    plan.cuts, plan.proof = cuts, proof
    return small


class _Surgeon:
    """Cuts `small`, a copy of the masked model, as the plan says."""

    def __init__(self, masked: nn.Module, small: nn.Module, plan: Plan) -> None:
        if plan.flow is None:
            raise ValueError("The plan has no flow.")
        self.plan = plan
        self.tape = plan.flow.tape
        self.constants = Constants(masked, self.tape, plan.dead)
        solver = Solver(self.tape, plan.flow.classes, self.constants, gather=plan.gather)
        self.solved = solver.solve()
        self.modules: dict[str, Any] = dict(small.named_modules())
        self.followers = _followers(self.tape)

    def operate(self) -> dict[str, Cut]:
        """Cut every layer; the cuts as they were made."""
        cuts = {name: cut(site, self.solved[name]) for name, site in self.tape.sites.items()}
        for name, made in cuts.items():
            if not _same(made, self.plan.cuts[name]):
                raise ValueError(f"The plan does not fit the weights of now: layer {name!r} would be cut differently. Make a new plan.")
        offsets = {name: self._dense(site) for name, site in self.tape.sites.items() if site.kind == "dense"}
        for name, site in self.tape.sites.items():
            if site.kind == "dense":
                cuts[name].bias = self._settle(name, offsets[name])
        for name, site in self.tape.sites.items():
            self._shrink(site, cuts[name])
        return cuts

    def _dense(self, site: Site) -> Tensor:
        """Rewrite a layer's weight at full width; what its bias has to gain."""
        solved, c = self.solved[site.name], self.constants.columns[site.name]
        weight = self.modules[site.name].weight.data.transpose(0, site.weight_dims[0])
        chosen = (solved.carried & ~c.isnan()).nonzero().flatten().to(weight.device)
        if chosen.numel():
            carried = torch.tensordot(weight[:, chosen], c.to(weight.device)[chosen], dims=([1], [0]))
            if solved.carrier is not None:
                weight[:, solved.carrier] += carried / c[solved.carrier]
            self.modules[site.name].carried = carried
        made = self.constants.rows[site.name]
        constant = ~made.isnan() & solved.computed
        weight[constant.to(weight.device)] = 0
        if chosen.numel():
            self.modules[site.name].carried[constant.to(weight.device)] = 0
        bias = self.modules[site.name].bias
        own = torch.zeros_like(made) if bias is None else bias.data.cpu()
        return torch.where(constant, made - own, self.constants.contribution(site, solved.folded))

    def _settle(self, name: str, offset: Tensor) -> bool:
        """Add `offset` to what a layer makes: in its bias, in the next running mean, or in a new bias."""
        module, rows = self.modules[name], self.solved[name].computed
        if not bool(offset[rows].any()):
            return False
        offset = offset.to(module.weight.device)
        follower = self.modules.get(self.followers.get(name, ""))
        if module.bias is not None:
            module.bias.data += offset
        elif follower is not None and getattr(follower, "running_mean", None) is not None:
            follower.running_mean -= offset
        else:
            module.bias = nn.Parameter(offset, requires_grad=module.weight.requires_grad)
            return True
        return False

    def _shrink(self, site: Site, made: Cut) -> None:
        module = self.modules[site.name]
        carried = module.__dict__.pop("carried", None)
        shrink(module, site.kind, site.weight_dims, made)
        if made.ones:
            extra = carried[made.rows.to(carried.device)].unsqueeze(1).transpose(0, site.weight_dims[0])
            weight = torch.cat([module.weight.data, extra], site.weight_dims[1])
            module.weight = nn.Parameter(weight, requires_grad=module.weight.requires_grad)
        fill = self.constants.rows[site.name][self.solved[site.name].leaving]
        attach(module, site.dims, made, fill.nan_to_num())


def shrink(module: Any, kind: str, weight_dims: tuple[int, int], made: Cut) -> None:  # noqa: ANN401
    """Give a layer the rows and columns that the cut leaves it."""
    for name, x in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        if x.dim() == 0:
            continue
        smaller = x.data
        if name == "weight" and kind == "dense":
            smaller = smaller.index_select(weight_dims[1], made.columns.to(x.device))
            smaller = smaller.index_select(weight_dims[0], made.rows.to(x.device))
        elif not (isinstance(module, nn.PReLU) and x.numel() == 1):
            smaller = smaller.index_select(0, made.rows.to(x.device))
        if isinstance(x, nn.Parameter):
            setattr(module, name, nn.Parameter(smaller, requires_grad=x.requires_grad))
        else:
            setattr(module, name, smaller)
    _set_widths(module, kind, made)


def _set_widths(module: Any, kind: str, made: Cut) -> None:  # noqa: ANN401
    columns = made.columns.numel() + made.ones
    widths = {"out_channels": made.rows.numel(), "out_features": made.rows.numel(), "num_features": made.rows.numel()}
    widths |= {"num_parameters": made.rows.numel(), "in_channels": columns, "in_features": columns}
    if kind == "channel" and isinstance(module, nn.modules.conv._ConvNd):
        widths["groups"] = made.rows.numel()
    for name, width in widths.items():
        if name in module.__dict__:
            setattr(module, name, width)


def attach(module: nn.Module, dims: tuple[int, int], made: Cut, fill: Tensor) -> None:
    """Add the `Select` and `Scatter` that the cut asks for."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    if made.select is not None or made.ones:
        index = None if made.select is None else made.select.to(weight.device)
        attach_select(module, Select(index, dims[0], ones=made.ones).train(module.training))
    if made.scatter is not None:
        scatter = Scatter(made.scatter.to(weight.device), fill.to(weight), dims[1])
        attach_scatter(module, scatter.train(module.training))


def _followers(tape: Tape) -> dict[str, str]:
    """For each dense layer the batch norm that alone reads it, and reads nothing else."""
    readers = {call.source: site for site in tape.sites.values() for call in site.calls}
    found = {}
    for site in tape.sites.values():
        after = {readers.get(call.result) for call in site.calls}
        alone = all(call.result.uses == 1 for call in site.calls)
        reader = next(iter(after))
        if len(after) == 1 and alone and reader is not None and len(reader.calls) == len(site.calls):
            found[site.name] = reader.name
    return found


# -- proof -----------------------------------------------------------------------------------------------------------


def _prove(masked: nn.Module, small: nn.Module, example_inputs: Any, tape: Tape) -> float:  # noqa: ANN401
    """The relative difference of both models' outputs; raises if it is not rounding."""
    inputs = swapped(example_inputs, lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x)
    heads = any(all(call.training for call in site.calls) for site in tape.sites.values())
    worst = 0.0
    for training in (False, True)[: 1 + heads]:
        try:
            expected, got = (_observe(model, inputs, tape, training=training) for model in (masked, small))
        except Exception as error:
            message = f"The slim model does not run ({type(error).__name__}: {error}). Nothing was changed."
            raise RuntimeError(f"{message} The model's code may fix a number of channels; keep those BatchNorm layers whole.") from error
        difference = relative_difference(expected[0], got[0])
        if not difference <= TOLERANCE:  # detectors sort and drop boxes at the end: look at what goes in there
            difference = relative_difference(expected[1], got[1])
        worst = max(worst, difference)
        if not difference <= TOLERANCE:
            raise RuntimeError(
                f"The slim model differs from the masked one by {difference:.1e} (relative), more than {TOLERANCE:.0e}. Nothing was changed."
            )
    return worst


def relative_difference(expected: list[Tensor], got: list[Tensor]) -> float:
    """The largest difference over all tensors, relative to the largest entry of each; inf where shapes differ."""
    if [x.shape for x in expected] != [x.shape for x in got]:
        return float("inf")
    worst = 0.0
    for a, b in zip(expected, got, strict=True):
        if a.numel():
            scale = float(a.double().abs().max())
            difference = float((a.double() - b.double()).abs().max())
            worst = max(worst, difference / scale if scale > 0 else difference)
            if difference != difference:  # NaN in both at the same places is agreement
                return float("inf")
    return worst


def _observe(model: nn.Module, inputs: Any, tape: Tape, *, training: bool) -> tuple[list[Tensor], list[Tensor]]:  # noqa: ANN401
    """A model's outputs, and what its layers make that nothing was cut from."""
    modules = dict(model.named_modules())
    inner: list[Tensor] = []
    whole = [modules[name] for name, site in tape.sites.items() if bool((site.rows == 0).all())]
    hooks = [module.register_forward_hook(lambda _m, _a, result: inner.append(result)) for module in whole]
    with preserved(model):
        torch.manual_seed(0)
        if training:
            show_heads(model)
        else:
            model.eval()
        outputs = list(tensors_in(call(model, inputs)))
    for hook in hooks:
        hook.remove()
    return outputs, inner


def _restore_dtypes(small: nn.Module, model: nn.Module) -> None:
    dtypes = {name: x.dtype for name, x in [*model.named_parameters(), *model.named_buffers()]}
    for name, x in [*small.named_parameters(), *small.named_buffers()]:
        if x.is_floating_point():
            x.data = x.data.to(dtypes.get(name) or dtypes[_owner(name)])


def _owner(name: str) -> str:
    """The weight of the layer that something new was added to."""
    return name.removesuffix(".scatter.fill").removesuffix(".bias") + ".weight"


# -- checks ----------------------------------------------------------------------------------------------------------


def _check_model(model: nn.Module, plan: Plan) -> None:
    found = signature_of(model)
    if found != plan.signature:
        different = [name for name in {**plan.signature, **found} if plan.signature.get(name) != found.get(name)]
        raise ValueError(f"The plan belongs to another model: {different[0]!r} has another shape or is missing. Trace this model.")


def _mask(model: nn.Module, plan: Plan) -> None:
    modules: dict[str, Any] = dict(model.named_modules())
    for name, dead in plan.dead.items():
        weight = modules[name].weight
        weight.data[dead.to(weight.device)] = 0


def _same(a: Cut, b: Cut) -> bool:
    return a.ones == b.ones and torch.equal(a.rows, b.rows) and torch.equal(a.columns, b.columns)
