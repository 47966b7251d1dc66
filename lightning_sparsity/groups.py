"""How a weight becomes the rows that a group penalty acts on. Needs torch only."""

from typing import Literal, get_args

from torch import Tensor

from lightning_sparsity.penalties.base import Penalty

Groups = Literal["entries", "output_channels", "input_channels"]


def rows(weight: Tensor, groups: Groups, *, transposed: bool = False) -> Tensor:
    """The weight as a matrix `(G, M)` with one row per group, a view wherever memory allows.

    Entries of a row come in the order in which they lie in memory, which no penalty depends on.

    Args:
        weight: Weight of a convolution `(out, in, ...)` or a linear layer `(out, in)`.
        groups: `"output_channels"`: what one output channel is made from. `"input_channels"`: what
            one input channel feeds. `"entries"`: every entry for itself, one row each.
        transposed: Whether the weight belongs to a transposed convolution, `(in, out, ...)`.

    Shape:
        `(G, M)` with `G * M` entries of `weight`; `(N, 1)` for entries.

    Raises:
        ValueError: If `groups` does not exist, or the weight has fewer than two dimensions.
    """
    axis = group_axis(groups, transposed=transposed)
    if axis is None:
        return weight.reshape(-1, 1)
    if weight.dim() < 2:
        raise ValueError(
            f"Rows of {groups} need a weight with at least 2 dimensions, got shape "
            f"{tuple(weight.shape)}. Use groups='entries' for vectors."
        )
    return groups_first(weight, axis).flatten(1)


def group_axis(groups: str, *, transposed: bool = False) -> int | None:
    """The axis of a weight that counts its groups; None for entries."""
    if groups not in get_args(Groups):
        raise ValueError(f"groups must be one of {', '.join(get_args(Groups))}, got {groups!r}.")
    return None if groups == "entries" else int((groups == "input_channels") != transposed)


def groups_first(weight: Tensor, axis: int, like: Tensor | None = None) -> Tensor:
    """A view with `axis` first and the other axes as they lie in memory (in that of `like`)."""
    strides = (weight if like is None else like).stride()
    others = sorted((i for i in range(weight.dim()) if i != axis), key=lambda i: -strides[i])
    return weight.permute(axis, *others)


def check_fit(penalty: Penalty, groups: Groups) -> None:
    """Refuse a penalty on rows without groups, and groups for a penalty that would ignore them."""
    on_rows = group_axis(groups) is not None
    if penalty.acts == "rows" and not on_rows:
        raise ValueError(
            f"{penalty!r} acts on rows, got groups={groups!r}. "
            "Choose groups='output_channels' or groups='input_channels'."
        )
    if penalty.acts != "rows" and on_rows:
        cure = f"Grouped({penalty!r})" if penalty.acts == "entries" else "groups='entries'"
        raise ValueError(
            f"{penalty!r} acts on {penalty.acts}, got groups={groups!r}. Did you mean {cure}?"
        )
