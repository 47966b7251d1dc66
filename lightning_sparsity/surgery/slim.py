"""Carry out a plan: a new, smaller model that computes what the masked one computes."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sparsity.surgery.constants import Constants, blocks_of
from lightning_sparsity.surgery.flow import ChannelFlow, signature_of
from lightning_sparsity.surgery.modules import Scatter, Select, attach_scatter, attach_select
from lightning_sparsity.surgery.plan import Cut, Plan, cut
from lightning_sparsity.surgery.proof import in_double, prove, shared_copy
from lightning_sparsity.surgery.solver import Solver
from lightning_sparsity.surgery.tape import Site
from lightning_sparsity.waiting import Waiting


@torch.no_grad()
def mask(model: nn.Module, plan: Plan) -> nn.Module:
    """The model with dead scales at zero, shapes and shifts kept: what `slim` has to reproduce."""
    check_model(model, plan)
    return _masked(copy.deepcopy(model), plan)


@torch.no_grad()
def slim(model: nn.Module, plan: Plan, *, verify: bool = True) -> nn.Module:
    """A new model without the channels that the plan removes.

    The result computes what `mask(model, plan)` computes in evaluation mode. Its modules keep their
    names, dtype, device, mode, hooks and `requires_grad`; `model` is not touched.

    Args:
        model: The model that was traced, or one with the same layers.
        plan: Made by `ChannelFlow.plan` or `ChannelFlow.plan_by`.
        verify: Whether to compare both models on the example inputs in float64, and store the
            difference in `plan.proof`.

    Raises:
        ValueError: If the plan belongs to another model, was loaded from disk, or does not fit the
            weights of now.
        RuntimeError: If the slim model does not reproduce the masked one. Nothing has changed then.
    """
    check_model(model, plan)
    if plan.flow is None:
        raise ValueError(
            "slim needs a plan made by ChannelFlow.plan. For one read from disk use surgery.load."
        )
    with Waiting("Cutting the network"):
        small = _masked(shared_copy(model), plan)
        masked = in_double(small) if verify else None
        cuts = _Surgeon(small, plan, plan.flow).operate()
    proof = None if masked is None else prove(masked, in_double(small), plan.flow)
    own_tensors(small, model)
    plan.cuts, plan.proof = cuts, proof
    return small


def check_model(model: nn.Module, plan: Plan) -> None:
    """Refuse a model whose weights have other names or shapes than the plan's."""
    found = signature_of(model)
    if found != plan.signature:
        different = [
            n for n in {**plan.signature, **found} if plan.signature.get(n) != found.get(n)
        ]
        raise ValueError(
            f"The plan belongs to another model: {different[0]!r} has shape "
            f"{found.get(different[0])}, the plan expects {plan.signature.get(different[0])}. "
            "Trace this model and make a new plan."
        )


