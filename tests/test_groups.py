from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_sparsity.groups import check_fit, group_axis, groups_first, rows
from lightning_sparsity.penalties import L0, Grouped, GroupLasso, L1MinusL2, Penalty

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", ["output_channels", "input_channels"])
def test_a_row_holds_the_entries_of_one_channel(
    groups: Any, transposed: bool, layout: Callable[[Tensor], Tensor]
) -> None:
    weight = layout(torch.randn(5, 4, 3, 2))
    axis = 0 if (groups == "output_channels") != transposed else 1
    matrix = rows(weight, groups, transposed=transposed)
    assert matrix.shape == (weight.shape[axis], 120 // weight.shape[axis])
    for row, channel in zip(matrix, weight.unbind(axis), strict=True):
        assert torch.equal(row.sort().values, channel.flatten().sort().values)


@pytest.mark.parametrize(
    ("layer", "groups"),
    [
        (nn.Conv2d(3, 4, 2), "output_channels"),
        (nn.ConvTranspose2d(3, 4, 2), "output_channels"),
        (nn.Linear(3, 4), "output_channels"),
        (nn.Conv2d(4, 3, 2), "input_channels"),
        (nn.ConvTranspose2d(4, 3, 2), "input_channels"),
        (nn.Linear(4, 3), "input_channels"),
    ],
    ids=str,
)
def test_rows_are_the_channels_that_the_layer_computes_with(layer: Any, groups: Any) -> None:
    """Clearing row 2 silences output channel 2, or makes the layer blind for input channel 2."""
    transposed = isinstance(layer, nn.ConvTranspose2d)
    matrix = rows(layer.weight.detach(), groups, transposed=transposed)
    axis = group_axis(groups, transposed=transposed)
    assert axis is not None
    assert len(matrix) == 4
    groups_first(layer.weight.detach(), axis)[2] = 0
    assert not rows(layer.weight.detach(), groups, transposed=transposed)[2].any()
    channels = 4 if groups == "input_channels" else 3
    x = torch.randn(1, channels) if isinstance(layer, nn.Linear) else torch.randn(1, channels, 5, 5)
    nn.init.zeros_(layer.bias)
    if groups == "output_channels":
        assert not layer(x)[:, 2].any()
        assert layer(x)[:, 1].any()
    else:
        other = x.clone()
        other[:, 2] += 1
        assert torch.equal(layer(x), layer(other))
        other[:, 1] += 1
        assert not torch.equal(layer(x), layer(other))


def test_entries_are_rows_of_one() -> None:
    assert rows(torch.randn(5, 4, 3), "entries").shape == (60, 1)
    assert rows(torch.randn(7), "entries").shape == (7, 1)


@pytest.mark.parametrize(
    ("layout", "groups"),
    [("contiguous", "output_channels"), ("channels last", "output_channels")],
    ids=str,
)
def test_rows_are_a_view_where_memory_allows(layout: str, groups: Any) -> None:
    weight = LAYOUTS[layout](torch.randn(5, 4, 3, 2))
    rows(weight, groups)[1] = 0
    assert not weight[1].any()
    assert weight[0].any()


def test_groups_first_puts_another_tensor_in_the_same_order() -> None:
    weight = torch.randn(5, 4, 3, 2).to(memory_format=torch.channels_last)
    other = torch.randn(5, 4, 3, 2)
    ours, theirs = groups_first(weight, 1), groups_first(other, 1, like=weight)
    assert ours.shape == theirs.shape == (4, 5, 3, 2)
    assert torch.equal(theirs, other.permute(1, 0, 2, 3))
    ours.copy_(theirs)
    assert torch.equal(weight, other)


def test_unknown_groups_are_named() -> None:
    with pytest.raises(ValueError, match=r"must be one of entries.*got 'filters'"):
        rows(torch.randn(2, 2), "filters")  # type: ignore[arg-type]


def test_a_vector_has_no_channels() -> None:
    with pytest.raises(ValueError, match=r"at least 2 dimensions, got shape \(3,\)\. Use groups"):
        rows(torch.randn(3), "input_channels")


@pytest.mark.parametrize(
    ("penalty", "groups"),
    [
        (L0(), "entries"),
        (L1MinusL2(), "entries"),
        (GroupLasso(), "output_channels"),
        (Grouped(L0()), "input_channels"),
    ],
    ids=str,
)
def test_a_penalty_that_fits_its_groups_passes(penalty: Penalty, groups: Any) -> None:
    check_fit(penalty, groups)


@pytest.mark.parametrize(
    ("penalty", "groups", "message"),
    [
        (GroupLasso(), "entries", "acts on rows, got groups='entries'. Choose groups='output"),
        (L0(), "output_channels", r"acts on entries, got .*Did you mean Grouped\(L0\(\)\)\?"),
        (L1MinusL2(), "input_channels", "acts on tensor, got .*Did you mean groups='entries'"),
        (L0(), "rows", "must be one of entries, output_channels, input_channels, got 'rows'"),
    ],
    ids=str,
)
def test_a_penalty_that_does_not_fit_is_refused(
    penalty: Penalty, groups: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_fit(penalty, groups)
