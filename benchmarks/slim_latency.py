"""How much faster a slim network answers: with and without gathering, and in round widths.

    python benchmarks/slim_latency.py

Float32 in evaluation mode, images of 32 pixels. Scales and shifts are drawn at random, the share of
BatchNorm channels with the smallest scales is cut. Every round times one answer of every network,
one after the other, so that a noisy machine slows all of them alike: by default the dense, the
masked, the slim and the slim network without gathering; with --round-to the dense one, the slim one
and the slim ones whose widths are rounded up. Times are medians over the rounds; ratios are medians
of the ratios within a round, in brackets the middle half of them. FLOPs are counted by fvcore.
"""

import argparse
from collections.abc import Callable

import torch
from torch import nn

from lightning_sparsity import surgery
from lightning_sparsity.metrics import flops
from lightning_sparsity.models import VGG19, DenseNet40, ResNet20, ResNet56
from lightning_sparsity.report.latency import Comparison, compare

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "VGG19": VGG19,
    "ResNet20": ResNet20,
    "ResNet56": ResNet56,
    "DenseNet40": DenseNet40,
}


DEFAULT = ["VGG19", "ResNet56", "DenseNet40"]


def drawn(name: str) -> nn.Module:
    """A network with random scales and shifts."""
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight)
            nn.init.normal_(norm.bias, std=0.1)
    return model


def variants(model: nn.Module, share: float) -> dict[str, nn.Module]:
    """The dense network and what can become of it."""
    flow = surgery.trace(model, torch.randn(1, 3, 32, 32))
    gathered, whole = (flow.plan_by(share, gather=gather) for gather in (True, False))
    return {
        "dense": model,
        "masked": surgery.mask(model, gathered),
        "slim": surgery.slim(model, gathered),
        "no gather": surgery.slim(model, whole),
    }


def in_round_widths(
    model: nn.Module, amount: float | surgery.Budget, multiples: list[int], *, gather: bool
) -> dict[str, nn.Module]:
    """The dense network, the slim one and the slim ones of other widths."""
    flow = surgery.trace(model, torch.randn(1, 3, 32, 32))
    plans = {n: flow.plan_by(amount, gather=gather, round_to=n) for n in (1, *multiples)}
    slim = {f"to {n}": surgery.slim(model, plan) for n, plan in plans.items()}
    return {"dense": model, **slim}


def ratio(found: Comparison, name: str, to: str) -> str:
    """The median ratio within a round, and the middle half."""
    middle = found.ratio(name, to=to)
    return f"{middle.median:.2f} ({middle.low:.2f}–{middle.high:.2f})"


def row(name: str, share: float, batch: int, models: dict[str, nn.Module], seconds: float) -> str:
    """One line of the table."""
    example = torch.randn(1, 3, 32, 32)
    work = {key: flops(model, example).total for key, model in models.items()}
    found = compare(models, torch.randn(batch, 3, 32, 32), seconds)
    cells = [name, f"{share:.0%}", str(batch), f"{found.timing('dense').median:.1f}"]
    cells.append(ratio(found, "masked", to="dense"))
    for key in ("slim", "no gather"):
        cells += [f"{work[key] / work['dense']:.0%}", f"{found.timing(key).median:.1f}"]
        cells.append(ratio(found, key, to="dense"))
    cells.append(ratio(found, "slim", to="no gather"))
    return f"| {' | '.join(cells)} |"


def row_of_widths(
    name: str,
    amount: float | surgery.Budget,
    batch: int,
    models: dict[str, nn.Module],
    seconds: float,
) -> str:
    """One line of the table of round widths."""
    example = torch.randn(1, 3, 32, 32)
    work = {key: flops(model, example).total for key, model in models.items()}
    found = compare(models, torch.randn(batch, 3, 32, 32), seconds)
    cells = [name, str(amount), str(batch), f"{found.timing('dense').median:.1f}"]
    for key in list(models)[1:]:
        cells += [f"{work[key] / work['dense']:.0%}", f"{found.timing(key).median:.1f}"]
        cells.append(ratio(found, "dense", to=key))
    cells += [ratio(found, "to 1", to=key) for key in list(models)[2:]]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=DEFAULT)
    parser.add_argument("--shares", nargs="+", type=float, default=[0.5, 0.7])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--seconds", type=float, default=15, help="at most about, for each row")
    parser.add_argument("--round-to", nargs="+", type=int, help="compare round widths")
    parser.add_argument("--flops", nargs="+", type=float, help="with --round-to: budgets to keep")
    parser.add_argument("--gather", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    header = (
        "| network | cut | batch | dense ms | masked / dense | FLOPs | slim ms | slim / dense "
        "| FLOPs, no gather | ms | no gather / dense | slim / no gather |"
    )
    if options.round_to:
        header = "| network | cut | batch | dense ms | FLOPs | slim ms | dense / slim |"
        header += "".join(f" FLOPs, to {n} | ms | dense / it |" for n in options.round_to)
        header += "".join(f" slim / to {n} |" for n in options.round_to)
    print(header)
    print("|" + "---|" * (header.count("|") - 1))
    amounts = [surgery.Flops(keep) for keep in options.flops or []] or options.shares
    for name in options.networks:
        model = drawn(name)
        for amount in amounts if options.round_to else options.shares:
            if options.round_to:
                models = in_round_widths(model, amount, options.round_to, gather=options.gather)
            else:
                models = variants(model, amount)
            for batch in options.batches:
                line = row_of_widths if options.round_to else row
                print(line(name, amount, batch, models, options.seconds), flush=True)


if __name__ == "__main__":
    main()