class _Surgeon:
    """Cuts `small`, a masked copy of the model that shares its other weights, as the plan says."""

    def __init__(self, small: nn.Module, plan: Plan, flow: ChannelFlow) -> None:
        self.plan = plan
        self.sites = flow.tape.sites
        self.constants = Constants(small, flow.tape, plan.dead)
        solver = Solver(flow.tape, flow.classes, self.constants, plan.held, gather=plan.gather)
        self.solved = solver.solve()
        self.modules: dict[str, Any] = dict(small.named_modules())
        self.followers = flow.followers

    def operate(self) -> dict[str, Cut]:
        """Cut every layer; the cuts as they were made."""
        cuts = {name: cut(site, self.solved[name]) for name, site in self.sites.items()}
        for name, made in cuts.items():
            if not made.same_channels(self.plan.cuts[name]):
                raise ValueError(
                    f"The plan does not fit the weights of now: {name!r} would be cut differently. "
                    "Make a new plan."
                )
        offsets = {
            name: self._offset(site)
            for name, site in self.sites.items()
            if site.layer.kind != "channel"
        }
        weights = {name: self._weight(self.sites[name], cuts[name]) for name in offsets}
        for name in self.sites:
            shrink(self.modules[name], cuts[name], weights.get(name))
        for name, offset in offsets.items():
            cuts[name].bias = self._settle(name, offset[cuts[name].rows], cuts)
        for name in self.sites:
            fill = self.constants.leaving[name][self.solved[name].leaving]
            attach(self.modules[name], cuts[name], fill.nan_to_num())
        return cuts

    def _offset(self, site: Site) -> Tensor:
        """What the bias of each row has to gain."""
        solved, made = self.solved[site.name], self.constants.rows[site.name]
        constant = ~made.isnan() & solved.computed
        own = self.constants.bias(site)
        return torch.where(constant, made - own, self.constants.contribution(site, solved.folded))

    def _weight(self, site: Site, made: Cut) -> Tensor | None:
        """The smaller weight of a dense layer, constants merged into one column if need be."""
        solved, c = self.solved[site.name], self.constants.columns[site.name]
        constant = ~self.constants.rows[site.name][made.rows].isnan()
        chosen = (solved.carried & ~c.isnan() & (c != 0)).nonzero().flatten()
        if not (made.is_smaller() or made.ones or chosen.numel() or bool(constant.any())):
            return None
        full: Tensor = self.modules[site.name].weight.detach()
        weight = made.of_weight(full)
        if chosen.numel():
            full, weight = (
                x.transpose(0, site.layer.weight_dims[0]).double() for x in (full, weight)
            )
            columns = full[made.rows.to(full.device)][:, chosen.to(full.device)]
            carried = torch.tensordot(columns, c[chosen].to(full.device), dims=([1], [0]))
            if solved.carrier is None:
                weight = torch.cat([weight, carried.unsqueeze(1)], 1)
            else:
                at = int(torch.searchsorted(made.columns, torch.tensor(solved.carrier)))
                weight[:, at] += carried / c[solved.carrier]
            weight = weight.transpose(0, site.layer.weight_dims[0])
        silent = constant.to(weight.device).view(made.groups, -1)
        blocks = blocks_of(weight.contiguous(), made.groups, site.layer.weight_dims)
        blocks = blocks.masked_fill(silent.view(*silent.shape, *[1] * (blocks.dim() - 2)), 0)
        if site.layer.weight_dims != (0, 1):
            blocks = blocks.transpose(1, 2)
        return blocks.reshape(weight.shape)

    def _settle(self, name: str, offset: Tensor, cuts: dict[str, Cut]) -> bool:
        """Add `offset` to what a layer makes: to its bias, the next running mean, or a new bias."""
        module = self.modules[name]
        if not bool(offset.any()):
            return False
        offset = offset.to(module.weight.device)
        follower = self.followers.get(name)
        mean = None if follower is None else getattr(self.modules[follower], "running_mean", None)
        if module.bias is not None:
            module.bias = nn.Parameter(
                module.bias.double() + offset, requires_grad=module.bias.requires_grad
            )
        elif follower is not None and mean is not None:
            full = offset.new_zeros(cuts[name].layer.widths[0]).index_copy(
                0, cuts[name].rows.to(offset.device), offset
            )
            read = full[cuts[follower].columns.to(offset.device)]
            self.modules[follower].running_mean = mean.double() - read
        else:
            module.bias = nn.Parameter(offset, requires_grad=module.weight.requires_grad)
            return True
        return False


