"""How much to cut: a share of channels, a threshold, a share of the FLOPs or of the parameters."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import final

import torch
from torch import Tensor, nn

from lightning_sparsity.surgery.plan import Cut
from lightning_sparsity.surgery.rounding import check_round_to
from lightning_sparsity.surgery.tape import Site, Tape

Dead = dict[str, Tensor]
Cost = Callable[[nn.Module, Tape, Mapping[str, Cut] | None], int]
Price = Callable[[Cost, float | None], int]
"""What the network costs when scales up to a threshold are dead (None: none are)."""
NORM_FLOPS = 2  # of an entry, as fvcore counts it


@dataclass(frozen=True, repr=False)
class Budget(ABC):
    """A rule that says up to which magnitude scales count as zero.

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
    def threshold(self, magnitudes: Tensor, price: Price) -> float:
        """The threshold, given all magnitudes in order and what a threshold costs."""


@final
@dataclass(frozen=True, repr=False)
class Share(Budget):
    """The papers' global percentile: drop this share of all BatchNorm channels.

    The threshold is the element at index `int(n * share)` of all magnitudes in order. What is not
    strictly larger is dead, so ties and this element itself go too.

    Args:
        share: The share to drop, in (0, 1).
        round_to: As in `Budget`.
    """

    share: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share < 1:
            raise ValueError(
                f"plan_by needs a share of channels in (0, 1), got amount={self.share}."
            )

    def threshold(self, magnitudes: Tensor, price: Price) -> float:
        """The element at the percentile."""
        return float(magnitudes[int(magnitudes.numel() * self.share)])


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
        if not 0 <= self.at < float("inf"):
            raise ValueError(f"Threshold needs a finite number >= 0, got at={self.at}.")

    def threshold(self, magnitudes: Tensor, price: Price) -> float:
        """The number itself."""
        return self.at


@dataclass(frozen=True, repr=False)
class Keep(Budget):
    """A budget on a cost of the whole network: the smallest scales die until the cost fits.

    Args:
        keep: The share of the cost that may stay, in (0, 1).
        round_to: As in `Budget`.
    """

    keep: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.keep < 1:
            raise ValueError(f"{type(self).__name__} needs 0 < keep < 1, got keep={self.keep}.")

    @abstractmethod
    def cost(self, model: nn.Module, tape: Tape, cuts: Mapping[str, Cut] | None) -> int:
        """What the network costs after the cuts (None: as it is)."""

    def threshold(self, magnitudes: Tensor, price: Price) -> float:
        """The smallest threshold at which the cost fits, met from below.

        The cost falls with the threshold but for a few channels here and there, so bisection finds
        a place where it crosses the budget.
        """
        allowed = self.keep * price(self.cost, None)
        thresholds = magnitudes.unique()
        low, high = 0, len(thresholds) - 1
        smallest = price(self.cost, float(thresholds[high]))
        if smallest > allowed:
            reachable = smallest * self.keep / allowed
            raise ValueError(
                f"{self} cannot be met: with every channel gone that can go, a share of "
                f"{reachable:.4f} stays. Ask for keep >= that, or lower keep_at_least."
            )
        while low < high:
            middle = (low + high) // 2
            if price(self.cost, float(thresholds[middle])) <= allowed:
                high = middle
            else:
                low = middle + 1
        return float(thresholds[low])


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


def ranked(scales: Mapping[str, Tensor]) -> Tensor:
    """The magnitudes of all scales in one row, from the smallest; refuses NaN."""
    for name, scale in scales.items():
        if not bool(scale.isfinite().all()):
            raise ValueError(f"Ranking needs finite scales, got NaN or infinity in {name!r}.")
    return torch.cat([scale.abs() for scale in scales.values()]).sort().values


def dead_below(scales: Mapping[str, Tensor], threshold: float, keep_at_least: int) -> Dead:
    """The scales of at most `threshold`, but for the largest `keep_at_least` of every layer."""
    dead = {}
    for name, scale in scales.items():
        magnitude = scale.abs()
        spared = magnitude.topk(min(keep_at_least, magnitude.numel())).indices
        dead[name] = (magnitude <= threshold).index_fill(0, spared, False)
    return dead
