"""A finished run, found by its folder: its configuration, its networks and examples for them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.cli import LightningCLI
from torch import nn

from lightning_sparsity import surgery
from lightning_sparsity.callbacks.network import bare
from lightning_sparsity.callbacks.slim_network import cut_from
from lightning_sparsity.cli.fit import parsed
from lightning_sparsity.surgery.storage import PLAN, WEIGHTS

__all__ = ["config_of", "networks_of", "read"]

FOLDERS = 3  # above what a run left, in which its configuration is searched for
ON_THE_CPU = {"accelerator": "cpu", "precision": "32-true"}


def config_of(result: Path, given: str | None) -> Path:
    """The configuration of the run that left a checkpoint or a folder.

    Args:
        result: The checkpoint or the folder; `config.yaml` is searched for above it.
        given: The file to use in its place.

    Raises:
        FileNotFoundError: If there is none.
    """
    if given is not None:
        if not Path(given).is_file():
            raise FileNotFoundError(f"There is no configuration {given!r}.")
        return Path(given)
    for folder in result.resolve().parents[:FOLDERS]:
        if (folder / "config.yaml").is_file():
            return folder / "config.yaml"
    raise FileNotFoundError(
        f"There is no config.yaml in the folders above {str(result)!r}. Name the file with "
        "--config."
    )


def read(config: Path) -> dict[str, Any]:
    """What module and data are made of, with a Trainer that writes nothing.

    Raises:
        ValueError: If the file is not the configuration of a run, or leaves out a class.
    """
    content = yaml.safe_load(config.read_text())
    if not isinstance(content, Mapping) or not content.get("model"):
        raise ValueError(f"{str(config)!r} is not the configuration of a run: it has no model.")
    for key in ("model", "data"):
        part = content.get(key)
        named = part.get("class_path", "") if isinstance(part, Mapping) else part
        if part and (not named or named.startswith("__main__.")):
            raise ValueError(
                f"{str(config)!r} does not say which class its {key} is, or where. Name a file "
                "with --config that has class_path (module.Class) and init_args for model and data."
            )
    trainer = content.get("trainer") or {}
    kept = {key: trainer[key] for key in ("accelerator", "precision") if trainer.get(key)}
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_model_summary"), False)
    parts = {key: content[key] for key in ("model", "data") if content.get(key)}
    # Inputs are remembered where gradients are on, which inference mode forbids.
    return {**parts, "trainer": {**kept, **quiet, "devices": 1, "inference_mode": False}}


def networks_of(folder: str, config: str | None) -> tuple[nn.Module, nn.Module, Any]:
    """The networks of a run, on the CPU, and two example inputs.

    Args:
        folder: The folder `slim` of the run.
        config: The configuration to take in place of that of the run.

    Returns:
        The dense network with new weights, the slim one with its own, and the examples.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the network is not of this run, or its inputs are not known.
    """
    slim = Path(folder)
    for name in (PLAN, WEIGHTS):
        if not (slim / name).is_file():
            raise FileNotFoundError(f"There is no {name} in {folder!r}.")
    content = read(config_of(slim, config))
    made = parsed({**content, "trainer": {**content["trainer"], **ON_THE_CPU}})
    dense = bare(made.model.get_submodule(cut_from(made.model, slim)))
    return dense, surgery.load(dense, slim), _examples(made)


def _examples(made: LightningCLI) -> Any:  # noqa: ANN401
    """Two random examples as the data has them, or those that the module names."""
    shape = getattr(made.datamodule, "input_shape", None)
    if shape is not None:
        return torch.rand(2, *shape)
    if made.model.example_input_array is not None:
        return made.model.example_input_array
    raise ValueError(
        "The inputs of the network are not known: give the data module an input_shape, or "
        "set self.example_input_array in the module."
    )
