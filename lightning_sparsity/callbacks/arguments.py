"""What constructors of callbacks are given: one sentence for each mistake that Python lets pass."""

import inspect
import os
from typing import Any

from lightning_sparsity import penalties
from lightning_sparsity.penalties import L0Ball, Penalty
from lightning_sparsity.schedules import Schedule
from lightning_sparsity.surgery import Budget, Share
from lightning_sparsity.surgery.budget import is_number


def check_penalty(penalty: object, *, number: str) -> None:
    """Refuse what is no penalty.

    Args:
        penalty: What was given.
        number: The argument that a number in its place was perhaps meant for.

    Raises:
        ValueError: If it is no penalty; with a guess at what was meant.
    """
    if isinstance(penalty, Penalty):
        return
    guess = "penalty=L1()"
    if isinstance(penalty, str):
        known = {name.lower(): name for name in penalties.__all__ if name != "Penalty"}
        name = known.get(penalty.lower().replace("_", "").replace(" ", ""), "L1")
        guess = f"penalty={_call(getattr(penalties, name))}"
    elif isinstance(penalty, type) and issubclass(penalty, Penalty) and penalty is not Penalty:
        guess = f"penalty={_call(penalty)}"
    elif is_number(penalty):
        guess = f"{number}={penalty}"
    raise ValueError(
        f"penalty needs a penalty such as L1(), got {_shown(penalty)}: did you mean {guess}?"
    )


def check_strength_kind(name: str, x: object) -> None:
    """Refuse a strength (`lam`, `beta`) that is neither a number nor a schedule."""
    if is_number(x) or isinstance(x, Schedule):
        return
    cure = f"did you mean {name}={x}?" if _is_written_number(x) else f"for none at all: {name}=0."
    if name == "beta" and not _is_written_number(x):
        cure = "leave it out for its default."
    raise ValueError(
        f"{name} needs a number or a schedule such as Warmup(1e-4), got {_shown(x)}: {cure}"
    )


def check_flag(name: str, x: object, *, also: tuple[object, ...] = ()) -> None:
    """Refuse what is neither True nor False, nor one of what is allowed as well."""
    if isinstance(x, bool) or any(x is other or (x == other and other) for other in also):
        return
    allowed = ["True", "False", *map(repr, also)]
    guess = {"yes": "True", "true": "True", "no": "False", "false": "False"}
    meant = guess.get(x.lower()) if isinstance(x, str) else None
    cure = "." if meant is None else f": did you mean {name}={meant}?"
    raise ValueError(
        f"{name} needs {', '.join(allowed[:-1])} or {allowed[-1]}, got {_shown(x)}{cure}"
    )


def check_dirpath(dirpath: object) -> None:
    """Refuse what is no path."""
    if dirpath is not None and not isinstance(dirpath, (str, os.PathLike)):
        raise ValueError(
            f"dirpath needs the path of a folder, got {_shown(dirpath)}. Leave it out for the "
            "logger's folder."
        )


def check_ball(penalty: Penalty, amount: Budget) -> None:
    """Refuse a cut of more channels than the penalty has brought to zero in training."""
    if isinstance(penalty, L0Ball) and isinstance(amount, Share) and penalty.amount < amount.share:
        raise ValueError(
            f"amount={amount.share} would remove channels that {penalty!r} has kept in training: "
            f"give both the same fraction, or leave the penalty out, NetworkSlimming(amount="
            f"{amount.share})."
        )


def _call(penalty: type[Any]) -> str:
    """How an instance is made, as far as it can be known."""
    parameters = inspect.signature(penalty).parameters.values()
    needed = any(p.default is inspect.Parameter.empty for p in parameters)
    return f"{penalty.__name__}({'...' if needed else ''})"


def _is_written_number(x: object) -> bool:
    try:
        return isinstance(x, str) and float(x) >= 0
    except ValueError:
        return False


def _shown(x: object) -> str:
    """A value as it may stand in a message."""
    if isinstance(x, type):
        return f"the class {x.__name__} itself"
    shown = repr(x)
    return shown if len(shown) <= 60 and "\n" not in shown else f"a {type(x).__name__}"
