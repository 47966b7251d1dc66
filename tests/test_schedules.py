import math
from typing import Any

import pytest

from lightning_sparsity.schedules import Growing, Schedule, Warmup, at


@pytest.mark.parametrize(
    ("epochs", "every", "growths"), [(200, 40, 5), (200, 20, 10), (1, 1, 1), (39.9, 40, 0)]
)
def test_beta_grows_as_in_the_papers(epochs: float, every: int, growths: int) -> None:
    """From 2.5 by 1.25: 3.05 or 9.31 times as much after 5 or 10 growths."""
    beta = Growing(2.5, 1.25, every)
    assert beta.at(0) == 2.5
    assert beta.at(epochs) / 2.5 == pytest.approx(math.prod([1.25] * growths))
    assert beta.at(every - 0.01) == 2.5
    assert beta.at(every) == pytest.approx(2.5 * 1.25)


@pytest.mark.parametrize(
    ("epoch", "expected"), [(0, 0), (2, 0), (3, 0.5), (3.5, 0.75), (4, 1.0), (100, 1.0)]
)
def test_warmup_rises_along_a_line(epoch: float, expected: float) -> None:
    assert Warmup(1.0, epochs=2.0, start=2.0).at(epoch) == pytest.approx(expected)


def test_a_number_is_constant() -> None:
    assert at(3, 17.5) == 3.0
    assert isinstance(at(3, 0), float)
    assert at(Growing(1.0, 2.0, 1), 1.5) == 2.0


def test_schedules_never_fall() -> None:
    schedules: list[Schedule] = [Growing(1.0), Warmup(0.3), Warmup(0.0, start=1.0)]
    for schedule in schedules:
        values = [schedule.at(epoch / 7) for epoch in range(400)]
        assert values == sorted(values)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (Growing, {"start": 0.0}, r"finite start > 0, got start=0\.0"),
        (Growing, {"start": math.nan}, "finite start > 0, got start=nan"),
        (Growing, {"start": math.inf}, "finite start > 0, got start=inf"),
        (Growing, {"start": 1.0, "factor": 0.9}, r"finite factor >= 1, got factor=0\.9"),
        (Growing, {"start": 1.0, "factor": math.nan}, "finite factor >= 1, got factor=nan"),
        (Growing, {"start": 1.0, "every_n_epochs": 0}, "every_n_epochs >= 1, got every_n_epochs=0"),
        (Warmup, {"value": -1.0}, r"finite value >= 0, got value=-1\.0"),
        (Warmup, {"value": math.nan}, "finite value >= 0, got value=nan"),
        (Warmup, {"value": 1.0, "epochs": 0.0}, r"epochs > 0 and start >= 0, got epochs=0\.0"),
        (Warmup, {"value": 1.0, "epochs": math.nan}, "got epochs=nan"),
        (Warmup, {"value": 1.0, "epochs": math.inf}, "got epochs=inf"),
        (Warmup, {"value": 1.0, "start": -1.0}, r"start=-1\.0"),
        (Warmup, {"value": 1.0, "start": math.inf}, "start=inf"),
    ],
)
def test_numbers_out_of_range_are_named(make: Any, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)
