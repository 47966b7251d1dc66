import json
import re
import subprocess
import sys
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import yaml

import lightning_sparsity
from lightning_sparsity import cli
from lightning_sparsity.cli import flags

Run = Callable[..., None]
TINY = [
    *("--data.train", "24", "--data.val", "12", "--data.test", "12", "--data.size", "32"),
    *("--model.model.size", "32", "--trainer.max_epochs", "1"),
]
quiet = pytest.mark.filterwarnings(
    "ignore:.*overridden by command line.*", "ignore::DeprecationWarning"
)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    monkeypatch.setattr("sys.argv", ["lightning-sparsity"])
    return lambda *args: cli.main(list(args))


@quiet
@pytest.mark.filterwarnings("ignore:.*tensorboard.*")
def test_fit_without_a_config_runs_the_default_recipe_and_names_its_files(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("fit", *TINY)
    shown = capsys.readouterr().out
    folder = tmp_path / "runs/curves/version_0"
    figures = json.loads((folder / "summary.json").read_text())
    assert not (folder / "summary.png").exists()
    assert "report.html" in shown
    assert "test_acc" in figures["metrics"]
    assert Path(figures["checkpoint"]).is_file()
    assert {layer["name"] for layer in figures["layers"]} >= {"model.fc", "model.conv1"}
    assert figures["flops"]["sparse"] <= figures["flops"]["dense"]


@quiet
def test_the_command_report_makes_the_page_of_the_fit_again(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("fit", *TINY)
    folder = Path("runs/curves/version_0")
    page = (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    capsys.readouterr()
    run("report", str(folder))
    assert capsys.readouterr().out == "runs/curves/version_0/report.html\n"
    assert (folder / "report.html").read_text() == page
    names: dict[str, Any] = {}
    exec(unescape(page.partition('<code id="code">')[2].partition("</code>")[0]), names)
    slim = json.loads((folder / "summary.json").read_text())["slim"]
    assert sum(x.numel() for x in names["network"].parameters()) == slim["after"]["parameters"]


@quiet
def test_the_command_report_refuses_what_is_not_a_run(run: Run) -> None:
    with pytest.raises(SystemExit, match=r"^lightning-sparsity: There is neither a summary\.json"):
        run("report", ".")


@quiet
def test_flags_override_the_default_recipe_and_bare_class_names_work(
    run: Run, tmp_path: Path
) -> None:
    run(
        "fit",
        *TINY,
        "--trainer.callbacks+=RelaxedVariableSplitting",
        "--trainer.callbacks.penalty=TransformedL1",
        "--trainer.callbacks.penalty.a=0.5",
        "--trainer.callbacks.lam=1e-4",
        "--trainer.callbacks.select=conv2",
        "--trainer.fast_dev_run=true",
    )


@quiet
def test_nothing_of_the_default_recipe_leaks_into_a_config_of_the_user(
    run: Run, tmp_path: Path
) -> None:
    config = {
        "trainer": {"fast_dev_run": True, "accelerator": "cpu", "logger": False},
        "model": {"class_path": "ImageClassifier", "init_args": {"model": "CurveNet"}},
        "data": {
            "class_path": "Curves",
            "init_args": {"train": 24, "val": 12, "test": 12, "size": 64},
        },
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    assert cli.with_recipe(["fit", "--config", "mine.yaml"]) == ["fit", "--config", "mine.yaml"]
    run("fit", "--config", "mine.yaml")


# On top of the recipe of a network:
OVERLAYS = {"cifar100", "svhn", "short", "short-wrn-sgl"}


@pytest.mark.parametrize("name", [name for name in cli.recipes() if name not in OVERLAYS])
def test_every_recipe_is_found_by_name_and_parses(
    name: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run("fit", "--config", name, "--print_config")
    assert stop.value.code in (0, None)
    parsed = yaml.safe_load(capsys.readouterr().out)
    assert parsed["model"]["class_path"].endswith("ImageClassifier")
    written = yaml.safe_load(cli.recipes()[name].read_text())
    assert parsed["trainer"]["max_epochs"] == written["trainer"]["max_epochs"]


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--config", "nonsense"], "neither a file nor a recipe 'nonsense'. Recipes: "),
        (["--config=nonsense"], "neither a file nor a recipe 'nonsense'. Recipes: "),
        (["--data.train", "-3"], "Curves needs train >= 2, got train=-3"),
        (["--trainer.callbacks.lam", "-3"], "needs a finite lam >= 0, got lam=-3.0"),
        (["--trainer.callbacks.beta", "0"], "needs a finite beta > 0, got beta=0.0"),
        (
            [*TINY, "--trainer.callbacks.select", "fcc"],
            "'fcc' matches no weight .* model.fc.weight",
        ),
    ],
    ids=["recipe", "recipe with =", "data", "lam", "beta", "select"],
)
@quiet
def test_bad_input_ends_in_one_sentence(run: Run, args: list[str], sentence: str) -> None:
    with pytest.raises(SystemExit, match=f"^lightning-sparsity: .*{sentence}"):
        run("fit", *args)


@pytest.mark.parametrize("name", flags.COMMANDS)
def test_the_help_lists_every_command_in_one_line(
    name: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        run("--help")
    line = re.escape(flags.COMMANDS[name])
    assert re.search(rf"^ +{name} +{line}$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        *(("fit", "--trainer.max_epochs"), ("test", "--ckpt_path"), ("slim", "--amount AMOUNT")),
        *(("slim", "--gather, --no-gather"), ("slim", "--round-to"), ("export", "--to FILE")),
        *(("bench", "--batch N [N ...]"), ("bench", "--json FILE"), ("report", "RUN")),
    ],
)
def test_every_command_explains_its_flags(
    name: str, flag: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        run(name, "--help")
    shown = capsys.readouterr().out
    assert shown.startswith("usage: lightning-sparsity ")
    assert flag in shown


def test_the_version_is_that_of_the_package(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run("--version")
    assert capsys.readouterr().out == f"lightning-sparsity {lightning_sparsity.__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["slimm", "--amount", "0.5"], "There is no command 'slimm'. Did you mean 'slim'?"),
        (["fitt"], "There is no command 'fitt'. Did you mean 'fit'?"),
        (["xyzzy"], "There is no command 'xyzzy'. Commands: fit, validate, "),
        ([], "Name a command: fit, validate, test, predict, slim, export, bench, report. "),
    ],
)
def test_a_misspelt_command_ends_in_one_line(words: list[str], message: str, run: Run) -> None:
    with pytest.raises(SystemExit) as stop:
        run(*words)
    assert str(stop.value).startswith(f"lightning-sparsity: {message}")
    assert "\n" not in str(stop.value)


@quiet
def test_options_may_stand_before_the_command(run: Run, tmp_path: Path) -> None:
    config = {"fit": {"trainer": {"fast_dev_run": True, "accelerator": "cpu", "logger": False}}}
    config["fit"]["model"] = {"class_path": "ImageClassifier", "init_args": {"model": "CurveNet"}}
    config["fit"]["data"] = {
        "class_path": "Curves",
        "init_args": {"train": 24, "val": 12, "test": 12, "size": 64},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    run("--config", "mine.yaml", "fit")


def test_help_loads_no_torch() -> None:
    code = (
        "import sys\n"
        "from lightning_sparsity import cli\n"
        "from lightning_sparsity.cli import flags\n"
        "assert flags.parser() and not {'torch', 'lightning'} & set(sys.modules)"
    )
    folder = Path(lightning_sparsity.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_package_runs_as_a_module() -> None:
    folder = Path(lightning_sparsity.__file__).parents[1]
    command = [sys.executable, "-m", "lightning_sparsity", "--version"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.stdout == f"lightning-sparsity {lightning_sparsity.__version__}\n"
