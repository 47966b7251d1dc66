"""The commands of LightningCLI, with the classes of this package known by name."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from lightning_sparsity import (
    callbacks,
    classifier,
    data,
    models,
    penalties,
    report,
    schedules,
    surgery,
)
from lightning_sparsity.callbacks import SparsityMonitor
from lightning_sparsity.cli.flags import NAME
from lightning_sparsity.cli.recipes import with_recipe

__all__ = ["SparsityCLI", "parsed", "run"]

NAMESPACES = (callbacks, classifier, data, models, penalties, schedules, surgery)
"""Imported so that their classes can be given by bare name: `--trainer.callbacks+=...`."""
OPTIONS: dict[str, Any] = {
    "subclass_mode_model": True,
    "subclass_mode_data": True,
    "seed_everything_default": 0,
    "parser_kwargs": {"prog": NAME},
}


class SparsityCLI(LightningCLI):
    """LightningCLI that monitors the sparsity and ends `fit` with a table and a page."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Every run has a monitor: `--monitor.every_n_steps` sets its interval."""
        parser.add_lightning_class_args(SparsityMonitor, "monitor")

    def after_fit(self) -> None:
        """Test the best checkpoint, dense and sparse, and show the results."""
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        found = report.summarize(self.trainer, self.model, self.datamodule)
        if found is not None:
            _show(found, self.trainer.log_dir)


def run(arguments: Sequence[str]) -> None:
    """Run a command of LightningCLI.

    Args:
        arguments: The command and its flags; `--config` may name a recipe.
    """
    # In sys.argv rather than passed on: processes that a strategy starts read it there.
    sys.argv[1:] = with_recipe(arguments)
    SparsityCLI(**OPTIONS)


def parsed(args: ArgsType) -> SparsityCLI:
    """Trainer, module and data of a configuration, made but not run.

    Args:
        args: Arguments without a subcommand, or a configuration as nested dicts.
    """
    return SparsityCLI(**OPTIONS, args=args, run=False, save_config_callback=None)


@rank_zero_only
def _show(run: report.Summary, folder: str | None) -> None:
    report.print_table(run)
    if folder is not None:
        for path in report.save(run, Path(folder)):
            report.say(f"{path.name:14} {path}")
