"""A network of 332 002 parameters on MNIST, made small by a sparse group lasso, with guidance.

Run `python benchmarks/variance_mnist.py start --seed 0` once for each seed: the dense network. Then
`… train plain --seed 0` and `… train guided --seed 0` go on from it: sparse epochs, the cut in
`on_train_end`, and epochs of fine-tuning; it prints validation accuracy, sizes, and how the lengths
of the surviving groups are spread. When everything is chosen, `… test plain guided --seeds 0 1 2`
touches the test images once. A seed takes about 20 minutes on a CPU core.
"""

import argparse
import json
import logging
import statistics
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from lightning_sparsity import Regularization, VarianceGuidance, surgery, variance
from lightning_sparsity.classifier import ImageClassifier
from lightning_sparsity.data import MNIST, Warp
from lightning_sparsity.groups import Groups
from lightning_sparsity.models import MNISTNet
from lightning_sparsity.penalties import L1, GroupLasso, SparseGroup

ROWS: Groups = "output_channels"
COLUMNS: Groups = "input_channels"
ARMS: dict[str, dict[str, float]] = {
    "plain": {"lam": 2.7e-4, "guidance": 0.0},
    "guided": {"lam": 1.6e-4, "guidance": 2e-2},
}
ENTRIES = 0.03  # how much an entry weighs, as a share of its group
STRONG, LIGHT = Warp(), Warp(turn=8, scale=0.08, shear=0.1, shift=1.0, bend=1.2)
FIRST, LAST = 1.5, 5.0  # how much more the groups of the linear layers weigh


def schedule(epochs: int, rate: float, decay: float) -> dict[str, Any]:
    """SGD with the learning rate falling to zero along a cosine."""
    return {
        "optimizer": lambda p: torch.optim.SGD(
            p, lr=rate, momentum=0.9, nesterov=True, weight_decay=decay
        ),
        "lr_scheduler": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, epochs),
    }


def fit(
    network: nn.Module,
    args: argparse.Namespace,
    epochs: int,
    rate: float,
    decay: float,
    *more: pl.Callback,
    warp: Warp = LIGHT,
) -> ImageClassifier:
    """Train quietly; `more` are callbacks."""
    module = ImageClassifier(network, channels_last=True, **schedule(epochs, rate, decay))
    trainer = pl.Trainer(
        max_epochs=epochs,
        precision="bf16-mixed",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[*more],
    )
    trainer.fit(module, datamodule=MNIST(args.root, augment=warp, seed=args.seed))
    return module


@torch.no_grad()
def accuracy(network: nn.Module, root: str, split: str) -> float:
    """Share of images whose class is named right, in float32."""
    data = MNIST(root, batch_size=1000)
    data.setup("validate" if split == "val" else "test")
    loader = data.val_dataloader() if split == "val" else data.test_dataloader()
    network = network.eval().to(memory_format=torch.channels_last)
    right = [(network(images).argmax(1) == labels).sum() for images, labels in loader]
    return float(torch.stack(right).sum()) / len(loader.labels)


def spread(network: nn.Module) -> dict[str, Any]:
    """How the lengths of the surviving groups of each layer are spread."""
    layers = {
        **dict.fromkeys(("conv1", "conv2", "conv3"), 0),
        **dict.fromkeys(("fc1", "fc2"), 1),
    }
    found = {
        name: variance.statistics(variance.lengths(network.get_submodule(name).weight, axis))
        for name, axis in layers.items()
    }
    return {
        "active": {name: layer.active for name, layer in found.items()},
        "cv": statistics.mean(layer.cv for layer in found.values()),
        "kurtosis": statistics.mean(layer.kurtosis for layer in found.values()),
    }


def parameters(network: nn.Module) -> int:
    """All of them."""
    return sum(x.numel() for x in network.parameters())


def start(args: argparse.Namespace) -> None:
    """Train the dense network that both arms go on from."""
    pl.seed_everything(args.seed)
    network = MNISTNet()
    fit(network, args, args.start_epochs, 0.1, 5e-4, warp=STRONG)
    torch.save(network.state_dict(), args.folder / f"start-{args.seed}.pt")
    print("dense", accuracy(network, args.root, "val"), flush=True)


