"""What penalties on rows cost per step, side by side with the step itself.

    python benchmarks/row_groups_step.py

A network of the size of VGG-19 (20 M weights), batch 64, float32, as in `splitting_step.py`. Each
round times one forward and backward pass with the optimizer's step, and then every variant once;
medians over the rounds, and shares of that step by round. "metric" is the proximal step with one
step per weight, as after Adam.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from splitting_step import network, seconds
from torch import Tensor, nn

from lightning_sparsity import regularization, splitting, variance
from lightning_sparsity.penalties import L0, L1, Grouped, GroupLasso, Penalty, SparseGroup
from lightning_sparsity.regularization import Metric

LASSO = GroupLasso(weighted=True)
PENALTIES: list[Penalty] = [LASSO, SparseGroup(L1(), LASSO), Grouped(L0())]
LAM, RATE = 1e-4, 1e-3


def variants(model: nn.Module) -> dict[tuple[str, str], Callable[[], object]]:
    """Every update by the name of its penalty and its own."""
    weights = [p for p in model.parameters() if p.dim() > 1]
    made: dict[tuple[str, str], Callable[[], object]] = {}
    for penalty in PENALTIES:
        name = repr(penalty)
        if not isinstance(penalty, Grouped):
            made[name, "subgradient"] = lambda p=penalty: [
                regularization.push(w.detach(), _grad(w), p, LAM, axis=0) for w in weights
            ]
        made[name, "proximal"] = lambda p=penalty: [
            regularization.proximal_step(w.detach(), p, RATE * LAM, axis=0) for w in weights
        ]
        metrics = [Metric(torch.full_like(w, 1e-4), 1.0, 1e-8) for w in weights]
        made[name, "metric"] = lambda p=penalty, metrics=metrics: [
            regularization.proximal_step(w.detach(), p, RATE * LAM, metric=m, axis=0)
            for w, m in zip(weights, metrics, strict=True)
        ]
    made[repr(LASSO), "splitting"] = lambda: [
        splitting.pull(w.detach(), _grad(w), LASSO, 1e-3, 0.1, axis=0) for w in weights
    ]
    made["variance guidance", "subgradient"] = lambda: [
        variance.push(w, _grad(w), LAM, axis=0) for w in weights
    ]
    return made


def _grad(weight: Tensor) -> Tensor:
    assert weight.grad is not None
    return weight.grad


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    images, labels = torch.randn(64, 3, 32, 32), torch.randint(0, 10, (64,))

    def train_step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    train_step()
    updates = variants(model)
    base: list[float] = []
    times: dict[tuple[str, str], list[float]] = {key: [] for key in updates}
    for _ in range(options.rounds):
        base.append(seconds(train_step))
        for key, update in updates.items():
            times[key].append(seconds(update))
    entries = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    print(f"{entries:,} weights; a step of training {1e3 * statistics.median(base):.0f} ms")
    print(f"{'penalty':84}{'update':12}{'ms':>8}{'% of step':>11}")
    for (penalty, update), found in times.items():
        share = statistics.median(t / b for t, b in zip(found, base, strict=True))
        print(f"{penalty:84}{update:12}{1e3 * statistics.median(found):8.1f}{share:11.1%}")


if __name__ == "__main__":
    main()
