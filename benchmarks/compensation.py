"""What dead channels should leave behind: nothing, their shift, or their mean activation.

    python benchmarks/compensation.py --root DATA --weights vgg11.pt

Trains a thin VGG-11 on CIFAR-10 with l1 on the BatchNorm scales by subgradient, cuts shares of its
channels and prints the accuracy on the 5 000 validation images that training never sees. The test
images are not read. Each network is judged as it is cut and with its BatchNorm statistics estimated
anew. If the file of weights exists already, they are read and nothing is trained.
"""

import argparse
import copy
import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from lightning_sparsity import surgery
from lightning_sparsity.data import CIFAR10
from lightning_sparsity.models.initialisation import initialise

WIDTHS = (32, 0, 64, 0, 128, 128, 0, 256, 256, 0, 256, 256, 0)  # 0: pooling
Batches = Iterable[tuple[Tensor, Tensor]]


def network() -> nn.Sequential:
    """VGG-11 with a quarter to a half of the usual channels."""
    layers: list[nn.Module] = []
    before = 3
    for width in WIDTHS:
        if width == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        conv = nn.Conv2d(before, width, 3, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        before = width
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))
    initialise(model)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def train(model: nn.Sequential, data: CIFAR10, *, lam: float, epochs: int, lr: float) -> None:
    """SGD with momentum and a cosine; lam * |scale| by its subgradient."""
    loader, scales = data.train_dataloader(), [norm.weight for norm in norms(model).values()]
    optimizer = torch.optim.SGD(
        model.parameters(), lr, momentum=0.9, weight_decay=1e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    for epoch in range(epochs):
        start, total = time.perf_counter(), 0.0
        model.train()
        for images, labels in loader:
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(images.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), labels)
            optimizer.zero_grad()
            loss.backward()
            for scale in scales:
                assert scale.grad is not None
                scale.grad += lam * scale.detach().sign()
            optimizer.step()
            schedule.step()
            total += loss.item()
        small = torch.cat(scales).detach().abs().lt(1e-2).float().mean()
        print(
            f"epoch {epoch + 1}: loss {total / len(loader):.3f}, scales below 0.01 {small:.1%}, "
            f"validation {accuracy(model, data.val_dataloader()):.2%}, "
            f"{time.perf_counter() - start:.0f} s",
            flush=True,
        )


def norms(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """The BatchNorm layers by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}


@torch.no_grad()
def accuracy(model: nn.Module, batches: Batches) -> float:
    """The share of images that a model classifies correctly."""
    model.eval()
    right = torch.cat([model(images).argmax(1) == labels for images, labels in batches])
    return right.float().mean().item()


def without_shifts(model: nn.Module, plan: surgery.Plan) -> nn.Module:
    """A copy whose dead channels have no shift."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, norm in norms(model).items():
            norm.bias[plan.dead[name]] = 0
    return model


def row(model: nn.Module, share: float, data: CIFAR10, calibration: list[Tensor]) -> str:
    """The accuracies after cutting a share of the channels."""
    example = calibration[0][:1]
    plan = surgery.trace(model, example).plan_by(share)
    largest = max(
        float(norm.weight.detach()[plan.dead[name]].abs().max())
        for name, norm in norms(model).items()
        if bool(plan.dead[name].any())
    )
    figures = []
    for start in (
        without_shifts(model, plan),
        model,
        surgery.compensate(model, plan, calibration),
    ):
        small = surgery.slim(start, surgery.trace(start, example).plan(plan.dead))
        figures.append(accuracy(small, data.val_dataloader()))
        update_bn(calibration, small)
        figures.append(accuracy(small, data.val_dataloader()))
    cells = [f"{share:.0%}", f"{largest:.3f}", *(f"{figure:.2%}" for figure in figures)]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Train if need be, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default=".data", help="folder with the CIFAR-10 files")
    parser.add_argument("--weights", type=Path, default=Path("vgg11.pt"))
    parser.add_argument("--lam", type=float, default=1e-3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--shares", nargs="+", type=float, default=[0.3, 0.4, 0.5, 0.6, 0.7])
    parser.add_argument("--batches", type=int, default=40, help="of 128 calibration images")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data, model = CIFAR10(options.root), network()
    data.setup("fit")
    if options.weights.exists():
        model.load_state_dict(torch.load(options.weights, weights_only=True))
    else:
        train(model, data, lam=options.lam, epochs=options.epochs, lr=options.lr)
        torch.save(model.state_dict(), options.weights)
    model.eval()
    calibration = [images for images, _ in islice(data.train_dataloader(), options.batches)]
    print(f"not cut: {accuracy(model, data.val_dataloader()):.2%} on validation images")
    print("| cut | largest scale cut | no shift | and BN | shift | and BN | mean | and BN |")
    print("|---|---|---|---|---|---|---|---|")
    for share in options.shares:
        print(row(model, share, data, calibration), flush=True)


if __name__ == "__main__":
    main()
