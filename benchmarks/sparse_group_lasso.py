"""Sparse group lassos of LeNet-5 on MNIST: test error, zeros, and what is left after the cut.

Run `python benchmarks/sparse_group_lasso.py train ARM …` for the arms at one weight of the penalty,
`--lam`; it prints validation accuracy and sizes and keeps the slim networks. When a weight is
chosen for every arm, `… test ARM:LAM …` touches the test images once and prints the table. An arm
with a splitting takes its lam / beta as a third number, `ARM:LAM:STEP`. Fifteen epochs are two
minutes on a CPU core. Groups are those of the papers: output channels of convolutions and inputs of
linear layers.
"""

import argparse
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from lightning_sparsity import Regularization, RelaxedVariableSplitting, surgery
from lightning_sparsity.classifier import ImageClassifier
from lightning_sparsity.data import MNIST
from lightning_sparsity.groups import Groups
from lightning_sparsity.models import LeNet5
from lightning_sparsity.penalties import (
    L0,
    L1,
    ExclusiveLasso,
    GroupLasso,
    L1MinusL2,
    Penalty,
    SparseGroup,
    TransformedL1,
)
from lightning_sparsity.schedules import Warmup
from lightning_sparsity.selection import select_weights

LASSO = GroupLasso(weighted=True)
LAYERS = ("conv1", "conv2", "fc1", "fc2")
BETA = 0.1
SPLITS: dict[str, Penalty] = {  # of the copies
    "SGL0": L0(),
    "SGTL1": TransformedL1(1.0),
    "SGL1-L2": L1MinusL2(1.0),
}
STEP = 1e-3  # lam / beta when its weight has risen
ARMS = ("dense", "GL", "SGL1", *SPLITS, "CGES")


def groups_of(layer: str) -> Groups:
    """The groups of the papers."""
    return "output_channels" if layer.startswith("conv") else "input_channels"


def proximal(penalty: Penalty, lam: float, layer: str, folder: Path) -> Regularization:
    """A penalty on the groups of one layer, by proximal steps."""
    return Regularization(
        penalty,
        Warmup(lam, epochs=3),
        select=layer,
        groups=groups_of(layer),
        update="proximal",
        dirpath=str(folder),
    )


def callbacks(arm: str, lam: float, step: float, folder: Path) -> list[pl.Callback]:
    """What makes the network sparse."""
    if arm == "dense":
        return []
    if arm == "CGES":  # the deeper, the more exclusive; without weights by size
        shares = [(layer, i / len(LAYERS)) for i, layer in enumerate(LAYERS)]
        lassos = [proximal(GroupLasso(), 20 * lam * (1 - s), x, folder) for x, s in shares]
        return [*lassos, *(proximal(ExclusiveLasso(), lam * s, x, folder) for x, s in shares if s)]
    if arm == "SGL1":
        both = SparseGroup(L1(), LASSO, group_weight=1.0)
        return [proximal(both, lam, layer, folder) for layer in LAYERS]
    made: list[pl.Callback] = [proximal(LASSO, lam, layer, folder) for layer in LAYERS]
    if arm in SPLITS:
        made.append(RelaxedVariableSplitting(SPLITS[arm], Warmup(step * BETA, epochs=13), BETA))
    return made


@torch.no_grad()
def accuracy(network: nn.Module, root: str, split: str) -> float:
    """Share of images whose class is named right, in float32."""
    data = MNIST(root, batch_size=1000)
    data.setup("validate" if split == "val" else "test")
    loader = data.val_dataloader() if split == "val" else data.test_dataloader()
    network = network.eval()
    right = [(network(images).argmax(1) == labels).sum() for images, labels in loader]
    return float(torch.stack(right).sum()) / len(loader.labels)


def zeros(network: nn.Module) -> dict[str, float]:
    """Shares of weights and of groups that are zero, exactly and as the papers count."""
    weights, groups, close = [], [], []
    for layer in LAYERS:
        (found,) = select_weights(network, layer, groups_of(layer))
        rows = found.weight.detach().movedim(found.axis or 0, 0).flatten(1)
        weights.append((rows == 0).flatten())
        groups.append((rows == 0).all(1))
        close.append(rows.abs().mean(1) <= 1e-5)
    shares = [float(torch.cat(x).float().mean()) for x in (weights, groups, close)]
    return dict(zip(("zero weights", "zero groups", "groups below 1e-5"), shares, strict=True))


def folder_of(args: argparse.Namespace, arm: str, lam: float, step: float, seed: int) -> Path:
    """Where a network of an arm is kept."""
    strengths = f"{lam:g}-{step:g}" if arm in SPLITS else f"{lam:g}"
    found: Path = args.folder / f"{arm}-{strengths}-{seed}"
    return found


def train(args: argparse.Namespace, arm: str, lam: float, step: float) -> None:
    """Train one arm; validation accuracy, zeros and sizes."""
    folder = folder_of(args, arm, lam, step, args.seed)
    folder.mkdir(parents=True, exist_ok=True)
    pl.seed_everything(args.seed)
    module = ImageClassifier(
        LeNet5(),
        channels_last=True,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
        lr_scheduler=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, args.epochs),
    )
    sparse = callbacks(arm, lam, step, folder)
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        precision="bf16-mixed",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=sparse,
    )
    trainer.fit(module, datamodule=MNIST(args.root, augment=True, seed=args.seed))
    figures: dict[str, Any] = {"val": accuracy(module.model, args.root, "val")}
    if sparse:
        cutter: Any = sparse[0]
        with cutter.uncut(module):
            figures |= {"val before": accuracy(module.model, args.root, "val")}
            figures |= zeros(module.model)
        report = json.loads((folder / "slim" / "report.json").read_text())
        figures |= {k: report[k]["slim"] for k in ("parameters", "flops")}
        figures["proof"] = report["proof"]
    else:
        torch.save(module.model.state_dict(), folder / "dense.pt")
        figures["parameters"] = sum(x.numel() for x in module.model.parameters())
    (folder / "val.json").write_text(json.dumps(figures, indent=2))
    print(folder.name, json.dumps(figures), flush=True)


def test(args: argparse.Namespace, arm: str, lam: float, step: float) -> None:
    """The figures of one arm on the test images, a seed a line."""
    for seed in args.seeds:
        folder = folder_of(args, arm, lam, step, seed)
        network: nn.Module = LeNet5()
        if arm == "dense":
            network.load_state_dict(torch.load(folder / "dense.pt", weights_only=True))
        else:
            network = surgery.load(network, folder / "slim")
        figures = json.loads((folder / "val.json").read_text())
        figures["test error in %"] = round(100 - 100 * accuracy(network, args.root, "test"), 2)
        (folder / "test.json").write_text(json.dumps(figures, indent=2))
        print(folder.name, json.dumps(figures), flush=True)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["train", "test"])
    parser.add_argument("arms", nargs="+", help=f"{', '.join(ARMS)}, with :LAM[:STEP]")
    parser.add_argument("--root", default=".data")
    parser.add_argument("--folder", type=Path, default=Path("runs/sparse-group-lasso"))
    parser.add_argument("--lam", type=float, default=1e-4)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for name in args.arms:
        arm, lam, step, *_ = [*name.split(":"), "", ""]
        run = {"train": train, "test": test}[args.what]
        run(args, arm, float(lam or args.lam), float(step or STEP))


if __name__ == "__main__":
    main()
