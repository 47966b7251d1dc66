"""The command `lightning-sparsity report`: the page of a run, from the files in its folder."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lightning_sparsity import report as reports
from lightning_sparsity.checkpoint import Build


def report(args: Sequence[str], build: Build) -> None:
    """Write `report.html` into the folder of a run, and print its path.

    Args:
        args: What comes after `lightning-sparsity report`.
        build: Not used: nothing is made or run.

    Raises:
        FileNotFoundError: If the folder is not that of a run.
        ValueError: If one of its files is damaged.
    """
    reports.say(str(reports.write_page(Path(_parser().parse_args(args).run))))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-sparsity report",
        description="Write report.html into the folder of a run: one page, which needs no network, "
        "made of summary.json, slim/report.json and config.yaml, as far as they are there.",
    )
    parser.add_argument("run", help="the folder of a run, like runs/curves/version_0")
    return parser
