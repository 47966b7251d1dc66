"""The command `lightning-sparsity slim`: cut the network of a checkpoint."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningCLI
from torch import Tensor
from typing_extensions import override

from lightning_sparsity import amounts, report, slimming
from lightning_sparsity.callbacks.network import Inputs, bare, first_examples, place
from lightning_sparsity.callbacks.report import describe, write
from lightning_sparsity.cli.fit import parsed
from lightning_sparsity.cli.runs import config_of, read
from lightning_sparsity.surgery.running import each_tensor


def run(given: Namespace) -> None:
    """Cut the network of a checkpoint, write it into the folder `slim`, and print a table.

    Args:
        given: The flags of `flags.parser`.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the amount is out of range or cannot be met, the checkpoint does not hold the
            dense network of its configuration, or the folder `slim` exists.
    """
    amount = amounts.parse(given.amount)
    checkpoint = Path(given.checkpoint)
    if not checkpoint.is_file():
        raise FileNotFoundError(f"There is no checkpoint {str(checkpoint)!r}.")
    config = config_of(checkpoint, given.config)
    run = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    folder = Path(given.dirpath or run) / "slim"
    if folder.exists():
        raise ValueError(f"{str(folder)!r} exists already. Name another folder with --dirpath.")
    weights = _weights(checkpoint)
    made = parsed(read(config))
    _load(made.model, weights, checkpoint, config)
    before, path, example = _look(made)
    network = bare(made.model.get_submodule(path)).eval()
    cut = slimming.cut(network, example, amount, gather=given.gather, round_to=given.round_to)
    place(made.model, path, cut.network)
    after = _validate(made) if before else {}
    metrics = {name: (before[name], after[name]) for name in after}
    measured = describe(network, cut, example)
    asked = {"amount": given.amount, "round_to": given.round_to}
    content = {"checkpoint": str(checkpoint), "path": path, **asked, "metrics": metrics, **measured}
    write(cut, content, folder)
    report.print_cut(content)
    if not metrics:
        report.say("The data of the run was not found: no accuracy was measured.")
    report.say(f"Files: {folder}")


def _weights(checkpoint: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        state: dict[str, Tensor] = content["state_dict"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError) as error:
        raise ValueError(f"{str(checkpoint)!r} is not a checkpoint of Lightning.") from error
    for callback in content.get("callbacks", {}).values():
        cut = callback.get("cut") if isinstance(callback, Mapping) else None
        if cut and cut["plan"] is not None:
            raise ValueError(
                f"{str(checkpoint)!r} holds a slim network. Use one from before the cut."
            )
    return state


def _load(
    module: pl.LightningModule, weights: dict[str, Tensor], checkpoint: Path, config: Path
) -> None:
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"{str(checkpoint)!r} holds another network than {str(config)!r} describes. Name its "
            "configuration with --config."
        ) from error


class _Watch(Callback):
    """Remembers what the network is called with in the first validation batch."""

    def __init__(self) -> None:
        self.inputs = Inputs()

    @override
    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx == dataloader_idx == 0 and not self.inputs.seen:
            self.inputs.watch(pl_module)
            torch.set_grad_enabled(True)

    @override
    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        self.inputs.stop()
        torch.set_grad_enabled(False)


def _look(made: LightningCLI) -> tuple[dict[str, float], str, Any]:
    """Validation metrics, the path of the network in its module, and examples of its inputs."""
    module, watch = made.model, _Watch()
    made.trainer.callbacks.append(watch)  # type: ignore[attr-defined]
    try:
        metrics = _validate(made)
    except FileNotFoundError:  # the channels can be followed on any image
        shape = getattr(made.datamodule, "input_shape", None)
        if shape is None:
            raise
        metrics = {}
        watch.inputs.watch(module)
        module(torch.zeros(2, *shape))
        watch.inputs.stop()
    path, inputs = watch.inputs.found(module)
    example = each_tensor(first_examples(inputs[-1]), Tensor.cpu)
    return metrics, path, example


def _validate(made: LightningCLI) -> dict[str, float]:
    (metrics, *_) = made.trainer.validate(made.model, made.datamodule, verbose=False)
    return dict(metrics)
