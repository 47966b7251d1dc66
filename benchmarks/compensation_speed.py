"""How long `surgery.compensate` takes beside one forward pass of the same batch.

    python benchmarks/compensation_speed.py [efficientnet_v2_s efficientnet_v2_l ...]

For each network of torchvision with random weights: a batch of 4 images (`--batch`) of 224 pixels
(`--pixels`), one thread, float32. 40 % of the channels are dead. Printed are seconds of a forward
pass, of `compensate` with this one batch, and how many forward passes that is.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn

from lightning_sparsity import surgery

FRACTION = 0.4


def seconds(work: Callable[[], object]) -> float:
    """How long a piece of work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def network(name: str) -> nn.Module:
    """A network in evaluation mode, with scales and shifts as training leaves them: all differ."""
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.get_model(name, weights=None).eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.5)
    return model


def dead_channels(flow: surgery.ChannelFlow) -> dict[str, Tensor]:
    """The channels with the smallest scales of the whole network."""
    scales = flow.scales()
    threshold = torch.cat(list(scales.values())).quantile(FRACTION)
    return {name: scale <= threshold for name, scale in scales.items()}


def row(name: str, batch: int, pixels: int) -> str:
    """One line of the table."""
    model, images = network(name), torch.randn(batch, 3, pixels, pixels)
    flow = surgery.trace(model, images[:1])
    plan = flow.plan(dead_channels(flow))
    with torch.no_grad():
        model(images)
        forward = statistics.median(seconds(lambda: model(images)) for _ in range(3))
    spent = seconds(lambda: surgery.compensate(model, plan, [images]))
    return f"{name:20s} {forward:8.2f} {spent:10.2f} {spent / forward:15.1f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=["efficientnet_v2_s"])
    parser.add_argument("--batch", type=int, default=4, help="images in the batch")
    parser.add_argument("--pixels", type=int, default=224, help="their height and width")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"batch of {options.batch} images of {options.pixels} px; seconds")
    print(f"{'network':20s} {'forward':>8s} {'compensate':>10s} {'forward passes':>15s}")
    for name in options.networks:
        print(row(name, options.batch, options.pixels), flush=True)


if __name__ == "__main__":
    main()
