"""How much to cut: a share of channels, a threshold, a share of the FLOPs or of the parameters."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import final

import numpy as np
from torch import Tensor, nn

from lightning_sparsity.surgery.crossing import crossing
from lightning_sparsity.surgery.layout import Ints
from lightning_sparsity.surgery.plan import Cut
from lightning_sparsity.surgery.rounding import check_round_to
from lightning_sparsity.surgery.tape import Tape
from lightning_sparsity.surgery.widths import Widths

NORM_FLOPS = 2  # of an entry, as fvcore counts it


@dataclass(eq=False)
class Trials:
    """What a budget may ask while it looks for the number of scales to remove."""

    model: nn.Module
    tape: Tape
    magnitudes: Tensor
    """All magnitudes in the order in which they are removed; they never fall."""
    widths: Callable[[int], Widths]
    """How many channels every layer has without so many of the smallest scales."""


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
    def count(self, trials: Trials) -> int:
        """How many scales are removed, the smallest first."""


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

    def count(self, trials: Trials) -> int:
        """All up to the percentile, itself included."""
        return int(trials.magnitudes.numel() * self.share) + 1


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

    def count(self, trials: Trials) -> int:
        """All up to the threshold, ties included."""
        return int((trials.magnitudes <= self.at).sum())


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
    def rates(self, model: nn.Module, tape: Tape) -> "Rates":
        """What every layer costs."""

    def cost(self, model: nn.Module, tape: Tape, cuts: Mapping[str, Cut] | None) -> int:
        """What the network costs after the cuts (None: as it is)."""
        widths = Widths.of_tape(tape) if cuts is None else Widths.of_cuts(cuts)
        return self.rates(model, tape).total(widths)

    def count(self, trials: Trials) -> int:
        """The smallest count at which the cost fits, met from below.

        The cost falls with the count but for a few channels here and there. Where it does not, this
        is a count that fits while one less does not.
        """
        rates = self.rates(trials.model, trials.tape)
        dense = rates.total(Widths.of_tape(trials.tape))
        every = trials.magnitudes.numel()
        allowed, smallest = self.keep * dense, rates.total(trials.widths(every))
        if smallest > allowed:
            raise ValueError(
                f"{self} cannot be met: with every channel gone that can go, a share of "
                f"{smallest / dense:.4f} stays. Ask for keep >= that, or lower keep_at_least."
            )
        return crossing(
            lambda count: rates.total(trials.widths(count)), allowed, (0, dense), (every, smallest)
        )


@final
@dataclass(frozen=True, repr=False)
class Flops(Keep):
    """Keep at most a share of the FLOPs of the example inputs. One multiply-add counts as 1.

    Counted are convolutions, linear layers and norms in evaluation mode, as fvcore counts them.
    """

    def rates(self, model: nn.Module, tape: Tape) -> "Rates":
        """The FLOPs of one pass through the layers of the tape."""
        modules = dict(model.named_modules())
        rates = Rates.nothing(len(tape.sites), tape.fixed_flops)
        for i, (name, site) in enumerate(tape.sites.items()):
            module = modules[name]
            positions = sum(call.positions for call in site.calls if not call.training)
            if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
                of_what = rates.row if site.layer.kind == "channel" else rates.weight
                of_what[i] = positions * module.weight[0, 0].numel()
            elif not isinstance(module, nn.PReLU):
                affine = getattr(module, "weight", None) is not None
                rates.row[i] = positions * (NORM_FLOPS if affine else 1)
        return rates


@final
@dataclass(frozen=True, repr=False)
class Params(Keep):
    """Keep at most a share of the parameters."""

    def rates(self, model: nn.Module, tape: Tape) -> "Rates":
        """The parameters of the whole model."""
        modules = dict(model.named_modules())
        rates = Rates.nothing(len(tape.sites), sum(x.numel() for x in model.parameters()))
        for i, (name, site) in enumerate(tape.sites.items()):
            rates.new_bias[i] = 1
            for own, x in modules[name].named_parameters(recurse=False):
                if site.layer.kind != "channel" and own == "weight":
                    rates.weight[i] = x[0, 0].numel()
                elif x.numel() > 1:
                    rates.row[i] += x.numel() // site.rows.numel()
                else:
                    continue
                rates.fixed -= x.numel()
        return rates


@dataclass(eq=False)
class Rates:
    """What a network costs, as a function of its widths; one entry for each layer."""

    weight: Ints
    """Per pair of a row and a column that it reads."""
    row: Ints
    """Per row."""
    new_bias: Ints
    """Per row, where the layer gets a bias that it did not have."""
    fixed: int
    """Whatever the widths."""

    @classmethod
    def nothing(cls, layers: int, fixed: int) -> "Rates":
        """Layers that cost nothing yet."""
        weight, row, new_bias = np.zeros((3, layers), dtype=np.int64)
        return cls(weight, row, new_bias, fixed)

    def total(self, widths: Widths) -> int:
        """The cost of all layers."""
        pairs = widths.rows * (widths.columns // widths.groups)
        rows = widths.rows * (self.row + self.new_bias * widths.new_bias)
        return self.fixed + int((self.weight * pairs + rows).sum())


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
