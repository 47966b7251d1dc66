"""Which weights of a module a callback acts on, and how they become rows."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import UninitializedParameter

from lightning_sparsity.groups import Groups, group_axis, rows

__all__ = ["Select", "Selected", "label", "rows", "select_weights"]


@dataclass(frozen=True)
class Select:
    """Weights by the type of their module and by name.

    A pattern may name a weight (`"model.fc.weight"`), a module (`"fc"`) or many with wildcards
    (`"conv*"`, `"stage?.*.conv1"`); leading parts of a name may be left out.

    Args:
        types: Class names in `torch.nn`, by their beginning: `"Conv"` is every convolution.
        include: Patterns, one of which a weight must match.
        exclude: Patterns of weights to leave out.
    """

    types: Sequence[str] = ("Conv", "Linear")
    include: Sequence[str] = ("*",)
    exclude: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Selected:
    """One weight that a callback acts on.

    Attributes:
        name: Its name in the module, for example `"model.fc.weight"`.
        weight: The parameter itself.
        axis: The axis that counts its groups; None for entries.
    """

    name: str
    weight: Tensor
    axis: int | None


def select_weights(
    module: nn.Module, select: "str | Sequence[str] | Select", groups: Groups = "entries"
) -> list[Selected]:
    """The weights of `module` that `select` names, each once, in the order of the module.

    Args:
        module: Any module.
        select: A pattern, several, or a `Select`.
        groups: What counts as one group.

    Raises:
        ValueError: If a pattern or all of the types match nothing, or a weight does not fit
            `groups`.
    """
    wanted = _as_select(select)
    candidates = _candidates(module)
    typed = {n: m for n, m in candidates.items() if _has_type(m, wanted.types)}
    if not typed:
        found = sorted({type(m).__name__ for m in candidates.values()})
        raise ValueError(
            f"No module with a weight has a type that begins with {' or '.join(wanted.types)}. "
            f"This model has {', '.join(found) or 'no weights at all'}."
        )
    for pattern in (*wanted.include, *wanted.exclude):
        if not any(_matches(name, pattern) for name in typed):
            raise ValueError(
                f"{pattern!r} matches no weight of a {' or '.join(wanted.types)} module. "
                f"Near it: {', '.join(_near(pattern, typed))}."
            )
    names = [
        name
        for name in typed
        if any(_matches(name, p) for p in wanted.include)
        and not any(_matches(name, p) for p in wanted.exclude)
    ]
    if not names:
        raise ValueError(
            f"exclude={list(wanted.exclude)} leaves none of the weights that "
            f"include={list(wanted.include)} names."
        )
    return [_selected(name, typed[name], groups) for name in names]


def owned(weights: Sequence[Selected], param_groups: Iterable[Mapping[str, Any]]) -> list[Selected]:
    """The weights that are in parameter groups of an optimizer.

    Args:
        weights: Selected weights.
        param_groups: Groups as in `optimizer.param_groups`.
    """
    parameters = {id(p) for group in param_groups for p in group["params"]}
    return [s for s in weights if id(s.weight) in parameters]


def check_finite(weights: Sequence[Selected]) -> None:
    """Refuse weights with entries that are infinite or not a number."""
    for s in weights:
        broken = int((~s.weight.isfinite()).sum())
        if broken:
            raise ValueError(
                f"{s.name} needs finite entries, got {broken} that are not. "
                "Initialise it, or load it again."
            )


def label(kind: str, select: "str | Sequence[str] | Select") -> str:
    """What a log calls a callback: its kind and the pattern of its weights, if there is one.

    Args:
        kind: One word.
        select: As for `select_weights`.

    Example:
        >>> label("splitting", "*.conv1"), label("splitting", Select())
        ('splitting_conv1', 'splitting')
    """
    include = _as_select(select).include
    pattern = include[0] if len(include) == 1 else ""
    return "_".join([kind, *re.findall(r"\w+", pattern)])


def _as_select(select: "str | Sequence[str] | Select") -> Select:
    if not isinstance(select, Select):
        select = Select(include=select)
    return Select(*(_several(x) for x in (select.types, select.include, select.exclude)))


def _several(names: str | Sequence[str]) -> Sequence[str]:
    return (names,) if isinstance(names, str) else tuple(names)


def _candidates(module: nn.Module) -> dict[str, nn.Module]:
    """Modules with a trainable weight by the name of that weight; a shared weight once."""
    found: dict[int, tuple[str, nn.Module]] = {}
    for name, part in module.named_modules():
        weight = part._parameters.get("weight")
        if isinstance(weight, UninitializedParameter):
            raise ValueError(
                f"The weight of {name!r} has no shape yet. Run the model on one batch first."
            )
        if weight is not None and weight.requires_grad:
            found.setdefault(id(weight), (f"{name}.weight".lstrip("."), part))
    return dict(found.values())


def _has_type(module: nn.Module, types: Sequence[str]) -> bool:
    names = [cls.__name__ for cls in type(module).__mro__]
    return any(name.startswith(prefix) for prefix in types for name in names)


def _matches(name: str, pattern: str) -> bool:
    owner = name.removesuffix(".weight")
    return any(
        fnmatchcase(candidate, form)
        for candidate in (name, owner)
        for form in (pattern, f"*.{pattern}", f"{pattern}.*", f"*.{pattern}.*")
    )


def _near(pattern: str, names: Iterable[str]) -> list[str]:
    """The three names of which some part is most like `pattern`."""

    def likeness(name: str) -> float:
        parts = (name, *name.split("."))
        return max(difflib.SequenceMatcher(None, pattern, part).ratio() for part in parts)

    return sorted(names, key=likeness, reverse=True)[:3]


def _selected(name: str, module: nn.Module, groups: Groups) -> Selected:
    weight = module.weight
    assert isinstance(weight, Tensor)
    transposed = isinstance(module, _ConvTransposeNd)
    axis = group_axis(groups, transposed=transposed)
    if axis is not None and weight.dim() < 2:
        raise ValueError(
            f"{name} has shape {tuple(weight.shape)} and no {groups}. "
            "Exclude it, or use groups='entries'."
        )
    if axis == 1 and getattr(module, "groups", 1) > 1:
        raise ValueError(
            f"{name} belongs to a grouped convolution, whose weight has no axis of {groups}. "
            "Exclude it, or choose other groups."
        )
    return Selected(name, weight, axis)
