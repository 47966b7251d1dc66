"""How long it takes to trace, plan and cut 40 % of the channels, beside torch-pruning 1.6.

Run `python benchmarks/surgery_speed.py resnet18 densenet121 …`. Times are seconds on one thread,
for one image of 224 pixels in float32; `forward` is one run of the model by itself, `proved` is
`ours` with the comparison in float64.
"""

import copy
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn

from lightning_sparsity import surgery


def seconds(work: Callable[[], object]) -> float:
    """How long a piece of work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ours(model: nn.Module, image: Tensor, *, verify: bool) -> None:
    """Trace, plan and cut with this package."""
    plan = surgery.trace(model, image).plan_by(0.4)
    surgery.slim(model, plan, verify=verify)


def torch_pruning(model: nn.Module, image: Tensor) -> None:
    """Trace and prune with torch-pruning, all but the classifier."""
    import torch_pruning as tp

    last = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]
    pruner = tp.pruner.BNScalePruner(
        model, image, tp.importance.BNScaleImportance(), pruning_ratio=0.4, ignored_layers=last
    )
    pruner.step()


def row(name: str, image: Tensor) -> tuple[str, float | None]:
    """One line of the table, and how many times as long torch-pruning takes."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
    with torch.no_grad():
        model(image)
        forward = seconds(lambda: model(image))
    fast = seconds(lambda: ours(model, image, verify=False))
    proved = seconds(lambda: ours(model, image, verify=True))
    line = f"{name:24s} {forward:7.2f} {fast:7.2f} {proved:7.2f} "
    try:
        other = seconds(lambda: torch_pruning(copy.deepcopy(model), image))
    except Exception as error:  # a network that it cannot follow, or it is not installed
        return f"{line} {type(error).__name__}", None
    return f"{line} {other:13.2f} {other / fast:6.1f}", other / fast


def main(names: list[str]) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    image = torch.randn(1, 3, 224, 224)
    print(f"{'network':24s} forward    ours  proved  torch-pruning  ratio")
    ratios = []
    for name in names:
        line, ratio = row(name, image)
        print(line, flush=True)
        ratios += [] if ratio is None else [ratio]
    if ratios:
        print(f"torch-pruning takes {statistics.median(ratios):.1f} times as long at the median")


if __name__ == "__main__":
    main(sys.argv[1:] or ["resnet18", "resnet50", "densenet121", "mobilenet_v2", "vgg16_bn"])
