"""What a cut came to: its files, and the numbers in `report.json`."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_sparsity import disk
from lightning_sparsity.metrics.flops import flops
from lightning_sparsity.slimming import Slimmed
from lightning_sparsity.sparse_file import dense_size
from lightning_sparsity.surgery import save
from lightning_sparsity.surgery.running import uncompiled


def describe(network: nn.Module, made: Slimmed, example_inputs: Any) -> dict[str, Any]:  # noqa: ANN401
    """Class, channels, parameters, bytes and FLOPs of a cut network, its proof, what was frozen.

    Channels are those of BatchNorm layers or, in a network without, the outputs of convolutions and
    linear layers.

    Args:
        network: The network before the cut.
        made: What `slimming.cut` made of it.
        example_inputs: What the FLOPs are counted on; one multiply-add counts as 1.

    Returns:
        Numbers, strings and lists.
    """
    plan = made.plan
    counted = plan.kept or [name for name, cut in plan.cuts.items() if cut.layer.kind != "channel"]
    layers = {
        name: {"dense": plan.cuts[name].layer.widths[0], "slim": plan.cuts[name].rows.numel()}
        for name in counted
    }
    before, after = (sum(layer[of] for layer in layers.values()) for of in ("dense", "slim"))
    kind = type(network)
    return {
        "network": f"{kind.__module__}.{kind.__qualname__}",
        "proof": plan.proof,
        "channels": {"dense": before, "slim": after},
        "parameters": {"dense": _parameters(network), "slim": _parameters(made.network)},
        "bytes_on_disk": _both_sizes(network, made.network),
        "flops": _both_flops(network, made.network, example_inputs),
        "layers": layers,
        "frozen": list(made.frozen),
    }


def write(made: Slimmed, report: dict[str, Any], folder: Path) -> None:
    """Write `plan.json`, `model.safetensors` and `report.json`.

    Args:
        made: What `slimming.cut` made.
        report: What `report.json` says: `describe` and how it came about.
        folder: Where they go; made if need be.
    """
    save(made.network, made.plan, folder)
    disk.write(folder / "report.json", (json.dumps(report, indent=2) + "\n").encode())


def _parameters(network: nn.Module) -> int:
    return sum(x.numel() for x in network.parameters())


def _both_sizes(dense: nn.Module, slim: nn.Module) -> dict[str, int] | None:
    """Bytes as plain safetensors files; None where the networks cannot be written to one."""
    before, after = dense_size(dense), dense_size(slim)
    return None if before is None or after is None else {"dense": before, "slim": after}


def _both_flops(dense: nn.Module, slim: nn.Module, inputs: Any) -> dict[str, int] | None:  # noqa: ANN401
    """FLOPs of one example; None where fvcore cannot count them."""
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    if not all(isinstance(x, Tensor) and x.dim() for x in given):
        return None
    one = tuple(x[:1] for x in given)
    try:
        with uncompiled():
            return {"dense": flops(dense, one).total, "slim": flops(slim, one).total}
    except Exception:  # a network of the user's may hold anything; the report goes without
        return None
