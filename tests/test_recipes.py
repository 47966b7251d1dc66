"""The recipes of the papers: every combination can be built, one of each kind is run."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_sparsity import cli, penalties
from lightning_sparsity.callbacks import (
    NetworkSlimming,
    Regularization,
    RelaxedVariableSplitting,
    VarianceGuidance,
)
from lightning_sparsity.cli.fit import SparsityCLI, parsed
from lightning_sparsity.data import CIFAR10, CIFAR100, MNIST, SVHN, Warp
from lightning_sparsity.penalties import L0, MCP, SCAD, GroupLasso, L0Ball, Penalty
from lightning_sparsity.schedules import Growing, Warmup
from lightning_sparsity.surgery import Flops, Params, Share, Threshold

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
    "L0Ball": ([f"{PENALTY}.amount=0.7", "--trainer.callbacks.update=splitting"], L0Ball(0.7)),
}
quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning-sparsity"])


def built(*args: str) -> SparsityCLI:
    """Everything that `fit` with these arguments would run, made but not run."""
    given = cli.with_recipe(["fit", *args])[1:]
    return parsed([*given, "--trainer.accelerator=cpu", "--trainer.logger=false"])


def slimming_of(made: SparsityCLI) -> NetworkSlimming:
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
        (["=Share", ".share=0.25", ".round_to=8"], Share(0.25, round_to=8)),
    ],
    ids=["Flops", "Params", "Threshold", "share", "round share"],
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


GROUP_LASSO = GroupLasso(weighted=True)
ROWS_AND_COLUMNS = [("conv*", "output_channels"), ("fc*", "input_channels")]
FILTERS = [("*.conv1", "output_channels")]
LIGHT, HEAVY = Warmup(1e-4, epochs=3), Warmup(1e-4, epochs=13)
# Network, groups, weight of the group lasso, weight and coupling of the splitting.
SPARSE_GROUPS: dict[str, tuple[Any, ...]] = {
    "lenet5-sgl": ("LeNet5", ROWS_AND_COLUMNS, LIGHT, HEAVY, Growing(0.1, 1.25, 4)),
    "four-layer-sgl": ("FourLayerCNN", ROWS_AND_COLUMNS, LIGHT, HEAVY, Growing(0.1, 1.25, 4)),
    "wrn28-10-sgl": ("WideResNet", FILTERS, 4e-7, 5e-8, Growing(1e-3, 1.25, 20)),
    "wrn16-8-sgl": ("WideResNet", FILTERS, 4e-7, 5e-8, Growing(1e-3, 1.25, 20)),
}
WIDE = [name for name in SPARSE_GROUPS if name.startswith("wrn")]
Composed = tuple[list[Regularization], RelaxedVariableSplitting]


@pytest.fixture
def _light_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time for drawing 36 million initial weights."""
    monkeypatch.setattr("torch.nn.init.kaiming_normal_", lambda weight, **_: weight)


def composed(made: SparsityCLI) -> Composed:
    lassos = [c for c in made.trainer.callbacks if isinstance(c, Regularization)]
    (last,) = [c for c in made.trainer.callbacks if isinstance(c, RelaxedVariableSplitting)]
    return lassos, last


@quiet
@pytest.mark.usefixtures("_light_networks")
@pytest.mark.parametrize("name", SPARSE_GROUPS)
def test_a_sparse_group_lasso_is_a_splitting_beside_lassos_of_groups(name: str) -> None:
    made = built(*arguments(name))
    network, groups, lam, split_lam, beta = SPARSE_GROUPS[name]
    lassos, splitting = composed(made)
    assert type(made.model.model).__name__ == network
    assert [(lasso.select, lasso.groups) for lasso in lassos] == groups
    for lasso in lassos:
        assert (lasso.penalty, lasso.update, lasso.lam) == (GROUP_LASSO, "proximal", lam)
    assert (splitting.penalty, splitting.groups) == (L0(), "entries")
    assert (splitting.lam, splitting.beta) == (split_lam, beta)
    assert made.trainer.max_epochs == (200 if name in WIDE else 20)
    assert type(made.datamodule) is (CIFAR10 if name in WIDE else MNIST)


