import pytest
from matplotlib.figure import Figure

from lightning_sparsity.report.picture import _over_time
from lightning_sparsity.report.summary import Size, Summary


def run_with(*names: str) -> Summary:
    size = Size((), 10, dense=10, sparse=5, work=None, bytes_on_disk=None)
    history = tuple({"step": step, **dict.fromkeys(names, 0.5)} for step in (1, 2))
    return Summary("", "test", {}, size, history, (), {})


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["sparsity", "objective", "sparsities"], None),
        (["sparsity", "sparsity_scales"], ["first callback", "scales"]),
        (
            ["sparsity_splitting_conv1", "penalty_splitting_fc", "sparsity"],
            ["first callback", "splitting of conv1"],
        ),
        (
            ["sparsity", *(f"sparsity_splitting_conv{i}" for i in (1, 2, 3))],
            ["first callback", *(f"splitting of conv{i}" for i in (1, 2, 3))],
        ),
    ],
    ids=["one", "two", "with a pattern", "four"],
)
def test_the_legend_says_which_callback_a_line_belongs_to(
    names: list[str], labels: list[str] | None
) -> None:
    axes = Figure().subplots()
    _over_time(axes, run_with(*names), "sparsity", scale=100)
    legend = axes.get_legend()
    assert (legend and [text.get_text() for text in legend.get_texts()]) == labels
    assert len(axes.lines) == len(labels or [1])
    assert all(list(line.get_ydata()) == [50, 50] for line in axes.lines)
