"""Mistakes in the arguments of callbacks: each is named at once, with its cure."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_sparsity import (
    NetworkSlimming,
    Regularization,
    RelaxedVariableSplitting,
)
from lightning_sparsity.penalties import L0, L1, Grouped, L0Ball, Penalty, TransformedL1
from lightning_sparsity.schedules import Warmup
from lightning_sparsity.surgery import Flops, Share


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ([0.5], {}, r"penalty needs a penalty .* got 0\.5: did you mean amount=0\.5\?"),
        (["l1"], {}, r"got 'l1': did you mean penalty=L1\(\)\?"),
        (["transformed_l1"], {}, r"did you mean penalty=TransformedL1\(\)\?"),
        (["lasso"], {}, r"got 'lasso': did you mean penalty=L1\(\)\?"),
        ([L1], {}, r"got the class L1 itself: did you mean penalty=L1\(\)\?"),
        ([Grouped], {}, r"got the class Grouped itself: did you mean penalty=Grouped\(\.\.\.\)\?"),
        ([Penalty], {}, r"got the class Penalty itself: did you mean penalty=L1\(\)\?"),
        ([[L1()]], {}, r"penalty needs a penalty such as L1\(\), got \[L1\(\)\]"),
        ([L1(), "1e-4"], {}, r"lam needs a number .* got '1e-4': did you mean lam=1e-4\?"),
        ([L1(), True], {}, r"lam needs a number .* got True: for none at all: lam=0"),
        ([L1(), None], {}, r"lam needs a number .* got None: for none at all: lam=0"),
        ([L1(), Warmup], {}, r"lam needs .* got the class Warmup itself"),
        ([L1(), torch.ones(2)], {}, r"lam needs a number .* got tensor"),
        ([], {"beta": "3"}, r"beta needs a number .* got '3': did you mean beta=3\?"),
        ([], {"beta": True}, r"beta needs a number .* leave it out for its default"),
        ([], {"gather": "no"}, r"gather needs True or False, got 'no': did you mean gather=False"),
        ([], {"gather": 1}, r"gather needs True or False, got 1\."),
        ([], {"dirpath": True}, r"dirpath needs the path of a folder, got True"),
        ([], {"amount": "50%"}, r"got '50%'.*0\.5"),
        ([], {"amount": 50}, r"got amount=50.*0\.5"),
        ([], {"amount": True}, r"got amount=True"),
        ([], {"amount": None}, r"got amount=None"),
        ([L1()], {"amount": None}, r"got amount=None"),
        ([], {"amount": Flops}, r"got the class Flops itself: did you mean Flops\(0\.5\)\?"),
        ([L0()], {}, r"L0\(\) has a zero subgradient: use update='splitting'"),
        ([L0()], {"update": "subgradient"}, r"L0\(\) has a zero subgradient"),
        ([L0Ball(0.2)], {"amount": 0.8}, r"amount=0\.8 would remove channels that L0Ball.*kept"),
        ([L0Ball(0.2)], {}, r"amount=0\.5 would remove .* NetworkSlimming\(amount=0\.5\)"),
        ([L0Ball(0.2)], {"amount": Share(0.8)}, r"amount=0\.8 would remove channels"),
    ],
    ids=str,
)
def test_network_slimming_names_the_mistake_and_the_cure(
    arguments: list[Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        NetworkSlimming(*arguments, **options)


@pytest.mark.parametrize("callback", [Regularization, RelaxedVariableSplitting])
@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ([1e-4], {}, r"penalty needs .* got 0\.0001: did you mean lam=0\.0001\?"),
        (["L1"], {}, r"got 'L1': did you mean penalty=L1\(\)\?"),
        ([TransformedL1], {}, r"got the class TransformedL1 itself"),
        ([None], {}, r"penalty needs a penalty such as L1\(\), got None"),
        ([L1(), "1e-4"], {}, r"did you mean lam=1e-4\?"),
        ([L1()], {"cut": "no"}, r"cut needs True, False or None, got 'no': did you mean cut=False"),
        ([L1()], {"cut": 0}, r"cut needs True, False or None, got 0\."),
    ],
    ids=str,
)
def test_callbacks_on_weights_do_so_too(
    callback: Any, arguments: list[Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        callback(*arguments, **options)


def test_splitting_names_what_it_alone_takes() -> None:
    with pytest.raises(ValueError, match=r"compiled needs True, False or 'auto', got 'yes': did"):
        RelaxedVariableSplitting(L1(), compiled="yes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"beta needs a number .* got '1': did you mean beta=1\?"):
        RelaxedVariableSplitting(L1(), beta="1")  # type: ignore[arg-type]


def test_what_is_meant_well_is_taken(tmp_path: Path) -> None:
    NetworkSlimming(L0Ball(0.6), amount=0.5)  # exactly those go that are zero
    NetworkSlimming(L0Ball(0.2), amount=Flops(0.5))
    NetworkSlimming(L0(), update="proximal")
    NetworkSlimming(L1(), Warmup(1e-4), amount=Share(0.3), dirpath=str(tmp_path))
    NetworkSlimming(L1(), 0)
    Regularization(L1(), cut=None)
    for compiled in (True, False, "auto"):
        RelaxedVariableSplitting(L1(), compiled=compiled, cut=True)  # type: ignore[arg-type]
