"""The command `lightning-sparsity slim`: cut the network of a checkpoint that is already there."""

import argparse
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningCLI
from torch import Tensor
from typing_extensions import override

from lightning_sparsity import report, slimming, surgery
from lightning_sparsity.callbacks.network import Inputs, bare, first_examples, place
from lightning_sparsity.callbacks.report import describe, write
from lightning_sparsity.surgery.rounding import check_round_to
from lightning_sparsity.surgery.running import each_tensor

BUDGETS: dict[str, Callable[[float], surgery.Budget]] = {
    "Flops": surgery.Flops,
    "Params": surgery.Params,
    "Threshold": surgery.Threshold,
}
FOLDERS = 3  # above what a run left, in which its configuration is looked for
Build = Callable[[dict[str, Any]], LightningCLI]


def slim(args: Sequence[str], build: Build) -> None:
    """Cut the network of a checkpoint, write it into the folder `slim`, and print a table.

    Args:
        args: What comes after `lightning-sparsity slim`.
        build: Makes Trainer, module and data of a configuration.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the amount is out of range or cannot be met, the checkpoint does not hold the
            dense network of its configuration, or the folder `slim` is there already.
    """
    given = _parser().parse_args(args)
    amount = _amount(given.amount)
    check_round_to(given.round_to)
    checkpoint = Path(given.checkpoint)
    if not checkpoint.is_file():
        raise FileNotFoundError(f"There is no checkpoint {str(checkpoint)!r}.")
    config = config_of(checkpoint, given.config)
    run = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    folder = Path(given.dirpath or run) / "slim"
    if folder.exists():
        raise ValueError(f"{str(folder)!r} is there already. Name another folder with --dirpath.")
    weights = _weights(checkpoint)
    made = build(read(config))
    _load(made.model, weights, checkpoint, config)
    before, path, example = _look(made)
    network = bare(made.model.get_submodule(path)).eval()
    cut = slimming.cut(network, example, amount, gather=given.gather, round_to=given.round_to)
    place(made.model, path, cut.network)
    after = _validate(made) if before else {}
    metrics = {name: (before[name], after[name]) for name in after}
    figures = describe(network, cut, example)
    asked = {"amount": given.amount, "round_to": given.round_to}
    content = {"checkpoint": str(checkpoint), "path": path, **asked, "metrics": metrics, **figures}
    write(cut, content, folder)
    report.print_cut(figures, metrics)
    if not metrics:
        report.say("Its data is not there: no accuracy was measured.")
    report.say(f"Files: {folder}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-sparsity slim",
        description="Cut the network of a checkpoint: the channels with the smallest BatchNorm "
        "scales leave, exactly. Writes slim/plan.json, slim/model.safetensors, slim/report.json.",
    )
    parser.add_argument("--checkpoint", required=True, help="a file that a ModelCheckpoint wrote")
    parser.add_argument(
        "--amount",
        required=True,
        help="share of all channels to cut, in (0, 1); 'Flops(0.5)', 'Params(0.3)': share of the "
        "cost that may stay; 'Threshold(1e-3)': scales up to it go; 'zeros': scales, rows and "
        "columns of weights that are zero go, and nothing else",
    )
    parser.add_argument(
        "--gather",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether layers may pick their inputs, so that every dead channel goes",
    )
    parser.add_argument(
        "--round-to",
        type=int,
        default=1,
        help="widths go up to the next multiple of this number; with Flops(...), 8 or 16 may be "
        "faster; default: 1",
    )
    parser.add_argument("--config", help="default: the config.yaml in the folder of the run")
    parser.add_argument("--dirpath", help="where slim/ goes; default: the folder of the run")
    return parser


def _amount(text: str) -> float | surgery.Budget | None:
    if text.strip() == "zeros":
        return None
    name, bracket, number = text.strip().removesuffix(")").rpartition("(")
    try:
        value = float(number.removeprefix("keep=").removeprefix("at="))
    except ValueError:
        value = float("nan")
    if value != value or (bracket and name not in BUDGETS):
        raise ValueError(
            "--amount needs a number in (0, 1), 'zeros', or one of "
            f"{', '.join(f'{known}(number)' for known in BUDGETS)}, got {text!r}."
        )
    if bracket:
        return BUDGETS[name](value)
    surgery.Share(value)  # out of range, it says so here
    return value


def config_of(result: Path, given: str | None) -> Path:
    """The configuration of the run that left a checkpoint or a folder.

    Args:
        result: The checkpoint or the folder; `config.yaml` is looked for above it.
        given: The file to take in its place.

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
    """What makes module and data, with a Trainer that leaves nothing behind.

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
                f"{str(checkpoint)!r} holds a slim network. Take one from before the cut."
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
