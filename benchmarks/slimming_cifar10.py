"""Network slimming of ResNet-20 on CIFAR-10, all penalties at equal epochs, in two CPU hours.

Run `python benchmarks/slimming_cifar10.py start` once: a dense network trained at a constant
learning rate, from which all arms go on. Then `… train ARM` for each arm: sparse epochs with the
learning rate falling to zero, the cut in `on_train_end`, and fine-tuning epochs; it prints
validation accuracy. `… equal-flops ARM` compares cuts of equal cost. When everything is chosen,
`… test ARM …` touches the test images once.
"""

import argparse
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_sparsity import NetworkSlimming, surgery
from lightning_sparsity.classifier import ImageClassifier
from lightning_sparsity.data import CIFAR10
from lightning_sparsity.models import ResNet20
from lightning_sparsity.penalties import L1, MCP, SCAD, L0Ball, Lp, TransformedL1

AMOUNTS = (0.3, 0.4, 0.5, 0.6, 0.7)
AMOUNT = 0.5
LAM = 3e-3
ARMS: dict[str, dict[str, Any]] = {
    "dense": {"penalty": L1(), "lam": 0.0},
    "l1": {"penalty": L1()},
    "lp": {"penalty": Lp(0.5)},
    "tl1": {"penalty": TransformedL1(1.0)},
    "mcp": {"penalty": MCP(2.0)},
    "scad": {"penalty": SCAD(0.5, 1.85)},
    "ball": {"penalty": L0Ball(AMOUNT, end=0.6), "beta": 3.0},
    # A proximal step shrinks by lr * lam / (1 + beta * lr), without momentum.
    "tl1-proximal": {"penalty": TransformedL1(1.0), "update": "proximal", "lam": 20 * LAM},
}


def cosine(epochs: int, rate: float) -> dict[str, Any]:
    """SGD with the learning rate falling to zero."""
    return {
        "optimizer": lambda p: torch.optim.SGD(p, lr=rate, momentum=0.9, weight_decay=1e-4),
        "lr_scheduler": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, epochs),
    }


def constant(rate: float) -> dict[str, Any]:
    """SGD with a constant learning rate."""
    return {"optimizer": lambda p: torch.optim.SGD(p, lr=rate, momentum=0.9, weight_decay=1e-4)}


def fit(module: pl.LightningModule, epochs: int, root: str, *callbacks: pl.Callback) -> pl.Trainer:
    """Train quietly."""
    trainer = pl.Trainer(
        max_epochs=epochs,
        precision="bf16-mixed",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        callbacks=[*callbacks],
    )
    trainer.fit(module, datamodule=CIFAR10(root))
    return trainer


@torch.no_grad()
def predictions(network: nn.Module, root: str, split: str) -> tuple[Tensor, Tensor]:
    """Predicted and true labels of the validation or the test images, in float32."""
    data = CIFAR10(root)
    data.setup("validate" if split == "val" else "test")
    loader = data.val_dataloader() if split == "val" else data.test_dataloader()
    network = network.eval().to(memory_format=torch.channels_last)
    pairs = [(network(images).argmax(1), labels) for images, labels in loader]
    return torch.cat([p for p, _ in pairs]), torch.cat([y for _, y in pairs])


def accuracy(network: nn.Module, root: str, split: str) -> float:
    """Share of images whose class is named right."""
    predicted, labels = predictions(network, root, split)
    return float((predicted == labels).float().mean())


def usual(network: nn.Module, plan: surgery.Plan) -> nn.Module:
    """The usual practice: scale and shift of a dead channel are both zero."""
    masked = surgery.mask(network, plan)
    with torch.no_grad():
        for name, dead in plan.dead.items():
            masked.get_submodule(name).bias[dead] = 0
    return masked


def trained(folder: Path) -> nn.Module:
    """The network after sparse training, before its cut."""
    network = ResNet20()
    state = torch.load(folder / "sparse.ckpt", weights_only=True)["state_dict"]
    network.load_state_dict(
        {k.removeprefix("model."): v for k, v in state.items() if "model." in k}
    )
    return network


def start(args: argparse.Namespace) -> None:
    """Train the dense network that all arms go on from."""
    pl.seed_everything(args.seed)
    module = ImageClassifier(ResNet20(), channels_last=True, **constant(0.1))
    fit(module, args.start_epochs, args.root)
    torch.save(module.model.state_dict(), args.folder / "start.pt")


def train(args: argparse.Namespace, arm: str) -> None:
    """Sparse training, cut and fine-tuning of one arm; validation accuracy."""
    folder = args.folder / (arm if args.lam is None else f"{arm}-{args.lam}")
    folder.mkdir(exist_ok=True)
    pl.seed_everything(args.seed + 1)
    network = ResNet20()
    network.load_state_dict(torch.load(args.folder / "start.pt", weights_only=True))
    given = {} if args.lam is None else {"lam": args.lam}
    options = {"lam": LAM, **ARMS[arm], **given}
    slimming = NetworkSlimming(amount=AMOUNT, dirpath=str(folder), **options)
    keep = ModelCheckpoint(folder, "sparse", save_weights_only=True, enable_version_counter=False)
    module = ImageClassifier(network, channels_last=True, **cosine(args.epochs, 0.1))
    fit(module, args.epochs, args.root, slimming, keep)
    evaluate(args, folder.name)
    tune(args, folder.name)


