"""The results of a cut: its files, and the measurements in `report.json`."""

import json
from pathlib import Path
from typing import Any

from torch import nn

from lightning_sparsity.metrics.footprint import footprint
from lightning_sparsity.slimming import Slimmed
from lightning_sparsity.surgery import save


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
    before, after = footprint(network, example_inputs), footprint(made.network, example_inputs)
    kind = type(network)
    return {
        "network": f"{kind.__module__}.{kind.__qualname__}",
        "proof": plan.proof,
        "channels": {side: sum(x[side] for x in layers.values()) for side in ("dense", "slim")},
        "parameters": _both(before.parameters, after.parameters),
        "bytes_on_disk": _both(before.plain_bytes, after.plain_bytes),
        "flops": _both(before.flops, after.flops),
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
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")


def _both(dense: int | None, slim: int | None) -> dict[str, int] | None:
    return None if dense is None or slim is None else {"dense": dense, "slim": slim}
