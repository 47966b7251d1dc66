"""What relaxed variable splitting costs per step, side by side with the step itself.

    python benchmarks/splitting_step.py

A network of the size of VGG-19 (20 M weights), batch 64, float32. Each round times one forward and
backward pass and then every variant once, so that a noisy machine slows all of them alike; medians
over the rounds. "naive" is the usual Python loop that stores u and uses the cosine form of Tl1; the
floor is the time to move the bytes that have to move (read w, read and write the gradient). "extra
MB" is by how much the peak of resident memory of a training step rises when the variant follows it.
"""

import argparse
import math
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_sparsity import splitting
from lightning_sparsity.penalties import L0, L1, Grouped, GroupLasso, Penalty, TransformedL1

WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512, 512, 512, 512)
BETA, STEP = 0.1, 1e-2
L0_STEP = 2e-4


def network() -> nn.Sequential:
    """VGG-19 for images of 32 by 32."""
    layers: list[nn.Module] = []
    before = 3
    for width in WIDTHS:
        if width == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
        layers.append(nn.ReLU(inplace=True))
        before = width
    return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(512, 10))


def naive(weights: Sequence[Tensor], penalty: Penalty) -> Callable[[], None]:
    """The loop of the papers' code: a stored copy, whole tensors, the cosine form."""
    copies = [torch.empty_like(w) for w in weights]

    @torch.no_grad()
    def step() -> None:
        for w, u in zip(weights, copies, strict=True):
            u.copy_(_naive_prox(w, penalty))
            assert w.grad is not None
            w.grad.add_(BETA * (w - u))

    return step


def _naive_prox(w: Tensor, penalty: Penalty) -> Tensor:
    t = w.abs()
    if isinstance(penalty, L0):
        return torch.where(t > math.sqrt(2 * L0_STEP), w, torch.zeros_like(w))
    if isinstance(penalty, L1):
        return w.sign() * (t - STEP).clamp(min=0)
    if isinstance(penalty, TransformedL1):
        a = penalty.a
        angle = torch.arccos(1 - 27 * STEP * a * (a + 1) / (2 * (a + t) ** 3))
        root = 2 / 3 * (a + t) * torch.cos(angle / 3) - 2 * a / 3 + t / 3
        return torch.where(t > penalty.numbers(STEP)[0], w.sign() * root, torch.zeros_like(w))
    norm = w.flatten(1).norm(dim=1).view(-1, *[1] * (w.dim() - 1))
    if isinstance(penalty, GroupLasso):
        return w * (1 - STEP / norm).clamp(min=0)
    return torch.where(norm > math.sqrt(2 * STEP), w, torch.zeros_like(w))


def ours(weights: Sequence[Tensor], penalty: Penalty, compiled: bool) -> Callable[[], None]:
    """What the callback runs."""
    axis = 0 if penalty.acts == "rows" else None
    lam_over_beta = L0_STEP if isinstance(penalty, L0) else STEP

    def step() -> None:
        for w in weights:
            grad = w.grad
            assert grad is not None
            splitting.pull(
                w.detach(), grad, penalty, lam_over_beta, BETA, axis=axis, compiled=compiled
            )

    return step


def copy_bandwidth(entries: int) -> float:
    """Bytes per second of `y += x`, which reads two tensors and writes one."""
    x, y = torch.randn(entries), torch.randn(entries)
    times = [seconds(lambda: y.add_(x)) for _ in range(7)]
    return 12 * entries / statistics.median(times)


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def peak_memory(*calls: Callable[[], object]) -> int:
    """Resident bytes at the peak of some calls, after running them once (Linux only)."""
    for measured in (False, True):
        if measured:
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        for call in calls:
            call()
    return _status("VmHWM")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = network()
    images, labels = torch.randn(64, 3, 32, 32), torch.randint(0, 10, (64,))

    def train_step() -> None:
        model.zero_grad(set_to_none=False)
        nn.functional.cross_entropy(model(images), labels).backward()

    train_step()
    weights = [p for p in model.parameters() if p.dim() > 1]
    entries = sum(w.numel() for w in weights)
    penalties: list[Penalty] = [L0(), L1(), TransformedL1(1.0), GroupLasso(), Grouped(L0())]
    makers: dict[tuple[str, str], Callable[[], Callable[[], None]]] = {}
    for penalty in penalties:
        name = repr(penalty)
        makers[name, "eager"] = partial(ours, weights, penalty, compiled=False)
        if penalty.acts == "entries":
            compiled = partial(ours, weights, penalty, compiled=True)
            print(f"{name}: the first compiled call took {seconds(compiled()):.1f} s")
            makers[name, "compiled"] = compiled
        makers[name, "naive"] = partial(naive, weights, penalty)
    memory = {}
    for key, make in makers.items():
        peak_memory(train_step)
        plain = peak_memory(train_step)
        memory[key] = peak_memory(train_step, make()) - plain
    variants = {key: make() for key, make in makers.items()}
    times: dict[tuple[str, str], list[float]] = {key: [] for key in variants}
    base = []
    for _ in range(options.rounds):
        base.append(seconds(train_step))
        for key, step in variants.items():
            times[key].append(seconds(step))
    _print(entries, base, times, memory)


def _print(
    entries: int,
    base: list[float],
    times: dict[tuple[str, str], list[float]],
    memory: dict[tuple[str, str], int],
) -> None:
    floor = 12 * entries / copy_bandwidth(entries)
    step = statistics.median(base)
    print(f"{entries:,} weights; forward and backward {1e3 * step:.0f} ms")
    print(f"floor (12 bytes per weight at the measured bandwidth): {1e3 * floor:.1f} ms")
    print(f"{'penalty':34}{'variant':10}{'ms':>8}{'% of step':>11}{'x floor':>9}{'extra MB':>10}")
    for (penalty, variant), seconds in times.items():
        median = statistics.median(seconds)
        share = statistics.median(s / b for s, b in zip(seconds, base, strict=True))
        megabytes = memory[penalty, variant] / 1e6
        print(
            f"{penalty:34}{variant:10}{1e3 * median:8.1f}{share:11.1%}{median / floor:9.1f}"
            f"{megabytes:10.1f}"
        )
    print(f"2 % of the weights are {0.02 * 4 * entries / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
