"""The command `lightning-sparsity export`: a slim network in a file that runs anywhere."""

from pathlib import Path

from jsonargparse import Namespace

from lightning_sparsity import report, surgery
from lightning_sparsity.cli.runs import networks_of


def run(given: Namespace) -> None:
    """Write the slim network of a run into one file, and print its size and the difference.

    Args:
        given: The flags of `flags.parser`.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the network is not of this run, or cannot be exported.
    """
    _, network, example = networks_of(given.slim, given.config)
    to = Path(given.to)
    try:
        difference = surgery.export(network, example, to)
    except (ImportError, RuntimeError) as error:  # both carry a complete message
        raise ValueError(str(error)) from error
    size = to.stat().st_size
    report.say(f"{to}: {size:,} bytes, largest relative difference {difference:.1e}")
