"""Carry out a plan: a new, smaller model that computes what the masked one computes."""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_sparsity.surgery.arguments import check_plan, check_verify
from lightning_sparsity.surgery.constants import Constants
from lightning_sparsity.surgery.copying import full_copy, own_tensors, shared_copy
from lightning_sparsity.surgery.cuts import Cut, cut
from lightning_sparsity.surgery.facts import blocks_of
from lightning_sparsity.surgery.flow import ChannelFlow, signature_of
from lightning_sparsity.surgery.holding import hold_place
from lightning_sparsity.surgery.locate import Live, locate
from lightning_sparsity.surgery.modules import Scatter, Select
from lightning_sparsity.surgery.plan import REMEMBERED, Plan, plan_of, remember
from lightning_sparsity.surgery.proof import MismatchError, Proof, prove
from lightning_sparsity.surgery.shrinking import attach, shrink
from lightning_sparsity.surgery.solver import Solver
from lightning_sparsity.surgery.tape import Site
from lightning_sparsity.waiting import Waiting


@torch.no_grad()
def mask(model: nn.Module, plan: Plan) -> nn.Module:
    """The model with dead scales at zero, shapes and shifts kept: what `slim` has to reproduce."""
    check_model(model, plan)
    return _masked(full_copy(model), plan)


@torch.no_grad()
def slim(model: nn.Module, plan: Plan, *, verify: bool = True) -> nn.Module:
    """A new model without the channels that the plan removes.

    The result returns what `mask(model, plan)` returns in evaluation mode. Its modules keep their
    names, dtype, device, mode, hooks and `requires_grad`; `model` is not touched.

    Where both are compared and differ, the model's own code counts channels. What that code reads
    is then kept whole, the plan is made anew, and the next try is compared again. `plan` is updated
    in place to what was carried out.

    Args:
        model: The model that was traced, or one with the same layers.
        plan: Made by `ChannelFlow.plan` or `ChannelFlow.plan_by`.
        verify: Whether to compare both models, on the example inputs and on fresh ones, in float64
            if the model runs in it. `plan.proof` is then the relative difference, and
            `plan.verified` says what was compared.

    Raises:
        ValueError: If the plan belongs to another model, was loaded from disk, or does not fit the
            weights of now.
        RuntimeError: If the slim model does not reproduce the masked one. Nothing has changed then.
    """
    check_verify(verify)
    check_model(model, plan)
    if plan.flow is None:
        raise ValueError(
            "slim needs a plan made by ChannelFlow.plan. For one read from disk use surgery.load."
        )
    while True:
        masked = _masked(shared_copy(model), plan)
        with Waiting("Cutting the network"):
            surgeon = Surgeon(shared_copy(masked) if verify else masked, plan, plan.flow)
            cuts = surgeon.operate()
        try:
            proof = _proof(masked, surgeon, plan.flow) if verify else None
        except MismatchError as mismatch:
            _hold_back(mismatch, plan, surgeon.live())
        else:
            break
    own_tensors(surgeon.small, model)
    plan.cuts, plan.verified = cuts, "" if proof is None else str(proof)
    plan.proof = None if proof is None else proof.difference
    plan.before = plan_of(model)
    plan.rebuilt = plan.before is None and REMEMBERED in vars(model)
    if not plan.rebuilt:
        remember(surgeon.small, plan)
    return surgeon.small


def _proof(masked: nn.Module, surgeon: "Surgeon", flow: ChannelFlow) -> Proof:
    heads = any(all(call.training for call in site.calls) for site in surgeon.sites.values())
    return prove(masked, surgeon.small, flow.example_inputs, surgeon.whole(), heads=heads)


def _hold_back(mismatch: MismatchError, plan: Plan, live: Live) -> None:
    """Keep whole what the place of a mismatch reads, and plan again; refuse if nothing is left."""
    flow = plan.flow
    assert flow is not None
    assert plan.remake is not None
    place = locate(mismatch, flow.tape, live)
    failed = dict(mismatch.rerun.small.named_modules()).get(place.module)
    ours = isinstance(failed, (Select, Scatter)) and not isinstance(mismatch.error, ValueError)
    if ours and mismatch.error is not None:
        raise mismatch.error  # a fault of what surgery adds, not of the model's code
    where = f"at {place.module or 'the end of the model'!r}{place.op and f' ({place.op})'}"
    found = f"The slim model {place.reason} {where}: the model's own code counts channels there"
    if not hold_place(flow.tape, place):
        raise RuntimeError(f"{found}, and no part of it can be cut. Nothing was changed.")
    flow.settle()
    try:
        plan.become(plan.remake())
    except ValueError as error:
        raise RuntimeError(f"{found}. Without it: {error} Nothing was changed.") from mismatch


def check_model(model: nn.Module, plan: Plan) -> None:
    """Refuse a model whose weights have other names or shapes than the plan's."""
    check_plan(model, plan)
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


class Surgeon:
    """Cuts `small`, a masked copy of the model that shares its other weights, as the plan says."""

    def __init__(self, small: nn.Module, plan: Plan, flow: ChannelFlow) -> None:
        self.small = small
        self.plan = plan
        self.sites = flow.tape.sites
        self.constants = Constants(small, flow.tape, plan.dead)
        self.solver = Solver(flow.tape, flow.classes, self.constants, plan.held, gather=plan.gather)
        self.solved = self.solver.solve()
        self.modules: dict[str, Any] = dict(small.named_modules())
        self.classes = flow.classes
        self.followers = flow.followers
        self.moved: set[str] = set()
        """Layers whose offset is in the running mean of the norm behind them."""

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
            attach(self.modules[name], cuts[name], self._fill(name))
        return cuts

    def _fill(self, name: str) -> Tensor:
        """The constants behind a layer, those of an earlier cut included."""
        site, made = self.sites[name], self.constants.leaving[name].nan_to_num()
        if site.leaving is not site.rows:
            before: Tensor = self.modules[name].scatter.fill
            made = before.detach().cpu().double().index_copy(0, site.placed, made)
        return made[self.solved[name].behind]

    def whole(self) -> list[str]:
        """The layers from which nothing can be cut, and which make what the masked ones make."""
        found = []
        for name, site in self.sites.items():
            same = self.solver.live(site) | ~self.constants.rows[name].isnan()
            held = not bool(self.classes[site.rows].any()) and bool(same.all())
            found += [name] * (held and name not in self.moved)
        return found

    def live(self) -> Live:
        """The rows whose values matter, in the dense and in the slim layer."""
        found = {}
        for name, site in self.sites.items():
            live = self.solver.live(site) & self.solved[name].leaving
            rows = (live & (name not in self.moved)).nonzero().flatten()
            rows = site.placed[rows]
            found[name] = (rows, self.solved[name].behind.cumsum(0)[rows] - 1, site.layer.dim)
        return found

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
        if not bool(constant.any()):
            return weight.contiguous()
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
            self.moved.add(name)
            read = full[cuts[follower].columns.to(offset.device)]
            self.modules[follower].running_mean = mean.double() - read
        else:
            module.bias = nn.Parameter(offset, requires_grad=module.weight.requires_grad)
            return True
        return False


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
