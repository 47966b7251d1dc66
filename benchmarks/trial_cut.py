"""What the trial cut after the first batch costs, beside an epoch of the same training.

    python benchmarks/trial_cut.py [resnet20 vgg19 resnet50]

ResNet-20 and VGG-19 on 50 000 images of 32 pixels in batches of 128 (CIFAR-10), and ResNet-50 of
torchvision on 1 281 167 images of 224 pixels in batches of 32 (ImageNet); one CPU thread (or
`--threads`), float32, random data. Measured are a few training steps, whose median times the number
of steps is the epoch: it is extrapolated. The trial is what `NetworkSlimming(amount=0.5)` does
after the first batch: it traces the network, plans, cuts a copy, compares both in float64, and
writes and removes the files. The last columns are the trial in training steps and in epochs.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_sparsity.callbacks.trial import follow, try_cut, try_files
from lightning_sparsity.models import VGG19, ResNet20

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int, int, int]] = {
    "resnet20": (ResNet20, 32, 128, 50_000, 10),
    "vgg19": (VGG19, 32, 128, 50_000, 10),
    "resnet50": (torchvision.models.resnet50, 224, 32, 1_281_167, 1000),
}
"""What makes the network, pixels, images in a batch, images in an epoch, classes."""


def seconds(work: Callable[[], object]) -> float:
    """How long a piece of work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def trial(network: nn.Module, images: Tensor) -> None:
    """All that the callback does after the first batch."""
    small, plan = try_cut(follow(network, (images,)), 0.5, gather=True)
    with tempfile.TemporaryDirectory() as folder:
        try_files(small, plan, Path(folder) / "slim")


def row(name: str, steps: int) -> str:
    """One line of the table."""
    make, pixels, batch, total, classes = NETWORKS[name]
    torch.manual_seed(0)
    network = make().train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    images, labels = torch.randn(batch, 3, pixels, pixels), torch.randint(classes, (batch,))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()

    step()  # the first one allocates
    spent = seconds(lambda: trial(network, images))
    one = statistics.median(seconds(step) for _ in range(steps))
    epoch = one * (total // batch)
    return (
        f"{name:10s} {one:8.3f} {epoch:10.0f} {spent:8.2f} {spent / one:8.2f} {spent / epoch:9.1e}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), metavar="network")
    parser.add_argument("--steps", type=int, default=5, help="training steps that are timed")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"seconds; an epoch is the median of {options.steps} steps times its number of steps")
    print(f"{'network':10s} {'step':>8s} {'epoch':>10s} {'trial':>8s} {'steps':>8s} {'epochs':>9s}")
    for name in options.networks:
        print(row(name, options.steps), flush=True)


if __name__ == "__main__":
    main()
