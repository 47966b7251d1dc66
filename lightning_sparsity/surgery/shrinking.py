"""Give one layer the shape that a cut leaves it."""

from torch import Tensor, nn

from lightning_sparsity.surgery.cuts import Cut
from lightning_sparsity.surgery.modules import (
    Scatter,
    Select,
    attach_scatter,
    attach_select,
    detach_both,
)
from lightning_sparsity.surgery.tape import own_tensors_of


def shrink(module: nn.Module, cut: Cut, weight: Tensor | None = None) -> None:
    """Give a layer the rows and columns that the cut leaves it (and `weight`, if it is known)."""
    if weight is None and not cut.is_smaller() and not cut.ones:
        return
    for name, x in own_tensors_of(module):
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
    detach_both(module)
    ones = cut.ones or cut.keeps_ones
    if cut.select is not None or ones:
        index = None if cut.select is None else cut.select.to(device)
        border = cut.layer.border if ones else ()
        select = Select(index, cut.layer.dim, ones=ones, border=border, width=cut.arrives)
        attach_select(module, select.train(module.training))
    if cut.scatter is not None:
        scatter = Scatter(cut.scatter.to(device), fill.to(device), cut.layer.dim)
        attach_scatter(module, scatter.train(module.training))
