"""How much to cut: a share of channels, a threshold, a share of the FLOPs or of the parameters."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import final

from torch import Tensor, nn

from lightning_sparsity.surgery.plan import Cut
from lightning_sparsity.surgery.rounding import check_round_to
from lightning_sparsity.surgery.tape import Site, Tape

Cost = Callable[[nn.Module, Tape, Mapping[str, Cut] | None], int]
Price = Callable[[Cost, int | None], int]
"""What the network costs when so many of its smallest scales are dead (None: as it is)."""
NORM_FLOPS = 2  # of an entry, as fvcore counts it


@dataclass(frozen=True, repr=False)
class Budget(ABC):
    """A rule that says how many of the smallest scales count as zero.

    Args:
        round_to: Widths go up to the next multiple of this number: see `ChannelFlow.plan`.
    """

    round_to: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        check_round_to(self.round_to)

    def __repr__(self) -> str:
        own = {f.name: getattr(self, f.name) for f in fields(self)[::-1]}
        shown = [f"{name}={x}" for name, x in own.items() if (name, x) != ("round_to", 1)]
        return f"{type(self).__name__}({', '.join(shown)})"

    @abstractmethod
    def count(self, magnitudes: Tensor, price: Price) -> int:
        """How many scales are removed, the smallest first.

        Args:
            magnitudes: All magnitudes in the order in which they are removed, never falling.
            price: What the network costs without so many of them.
        """


@final
@dataclass(frozen=True, repr=False)
class Share(Budget):
    """The papers' global percentile: drop this fraction of all BatchNorm channels.

    The element at index `int(n * share)` of all magnitudes in order is removed, and all before it.
    Of equal scales just enough are removed, evenly over the layers; exact zeros always are.

    Args:
        share: The fraction to drop, in (0, 1).
        round_to: As in `Budget`.
    """

    share: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_number(self.share) or not 0 < self.share < 1:
            raise ValueError(
                f"plan_by needs a share of channels in (0, 1), got amount={self.share!r}"
                f"{meant(self.share, '')}"
            )

    def count(self, magnitudes: Tensor, price: Price) -> int:
        """All up to the percentile, itself included."""
        return int(magnitudes.numel() * self.share) + 1


@final
@dataclass(frozen=True, repr=False)
class Threshold(Budget):
    """Every scale of at most this magnitude counts as zero.

    Args:
        at: The threshold, at least 0. At 0 only exact zeros are dead.
        round_to: As in `Budget`.
    """

    at: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_number(self.at) or not 0 <= self.at < float("inf"):
            raise ValueError(
                f"Threshold needs a finite number >= 0, such as 0.001, got at={self.at!r}."
            )

    def count(self, magnitudes: Tensor, price: Price) -> int:
        """All up to the threshold, ties included."""
        return int((magnitudes <= self.at).sum())


@dataclass(frozen=True, repr=False)
class Keep(Budget):
    """A budget on a cost of the whole network: the smallest scales die until the cost fits.

    Args:
        keep: The fraction of the cost that may stay, in (0, 1).
        round_to: As in `Budget`.
    """

    keep: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_number(self.keep) or not 0 < self.keep < 1:
            name = type(self).__name__
            raise ValueError(
                f"{name} needs 0 < keep < 1, got keep={self.keep!r}{meant(self.keep, name)}"
            )

    @abstractmethod
    def cost(self, model: nn.Module, tape: Tape, cuts: Mapping[str, Cut] | None) -> int:
        """What the network costs after the cuts (None: as it is)."""

    def count(self, magnitudes: Tensor, price: Price) -> int:
        """The smallest count at which the cost fits, met from below.

        The cost falls with the count but for a few channels here and there, so bisection finds a
        place where it crosses the budget.
        """
        allowed = self.keep * price(self.cost, None)
        low, high = 1, magnitudes.numel()
        smallest = price(self.cost, high)
        if smallest > allowed:
            reachable = smallest * self.keep / allowed
            raise ValueError(
                f"{self} cannot be met: with every channel gone that can go, a share of "
                f"{reachable:.4f} stays. Ask for keep >= that, or lower keep_at_least."
            )
        while low < high:
            middle = (low + high) // 2
            if price(self.cost, middle) <= allowed:
                high = middle
            else:
                low = middle + 1
        return low


@final
@dataclass(frozen=True, repr=False)
class Flops(Keep):
    """Keep at most a share of the FLOPs of the example inputs. One multiply-add counts as 1.

    Counted are convolutions, linear layers and norms in evaluation mode, as fvcore counts them.
    """

    def cost(self, model: nn.Module, tape: Tape, cuts: Mapping[str, Cut] | None) -> int:
        """The FLOPs of one pass through the layers of the tape."""
        modules = dict(model.named_modules())
        return tape.fixed_flops + sum(
            _flops_per_position(site, modules[name], None if cuts is None else cuts[name])
            * sum(call.positions for call in site.calls if not call.training)
            for name, site in tape.sites.items()
        )


@final
@dataclass(frozen=True, repr=False)
class Params(Keep):
    """Keep at most a share of the parameters."""

    def cost(self, model: nn.Module, tape: Tape, cuts: Mapping[str, Cut] | None) -> int:
        """The parameters of the whole model."""
        total = sum(x.numel() for x in model.parameters())
        if cuts is None:
            return total
        modules = dict(model.named_modules())
        for name, site in tape.sites.items():
            before = sum(x.numel() for x in modules[name].parameters(recurse=False))
            total += _parameters(site, modules[name], cuts[name]) - before
        return total


def _parameters(site: Site, module: nn.Module, cut: Cut) -> int:
    own = dict(module.named_parameters(recurse=False))
    rows, columns = cut.rows.numel(), cut.columns.numel() + cut.ones
    total = rows * cut.bias
    for name, x in own.items():
        if site.layer.kind != "channel" and name == "weight":
            total += rows * columns // cut.groups * x[0, 0].numel()
        else:
            total += x.numel() if x.numel() == 1 else x.numel() // site.rows.numel() * rows
    return total


def _flops_per_position(site: Site, module: nn.Module, cut: Cut | None) -> int:
    """What one position of the result costs, all output channels together."""
    rows = site.rows.numel() if cut is None else cut.rows.numel()
    columns = site.columns.numel() if cut is None else cut.columns.numel() + cut.ones
    weight = getattr(module, "weight", None)
    if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
        taps = module.weight[0, 0].numel()
        groups = site.layer.groups if cut is None else cut.groups
        return rows * taps * (1 if site.layer.kind == "channel" else columns // groups)
    return rows * (NORM_FLOPS if weight is not None else 1) * (not isinstance(module, nn.PReLU))


def budget_of(amount: object) -> Budget:
    """A budget as it is, a number as a share of the channels; refuses everything else."""
    if isinstance(amount, Budget):
        return amount
    if isinstance(amount, type) and issubclass(amount, Budget):
        raise ValueError(
            f"amount needs a number or a budget, got the class {amount.__name__} itself: did you "
            f"mean {amount.__name__}(0.5)?"
        )
    return Share(amount)  # type: ignore[arg-type]


def is_number(x: object) -> bool:
    """Whether something is a number, which True is not here."""
    return isinstance(x, Real) and not isinstance(x, bool)


def meant(x: object, name: str) -> str:
    """The end of a message: a guess at what a percentage, or a number as text, was meant to be."""
    text = str(x).strip()
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        return "."
    fraction = number / 100 if number >= 2 or text.endswith("%") else number
    if isinstance(x, bool) or not 0 < fraction < 1:
        return "."
    return f": did you mean {f'{name}({fraction:g})' if name else f'{fraction:g}'}?"
