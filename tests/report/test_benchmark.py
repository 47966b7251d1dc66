"""The rows of a benchmark and what is said about them."""

import pytest
import torch
from torch import Tensor, nn

from lightning_sparsity import surgery
from lightning_sparsity.models import ResNet20
from lightning_sparsity.report.advice import advise
from lightning_sparsity.report.benchmark import Place, Row, measure
from lightning_sparsity.report.latency import Comparison
from lightning_sparsity.surgery.plan import Cut

CPU = Place("cpu", 1)
WORK = {"dense": 400, "masked": 400, "slim": 100}


def row(batch: int, dense: float, masked: float, slim: float, place: Place = CPU) -> Row:
    times = {"dense": (dense,) * 3, "masked": (masked,) * 3, "slim": (slim,) * 3}
    return Row(place, batch, Comparison(times))


def said(rows: list[Row], cuts: dict[str, Cut] | None = None) -> str:
    return "\n".join(advise(rows, WORK, cuts or {}))


def cuts(norm: str, dead: int) -> dict[str, Cut]:
    """A ResNet-20 that loses so many channels of one layer."""
    flow = surgery.trace(ResNet20().eval(), torch.rand(2, 3, 32, 32))
    return flow.plan({norm: torch.arange(flow.norms[norm]) < dead}).cuts


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (Place("cpu", 1), "cpu, 1 thread"),
        (Place("cpu", 4, compiled=True), "cpu, 4 threads, compiled"),
        (Place("cuda"), "cuda"),
    ],
    ids=str,
)
def test_a_place_is_named(place: Place, words: str) -> None:
    assert str(place) == words


def test_a_row_in_numbers() -> None:
    figures = row(8, 6.0, 6.0, 3.0).figures()
    assert (figures["device"], figures["threads"], figures["compiled"]) == ("cpu", 1, False)
    assert figures["batch"] == 8
    assert figures["ms"]["slim"] == {"median": 3.0, "low": 3.0, "high": 3.0, "runs": 3}
    assert {name: x["median"] for name, x in figures["speed_up"].items()} == {
        "masked": 1.0,
        "slim": 2.0,
    }


def test_examples_are_repeated_in_all_tensors_that_have_them() -> None:
    shapes = set[tuple[torch.Size, torch.Size, torch.Size]]()

    class Three(nn.Module):
        def forward(self, a: Tensor, b: Tensor, c: Tensor) -> None:
            shapes.add((a.shape, b.shape, c.shape))

    example = (torch.ones(2, 3), torch.ones(2), torch.ones(5))
    found = measure({"a": Three()}, example, CPU, batch=7, seconds=0.0)
    assert shapes == {((7, 3), (7,), (5,))}
    assert found.batch == 7


def test_networks_run_with_the_threads_of_the_place() -> None:
    seen = set[int]()

    class Counts(nn.Module):
        def forward(self, x: Tensor) -> None:
            seen.add(torch.get_num_threads())

    before = torch.get_num_threads()
    measure({"a": Counts()}, torch.ones(2), Place("cpu", before + 1), batch=1, seconds=0.0)
    assert seen == {before + 1}


def test_the_share_of_time_stands_beside_that_of_flops() -> None:
    rows = [row(1, 10.0, 10.0, 12.5), row(8, 10.0, 9.5, 8.0), row(64, 10.0, 10.2, 5.0)]
    text = said(rows)
    assert "25% of the FLOPs and 50% of the time (cpu, 1 thread, batch 64) at best" in text
    assert "125% (cpu, 1 thread, batch 1) at worst: there it is slower" in text
    assert "masked, the network takes 0.95 to 1.02 times as long as dense" in text


@pytest.mark.parametrize(("last", "expected"), [(5.0, True), (12.0, False)])
def test_larger_batches_are_advised_where_they_gain(last: float, expected: bool) -> None:
    text = said([row(1, 10.0, 10.0, 12.5), row(64, 10.0, 10.0, last)])
    assert (
        "0.80 times as fast as the dense network with 1, 2.00 times with 64" in text
    ) is expected
    assert ("Larger batches" in text) is expected


def test_rows_that_other_work_has_disturbed_are_named_and_not_believed() -> None:
    text = said([row(1, 10.0, 14.0, 2.0), row(64, 10.0, 10.0, 8.0)])
    assert (
        "or nobody can tell: cpu, 1 thread, batch 1: 1.40 (interquartile range 1.40 to 1.40). "
        in text
    )
    assert "80% of the time (cpu, 1 thread, batch 64)." in text
    assert "20%" not in text
    text = said([row(1, 10.0, 14.0, 2.0)])
    assert "of the time" not in text


@pytest.mark.parametrize(("runs", "believed"), [(4, False), (400, True)])
def test_figures_that_scatter_are_believed_if_there_are_many(runs: int, believed: bool) -> None:
    dense = (10.0,) * runs
    masked, slim = (8.0, 9.0, 11.0, 12.0) * (runs // 4), (5.0,) * runs
    found = Row(CPU, 1, Comparison({"dense": dense, "masked": masked, "slim": slim}))
    text = said([found])
    assert ("50% of the time" in text) is believed
    assert ("Other work was in the way" in text) is not believed


def test_layers_off_a_multiple_of_eight_are_named() -> None:
    text = said([row(1, 1.0, 1.0, 1.0)], cuts("blocks.3.norm1", dead=21))  # of 32
    assert "Layers that lost channels: 1; a multiple of 8 is left in 0, one of 16 in 0." in text
    assert "No multiple of 8: blocks.3.conv1 (11). Rounded up" in text
    assert "have 16 channels in place of 11." in text
    assert "`lightning-sparsity slim … --amount 'Flops(0.25)' --round-to 8`" in text


def test_without_flops_the_amount_is_left_open() -> None:
    work = dict.fromkeys(WORK)
    text = "\n".join(advise([row(1, 1.0, 1.0, 1.0)], work, cuts("blocks.3.norm1", dead=21)))
    assert "`lightning-sparsity slim … --round-to 8`" in text
    assert "The slim network takes 100% of the time" in text


def test_rounding_adds_no_channels_that_there_never_were() -> None:
    network = nn.Sequential(nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.Conv2d(12, 3, 3))
    flow = surgery.trace(network.eval(), torch.rand(2, 1, 8, 8))
    found = flow.plan({"1": torch.arange(12) < 2}).cuts
    assert "have 12 channels in place of 10." in said([row(1, 1.0, 1.0, 1.0)], found)


def test_even_widths_need_no_rounding() -> None:
    text = said([row(1, 1.0, 1.0, 1.0)], cuts("blocks.3.norm1", dead=16))
    assert "a multiple of 8 is left in 1, one of 16 in 1" in text
    assert "--round-to" not in text


def test_of_a_network_that_lost_nothing_no_widths_are_named() -> None:
    text = said([row(1, 1.0, 1.0, 1.0)], cuts("blocks.3.norm1", dead=0))
    assert "channels" not in text


@pytest.mark.parametrize(("norm", "copies"), [("blocks.0.norm1", False), ("blocks.0.norm2", True)])
def test_layers_that_copy_are_counted(norm: str, copies: bool) -> None:
    text = said([row(1, 1.0, 1.0, 1.0)], cuts(norm, dead=5))
    assert ("copy activations for it: 1. " in text) is copies
    assert ("--no-gather" in text) is copies