def callbacks(arm: str, folder: Path, args: argparse.Namespace) -> list[pl.Callback]:
    """What makes the network sparse."""
    chosen = {**ARMS[arm]}
    chosen.update({k: x for k in chosen if (x := getattr(args, k)) is not None})
    lam = chosen["lam"]
    both = SparseGroup(L1(), GroupLasso(weighted=True), group_weight=1 / ENTRIES)
    made: list[pl.Callback] = [
        Regularization(
            both,
            strength * ENTRIES,
            select=select,
            groups=groups,
            update="proximal",
            dirpath=str(folder),
        )
        for select, groups, strength in (
            ("conv*", ROWS, lam),
            ("fc1", COLUMNS, lam * FIRST),
            ("fc2", COLUMNS, lam * LAST),
        )
    ]
    if chosen["guidance"]:
        for select, groups in (("conv*", ROWS), (["fc1", "fc2"], COLUMNS)):
            made.append(VarianceGuidance(chosen["guidance"], select=select, groups=groups))
    return made


def train(args: argparse.Namespace, arm: str) -> None:
    """Sparse training, cut and fine-tuning of one arm; validation accuracy."""
    folder = folder_of(args, arm)
    folder.mkdir(exist_ok=True)
    pl.seed_everything(args.seed + 100)
    network = MNISTNet(dropout=0.1)
    network.load_state_dict(torch.load(args.folder / f"start-{args.seed}.pt", weights_only=True))
    sparse = callbacks(arm, folder, args)
    module = fit(network, args, args.epochs, 0.05, 0.0, *sparse, warp=STRONG)
    cutter: Any = sparse[0]
    with cutter.uncut(module):
        figures = {"sparse": accuracy(module.model, args.root, "val"), **spread(module.model)}
    figures |= {"cut": accuracy(module.model, args.root, "val")}
    print(arm, args.seed, json.dumps(figures), parameters(module.model), flush=True)
    pl.seed_everything(args.seed + 200)
    small = module.model
    small.train()
    fit(small, args, args.tune_epochs, 0.05, 1e-4)
    torch.save(small.state_dict(), folder / "tuned.pt")
    figures |= {"tuned": accuracy(small, args.root, "val"), "parameters": parameters(small)}
    (folder / "val.json").write_text(json.dumps(figures, indent=2))
    print(arm, args.seed, json.dumps(figures), flush=True)


def folder_of(args: argparse.Namespace, arm: str) -> Path:
    """Where an arm of a seed keeps its files."""
    folder: Path = args.folder / f"{args.name or arm}-{args.seed}"
    return folder


def test(args: argparse.Namespace, arm: str) -> None:
    """The figures of one arm on the test images, over all seeds."""
    rows: list[dict[str, Any]] = []
    for seed in args.seeds:
        args.seed = seed
        folder = folder_of(args, arm)
        dense = MNISTNet()
        dense.load_state_dict(torch.load(args.folder / f"start-{args.seed}.pt", weights_only=True))
        cut, tuned = (surgery.load(MNISTNet(), folder / "slim") for _ in range(2))
        tuned.load_state_dict(torch.load(folder / "tuned.pt", weights_only=True))
        report = json.loads((folder / "slim" / "report.json").read_text())
        networks = {"dense": dense, "cut": cut, "tuned": tuned}
        rows.append(
            {name: accuracy(net, args.root, "test") for name, net in networks.items()}
            | {k: x for k, x in json.loads((folder / "val.json").read_text()).items() if k != "cut"}
            | {"proof": report["proof"], "flops": report["flops"]["slim"]}
            | {"tuned": accuracy(tuned, args.root, "test")}
        )
        print(arm, args.seed, json.dumps(rows[-1]), flush=True)
    keys = ("dense", "cut", "tuned", "parameters", "flops", "cv", "kurtosis")
    means = {key: statistics.mean(row[key] for row in rows) for key in keys}
    (args.folder / f"{args.name or arm}-test.json").write_text(json.dumps(rows, indent=2))
    print(arm, "mean of", len(rows), json.dumps(means), flush=True)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["start", "train", "test"])
    parser.add_argument("arms", nargs="*", help=", ".join(ARMS))
    parser.add_argument("--root", default=".data")
    parser.add_argument("--folder", type=Path, default=Path("runs/variance-mnist"))
    parser.add_argument("--name", help="of the folder of an arm, for trials")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--start-epochs", type=int, default=18)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--tune-epochs", type=int, default=18)
    parser.add_argument("--lam", type=float)
    parser.add_argument("--guidance", type=float)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if args.what == "start":
        start(args)
    for arm in args.arms:
        {"train": train, "test": test}[args.what](args, arm)


if __name__ == "__main__":
    main()
