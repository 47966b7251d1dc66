from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_sparsity.report.latency import Comparison, compare, in_turns


class Named(nn.Module):
    """Notes its name, its mode and the number of threads whenever it is called."""

    def __init__(self, name: str, seen: list[tuple[str, bool, int]]) -> None:
        super().__init__()
        self.name, self.seen = name, seen

    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        self.seen.append((self.name, self.training, torch.get_num_threads()))
        return factor * x


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no such kernel")


def test_networks_run_in_turns_equally_often_and_in_changing_order() -> None:
    seen = list[tuple[str, bool, int]]()
    found = compare({name: Named(name, seen) for name in "abc"}, torch.ones(1), seconds=0.0)
    rounds = [tuple(name for name, *_ in seen[i : i + 3]) for i in range(0, len(seen), 3)]
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert len(set(rounds)) > 1
    assert {len(each) for each in found.times.values()} == {len(rounds) - 1}  # one warms up


def test_quartiles_are_in_order() -> None:
    networks = {"one": nn.Linear(8, 8), "two": nn.Linear(8, 64)}
    found = compare(networks, torch.ones(4, 8), seconds=0.0)
    for timing in (found.timing("one"), found.ratio("two", to="one")):
        assert 0 < timing.low <= timing.median <= timing.high
        assert timing.runs == len(found.times["one"])


def test_a_machine_that_becomes_slow_does_not_change_the_ratio() -> None:
    speeds = (1.0, 1.0, 1.5, 7.0, 9.0)
    found = Comparison({"dense": speeds, "slim": tuple(x / 4 for x in speeds)})
    ratio = found.ratio("dense", to="slim")
    assert (ratio.low, ratio.median, ratio.high) == (4.0, 4.0, 4.0)
    timing = found.timing("dense")
    assert (timing.low, timing.median, timing.high, timing.runs) == (1.0, 1.5, 7.0, 5)


def test_runs_may_time_themselves() -> None:
    found = in_turns({"dense": lambda: 3.0, "slim": lambda: 2.0}, seconds=0.0)
    assert found.ratio("dense", to="slim").median == 1.5


def test_networks_run_in_evaluation_mode_and_keep_their_modes() -> None:
    seen = list[tuple[str, bool, int]]()
    network = nn.Sequential(Named("a", seen), nn.Identity().eval())
    compare({"a": network}, torch.ones(1), seconds=0.0)
    assert {training for _, training, _ in seen} == {False}
    assert [part.training for part in network.modules()] == [True, True, False]


def test_threads_and_modes_are_as_before_even_after_an_error() -> None:
    before, seen = torch.get_num_threads(), list[tuple[str, bool, int]]()
    networks = {"good": Named("good", seen), "broken": Broken()}
    with pytest.raises(RuntimeError, match="no such kernel"):
        compare(networks, torch.ones(1), seconds=0.0, threads=before + 2)
    assert {threads for *_, threads in seen} == {before + 2}
    assert torch.get_num_threads() == before
    assert all(network.training for network in networks.values())


@pytest.mark.parametrize(
    "batch",
    [(torch.ones(2), 3.0), {"x": torch.ones(2), "factor": 3.0}],
    ids=["arguments", "names"],
)
def test_networks_may_take_more_than_one_argument(batch: Any) -> None:
    assert len(compare({"a": Named("a", [])}, batch, seconds=0.0).times["a"]) > 1


@pytest.mark.parametrize(
    ("networks", "threads", "sentence"),
    [
        ({}, None, "needs at least one network, got none"),
        ({"a": nn.Identity()}, 0, "needs at least 1 thread, got threads=0"),
    ],
    ids=["networks", "threads"],
)
def test_bad_arguments_are_named(
    networks: Mapping[str, nn.Module], threads: int | None, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        compare(networks, torch.ones(1), threads=threads)


@pytest.mark.gpu
def test_on_a_gpu_the_time_is_that_of_the_work_and_not_of_its_start() -> None:
    network = nn.Sequential(*(nn.Linear(4096, 4096) for _ in range(8))).cuda()
    found = compare({"a": network}, torch.ones(4096, 4096, device="cuda"), seconds=0.0)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.no_grad():
        start.record()
        network(torch.ones(4096, 4096, device="cuda"))
        end.record()
    torch.cuda.synchronize()
    assert found.timing("a").median > start.elapsed_time(end) / 4
