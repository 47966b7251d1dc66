"""The recipes of the papers: every combination can be built, one of each kind is run."""

from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_sparsity import cli, penalties
from lightning_sparsity.callbacks import (
    NetworkSlimming,
    Regularization,
    RelaxedVariableSplitting,
)
from lightning_sparsity.data import CIFAR10, CIFAR100, MNIST, SVHN
from lightning_sparsity.penalties import L0, MCP, SCAD, GroupLasso, L0Ball, Penalty
from lightning_sparsity.schedules import Growing
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


GROUP_LASSO = GroupLasso(weighted=True)
ROWS_AND_COLUMNS = [("conv*", "output_channels"), ("fc*", "input_channels")]
FILTERS = [("*.conv1", "output_channels")]
# Network, groups, images that the papers' numbers are divided by, their lam and beta.
SPARSE_GROUPS = {
    "lenet5-sgl": ("LeNet5", ROWS_AND_COLUMNS, 60_000, 0.1, Growing(2.5, 1.25, 40)),
    "four-layer-sgl": ("FourLayerCNN", ROWS_AND_COLUMNS, 60_000, 0.1, Growing(2.5, 1.25, 20)),
    "wrn28-10-sgl": ("WideResNet", FILTERS, 50_000, 1e-3, Growing(0.04, 1.25, 20)),
    "wrn16-8-sgl": ("WideResNet", FILTERS, 50_000, 1e-3, Growing(0.04, 1.25, 20)),
}
Composed = tuple[list[Regularization], RelaxedVariableSplitting]


@pytest.fixture
def _light_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time for drawing 36 million initial weights."""
    monkeypatch.setattr("torch.nn.init.kaiming_normal_", lambda weight, **_: weight)


def composed(made: cli.SparsityCLI) -> Composed:
    lassos = [c for c in made.trainer.callbacks if isinstance(c, Regularization)]
    (last,) = [c for c in made.trainer.callbacks if isinstance(c, RelaxedVariableSplitting)]
    return lassos, last


@quiet
@pytest.mark.usefixtures("_light_networks")
@pytest.mark.parametrize("name", SPARSE_GROUPS)
def test_alone_a_sparse_group_lasso_has_the_numbers_of_the_paper(name: str) -> None:
    made = built(*arguments(name))
    network, groups, images_, lam, beta = SPARSE_GROUPS[name]
    lassos, splitting = composed(made)
    assert type(made.model.model).__name__ == network
    assert [(lasso.select, lasso.groups) for lasso in lassos] == groups
    for lasso in lassos:
        assert (lasso.penalty, lasso.update) == (GROUP_LASSO, "proximal")
    assert [c.lam for c in (*lassos, splitting)] == pytest.approx(
        (len(lassos) + 1) * [lam / images_], rel=0.01
    )
    assert (splitting.penalty, splitting.groups) == (L0(), "entries")
    assert isinstance(splitting.beta, Growing)
    for epoch in (0, 199):
        assert splitting.beta.at(epoch) == pytest.approx(beta.at(epoch) / images_, rel=0.01)
    assert made.trainer.max_epochs == 200
    assert made.datamodule.batch_size == (100 if images_ == 60_000 else 128)
    assert type(made.datamodule) is (MNIST if images_ == 60_000 else CIFAR10)


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
@pytest.mark.parametrize("name", SPARSE_GROUPS)
def test_short_brings_a_sparse_group_lasso_strengths_of_its_own(name: str) -> None:
    overlay = ["cifar100"] if name.startswith("wrn") else []
    made = built(*arguments(name, *overlay, "short"))
    lassos, splitting = composed(made)
    assert [(lasso.select, lasso.groups) for lasso in lassos] == SPARSE_GROUPS[name][1]
    for lasso in lassos:
        assert (lasso.penalty, lasso.update) == (GROUP_LASSO, "proximal")
        assert lasso.lam == (5e-6 if overlay else 1.67e-6)
    assert (splitting.penalty, splitting.lam) == (L0(), 1e-7 if overlay else 2e-4)
    assert splitting.beta == Growing(2e-3 if overlay else 1.0, 1.25, 2)
    assert (made.trainer.max_epochs, made.trainer.precision) == (12, "bf16-mixed")
    schedule = made.model.configure_optimizers()["lr_scheduler"]["scheduler"]
    assert sorted(schedule.milestones) == [6, 9]
    assert type(made.datamodule) is (CIFAR100 if overlay else MNIST)
    assert made.model.train_acc.num_classes == made.datamodule.num_classes


@quiet
@pytest.mark.parametrize("overlays", [[], ["short"]], ids=["alone", "short"])
def test_flags_reach_the_splitting_of_a_sparse_group_lasso(overlays: list[str]) -> None:
    flags = [f"{PENALTY}=TransformedL1", f"{PENALTY}.a=0.5", "--trainer.callbacks.lam=3e-5"]
    lassos, splitting = composed(built(*arguments("lenet5-sgl", *overlays), *flags))
    assert (splitting.penalty, splitting.lam) == (penalties.TransformedL1(0.5), 3e-5)
    assert [(lasso.penalty, lasso.lam) for lasso in lassos] == 2 * [(GROUP_LASSO, 1.67e-6)]


def digits(data: MNIST, train: bool, download: bool) -> tuple[Tensor, Tensor]:
    labels = torch.arange(40) % 10
    return torch.randint(0, 256, (40, 1, 28, 28), dtype=torch.uint8), labels


@quiet
@pytest.mark.filterwarnings("ignore:.*overridden by command line.*")
@pytest.mark.parametrize("overlays", [[], ["short"]], ids=["alone", "short"])
def test_a_sparse_group_lasso_trains_and_cuts(
    overlays: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(MNIST, "_read", digits)
    flags = ["--data.val=10", "--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
    cli.main(["fit", *arguments("lenet5-sgl", *overlays), *flags])
    assert "channels" in capsys.readouterr().out
    assert (tmp_path / "runs/lenet5-sgl/version_0/slim/plan.json").is_file()
