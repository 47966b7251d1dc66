import numpy as np
import pytest
import torch

from lightning_sparsity.metrics.histogram import histograms, joined


def tensors(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(30, 5, 3, generator=generator)
    weight[::2] = 0.0
    scale = torch.rand(17, generator=generator)
    return {"weight": weight.to(dtype), "scale": scale.to(dtype), "none": torch.zeros(0, 3)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_counts_are_those_of_numpy(dtype: torch.dtype) -> None:
    given = tensors(dtype)
    made = histograms(given)
    largest = max(float(x.abs().max()) for x in given.values() if x.numel())
    for name, x in given.items():
        found, values = made[name], x.double().flatten().abs().numpy()
        counts, edges = np.histogram(values[values > 0], bins=40, range=(0, largest))
        assert found.counts == counts.tolist()
        assert found.edges == pytest.approx(edges.tolist())
        assert found.zeros == (values == 0).sum()


def test_large_tensors_are_counted_in_pieces_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = histograms(tensors())
    monkeypatch.setattr("lightning_sparsity.metrics.histogram.CHUNK", 7)
    assert histograms(tensors()) == whole


def test_joined_histograms_are_those_of_all_entries() -> None:
    given = tensors()
    together = torch.cat([x.flatten() for x in given.values()])
    assert joined(histograms(given).values()) == histograms({"all": together})["all"]


def test_every_finite_entry_is_in_one_bin_however_small() -> None:
    for scale in (1.0, 1e-30, 1e-44):
        (found,) = histograms({"x": torch.tensor([0.0, -0.0, 1.0, -1.0, 0.4]) * scale}).values()
        assert (found.zeros, sum(found.counts)) == (2, 3)
        assert found.counts[-1] == 2
        assert all(a < b for a, b in zip(found.edges, found.edges[1:], strict=False))


def test_what_is_not_finite_is_left_out() -> None:
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 2.0, 0.0])
    (found,) = histograms({"x": x}).values()
    assert (found.zeros, sum(found.counts), found.edges[-1]) == (1, 1, 2.0)


def test_without_anything_but_zeros_the_edges_still_rise() -> None:
    (found,) = histograms({"x": torch.zeros(3)}).values()
    assert (found.zeros, sum(found.counts), found.edges[-1]) == (3, 0, 1.0)
