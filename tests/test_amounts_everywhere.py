"""One spelling of budgets: in Python, in YAML, as a flag, and for the command `slim`."""

from pathlib import Path

import pytest
import yaml

from lightning_sparsity import NetworkSlimming
from lightning_sparsity.cli import recipes
from lightning_sparsity.cli.fit import parsed
from lightning_sparsity.surgery import Budget, Flops, Params, Threshold

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
TEXTS = {
    "0.25": 0.25,
    "Flops(0.5)": Flops(0.5),
    "Params(keep=0.3, round_to=8)": Params(0.3, round_to=8),
    "Threshold(1e-3)": Threshold(1e-3),
    "zeros": None,
}


def amount_of(made: object) -> float | Budget | None:
    (callback,) = (c for c in made.trainer.callbacks if isinstance(c, NetworkSlimming))  # type: ignore[attr-defined]
    return callback.amount


@pytest.fixture(autouse=True)
def arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["lightning-sparsity"])


def with_amount(folder: Path, amount: object) -> list[str]:
    callback = {"class_path": "NetworkSlimming", "init_args": {"amount": amount}}
    trainer = {"callbacks": [callback], "accelerator": "cpu", "logger": False}
    (folder / "mine.yaml").write_text(yaml.safe_dump({"trainer": trainer}))
    return [f"--config={recipes()['curves']}", f"--config={folder / 'mine.yaml'}"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_means_the_same_in_python_in_yaml_and_as_a_flag(text: str, tmp_path: Path) -> None:
    expected = TEXTS[text]
    assert NetworkSlimming(amount=text).amount == expected
    assert amount_of(parsed(with_amount(tmp_path, text))) == expected
    flag = f"--trainer.callbacks.amount={text}"
    assert amount_of(parsed([*with_amount(tmp_path, 0.9), flag])) == expected


def test_class_path_and_nested_flags_go_on_working(tmp_path: Path) -> None:
    nested = {"class_path": "Flops", "init_args": {"keep": 0.5}}
    assert amount_of(parsed(with_amount(tmp_path, nested))) == Flops(0.5)
    flags = ["--trainer.callbacks.amount=Params", "--trainer.callbacks.amount.keep=0.3"]
    assert amount_of(parsed([*with_amount(tmp_path, 0.9), *flags])) == Params(0.3)
