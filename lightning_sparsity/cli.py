"""The command `lightning-sparsity`: LightningCLI with this package's classes known by name."""

import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from lightning_sparsity import (
    bench,
    callbacks,
    checkpoint,
    classifier,
    data,
    export,
    models,
    penalties,
    report,
    run_report,
    schedules,
    surgery,
)
from lightning_sparsity.callbacks import SparsityMonitor

DEFAULT_RECIPE = "curves"
BEYOND_YAML = {"short": ["--trainer.callbacks.lam=1e-3"]}
"""What a recipe sets in a list that another one made: a file could only replace that list."""
STAND_INS = {
    ("short", "wrn16-8-sgl"): "short-wrn-sgl",
    ("short", "wrn28-10-sgl"): "short-wrn-sgl",
}
"""What a recipe means after another one whose list of callbacks it has to replace."""
COMMANDS = {
    "slim": checkpoint.slim,
    "export": export.export,
    "bench": bench.bench,
    "report": run_report.report,
}
"""What is there besides the commands of LightningCLI."""
NAMESPACES = (callbacks, classifier, data, models, penalties, schedules, surgery)
"""Imported so that their classes can be given by bare name: `--trainer.callbacks+=...`."""
OPTIONS: dict[str, Any] = {
    "subclass_mode_model": True,
    "subclass_mode_data": True,
    "seed_everything_default": 0,
    "parser_kwargs": {
        "epilog": "And `slim --help`: cut the network of a checkpoint, without a fit; "
        "`export --help`: write a slim network as a .pt2 or .onnx file; `bench --help`: measure "
        "how fast it is; `report --help`: the page of a run."
    },
}


class SparsityCLI(LightningCLI):
    """LightningCLI that watches the sparsity and ends `fit` with a table and a picture."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Every run has a monitor: `--monitor.every_n_steps` sets its pace."""
        parser.add_lightning_class_args(SparsityMonitor, "monitor")

    def after_fit(self) -> None:
        """Test the best checkpoint, dense and sparse, and show what came out."""
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        run = report.summarize(self.trainer, self.model, self.datamodule)
        if run is not None:
            _show(run, self.trainer.log_dir)


@rank_zero_only
def _show(run: report.Summary, folder: str | None) -> None:
    report.print_table(run)
    if folder is not None:
        for path in report.save(run, Path(folder)):
            report.say(f"{path.name:14} {path}")


def recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    folder = Path(str(resources.files("lightning_sparsity") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def with_recipe(args: Sequence[str]) -> list[str]:
    """The arguments with names of recipes turned into files; without any, the default recipe.

    Raises:
        ValueError: If `--config` names neither a file nor a recipe.
    """
    found, given = list[str](), list[str]()
    rest = iter(args)
    for arg in rest:
        flag, equals, name = arg.partition("=")
        if flag in ("--config", "-c") and (equals or (name := next(rest, ""))):
            stand_ins = (STAND_INS[name, g] for g in given if (name, g) in STAND_INS)
            found += _configuration(next(stand_ins, name))
            given.append(name)
        else:
            found.append(arg)
    runs = found and found[0] in ("fit", "validate", "test", "predict")
    if runs and not given and not {"-h", "--help"} & set(found):
        found[1:1] = _configuration(DEFAULT_RECIPE)
    return found


def _configuration(name: str) -> list[str]:
    """The arguments for a file or a recipe."""
    if Path(name).is_file():
        return ["--config", name]
    if name in recipes():
        return ["--config", str(recipes()[name]), *BEYOND_YAML.get(name, [])]
    raise ValueError(
        f"There is neither a file nor a recipe {name!r}. Recipes: {', '.join(recipes())}."
    )


def parsed(args: ArgsType) -> SparsityCLI:
    """Trainer, module and data of a configuration, made but not run.

    Args:
        args: Arguments without a subcommand, or a configuration as nested dicts.
    """
    return SparsityCLI(**OPTIONS, args=args, run=False, save_config_callback=None)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: Arguments to use in place of those of the process.
    """
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # between Lightning 2.6 and torch 2.15
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # data is in memory
    arguments = sys.argv[1:] if args is None else list(args)
    sys.path.append(str(Path.cwd()))  # as in `python train.py`, classes may lie beside the run
    try:
        if arguments and arguments[0] in COMMANDS:
            sys.argv[1:] = []  # which Lightning would take for arguments of its own
            COMMANDS[arguments[0]](arguments[1:], parsed)
            return
        # In sys.argv rather than passed on: processes that a strategy starts read it there.
        sys.argv[1:] = with_recipe(arguments)
        SparsityCLI(**OPTIONS)
    except (ValueError, FileNotFoundError, TypeError) as error:
        if (ours := _ours(error)) is not None:
            raise SystemExit(f"lightning-sparsity: {ours}") from error
        raise


def _ours(error: BaseException | None) -> BaseException | None:
    """The error in a chain that this package raised: its sentence says all, without a traceback."""
    while error is not None:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if Path(__file__).parent in raised_in.parents:
            return error
        error = error.__cause__ or error.__context__
    return None


if __name__ == "__main__":
    main()
