"""The command `lightning-sparsity export`: a slim network in a file that runs anywhere."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LightningCLI
from torch import nn

from lightning_sparsity import report, surgery
from lightning_sparsity.callbacks.network import bare
from lightning_sparsity.callbacks.slim_network import cut_from
from lightning_sparsity.checkpoint import Build, config_of, read
from lightning_sparsity.surgery.storage import PLAN, WEIGHTS

ON_THE_CPU = {"accelerator": "cpu", "precision": "32-true"}


def export(args: Sequence[str], build: Build) -> None:
    """Write the slim network of a run into one file, and print its size and its difference.

    Args:
        args: What comes after `lightning-sparsity export`.
        build: Makes Trainer, module and data of a configuration.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the network is not of this run, or cannot be exported.
    """
    given = _parser().parse_args(args)
    _, network, example = networks_of(given.slim, given.config, build)
    to = Path(given.to)
    try:
        difference = surgery.export(network, example, to)
    except (ImportError, RuntimeError) as error:  # both are one sentence
        raise ValueError(str(error)) from error
    size = to.stat().st_size
    report.say(f"{to}: {size:,} bytes, largest relative difference {difference:.1e}")


def networks_of(folder: str, config: str | None, build: Build) -> tuple[nn.Module, nn.Module, Any]:
    """The networks of a run, on the CPU, and two examples of what they are called with.

    Args:
        folder: The folder `slim` of the run.
        config: The configuration to take in place of that of the run.
        build: Makes Trainer, module and data of a configuration.

    Returns:
        The dense network with fresh weights, the slim one with its own, and the examples.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the network is not of this run, or nothing says what it is called with.
    """
    slim = Path(folder)
    for name in (PLAN, WEIGHTS):
        if not (slim / name).is_file():
            raise FileNotFoundError(f"There is no {name} in {folder!r}.")
    content = read(config_of(slim, config))
    made = build({**content, "trainer": {**content["trainer"], **ON_THE_CPU}})
    dense = bare(made.model.get_submodule(cut_from(made.model, slim)))
    return dense, surgery.load(dense, slim), _examples(made)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-sparsity export",
        description="Write a slim network into one file that runs without this package. The file "
        "is loaded again and compared with the network before it is left behind.",
    )
    parser.add_argument("--slim", required=True, help="the folder slim/ of a run")
    parser.add_argument("--to", required=True, help="the file to write: FILE.pt2 or FILE.onnx")
    parser.add_argument("--config", help="default: the config.yaml in the folder of the run")
    return parser


def _examples(made: LightningCLI) -> Any:  # noqa: ANN401
    """Two random examples as the data has them, or those that the module names."""
    shape = getattr(made.datamodule, "input_shape", None)
    if shape is not None:
        return torch.rand(2, *shape)
    if made.model.example_input_array is not None:
        return made.model.example_input_array
    raise ValueError(
        "Nothing says what the network is called with: give the data module an input_shape, or "
        "set self.example_input_array in the module."
    )
