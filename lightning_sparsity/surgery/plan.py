"""What will be cut: made by a `ChannelFlow`, carried out by `slim`, written to disk by `save`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_sparsity.surgery.constants import Constants, Zeros
from lightning_sparsity.surgery.solver import Solved, Solver
from lightning_sparsity.surgery.tape import Site

if TYPE_CHECKING:
    from lightning_sparsity.surgery.flow import ChannelFlow

LARGEST = 1 << 24


@dataclass(eq=False)
class Cut:
    """How one layer changes: all that has to be known to build it again."""

    kind: str
    """`"dense"`, `"grouped"` or `"channel"`, as in `Site`."""
    dims: tuple[int, int]
    weight_dims: tuple[int, int]
    before: tuple[int, int]
    """How many output and input channels the layer had."""
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
    """Whether a channel of ones is appended to its input."""
    bias: bool = False
    """Whether it needs a bias that it did not have."""
    groups: tuple[int, int] = (1, 1)
    """How many groups a grouped layer had and keeps."""

    def same_channels(self, other: "Cut") -> bool:
        """Whether two cuts leave the same channels."""
        same = torch.equal(self.rows, other.rows) and torch.equal(self.columns, other.columns)
        return same and self.ones == other.ones

    def is_smaller(self) -> bool:
        """Whether the layer loses anything."""
        return (self.rows.numel(), self.columns.numel()) != self.before

    def fits(self, module: nn.Module) -> bool:
        """Whether a module is a layer that can be cut like this."""
        weight = getattr(module, "weight", None)
        if weight is None or self.kind == "channel":
            n = (
                getattr(module, "num_features", self.before[0])
                if weight is None
                else weight.size(0)
            )
            return self.kind == "channel" and n in (1, self.before[0])
        sizes = [self.before[i] for i in self.weight_dims]
        sizes[1] //= self.groups[0]
        return bool(list(weight.shape[:2]) == sizes)

    def made(self, module: nn.Module) -> bool:
        """Whether a module has the channels that the cut leaves."""
        weight = getattr(module, "weight", None)
        if weight is None or weight.numel() == 1:
            return self.kind == "channel" or weight is not None
        outer = (
            (self.rows, self.columns)[self.weight_dims[0]] if self.kind == "grouped" else self.rows
        )
        return bool(weight.size(self.weight_dims[0] * (self.kind == "dense")) == outer.numel())

    def of_weight(self, weight: Tensor) -> Tensor:
        """The rows and columns of a weight (or of what an optimizer keeps for it) that stay."""
        if self.kind == "channel":
            return weight.index_select(0, self.rows.to(weight.device))
        index = [self.rows, self.columns]
        outer, inner = (index[i].to(weight.device) for i in self.weight_dims)
        weight = weight.index_select(0, outer)
        if self.kind == "dense":
            return weight.index_select(1, inner)
        groups = self.groups[1]
        inner = (inner % weight.size(1)).view(groups, 1, -1)
        blocks = weight.view(groups, -1, weight.size(1), *weight.shape[2:])
        inner = inner.view(*inner.shape, *[1] * (weight.dim() - 2))
        return blocks.take_along_dim(inner, 2).flatten(0, 1)

    def to_json(self) -> dict[str, Any]:
        """The cut as plain numbers."""
        return {
            name: x.tolist() if isinstance(x, Tensor) else x
            for name, x in ((f.name, getattr(self, f.name)) for f in fields(self))
        }

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> "Cut":
        """The cut that `to_json` wrote; refuses what is no cut."""
        rows_before, columns_before = (_count(n) for n in entry["before"])
        rows, columns = _index(entry["rows"], rows_before), _index(entry["columns"], columns_before)
        width, ones = _count(entry["width"]), bool(entry["ones"])
        select = None if entry["select"] is None else _index(entry["select"], columns_before)
        scatter = None if entry["scatter"] is None else _index(entry["scatter"], width)
        kind, dims = str(entry["kind"]), _pair(entry["dims"])
        weight_dims = _pair(entry["weight_dims"])
        empty = not rows.numel() or not (columns.numel() or ones)
        wrong = kind not in ("dense", "grouped", "channel") or sorted(weight_dims) != [0, 1]
        groups = _pair_of_groups(
            entry["groups"], before=(rows_before, columns_before), after=(rows, columns)
        )
        apart = (select is not None and select.numel() != columns.numel()) or (
            rows.numel() != (width if scatter is None else scatter.numel())
        )
        if empty or wrong or apart or (kind == "channel" and not torch.equal(rows, columns)):
            raise ValueError("a layer's channels contradict each other")
        before = (rows_before, columns_before)
        bias = bool(entry["bias"])
        return cls(
            kind,
            dims,
            weight_dims,
            before,
            rows,
            columns,
            select,
            scatter,
            width,
            ones,
            bias,
            groups,
        )


def _count(n: object) -> int:
    if not isinstance(n, int) or not 0 < n <= LARGEST:
        raise ValueError(f"a layer cannot have {n} channels")
    return n


def _pair(pair: Any) -> tuple[int, int]:  # noqa: ANN401
    first, second = pair
    if (
        not isinstance(first, int)
        or not isinstance(second, int)
        or max(abs(first), abs(second)) > 5
    ):
        raise ValueError(f"{pair} are no dimensions")
    return first, second


def _pair_of_groups(
    pair: Any,  # noqa: ANN401
    before: tuple[int, int],
    after: tuple[Tensor, Tensor],
) -> tuple[int, int]:
    """How many groups there were and are; rows and columns have to lie in the same ones."""
    had, has = (_count(n) for n in pair)
    if had == has == 1:
        return 1, 1
    if any(n % had for n in before) or any(
        index.numel() % has or not index.numel() for index in after
    ):
        raise ValueError("groups of different sizes")
    rows, columns = (
        i.div(n // had, rounding_mode="floor").view(has, -1)
        for i, n in zip(after, before, strict=True)
    )
    if not bool((rows == rows[:, :1]).all()) or not bool((columns == rows[:, :1]).all()):
        raise ValueError("rows and columns of different groups")
    return had, has


def _index(numbers: list[int], n: int) -> Tensor:
    index = torch.tensor(numbers, dtype=torch.long)
    rising = index.dim() == 1 and bool((index[1:] > index[:-1]).all())
    if not rising or (index.numel() and not 0 <= int(index[0]) <= int(index[-1]) < n):
        raise ValueError(f"channels have to be rising numbers below {n}")
    return index


@dataclass(eq=False)
class Plan:
    """Which channels stay in every layer of one model.

    Attributes:
        kept: For each BatchNorm layer by name, the channels that still exist.
        proof: Largest difference between the masked and the slim model's outputs on the example
            inputs, relative to the largest output, in float64. None until `slim` has measured it.
    """

    dead: dict[str, Tensor]
    gather: bool
    cuts: dict[str, Cut]
    kept: dict[str, Tensor]
    signature: dict[str, list[int]]
    proof: float | None = None
    flow: "ChannelFlow | None" = field(default=None, repr=False)

    def __str__(self) -> str:
        before = sum(mask.numel() for mask in self.dead.values())
        after = sum(index.numel() for index in self.kept.values())
        proof = "not proved yet" if self.proof is None else f"relative difference {self.proof:.1e}"
        return f"Plan: {after} of {before} BatchNorm channels stay; {proof}"


def make_plan(
    flow: "ChannelFlow",
    model: nn.Module,
    dead: Mapping[str, Tensor],
    *,
    gather: bool,
    zeros: Zeros | None = None,
) -> Plan:
    """The plan that removes everything that `dead` makes removable."""
    constants = Constants(model, flow.tape, dead, zeros)
    solved = Solver(flow.tape, flow.classes, constants, gather=gather).solve()
    cuts = {name: cut(site, solved[name]) for name, site in flow.tape.sites.items()}
    modules = dict(model.named_modules())
    for name, made in cuts.items():
        mean = getattr(modules.get(flow.followers.get(name, "")), "running_mean", None)
        if made.kind != "channel" and modules[name].bias is None and mean is None:
            made.bias = _adds_constants(solved[name], constants, name)
    masks = {
        name: dead.get(name, torch.zeros(n, dtype=torch.bool)) for name, n in flow.norms.items()
    }
    kept = {name: cuts[name].rows for name in flow.norms}
    copies = {name: mask.clone() for name, mask in masks.items()}
    return Plan(copies, gather, cuts, kept, flow.signature, flow=flow)


def _adds_constants(solved: Solved, constants: Constants, name: str) -> bool:
    folded = solved.folded & (constants.columns[name].nan_to_num() != 0)
    made = constants.rows[name][solved.computed].nan_to_num()
    return bool(folded.any()) or bool((made != 0).any())


def cut(site: Site, solved: Solved) -> Cut:
    """The same in numbers of channels."""
    arriving, leaving = solved.arriving.nonzero().flatten(), solved.leaving.nonzero().flatten()
    rows, columns = solved.computed.nonzero().flatten(), solved.kept.nonzero().flatten()
    return Cut(
        kind=site.kind,
        dims=site.dims,
        weight_dims=site.weight_dims,
        before=(site.rows.numel(), site.columns.numel()),
        rows=rows,
        columns=columns,
        select=None if torch.equal(arriving, columns) else torch.searchsorted(arriving, columns),
        scatter=None if torch.equal(leaving, rows) else torch.searchsorted(leaving, rows),
        width=leaving.numel(),
        ones=bool(solved.carried.any()) and solved.carrier is None,
        groups=_groups(site, rows),
    )


def _groups(site: Site, rows: Tensor) -> tuple[int, int]:
    if site.kind != "grouped":
        return 1, 1
    return site.groups, rows.div(
        site.rows.numel() // site.groups, rounding_mode="floor"
    ).unique().numel()
