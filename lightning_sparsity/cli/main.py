"""From the command line to the command: which one is meant, what it is given, how errors end."""

import sys
import traceback
import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

from lightning_sparsity.cli import flags

__all__ = ["main"]

PACKAGE = Path(__file__).parents[1]
TOP = ("-h", "--help", "--version")


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
        _run(arguments)
    except (ValueError, FileNotFoundError, TypeError) as error:
        if (ours := _ours(error)) is not None:
            raise SystemExit(f"lightning-sparsity: {ours}") from error
        raise


def _run(arguments: list[str]) -> None:
    first = arguments[0] if arguments else ""
    if _is_for_lightning(arguments):
        import_module("lightning_sparsity.cli.fit").run(arguments)
    elif first in flags.COMMANDS or first.startswith("-"):
        given = flags.parser().parse_args(arguments)
        sys.argv[1:] = []  # which LightningCLI would take for arguments of its own
        command = import_module(f"lightning_sparsity.cli.{given.subcommand}")
        command.run(given[given.subcommand])
    else:
        raise SystemExit(f"lightning-sparsity: {_which(first)}")


def _is_for_lightning(arguments: Sequence[str]) -> bool:
    """Whether LightningCLI reads the arguments: they name a command of it, maybe after options."""
    first = arguments[0] if arguments else ""
    if first.startswith("-") and first not in TOP:
        return not flags.LIGHTNING.keys().isdisjoint(arguments)
    return first in flags.LIGHTNING


def _which(word: str) -> str:
    """One line that names the command that was probably meant."""
    known = ", ".join(flags.COMMANDS)
    if not word:
        return f"Name a command: {known}. `lightning-sparsity --help` explains them."
    nearest = get_close_matches(word, flags.COMMANDS, n=1)
    hint = f"Did you mean {nearest[0]!r}?" if nearest else f"Commands: {known}."
    return f"There is no command {word!r}. {hint}"


def _ours(error: BaseException | None) -> BaseException | None:
    """The error in a chain that this package raised: its message says all, without a traceback."""
    while error is not None:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if PACKAGE in raised_in.parents:
            return error
        error = error.__cause__ or error.__context__
    return None
