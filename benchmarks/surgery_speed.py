"""How long each step of a cut takes: trace, plan, slim and check, beside torch-pruning 1.6.

Run `python benchmarks/surgery_speed.py resnet50 densenet121 …`. Times are CPU seconds on one
thread, the best of three runs but for `step`, for one image of 224 pixels in float32:

- forward: one run of the model by itself
- trace, share, slim: the steps of a cut of 40 % of the channels; ours is their sum
- flops: a plan for half of the FLOPs instead, `plan_by(Flops(0.5))`
- check: what comparing the slim network with the masked one adds
- pruner, step: what torch-pruning takes to build its pruner for 40 %, and to prune
- ratio: torch-pruning's sum divided by ours
"""

import copy
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from lightning_sparsity import surgery

OURS = ("forward", "trace", "share", "flops", "slim", "check", "ours")
COLUMNS = (*OURS, "pruner", "step", "ratio")


def timed(work: Callable[[], Any], runs: int = 1) -> tuple[float, Any]:
    """The shortest time that a piece of work takes, and what it makes."""
    took, made = float("inf"), None
    for _ in range(runs):
        start = time.process_time()
        made = work()
        took = min(took, time.process_time() - start)
    return took, made


def ours(model: nn.Module, image: Tensor) -> list[float]:
    """Seconds of the steps: trace, share, flops, slim, check."""
    trace, flow = timed(lambda: surgery.trace(model, image), runs=3)
    share, plan = timed(lambda: flow.plan_by(0.4), runs=3)
    flops, _ = timed(lambda: flow.plan_by(surgery.Flops(0.5)), runs=3)
    slim, _ = timed(lambda: surgery.slim(model, plan, verify=False), runs=3)
    both, _ = timed(lambda: surgery.slim(model, plan), runs=3)
    return [trace, share, flops, slim, both - slim]


def torch_pruning(model: nn.Module, image: Tensor) -> list[float]:
    """Seconds to build the pruner, for all but the classifier, and to prune."""
    import torch_pruning as tp

    last = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]
    build, pruner = timed(
        lambda: tp.pruner.BNScalePruner(
            model, image, tp.importance.BNScaleImportance(), pruning_ratio=0.4, ignored_layers=last
        ),
        runs=3,
    )
    return [build, timed(pruner.step)[0]]


def row(name: str, image: Tensor) -> tuple[str, float | None]:
    """One line of the table, and how many times as long torch-pruning takes."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
    with torch.no_grad():
        forward, _ = timed(lambda: model(image), runs=3)
    trace, share, flops, slim, check = ours(model, image)
    own = trace + share + slim
    line = f"{name:20s}" + "".join(
        f"{x:8.3f}" for x in (forward, trace, share, flops, slim, check, own)
    )
    try:
        build, step = torch_pruning(copy.deepcopy(model), image)
    except Exception as error:  # a network that it cannot follow, or it is not installed
        return f"{line}  {type(error).__name__}", None
    ratio = (build + step) / own
    return f"{line}{build:8.3f}{step:8.3f}{ratio:8.1f}", ratio


def main(names: list[str]) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    image = torch.randn(1, 3, 224, 224)
    print(f"{'network':20s}" + "".join(f"{column:>8s}" for column in COLUMNS))
    ratios = []
    for name in names:
        line, ratio = row(name, image)
        print(line, flush=True)
        ratios += [] if ratio is None else [ratio]
    if ratios:
        print(f"torch-pruning takes {statistics.median(ratios):.1f} times as long at the median")


if __name__ == "__main__":
    main(sys.argv[1:] or ["resnet50", "densenet121", "efficientnet_v2_s", "mobilenet_v2"])
