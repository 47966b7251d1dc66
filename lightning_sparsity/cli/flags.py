"""The commands and their flags, apart from what they do: `--help` loads neither torch nor data."""

from typing import Any

from jsonargparse import ActionYesNo, ArgumentParser
from jsonargparse.typing import NonNegativeFloat, PositiveInt

from lightning_sparsity import __version__

__all__ = ["COMMANDS", "LIGHTNING", "NAME", "parser"]

NAME = "lightning-sparsity"
LIGHTNING = {
    "fit": "train a network; without --config the recipe `curves`",
    "validate": "evaluate a network on the validation split",
    "test": "evaluate a network on the test split",
    "predict": "run a network on the prediction data",
}
"""The commands of LightningCLI."""
COMMANDS = {
    **LIGHTNING,
    "slim": "cut the network of a checkpoint, without training",
    "export": "write a slim network as a .pt2 or .onnx file",
    "bench": "measure how fast a slim network is",
    "report": "write the page of a run",
}
"""Every command and what it does, in one line."""
CONFIG = "configuration of the run; default: the config.yaml in its folder"
SLIM = "the folder slim/ of a run"
FILE: dict[str, Any] = {"type": str, "metavar": "FILE"}
FOLDER: dict[str, Any] = {"type": str, "metavar": "FOLDER"}
COUNT: dict[str, Any] = {"type": PositiveInt, "metavar": "N"}


def parser() -> ArgumentParser:
    """The parser of the whole command line; LightningCLI reads what follows its own commands."""
    top = ArgumentParser(
        prog=NAME,
        version=__version__,
        description="Train CNNs sparse with nonconvex penalties, and cut their channels exactly.",
    )
    commands = top.add_subcommands(
        description=f"`{NAME} COMMAND --help` lists the options of a command."
    )
    for name, line in COMMANDS.items():
        own = ADDED[name]() if name in ADDED else ArgumentParser()
        commands.add_subcommand(name, own, help=line)
    return top


def _slim() -> ArgumentParser:
    own = ArgumentParser(
        description="Cut the network of a checkpoint: the channels with the smallest BatchNorm "
        "scales are removed, exactly. Writes slim/plan.json, slim/model.safetensors and "
        "slim/report.json.",
    )
    own.add_argument("--checkpoint", **FILE, required=True, help="what a ModelCheckpoint wrote")
    own.add_argument(
        "--amount",
        type=str,
        required=True,
        help="fraction of all channels to remove, in (0, 1); 'Flops(0.5)', 'Params(0.3)': fraction "
        "of the cost to keep at most; 'Threshold(1e-3)': remove channels with scales up to it; "
        "'zeros': remove what is exactly zero, scales and rows and columns of weights",
    )
    own.add_argument(
        "--gather",
        action=ActionYesNo(no_prefix="no-"),
        default=True,
        help="whether layers may select their inputs, so that every dead channel is removed",
    )
    round_to = "round widths up to multiples of this number; with Flops(...), 8 or 16 may be faster"
    own.add_argument("--round-to", **COUNT, default=1, help=round_to)
    own.add_argument("--config", **FILE, help=CONFIG)
    own.add_argument("--dirpath", **FOLDER, help="where slim/ goes; default: the folder of the run")
    return own


def _export() -> ArgumentParser:
    own = ArgumentParser(
        description="Write a slim network into one file that runs without this package. The file "
        "is loaded again and compared with the network before it is kept.",
    )
    own.add_argument("--slim", **FOLDER, required=True, help=SLIM)
    own.add_argument("--to", **FILE, required=True, help="the file to write: .pt2 or .onnx")
    own.add_argument("--config", **FILE, help=CONFIG)
    return own


def _bench() -> ArgumentParser:
    own = ArgumentParser(
        description="Time the slim network of a run against the dense one and the masked one (the "
        "shapes of the dense one, zeros where it was cut), in interleaved runs. Needs neither the "
        "data nor the checkpoints of the run.",
    )
    several: dict[str, Any] = {"nargs": "+"}
    threads, devices = "threads on the CPU; default: torch's own", "default: what the machine has"
    seconds = "time for each row, at most about"
    own.add_argument("--slim", **FOLDER, required=True, help=SLIM)
    own.add_argument("--batch", **several, **COUNT, default=[1, 8, 64], help="numbers of examples")
    own.add_argument("--threads", **several, **COUNT, help=threads)
    own.add_argument("--compiled", action="store_true", help="also with torch.compile")
    own.add_argument("--device", **several, choices=("cpu", "cuda"), help=devices)
    own.add_argument("--seconds", type=NonNegativeFloat, metavar="S", default=2.0, help=seconds)
    own.add_argument("--config", **FILE, help=CONFIG)
    own.add_argument("--json", **FILE, help="a file for the measurements")
    return own


def _report() -> ArgumentParser:
    own = ArgumentParser(
        description="Write report.html into the folder of a run: one self-contained page, made of "
        "summary.json, slim/report.json and config.yaml, as far as they are there.",
    )
    own.add_argument("run", type=str, metavar="RUN", help="a folder like runs/curves/version_0")
    return own


ADDED = {"slim": _slim, "export": _export, "bench": _bench, "report": _report}
"""What LightningCLI does not have."""
