"""What one run of a model leaves behind: values, steps, and layers (sites)."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

Kind = Literal[
    "move", "map", "keep", "reduce", "product", "pad", "site", "select", "scatter", "opaque"
]


@dataclass(eq=False)
class Value:
    """One activation: its labels, and how many steps read it."""

    labels: Tensor
    uses: int = 0


@dataclass(frozen=True)
class Weight:
    """A parameter or buffer of the model, by name: its value is looked up when it is needed."""

    name: str


@dataclass(frozen=True)
class Unknown:
    """A tensor that was computed on the way and may differ in the next run (noise, positions)."""

    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Layer:
    """The form of a layer.

    A `"dense"` layer (convolution, linear) makes each row from all columns, a `"grouped"` one from
    the columns of its group; a `"channel"` layer (batch norm, depthwise convolution, PReLU) makes
    each row from the column of the same number.
    """

    kind: Literal["dense", "grouped", "channel"]
    widths: tuple[int, int]
    """How many output and input channels there are."""
    dim: int
    """The channel dimension of input and output."""
    weight_dims: tuple[int, int] = (0, 1)
    """The dimensions of the weight that hold rows and columns."""
    groups: int = 1
    """Into how many groups rows and columns are divided."""
    border: tuple[int, ...] = ()
    """How many zeros were put around its input before it came (as `F.pad` takes them)."""
    ones: bool = False
    """Whether its last column is one of ones that an earlier cut appended."""


@dataclass(eq=False)
class Call:
    """One use of a layer."""

    site: "Site"
    source: Value
    result: Value
    folds: bool
    """Whether a constant comes out as a constant: no zero padding, no overlap at the border."""
    positions: int
    """Entries of the result per output channel, the batch included."""
    training: bool
    border: tuple[int, ...] = ()
    """The zeros around its input, if those were put there before the call."""
    leaving: Value = field(init=False)
    """What leaves the module of the layer: the result, or a function of its single entries."""

    def __post_init__(self) -> None:
        self.leaving = self.result


@dataclass(eq=False)
class Site:
    """A layer whose channels can be cut, and where they come from and go."""

    name: str
    layer: Layer
    rows: Tensor
    """The variable that each output channel makes."""
    columns: Tensor
    """The variable that each input channel reads (in the first call; others are tied to it)."""
    calls: list[Call] = field(default_factory=list)
    can_select: bool = True
    can_append: bool = True
    can_scatter: bool = True

    def __post_init__(self) -> None:
        self.leaving = self.rows
        """The variables behind the layer, and behind its `Scatter` if it has one already."""
        self.placed = torch.arange(self.rows.numel())
        """Where the rows are among those."""
        self.arrive(self.columns)

    def arrive(self, variables: Tensor, picked: Tensor | None = None) -> None:
        """Say which variables come in, and which of them a `Select` picks for the columns."""
        self.arriving = variables
        self.picked = torch.arange(variables.numel()) if picked is None else picked

    def seen(self) -> list[Call]:
        """The calls that count: in evaluation, or in training if there are no others."""
        return [call for call in self.calls if not call.training] or self.calls


@dataclass(frozen=True)
class Function:
    """A function and its arguments, with values, weights and unknowns in place of tensors."""

    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(eq=False)
class Step:
    """One recorded function call: a function's, or a layer's."""

    kind: Kind
    function: Function
    inputs: list[Value]
    results: list[Value]
    training: bool
    call: Call | None = None


@dataclass(frozen=True)
class Frozen:
    """Channels that stay, and why."""

    module: str
    op: str
    reason: str
    channels: int

    def __str__(self) -> str:
        return f"{self.module or '(model)'}: {self.op} {self.reason} ({self.channels} channels)"


@dataclass(eq=False)
class Tape:
    """Everything a trace has seen, in order."""

    steps: list[Step] = field(default_factory=list)
    sites: dict[str, Site] = field(default_factory=dict)
    ties: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    frozen: dict[tuple[str, str, str], list[Tensor]] = field(default_factory=dict)
    variables: int = 1
    fixed_flops: int = 0
    """Multiply-adds of the convolutions and linear layers that cannot be cut."""
    sizes: list[tuple[int, Value]] = field(default_factory=list)
    """Values whose sizes were read as numbers, each with the number of steps before it."""
    borrowed: set[str] = field(default_factory=set)
    """Layers whose weights are used by other code than their own call."""

    def __post_init__(self) -> None:
        self.held = torch.ones(1, dtype=torch.bool)
        """Which variables are frozen."""
        self.noted: dict[tuple[str, str, str], list[Tensor]] = {}
        """What else is to be said of variables that are not frozen for that."""

    def new_variables(self, n: int) -> Tensor:
        """`n` fresh variables."""
        self.variables += n
        return torch.arange(self.variables - n, self.variables)

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Whatever happens to a variable of `a` happens to the one at the same place of `b`."""
        different = a != b
        if bool(different.any()):
            self.ties.append((a[different], b[different]))

    def only_maps(self, first: Value, last: Value) -> bool:
        """Whether one value became the other just now, entry by entry, out of nothing else.

        An activation may read it more than once, as in `x * sigmoid(x)`.
        """
        own, steps = {first}, list[Step]()
        for step in reversed(self.steps):
            if first in step.results:
                break
            steps.insert(0, step)
        for step in steps:
            weights = any(isinstance(x, Weight) for x in step.function.args)
            if step.kind not in ("map", "product") or weights or not own.issuperset(step.inputs):
                return False
            own.update(step.results)
        return last in own

    def forget_training(self) -> None:
        """Take back a run in training mode that failed half-way."""
        self.steps = [step for step in self.steps if not step.training]
        self.sizes = [(at, value) for at, value in self.sizes if at <= len(self.steps)]
        for name, site in list(self.sites.items()):
            site.calls = [call for call in site.calls if not call.training]
            if not site.calls:
                del self.sites[name]

    def hold_borrowed(self) -> None:
        """Keep layers whole whose weights other code uses too."""
        for name in self.borrowed & set(self.sites):
            self.keep_whole(self.sites[name], (name, "weight", "is used outside the layer"))

    def keep_whole(self, site: Site, why: tuple[str, str, str]) -> None:
        """Let a layer make and read what it did, without a `Select` or `Scatter`."""
        site.can_select = site.can_scatter = False
        for variables in (site.rows, site.columns):
            self.hold(variables[variables != 0], why)

    def is_held(self, variables: Tensor) -> Tensor:
        """Whether variables are frozen already."""
        if self.held.numel() < self.variables:
            room = torch.zeros(2 * self.variables - self.held.numel(), dtype=torch.bool)
            self.held = torch.cat([self.held, room])
        return self.held[variables]

    def hold(self, variables: Tensor, why: tuple[str, str, str] | None = None) -> None:
        """Freeze variables: they live as long as the root does."""
        if variables.numel():
            self.is_held(variables)
            self.held[variables] = True
            self.ties.append((variables, torch.zeros_like(variables)))
            if why is not None:
                self.frozen.setdefault(why, []).append(variables)

    def report(self, classes: Tensor) -> list[Frozen]:
        """What was frozen, and what was noted of the rest, by module, function and reason."""
        found = []
        for why, some in [*self.frozen.items(), *self.noted.items()]:
            variables = torch.cat(some).unique()
            if why in self.noted:
                variables = variables[classes[variables] != 0]
            found += [Frozen(*why, channels=variables.numel())] if variables.numel() else []
        return found


def own_tensors_of(module: nn.Module) -> list[tuple[str, Tensor]]:
    """The parameters and buffers of a module itself, by name."""
    both = [*module._parameters.items(), *module._buffers.items()]
    return [(name, x) for name, x in both if x is not None]


def swapped(item: Any, swap: Any) -> Any:  # noqa: ANN401
    """The same arguments with `swap` applied to every leaf of lists, tuples, dicts and slices."""
    if isinstance(item, tuple):
        return tuple(swapped(x, swap) for x in item)
    if isinstance(item, list):
        return [swapped(x, swap) for x in item]
    if isinstance(item, dict):
        return {key: swapped(x, swap) for key, x in item.items()}
    return swap(item)


def followers_of(tape: Tape) -> dict[str, str]:
    """For each dense layer the batch norm that alone reads it, and reads nothing else."""
    readers = {call.source: site for site in tape.sites.values() for call in site.calls}
    found = {}
    for site in tape.sites.values():
        after = {readers.get(call.result) for call in site.calls}
        alone = all(call.result.uses == 1 for call in site.calls)
        reader = next(iter(after))
        if (
            len(after) == 1
            and alone
            and reader is not None
            and len(reader.calls) == len(site.calls)
        ):
            found[site.name] = reader.name
    return found
