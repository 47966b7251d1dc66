"""The recipes of the slimming papers: every combination can be built, one is run."""

from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_sparsity import cli, penalties
from lightning_sparsity.callbacks import NetworkSlimming
from lightning_sparsity.data import CIFAR10, CIFAR100, SVHN
from lightning_sparsity.penalties import MCP, SCAD, L0Ball, Penalty
from lightning_sparsity.surgery import Flops, Params, Threshold

NETWORKS = {
    "vgg19": ("VGG19", 1e-4, 0.7),
    "densenet40": ("DenseNet40", 1e-5, 0.4),
    "resnet164": ("ResNet164", 1e-5, 0.4),
    "resnet20": ("ResNet20", 1e-4, 0.5),
    "resnet56": ("ResNet56", 1e-4, 0.5),
}
DATA = {"cifar10": CIFAR10, "cifar100": CIFAR100, "svhn": SVHN}
PENALTY = "--trainer.callbacks.penalty"
PENALTIES: dict[str, tuple[list[str], Penalty]] = {
    "L1": ([], penalties.L1()),
    "Lp": ([f"{PENALTY}.p=0.75"], penalties.Lp(0.75)),
    "TransformedL1": ([f"{PENALTY}.a=0.5"], penalties.TransformedL1(0.5)),
    "MCP": ([f"{PENALTY}.knot=1.5"], MCP(1.5)),
    "SCAD": ([f"{PENALTY}.knee=0.5", f"{PENALTY}.knot=1.5"], SCAD(0.5, 1.5)),
    "L0Ball": ([f"{PENALTY}.amount=0.6", "--trainer.callbacks.update=splitting"], L0Ball(0.6)),
}
quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning-sparsity"])


def built(*args: str) -> cli.SparsityCLI:
    """Everything that `fit` with these arguments would run, made but not run."""
    given = cli.with_recipe(["fit", *args])[1:]
    return cli.parsed([*given, "--trainer.accelerator=cpu", "--trainer.logger=false"])


def slimming_of(made: cli.SparsityCLI) -> NetworkSlimming:
    (slimming,) = [c for c in made.trainer.callbacks if isinstance(c, NetworkSlimming)]
    return slimming


def arguments(*names: str) -> list[str]:
    return [arg for name in names for arg in ("--config", name)]


@quiet
@pytest.mark.parametrize(("network", "penalty"), [*product(NETWORKS, PENALTIES)])
def test_every_network_and_penalty_can_be_built(network: str, penalty: str) -> None:
    # One data set each, so that every pair of a data set and a penalty comes up too.
    place = list(NETWORKS).index(network) + list(PENALTIES).index(penalty)
    data = list(DATA)[place % len(DATA)]
    overlay = [] if data == "cifar10" else [data]
    flags, expected = PENALTIES[penalty]
    made = built(*arguments(network, *overlay, "short"), f"{PENALTY}={penalty}", *flags)
    slimming = slimming_of(made)
    assert slimming.penalty == expected
    assert slimming.lam == 1e-3
    assert slimming.update == ("splitting" if penalty == "L0Ball" else "subgradient")
    assert type(made.model.model).__name__ == NETWORKS[network][0]
    assert type(made.datamodule) is DATA[data]
    assert made.datamodule.batch_size == 128
    assert made.model.model.classifier.out_features == made.datamodule.num_classes
    assert made.model.train_acc.num_classes == made.datamodule.num_classes
    assert made.trainer.max_epochs == 12


@quiet
@pytest.mark.parametrize("network", NETWORKS)
def test_alone_a_recipe_is_the_training_of_the_papers(network: str) -> None:
    made = built(*arguments(network))
    _, lam, amount = NETWORKS[network]
    slimming = slimming_of(made)
    assert (slimming.lam, slimming._cutting.amount) == (lam, amount)
    assert slimming.penalty == penalties.TransformedL1(1.0)
    assert made.trainer.max_epochs == 160
    assert made.datamodule.batch_size == 64
    training = made.model.configure_optimizers()
    optimizer, schedule = training["optimizer"], training["lr_scheduler"]["scheduler"]
    (group,) = optimizer.param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.9, 1e-4)
    assert sorted(schedule.milestones) == [80, 120]


@quiet
@pytest.mark.parametrize(
    ("flags", "budget"),
    [
        (["=Flops", ".keep=0.5"], Flops(0.5)),
        (["=Params", ".keep=0.3"], Params(0.3)),
        (["=Threshold", ".at=1e-3"], Threshold(1e-3)),
        (["=0.25"], 0.25),
    ],
    ids=["Flops", "Params", "Threshold", "share"],
)
def test_budgets_are_known_by_name(flags: list[str], budget: object) -> None:
    flags = [f"--trainer.callbacks.amount{flag}" for flag in flags]
    made = built(*arguments("resnet20"), *flags)
    assert slimming_of(made)._cutting.amount == budget


def test_flags_after_short_go_before_its_lam() -> None:
    args = cli.with_recipe(["fit", "--config=resnet20", "--config", "short", "--trainer.x=1"])
    assert args[-2:] == ["--trainer.callbacks.lam=1e-3", "--trainer.x=1"]


def images(data: CIFAR10, train: bool, download: bool) -> tuple[Tensor, Tensor]:
    labels = torch.arange(40) % 10
    return torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8), labels


@quiet
@pytest.mark.filterwarnings("ignore:.*overridden by command line.*")
def test_a_recipe_trains_and_cuts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(CIFAR10, "_read", images)
    flags = ["--data.val=10", "--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
    names = arguments("resnet20", "short")
    cli.main(["fit", *names, f"{PENALTY}=SCAD", f"{PENALTY}.knee=0.3", *flags])
    shown = capsys.readouterr().out
    assert "channels" in shown
    assert (tmp_path / "runs/resnet20/version_0/slim/plan.json").is_file()