@quiet
def test_guidance_and_a_sparse_group_lasso_act_on_the_same_groups() -> None:
    made = built(*arguments("mnistnet-guided"))
    guides = [c for c in made.trainer.callbacks if isinstance(c, VarianceGuidance)]
    lassos = [c for c in made.trainer.callbacks if isinstance(c, Regularization)]
    assert {(c.select, c.groups) for c in guides} == {(c.select, c.groups) for c in lassos}
    assert {(c.select, c.groups) for c in lassos} == {*ROWS_AND_COLUMNS}
    for lasso in lassos:
        assert lasso.penalty == penalties.SparseGroup(penalties.L1(), GROUP_LASSO, 33.0)
        assert lasso.update == "proximal"
    assert made.datamodule.augment == Warp()


@quiet
@pytest.mark.parametrize(("depth", "width"), [(28, 10), (16, 8)])
@pytest.mark.usefixtures("_light_networks")
def test_wide_residual_networks_train_as_in_the_paper(depth: int, width: int) -> None:
    made = built(*arguments(f"wrn{depth}-{width}-sgl"))
    assert made.model.model.classifier.in_features == 64 * width
    assert len(made.model.model.blocks) == (depth - 4) // 2
    training = made.model.configure_optimizers()
    (group,) = training["optimizer"].param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.9, 5e-4)
    assert group["nesterov"]
    schedule = training["lr_scheduler"]["scheduler"]
    assert (sorted(schedule.milestones), schedule.gamma) == ([60, 120, 160], 0.2)


@quiet
@pytest.mark.usefixtures("_light_networks")
@pytest.mark.parametrize("name", WIDE)
def test_short_brings_a_wide_network_strengths_of_its_own(name: str) -> None:
    made = built(*arguments(name, "cifar100", "short"))
    lassos, splitting = composed(made)
    assert [(lasso.select, lasso.groups) for lasso in lassos] == FILTERS
    for lasso in lassos:
        assert (lasso.penalty, lasso.update, lasso.lam) == (GROUP_LASSO, "proximal", 5e-6)
    assert (splitting.penalty, splitting.lam) == (L0(), 1e-7)
    assert splitting.beta == Growing(2e-3, 1.25, 2)
    assert (made.trainer.max_epochs, made.trainer.precision) == (12, "bf16-mixed")
    schedule = made.model.configure_optimizers()["lr_scheduler"]["scheduler"]
    assert sorted(schedule.milestones) == [6, 9]
    assert type(made.datamodule) is CIFAR100
    assert made.model.train_acc.num_classes == made.datamodule.num_classes


@quiet
def test_flags_reach_the_splitting_of_a_sparse_group_lasso() -> None:
    flags = [f"{PENALTY}=TransformedL1", f"{PENALTY}.a=0.5", "--trainer.callbacks.lam=3e-5"]
    lassos, splitting = composed(built(*arguments("lenet5-sgl"), *flags))
    assert (splitting.penalty, splitting.lam) == (penalties.TransformedL1(0.5), 3e-5)
    assert [(lasso.penalty, lasso.lam) for lasso in lassos] == 2 * [(GROUP_LASSO, LIGHT)]


def digits(data: MNIST, train: bool, download: bool) -> tuple[Tensor, Tensor]:
    labels = torch.arange(40) % 10
    return torch.randint(0, 256, (40, 1, 28, 28), dtype=torch.uint8), labels


@quiet
@pytest.mark.filterwarnings("ignore:.*overridden by command line.*")
@pytest.mark.filterwarnings("ignore:.*leaves none of the entries.*")
def test_a_sparse_group_lasso_trains_and_cuts(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(MNIST, "_read", digits)
    flags = ["--data.val=10", "--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
    cli.main(["fit", *arguments("lenet5-sgl"), *flags, "--trainer.callbacks.lam=2e-3"])
    assert "channels" in capsys.readouterr().out
    assert (tmp_path / "runs/lenet5-sgl/version_0/slim/plan.json").is_file()
