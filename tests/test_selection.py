from typing import Any

import pytest
import torch
from torch import nn

from lightning_sparsity.selection import Select, check_finite, rows, select_weights


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        self.stage2 = nn.ModuleDict({"conv1": nn.Conv2d(4, 4, 3, groups=2), "act": nn.ReLU()})
        self.up = nn.ConvTranspose2d(4, 6, 2)
        self.head = nn.Module()
        self.head.fc = nn.Linear(6, 3)
        self.head.fc2 = nn.Linear(3, 3)


CONVOLUTIONS = ["stage1.0.weight", "stage2.conv1.weight", "up.weight"]
LINEAR = ["head.fc.weight", "head.fc2.weight"]


def names(select: Any, groups: Any = "entries", net: nn.Module | None = None) -> list[str]:
    return [s.name for s in select_weights(Net() if net is None else net, select, groups)]


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        (Select(), CONVOLUTIONS + LINEAR),
        ("*", CONVOLUTIONS + LINEAR),
        ("fc", ["head.fc.weight"]),
        ("head.fc", ["head.fc.weight"]),
        ("head.fc.weight", ["head.fc.weight"]),
        ("fc.weight", ["head.fc.weight"]),
        ("fc*", LINEAR),
        ("head", LINEAR),
        ("stage?", CONVOLUTIONS[:2]),
        ("stage*.conv1", ["stage2.conv1.weight"]),
        (["up", "fc"], ["up.weight", "head.fc.weight"]),
        (("fc", "up"), ["up.weight", "head.fc.weight"]),
        (Select(types=["Linear"]), LINEAR),
        (Select(types="Linear"), LINEAR),
        (Select(types=["ConvT"]), ["up.weight"]),
        (Select(types=["BatchNorm"]), ["stage1.1.weight"]),
        (Select(types=["_BatchNorm"]), ["stage1.1.weight"]),
        (Select(exclude=["fc"]), [*CONVOLUTIONS, "head.fc2.weight"]),
        (Select(include="head", exclude="fc2"), ["head.fc.weight"]),
        (Select(types=["Conv", "Nothing"]), CONVOLUTIONS),
    ],
    ids=str,
)
def test_weights_are_found_by_type_and_name(select: Any, expected: list[str]) -> None:
    assert names(select) == expected


@pytest.mark.parametrize(
    ("groups", "axes"),
    [("entries", [None] * 3), ("output_channels", [0, 1, 0]), ("input_channels", [1, 0, 1])],
)
def test_each_weight_knows_its_axis(groups: Any, axes: list[int | None]) -> None:
    net = Net()
    found = select_weights(net, ["stage1", "up", "fc"], groups)
    assert [s.axis for s in found] == axes
    assert [s.weight for s in found] == [net.stage1[0].weight, net.up.weight, net.head.fc.weight]


def test_a_shared_weight_comes_once_and_a_frozen_one_not_at_all() -> None:
    net = Net()
    net.head.fc2.weight = net.stage1[0].weight
    net.head.fc.weight.requires_grad_(False)
    assert names("*", net=net) == CONVOLUTIONS


def test_a_class_of_its_own_is_found_by_what_it_derives_from() -> None:
    class Mine(nn.Linear):
        pass

    net = nn.Sequential(Mine(2, 2), nn.ReLU())
    assert names(Select(), net=net) == ["0.weight"]
    assert names(Select(types=["Mine"]), net=net) == ["0.weight"]
    assert names("*", net=nn.Linear(2, 2)) == ["weight"]


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ("fd", r"'fd' matches no weight of a Conv or Linear module\. Near it: .*fc"),
        (["fc", "conv9"], "'conv9' matches no weight.*stage2.conv1.weight"),
        ("FC", "'FC' matches no weight"),
        ("stage1.1", "'stage1.1' matches no weight of a Conv or Linear"),
        (Select(exclude=["dropout"]), "'dropout' matches no weight"),
        (Select(types=["LSTM"]), "begins with LSTM. This model has BatchNorm2d, Conv2d"),
        (Select(include=["fc"], exclude=["head"]), r"exclude=\['head'\] leaves none.*\['fc'\]"),
    ],
    ids=str,
)
def test_what_matches_nothing_is_named_with_what_is_near(select: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        names(select)


def test_a_model_without_weights_says_so() -> None:
    with pytest.raises(ValueError, match="This model has no weights at all"):
        names("*", net=nn.ReLU())


def test_a_lazy_module_is_to_be_run_first() -> None:
    net = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"weight of '0' has no shape yet\. Run the model on one"):
        names("*", net=net)
    net(torch.randn(1, 2))
    assert names("*", net=net) == ["0.weight"]


@pytest.mark.parametrize(
    ("select", "groups", "message"),
    [
        (
            Select(types=["BatchNorm"]),
            "output_channels",
            r"stage1\.1\.weight has shape \(4,\) and no output_channels\. Exclude it",
        ),
        ("conv1", "input_channels", "stage2.conv1.weight belongs to a grouped convolution"),
        ("up", "rows", "must be one of entries.*got 'rows'"),
    ],
    ids=str,
)
def test_weights_that_do_not_fit_the_groups_are_named(
    select: Any, groups: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        names(select, groups)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(value: float) -> None:
    net = Net()
    check_finite(select_weights(net, "*"))
    net.up.weight.data[1, 2, 0] = value
    with pytest.raises(
        ValueError, match=r"up\.weight needs finite entries, got 2 that are not\. Init"
    ):
        check_finite(select_weights(net, "*"))


def test_rows_are_offered_here_too() -> None:
    assert rows(torch.zeros(4, 3, 2), "output_channels").shape == (4, 6)