def evaluate(args: argparse.Namespace, arm: str) -> None:
    """Validation accuracy before the cut and right after it."""
    folder = args.folder / arm
    sparse = trained(folder)
    figures = {"sparse": accuracy(sparse, args.root, "val"), **curve(sparse, args.root, "val")}
    figures["cut"] = accuracy(surgery.load(ResNet20(), folder / "slim"), args.root, "val")
    print(arm, json.dumps(figures), flush=True)
    (folder / "val.json").write_text(json.dumps(figures, indent=2))


def tune(args: argparse.Namespace, arm: str) -> None:
    """Fine-tuning of the slim network of one arm; validation accuracy."""
    folder = args.folder / arm
    pl.seed_everything(args.seed + 2)
    small = surgery.load(ResNet20(), folder / "slim")
    tuned = ImageClassifier(small, channels_last=True, **cosine(args.tune_epochs, 0.02))
    fit(tuned, args.tune_epochs, args.root)
    torch.save(small.state_dict(), folder / "tuned.pt")
    print(arm, "tuned", accuracy(small, args.root, "val"), flush=True)


def curve(sparse: nn.Module, root: str, split: str) -> dict[str, dict[str, float]]:
    """Accuracy right after the cut of several shares of the channels."""
    flow = surgery.trace(sparse, torch.randn(2, 3, 32, 32))
    plans = {amount: flow.plan_by(amount) for amount in AMOUNTS}
    kept = {str(a): accuracy(surgery.mask(sparse, p), root, split) for a, p in plans.items()}
    zeroed = {str(a): accuracy(usual(sparse, p), root, split) for a, p in plans.items()}
    return {"shift kept": kept, "shift zeroed": zeroed}


def equal_flops(args: argparse.Namespace, arm: str) -> None:
    """Validation accuracy right after cuts that leave the same share of the FLOPs."""
    sparse = trained(args.folder / arm)
    flow = surgery.trace(sparse, torch.randn(2, 3, 32, 32))
    figures = {}
    for keep in (0.8, 0.7, 0.6, 0.5, 0.4):
        plan = flow.plan_by(surgery.Flops(keep))
        figures[str(keep)] = accuracy(surgery.slim(sparse, plan), args.root, "val")
    print(arm, json.dumps(figures), flush=True)


def test(args: argparse.Namespace, arm: str) -> None:
    """The figures of one arm on the test images."""
    folder = args.folder / arm
    sparse = trained(folder)
    small = surgery.load(ResNet20(), folder / "slim")
    tuned = surgery.load(ResNet20(), folder / "slim")
    tuned.load_state_dict(torch.load(folder / "tuned.pt", weights_only=True))
    report = json.loads((folder / "slim" / "report.json").read_text())
    plan = json.loads((folder / "slim" / "plan.json").read_text())
    flow = surgery.trace(sparse, torch.randn(2, 3, 32, 32))
    dead = {
        name: torch.zeros(plan["widths"][name]).bool().index_fill(0, torch.tensor(i).long(), True)
        for name, i in plan["dead"].items()
    }
    made = flow.plan(dead)
    masked, labels = predictions(surgery.mask(sparse, made), args.root, "test")
    cut, _ = predictions(small, args.root, "test")
    figures = {
        "sparse": accuracy(sparse, args.root, "test"),
        "masked": float((masked == labels).float().mean()),
        "cut": float((cut == labels).float().mean()),
        "predictions that differ": int((cut != masked).sum()),
        "usual practice": accuracy(usual(sparse, made), args.root, "test"),
        "tuned": accuracy(tuned, args.root, "test"),
        "proof": report["proof"],
        "parameters": report["parameters"],
        "flops": report["flops"],
    }
    (folder / "test.json").write_text(json.dumps(figures, indent=2))
    print(arm, json.dumps(figures), flush=True)


STAGES = {
    "train": train,
    "evaluate": evaluate,
    "tune": tune,
    "equal-flops": equal_flops,
    "test": test,
}


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["start", *STAGES])
    parser.add_argument("arms", nargs="*", help=", ".join(ARMS))
    parser.add_argument("--root", default=".data")
    parser.add_argument("--folder", type=Path, default=Path("runs/slimming-cifar10"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start-epochs", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--tune-epochs", type=int, default=2)
    parser.add_argument("--lam", type=float)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if args.what == "start":
        start(args)
    for arm in args.arms:
        STAGES[args.what](args, arm)


if __name__ == "__main__":
    main()
