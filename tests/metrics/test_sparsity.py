import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_sparsity.metrics import ChannelSparsity, Sparsity
from lightning_sparsity.metrics.functional import channel_sparsity, sparsity

BOTH = [(Sparsity, sparsity), (ChannelSparsity, channel_sparsity)]


def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    conv, linear, bias = torch.randn(6, 3, 2, 2), torch.randn(5, 4), torch.randn(7)
    conv[:2] = 0
    conv[3, 0] = 0
    linear[4] = -0.0
    bias[[0, 6]] = 0
    return {"conv": conv, "linear": linear, "bias": bias}


def by_hand(which: type) -> float:
    rows = [row.flatten().tolist() for weight in weights().values() for row in weight]
    if which is ChannelSparsity:
        return sum(not any(row) for row in rows) / len(rows)
    entries = [entry for row in rows for entry in row]
    return entries.count(0) / len(entries)


@pytest.mark.parametrize(("metric", "function"), BOTH)
@pytest.mark.parametrize(
    "give",
    [lambda: weights(), lambda: list(weights().values()), lambda: iter(weights().values())],
    ids=["mapping", "list", "iterator"],
)
def test_it_is_the_share_counted_by_hand(
    metric: type, function: Callable[..., Tensor], give: Callable[[], object]
) -> None:
    ours = metric()
    ours.update(give())
    assert ours.compute().item() == pytest.approx(by_hand(metric))
    assert function(give()).item() == pytest.approx(by_hand(metric))


@pytest.mark.parametrize("metric", [Sparsity, ChannelSparsity])
def test_updates_add_up_and_reset_forgets(metric: type) -> None:
    ours = metric()
    for weight in weights().values():
        ours.update(weight)
    assert ours.compute().item() == pytest.approx(by_hand(metric))
    ours.reset()
    ours.update(torch.ones(3, 2))
    assert ours.compute() == 0


@pytest.mark.parametrize(("metric", "function"), BOTH)
def test_nothing_is_not_sparse(metric: type, function: Callable[..., Tensor]) -> None:
    assert function([]) == 0
    ours = metric()
    ours.update([torch.zeros(0, 3)])
    assert ours.compute() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_tiny_and_broken_numbers_are_not_zero(dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).smallest_normal
    weight = torch.tensor([[tiny, 0.0], [torch.nan, torch.inf], [0.0, 0.0]], dtype=dtype)
    assert sparsity(weight).item() == pytest.approx(0.5)
    assert channel_sparsity(weight).item() == pytest.approx(1 / 3)


def test_counts_stay_exact_beyond_what_float32_holds() -> None:
    metric = Sparsity()
    metric.zeros += 2**24
    metric.update(torch.zeros(1))
    assert metric.zeros == 2**24 + 1


def test_weights_that_need_gradients_may_be_given() -> None:
    assert not sparsity(torch.zeros(2, requires_grad=True)).requires_grad
    with pytest.raises(ValueError, match="a dimension, got a scalar"):
        channel_sparsity(torch.zeros(()))


WORKER = """
import sys, torch, torch.distributed as dist
from lightning_sparsity.metrics import ChannelSparsity, Sparsity
rank, meeting = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method="file://" + meeting, rank=rank, world_size=2)
mine = torch.tensor([[[0.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]][rank])
same = torch.tensor([[0.0, 0.0], [0.0, 2.0], [0.0, 3.0]])
for metric, expected in ((Sparsity(), 5 / 10), (ChannelSparsity(), 2 / 5)):
    metric.update(mine)
    assert abs(metric.compute().item() - expected) < 1e-6, (rank, metric.compute())
for metric, expected in ((Sparsity(), 4 / 6), (ChannelSparsity(), 1 / 3)):
    metric.update(same)
    assert abs(metric.compute().item() - expected) < 1e-6, (rank, metric.compute())
assert "fvcore" not in sys.modules
dist.destroy_process_group()
"""


def test_two_processes_share_their_counts_without_loading_fvcore(tmp_path: Path) -> None:
    # Different weights are pooled (3 zeros of 4 and 2 of 6); the same ones change nothing.
    command = [sys.executable, "-c", WORKER]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "meeting")],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