def shrink(module: nn.Module, cut: Cut, weight: Tensor | None = None) -> None:
    """Give a layer the rows and columns that the cut leaves it (and `weight`, if it is known)."""
    if weight is None and not cut.is_smaller() and not cut.ones:
        return
    for name, x in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        if x.dim() == 0 or (isinstance(module, nn.PReLU) and x.numel() == 1):
            continue
        if name != "weight" or cut.layer.kind == "channel":
            smaller = x.detach().index_select(0, cut.rows.to(x.device))
        elif weight is not None:
            smaller = weight
        else:
            sizes = [
                (cut.rows.numel(), cut.columns.numel() + cut.ones)[i] for i in cut.layer.weight_dims
            ]
            smaller = x.new_zeros(sizes[0], sizes[1] // cut.groups, *x.shape[2:])
        parameter = isinstance(x, nn.Parameter)
        own = nn.Parameter(smaller, requires_grad=x.requires_grad) if parameter else smaller
        setattr(module, name, own)
    _set_widths(module, cut)


def _set_widths(module: nn.Module, cut: Cut) -> None:
    rows, columns = cut.rows.numel(), cut.columns.numel() + cut.ones
    widths = dict.fromkeys(("out_channels", "out_features", "num_features", "num_parameters"), rows)
    widths |= dict.fromkeys(("in_channels", "in_features"), columns)
    if cut.layer.kind == "channel" and isinstance(module, nn.modules.conv._ConvNd):
        widths["groups"] = rows
    elif cut.layer.kind == "grouped":
        widths["groups"] = cut.groups
    for name, width in widths.items():
        if name in module.__dict__:
            setattr(module, name, width)


def attach(module: nn.Module, cut: Cut, fill: Tensor) -> None:
    """Add the `Select` and `Scatter` that the cut asks for."""
    device = next((x.device for x in [*module.parameters(), *module.buffers()]), fill.device)
    if cut.select is not None or cut.ones:
        index = None if cut.select is None else cut.select.to(device)
        attach_select(module, Select(index, cut.layer.dim, ones=cut.ones).train(module.training))
    if cut.scatter is not None:
        scatter = Scatter(cut.scatter.to(device), fill.to(device), cut.layer.dim)
        attach_scatter(module, scatter.train(module.training))


def _masked(model: nn.Module, plan: Plan) -> nn.Module:
    """Set the plan's dead scales of a copy to zero; its other weights may be shared."""
    modules: dict[str, Any] = dict(model.named_modules())
    for name, dead in plan.dead.items():
        weight = modules[name].weight
        zeroed = weight.detach().masked_fill(dead.to(weight.device), 0)
        is_parameter = isinstance(weight, nn.Parameter)
        modules[name].weight = (
            nn.Parameter(zeroed, requires_grad=weight.requires_grad) if is_parameter else zeroed
        )
    return model


def own_tensors(small: nn.Module, model: nn.Module) -> None:
    """Give the slim model its own tensors, in the model's dtypes and memory layouts."""
    originals = {id(x) for x in [*model.parameters(), *model.buffers()]}
    named: dict[str, Tensor] = dict(model.named_buffers(remove_duplicate=False))
    named.update(model.named_parameters(remove_duplicate=False))
    dtypes = {name: x.dtype for name, x in named.items()}
    memo: dict[int, Any] = {}
    for module_name, module in small.named_modules():
        for name, x in [
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        ]:
            full_name = f"{module_name}.{name}".lstrip(".")
            own = copy.deepcopy(x, memo) if id(x) in originals else x
            if own.is_floating_point():
                own.data = own.data.to(
                    dtypes.get(full_name) or dtypes[_neighbour(full_name, dtypes)]
                )
            own.data = own.data.contiguous(memory_format=_layout(named.get(full_name, own)))
            setattr(module, name, own)


def _layout(x: Tensor) -> torch.memory_format:
    """With the channels innermost, if that is how a tensor lies in memory."""
    if not x.is_contiguous():
        for layout, dims in ((torch.channels_last, 4), (torch.channels_last_3d, 5)):
            if x.dim() == dims and x.is_contiguous(memory_format=layout):
                return layout
    return torch.contiguous_format


def _neighbour(name: str, dtypes: dict[str, torch.dtype]) -> str:
    """The tensor of the same layer whose dtype something new takes."""
    layer = f".{name}".removesuffix(".scatter.fill").removesuffix(".bias").removeprefix(".")
    return next(other for other in dtypes if other.rpartition(".")[0] == layer)
