"""How a layer changes: its channels before and after, in numbers."""

from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sparsity.surgery.solver import Solved
from lightning_sparsity.surgery.tape import Layer, Site

LARGEST = 1 << 24
INDICES = ("rows", "columns", "select", "scatter")


@dataclass(eq=False)
class Cut:
    """How one layer changes: all that has to be known to build it again."""

    layer: Layer
    """What it was."""
    rows: Tensor
    """The output channels that it still computes."""
    columns: Tensor
    """The input channels that it still reads."""
    select: Tensor | None
    """Where those are among the channels that arrive; None if all arrive."""
    scatter: Tensor | None
    """Where its outputs go among the channels that leave; None if it computes them all."""
    width: int
    """How many channels leave."""
    ones: bool
    """Whether a channel of ones is appended to its input that was not there."""
    bias: bool = False
    """Whether it needs a bias that it did not have."""

    def __post_init__(self) -> None:
        self.arrives: int | None = None
        """How many channels come to a layer that selects; None where that was not written down."""

    @property
    def groups(self) -> int:
        """How many groups of a grouped layer stay."""
        if self.layer.kind != "grouped":
            return 1
        size = self.layer.widths[0] // self.layer.groups
        return int(self.rows.div(size, rounding_mode="floor").unique().numel())

    @property
    def keeps_ones(self) -> bool:
        """Whether the column of ones that an earlier cut appended is still read."""
        last = self.layer.widths[1] - 1
        return self.layer.ones and self.columns.numel() > 0 and int(self.columns[-1]) == last

    def same_channels(self, other: "Cut") -> bool:
        """Whether two cuts leave the same channels."""
        same = torch.equal(self.rows, other.rows) and torch.equal(self.columns, other.columns)
        return same and self.ones == other.ones

    def is_smaller(self) -> bool:
        """Whether the layer loses anything."""
        return (self.rows.numel(), self.columns.numel()) != self.layer.widths

    def fits(self, module: nn.Module) -> bool:
        """Whether a module is a layer that can be cut like this."""
        weight = getattr(module, "weight", None)
        if weight is None or self.layer.kind == "channel":
            n = (
                getattr(module, "num_features", self.layer.widths[0])
                if weight is None
                else weight.size(0)
            )
            return self.layer.kind == "channel" and n in (1, self.layer.widths[0])
        sizes = [self.layer.widths[i] for i in self.layer.weight_dims]
        sizes[1] //= self.layer.groups
        return bool(list(weight.shape[:2]) == sizes)

    def made(self, module: nn.Module) -> bool:
        """Whether a module has the channels that the cut leaves."""
        weight = getattr(module, "weight", None)
        if weight is None or weight.numel() == 1:
            return self.layer.kind == "channel" or weight is not None
        outer = (
            (self.rows, self.columns)[self.layer.weight_dims[0]]
            if self.layer.kind == "grouped"
            else self.rows
        )
        return bool(
            weight.size(self.layer.weight_dims[0] * (self.layer.kind == "dense")) == outer.numel()
        )

    def of_weight(self, weight: Tensor) -> Tensor:
        """The rows and columns of a weight (or of what an optimizer keeps for it) that stay."""
        if self.layer.kind == "channel":
            return weight.index_select(0, self.rows.to(weight.device))
        index = [self.rows, self.columns]
        outer, inner = (index[i].to(weight.device) for i in self.layer.weight_dims)
        weight = weight.index_select(0, outer)
        if self.layer.kind == "dense":
            return weight.index_select(1, inner)
        groups = self.groups
        inner = (inner % weight.size(1)).view(groups, 1, -1)
        blocks = weight.view(groups, -1, weight.size(1), *weight.shape[2:])
        inner = inner.view(*inner.shape, *[1] * (weight.dim() - 2))
        return blocks.take_along_dim(inner, 2).flatten(0, 1)

    def to_json(self) -> dict[str, Any]:
        """The cut as plain numbers."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        plain = {name: x.tolist() if isinstance(x, Tensor) else x for name, x in own.items()}
        layer = {key: x for key, x in asdict(self.layer).items() if key != "ones"}
        arrives = {} if self.arrives is None else {"arrives": self.arrives}
        return plain | arrives | {"layer": layer}

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> "Cut":
        """The cut that `to_json` wrote; refuses what is no cut."""
        layer = _layer(entry["layer"])
        width = _number(entry["width"], 1)
        index = {
            name: None if entry[name] is None else _index(entry[name], n)
            for name, n in zip(INDICES, (*layer.widths, layer.widths[1], width), strict=True)
        }
        rows, columns, select, scatter = (index[name] for name in INDICES)
        if rows is None or columns is None:
            raise ValueError("a layer without channels")
        made = cls(layer, rows, columns, select, scatter, width, entry["ones"], entry["bias"])
        if "arrives" in entry:
            made.arrives = _number(entry["arrives"], 1)
        made.check()
        return made

    def check(self) -> None:
        """Refuse channels that contradict each other."""
        leaving = self.rows if self.scatter is None else self.scatter
        sound = (
            isinstance(self.ones, bool)
            and isinstance(self.bias, bool)
            and self.rows.numel() > 0
            and self.columns.numel() + self.ones > 0
            and (self.select is None or self.select.numel() == self.columns.numel())
            and (self.arrives is None or self._fits_what_arrives(self.arrives))
            and leaving.numel() == (self.width if self.scatter is None else self.rows.numel())
            and (self.layer.kind != "channel" or torch.equal(self.rows, self.columns))
            and (self.layer.kind != "grouped" or self._has_even_groups())
        )
        if not sound:
            raise ValueError("a layer's channels contradict each other")

    def _fits_what_arrives(self, n: int) -> bool:
        largest = -1 if self.select is None or not self.select.numel() else int(self.select[-1])
        return self.select is not None and largest < n

    def _has_even_groups(self) -> bool:
        """Whether rows and columns lie in the same groups, equally many in each."""
        if self.rows.numel() % self.groups or self.columns.numel() % self.groups:
            return False
        if self.ones and self.groups > 1:  # one group alone is like a dense layer
            return False
        of_rows, of_columns = (
            index.div(n // self.layer.groups, rounding_mode="floor").view(self.groups, -1)
            for index, n in zip((self.rows, self.columns), self.layer.widths, strict=True)
        )
        same = (of_rows == of_rows[:, :1]).all() and (of_columns == of_rows[:, :1]).all()
        return bool(same)


def _layer(entry: dict[str, Any]) -> Layer:
    rows, columns = (_number(n, 1) for n in entry["widths"])
    first, second = (_number(n, 0) for n in entry["weight_dims"])
    kind, groups = entry["kind"], _number(entry["groups"], 1)
    if kind not in ("dense", "grouped", "channel") or {first, second} != {0, 1}:
        raise ValueError("no layer that can be cut")
    if rows % groups or columns % groups or (kind == "channel" and rows != columns):
        raise ValueError("a layer's widths contradict each other")
    border = tuple(_number(n, 0) for n in entry.get("border", ()))
    if len(border) % 2 or len(border) > 6:
        raise ValueError(f"a border of {len(border)} widths")
    dim = _number(entry["dim"], -4)
    return Layer(kind, (rows, columns), dim, (first, second), groups, border)


def _number(n: Any, least: int) -> int:  # noqa: ANN401
    if not isinstance(n, int) or isinstance(n, bool) or not least <= n <= LARGEST:
        raise ValueError(f"{n} is out of range")
    return n


def _index(numbers: list[int], n: int) -> Tensor:
    index = torch.tensor(numbers, dtype=torch.long)
    rising = index.dim() == 1 and bool((index[1:] > index[:-1]).all())
    if not rising or (index.numel() and not 0 <= int(index[0]) <= int(index[-1]) < n):
        raise ValueError(f"channels have to be rising numbers below {n}")
    return index


def cut(site: Site, solved: Solved) -> Cut:
    """The same in numbers of channels."""
    rows, columns = solved.computed.nonzero().flatten(), solved.kept.nonzero().flatten()
    made = Cut(
        layer=site.layer,
        rows=rows,
        columns=columns,
        select=None,
        scatter=None,
        width=int(solved.behind.sum()),
        ones=bool(solved.carried.any()) and solved.carrier is None,
    )
    read = site.picked[columns[:-1] if made.keeps_ones else columns]
    made.select = _places(solved.before, read)
    made.scatter = _places(solved.behind, site.placed[rows])
    made.arrives = None if made.select is None else int(solved.before.sum())
    return made


def _places(exists: Tensor, chosen: Tensor) -> Tensor | None:
    """Where chosen channels are among those that exist; None if they are all of them."""
    places = exists.cumsum(0)[chosen] - 1
    return None if places.numel() == int(exists.sum()) else places


def composed(first: Cut, second: Cut) -> Cut:
    """Two cuts of a layer, one after the other, as one."""
    columns = second.columns[:-1] if second.keeps_ones else second.columns
    made = Cut(
        first.layer,
        first.rows[second.rows],
        first.columns[columns],
        second.select,
        second.scatter,
        second.width,
        second.ones or second.keeps_ones,
        first.bias or second.bias,
    )
    made.arrives = second.arrives
    return made
