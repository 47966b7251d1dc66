"""What the weights of a model say whatever channels are dead: found once for many plans."""

from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_sparsity.surgery.layout import Bools, Floats, Ints, Side, array
from lightning_sparsity.surgery.moves import move
from lightning_sparsity.surgery.tape import Layer, Site, Step, Tape, Unknown, Value, Weight, swapped

Norm = tuple[Floats, Floats, Bools]
Movement = tuple[list[tuple[Value, slice]], list[Ints]]


class Facts:
    """Weights and movements of data in the form that constants need, each looked up once.

    Args:
        model: The model, with its current weights.
        tape: What its run left behind.

    Attributes:
        rows: Where the rows of each layer lie in a vector over all layers.
        columns: The same for columns.
        unread: The columns that are zero in the weight of their layer.
        folds: The columns of layers whose bias can carry any constant: no padding gets between.
    """

    def __init__(self, model: nn.Module, tape: Tape) -> None:
        self.modules: dict[str, Any] = dict(model.named_modules())
        self.weights: dict[str, Tensor] = dict(model.named_parameters()) | dict(
            model.named_buffers()
        )
        self.sites = list(tape.sites.values())
        self.number = {name: i for i, name in enumerate(tape.sites)}
        self.rows = Side([site.rows for site in self.sites])
        self.columns = Side([site.columns for site in self.sites])
        self._zeros: dict[str, tuple[Bools, Bools] | None] = {}
        self._biases: dict[str, Floats] = {}
        self._norms: dict[str, Norm] = {}
        self._depthwise: dict[str, tuple[Floats, Bools]] = {}
        self._shapes: dict[Value, tuple[int, ...]] = {}
        self._movements: dict[Step, Movement | None] = {}
        empty = {i: self.zeros(site) for i, site in enumerate(self.sites)}
        self.unread = self.columns.joined(
            {i: torch.from_numpy(found[1]) for i, found in empty.items() if found is not None}
        )
        self.folds = self.columns.spread(
            [all(call.folds for call in site.seen()) for site in self.sites]
        )

    def zeros(self, site: Site) -> tuple[Bools, Bools] | None:
        """Which rows and which columns of a dense layer's weight are zero; None if none are."""
        if site.name not in self._zeros:
            channel = site.layer.kind == "channel"
            found = None if channel else zeros_of(self.modules[site.name].weight, site.layer)
            self._zeros[site.name] = found
        return self._zeros[site.name]

    def bias(self, site: Site) -> Floats:
        """The bias of each row, zero where there is none."""
        if site.name not in self._biases:
            bias = self.modules[site.name].bias
            self._biases[site.name] = np.zeros(site.rows.numel()) if bias is None else array(bias)
        return self._biases[site.name]

    def norm(self, site: Site) -> Norm:
        """Shift and scale of each channel, and where the scale is zero."""
        if site.name not in self._norms:
            weight = self.modules[site.name].weight
            scale = np.ones(site.rows.numel()) if weight is None else array(weight)
            self._norms[site.name] = self.bias(site), scale, scale == 0
        return self._norms[site.name]

    def depthwise(self, site: Site) -> tuple[Floats, Bools]:
        """The sum over the taps of each channel, and where all of them are zero."""
        if site.name not in self._depthwise:
            weight: Tensor = self.modules[site.name].weight.detach().flatten(1)
            unread: Bools = (weight == 0).all(1).cpu().numpy()
            self._depthwise[site.name] = array(weight.cpu().double().sum(1)), unread
        return self._depthwise[site.name]

    def shape(self, value: Value) -> tuple[int, ...]:
        """The shape of a value's constants: size 1 wherever its channels are the same."""
        if value not in self._shapes:
            labels = value.labels
            sizes = zip(labels.shape, labels.stride(), strict=True)
            self._shapes[value] = tuple(1 if n > 1 and s == 0 else n for n, s in sizes)
        return self._shapes[value]

    def movement(self, step: Step) -> Movement | None:
        """Where each entry of a movement's results comes from; None if that cannot be told.

        A movement takes the same entries from the same places whatever they are. So the function
        runs once, on the places of the entries, and never again. -1 stands for what carries no
        constant.

        Returns:
            The values that go in, each with its places, and the places of each result's entries.
        """
        if step not in self._movements:
            self._movements[step] = self._followed(step)
        return self._movements[step]

    def _followed(self, step: Step) -> Movement | None:
        sources: list[tuple[Value, slice]] = []
        end = 0

        def places(x: Any) -> Any:  # noqa: ANN401
            nonlocal end
            if isinstance(x, Weight) and not self.weights[x.name].is_floating_point():
                return self.weights[x.name].detach().cpu()  # an index
            if isinstance(x, Weight):
                weight = self.weights[x.name]
                index = not weight.is_floating_point()  # it says where to, and is not moved itself
                return weight.cpu() if index else torch.tensor(-1.0).expand(weight.shape)
            if isinstance(x, Unknown):
                return torch.tensor(-1.0).expand(x.shape)
            if not isinstance(x, Value):
                return x
            shape = self.shape(x)
            start, end = end, end + prod(shape)
            sources.append((x, slice(start, end)))
            own = torch.arange(start, end, dtype=torch.float64)  # a float, as what is moved
            return own.view(shape).expand(x.labels.shape)

        name, func = step.function.name, step.function.func
        args, kwargs = swapped(step.function.args, places), swapped(step.function.kwargs, places)
        moved = move(name, func, args, kwargs, [value.labels.shape for value in step.results])
        if moved is None:
            return None
        pairs = zip(moved, step.results, strict=True)
        return sources, [_agreed(x, value.labels).long().numpy() for x, value in pairs]


def _agreed(places: Tensor, labels: Tensor) -> Tensor:
    """Places with size 1 where all positions of a channel come from one place; else -1.

    Tied channels that are joined along positions share a label, but not their constants.
    """
    for dim in range(labels.dim()):
        if labels.size(dim) > 1 and labels.stride(dim) == 0:
            first = places.narrow(dim, 0, 1)
            same = (places == first).all(dim, keepdim=True) if places.stride(dim) else None
            places = first if same is None else torch.where(same, first, -1.0)
    return places


def zeros_of(weight: Tensor, layer: Layer) -> tuple[Bools, Bools] | None:
    """Which rows and which columns of a dense layer's weight are zero; None if none are.

    A row whose first entry is not zero is not zero: nearly always that is all that has to be read.
    """
    blocks = blocks_of(weight.detach(), layer.groups, layer.weight_dims)
    blocks = blocks.flatten(3) if blocks.dim() > 4 else blocks
    rows, columns = blocks[:, :, 0, 0] == 0, blocks[:, 0, :, 0] == 0
    if not bool(rows.any()) and not bool(columns.any()):
        return None
    rows[rows.clone()] = (blocks[rows] == 0).flatten(1).all(1)
    columns[columns.clone()] = (blocks.transpose(1, 2)[columns] == 0).flatten(1).all(1)
    return rows.flatten().cpu().numpy(), columns.flatten().cpu().numpy()


def blocks_of(weight: Tensor, groups: int, weight_dims: tuple[int, int]) -> Tensor:
    """A weight as (group, row, column, taps …), rows and columns counted within the group."""
    blocks = weight.reshape(groups, -1, *weight.shape[1:])
    blocks = blocks if weight_dims == (0, 1) else blocks.transpose(1, 2)
    return blocks.unsqueeze(3) if blocks.dim() == 3 else blocks
