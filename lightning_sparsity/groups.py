"""How a weight becomes the rows that a group penalty acts on. Needs torch only."""

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

from torch import Tensor

from lightning_sparsity.penalties.base import Penalty

Groups = Literal["entries", "output_channels", "input_channels"]
# Entries worked on at once on a CPU: few enough for its caches, enough to make calls cheap.
CHUNK = 2**19


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


def blocks(
    tensors: Sequence[Tensor], penalty: Penalty, axis: int | None
) -> Iterator[tuple[Tensor, ...]]:
    """Views of the same pieces of a weight and of tensors like it, small enough for a CPU's caches.

    Args:
        tensors: The weight first, then tensors of its shape.
        penalty: The penalty that will see the pieces: a whole tensor is never cut into pieces.
        axis: The axis of the weight that counts groups: it then comes first in every piece.
    """
    weight = tensors[0]
    if axis is not None:
        grouped = [groups_first(x, axis, like=weight) for x in tensors]
        per_group = max(1, grouped[0][0].numel())
        count = max(1, CHUNK // per_group) if weight.is_cpu else weight.shape[axis]
        yield from zip(*(x.split(count) for x in grouped), strict=True)
    elif penalty.acts == "entries":
        yield from flat(tensors, CHUNK if weight.is_cpu else weight.numel())
    else:
        yield tuple(tensors)


def matrix(block: Tensor, axis: int | None) -> Tensor:
    """A piece that `blocks` made in the shape that its penalty takes."""
    return block if axis is None else block.flatten(1)


def flat(tensors: Sequence[Tensor], size: int) -> Iterator[tuple[Tensor, ...]]:
    """Flat views of `size` entries, or all tensors whole where they do not lie alike in memory."""
    strides = tensors[0].stride()
    order = sorted(range(tensors[0].dim()), key=lambda i: -strides[i])
    ordered = [x.permute(order) for x in tensors]
    if all(x.is_contiguous() for x in ordered):
        yield from zip(*(x.view(-1).split(size) for x in ordered), strict=True)
    else:
        yield tuple(tensors)


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
