import inspect
from functools import cache

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes

from lightning_sparsity import penalties
from lightning_sparsity.report.penalties import draw_penalties, one_of_each

ALL = [getattr(penalties, name) for name in penalties.__all__]


@cache
def panels() -> dict[str, Axes]:
    """The panels that show something, by the name of the penalty."""
    return {a.get_title().split(" on ")[0]: a for a in draw_penalties(0.3, 0.5).axes if a.lines}


def test_every_penalty_has_a_panel() -> None:
    wanted = {cls.__name__ for cls in ALL if not inspect.isabstract(cls)}
    assert len(wanted) > 10
    assert set(panels()) == wanted


def test_the_lines_are_those_of_the_penalty() -> None:
    drawn = panels()
    for penalty in one_of_each():
        panel = drawn[type(penalty).__name__]
        dashed, charge, prox = panel.lines
        t = dashed.get_xdata()
        assert np.array_equal(t, dashed.get_ydata())
        for line, expected in (
            (prox, lambda x, r=penalty: r.prox(x, 0.3)[0, 0]),
            (charge, lambda x, r=penalty: r.value(x) - r.value(torch.tensor([[0.0, 0.5]]))),
        ):
            shown = line.get_ydata()
            for i in np.flatnonzero(np.isfinite(shown))[::100]:
                x = torch.tensor([[float(t[i]), 0.5]], dtype=torch.float64)
                assert np.isclose(shown[i], float(expected(x)), atol=1e-6)
        assert np.isfinite(np.asarray(prox.get_ydata())).mean() > 0.9


def test_where_a_weight_vanishes_is_shaded() -> None:
    (shade,) = panels()["L1"].collections
    left, _, right, _ = shade.get_datalim(panels()["L1"].transData).extents
    assert (left, right) == pytest.approx((-0.3, 0.3), abs=0.01)
