"""The command `lightning-sparsity report`: the page of a run, from the files in its folder."""

from pathlib import Path

from jsonargparse import Namespace

from lightning_sparsity import report


def run(given: Namespace) -> None:
    """Write `report.html` into the folder of a run, and print its path.

    Args:
        given: The flags of `flags.parser`.

    Raises:
        FileNotFoundError: If the folder is not that of a run.
        ValueError: If one of its files is damaged.
    """
    report.say(str(report.write_page(Path(given.run))))
