"""`lightning-sparsity slim`: cutting a checkpoint that is already there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_sparsity import cli, surgery
from lightning_sparsity.classifier import ImageClassifier
from lightning_sparsity.data import Curves
from lightning_sparsity.models import CurveNet, LeNet5, ResNet20

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
Slim = Callable[..., None]
CONFIG: dict[str, Any] = {
    "trainer": {"accelerator": "cpu"},
    "model": {
        "class_path": "ImageClassifier",
        "init_args": {"model": {"class_path": "CurveNet", "init_args": {"size": 32}}},
    },
    "data": {"class_path": "Curves", "init_args": {"train": 24, "val": 12, "test": 12, "size": 32}},
}


@pytest.fixture
def slim(monkeypatch: pytest.MonkeyPatch) -> Slim:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    monkeypatch.setattr("sys.argv", ["lightning-sparsity"])
    return lambda *args: cli.main(["slim", *args])


def written(folder: Path, module: ImageClassifier, config: dict[str, Any], **more: Any) -> Path:
    """A run as LightningCLI leaves it, with the weights of a module."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    checkpoint = folder / "checkpoints" / "last.ckpt"
    torch.save({"state_dict": module.state_dict(), **more}, checkpoint)
    return checkpoint


def of_a_run(network: torch.nn.Module) -> ImageClassifier:
    """A module whose scales are all different."""
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(part.weight)
            torch.nn.init.uniform_(part.bias)
    return ImageClassifier(network)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return written(tmp_path / "run", of_a_run(CurveNet(size=32)), CONFIG)


def network_of(checkpoint: Path) -> CurveNet:
    network = CurveNet(size=32)
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    network.load_state_dict({name.removeprefix("model."): x for name, x in state.items()})
    return network.eval()


def test_the_slim_network_computes_what_the_masked_one_does(
    slim: Slim, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slim("--checkpoint", str(checkpoint), "--amount", "0.5")
    folder = checkpoint.parents[1] / "slim"
    small = surgery.load(CurveNet(size=32), folder).eval()
    dense, images = network_of(checkpoint), torch.rand(4, 1, 32, 32)
    plan = surgery.trace(dense, images).plan_by(0.5)
    torch.testing.assert_close(small(images), surgery.mask(dense, plan)(images))
    figures = json.loads((folder / "report.json").read_text())
    assert figures["channels"] == {"dense": 56, "slim": 27}
    assert figures["parameters"]["slim"] == sum(p.numel() for p in small.parameters())
    shown = capsys.readouterr().out
    assert f"{figures['parameters']['slim']:,}" in shown
    record = (folder / "model.safetensors").stat().st_size - figures["bytes_on_disk"]["slim"]
    assert 0 < record < 128  # the digest of the plan
    assert f"{figures['bytes_on_disk']['slim']:,}" in shown
    assert f"largest relative difference {figures['proof']:.1e}" in shown


def test_accuracies_are_those_of_the_two_networks(slim: Slim, checkpoint: Path) -> None:
    slim("--checkpoint", str(checkpoint), "--amount", "0.5")
    folder = checkpoint.parents[1] / "slim"
    data = Curves(**CONFIG["data"]["init_args"])
    data.setup("validate")
    pairs = [(x, y) for x, y in data.val_dataloader()]
    images, labels = torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])
    small = surgery.load(CurveNet(size=32), folder).eval()
    with torch.no_grad():
        logits = [network(images) for network in (network_of(checkpoint), small)]
    expected = [float(torch.nn.functional.cross_entropy(x, labels)) for x in logits]
    metrics = json.loads((folder / "report.json").read_text())["metrics"]
    assert metrics["val_loss"] == pytest.approx(expected, rel=1e-5)


def test_zeros_alone_leave_also_without_batchnorm(slim: Slim, tmp_path: Path) -> None:
    module = of_a_run(LeNet5())
    with torch.no_grad():
        module.model.conv1.weight[:5] = 0
        module.model.fc1.weight[:100] = 0
    data = {"class_path": "MNIST", "init_args": {"root": str(tmp_path)}}
    model = {"class_path": "ImageClassifier", "init_args": {"model": "LeNet5"}}
    config = {**CONFIG, "model": model, "data": data}
    checkpoint = written(tmp_path / "run", module, config)
    slim("--checkpoint", str(checkpoint), "--amount", "zeros")
    small = surgery.load(LeNet5(), tmp_path / "run" / "slim")
    assert [small.get_submodule(n).weight.shape[0] for n in ("conv1", "fc1")] == [15, 400]
    report = json.loads((tmp_path / "run" / "slim" / "report.json").read_text())
    assert report["amount"] == "zeros"
    assert report["proof"] < 1e-12


@pytest.mark.parametrize(
    ("amount", "smaller"),
    [
        ("Flops(0.5)", "flops"),
        ("Flops(keep=0.5)", "flops"),
        ("Params(0.5)", "parameters"),
        ("Threshold(at=0.4)", "channels"),
    ],
)
def test_budgets_are_written_as_in_python(
    amount: str, smaller: str, slim: Slim, checkpoint: Path, tmp_path: Path
) -> None:
    slim("--checkpoint", str(checkpoint), "--amount", amount, "--dirpath", str(tmp_path / "other"))
    figures = json.loads((tmp_path / "other/slim/report.json").read_text())
    assert 0 < figures[smaller]["slim"] <= 0.7 * figures[smaller]["dense"]
    if smaller != "channels":
        assert figures[smaller]["slim"] <= 0.5 * figures[smaller]["dense"]
    assert not (checkpoint.parents[1] / "slim").exists()


def test_widths_are_rounded_up(slim: Slim, checkpoint: Path) -> None:
    slim("--checkpoint", str(checkpoint), "--amount", "0.5", "--round-to", "4")
    folder = checkpoint.parents[1] / "slim"
    report = json.loads((folder / "report.json").read_text())
    assert report["round_to"] == 4
    assert all(layer["slim"] % 4 == 0 for layer in report["layers"].values())
    assert report["channels"]["slim"] < report["channels"]["dense"]
    assert report["proof"] < 1e-12


def test_multiples_of_zero_are_refused(
    slim: Slim, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        slim("--checkpoint", str(checkpoint), "--amount", "0.5", "--round-to", "0")
    assert '"round_to":\n  Not of type PositiveInt: 0' in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--gather", "--no-gather"])
def test_without_its_data_a_network_is_cut_and_not_measured(
    flag: str, slim: Slim, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    init_args = {"root": str(tmp_path / "nothing")}
    config = {
        "model": {"class_path": "ImageClassifier", "init_args": {"model": "ResNet20"}},
        "data": {"class_path": "CIFAR10", "init_args": init_args},
    }
    path = written(tmp_path / "run", of_a_run(ResNet20()), config)
    slim("--checkpoint", str(path), "--amount", "0.4", flag)
    figures = json.loads((tmp_path / "run/slim/report.json").read_text())
    plan = json.loads((tmp_path / "run/slim/plan.json").read_text())
    assert figures["metrics"] == {}
    assert plan["gather"] is (flag == "--gather")
    assert "no accuracy was measured" in capsys.readouterr().out


def test_a_checkpoint_of_a_fit_is_found_with_its_configuration(
    slim: Slim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": "runs"}}
    config = {**CONFIG, "trainer": {"max_epochs": 1, "accelerator": "cpu", "logger": logger}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    cli.main(["fit", "--config", "mine.yaml"])
    (path,) = tmp_path.glob("runs/**/*.ckpt")
    slim("--checkpoint", str(path.relative_to(tmp_path)), "--amount", "0.3")
    assert (path.parents[1] / "slim/model.safetensors").is_file()


def other_network(run: Path) -> list[str]:
    config = {
        **CONFIG,
        "model": {"class_path": "ImageClassifier", "init_args": {"model": "LeNet5"}},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return []


def slim_weights(run: Path) -> list[str]:
    state = {"NetworkSlimming": {"cut": {"plan": "{}", "path": "model"}}}
    torch.save({"state_dict": {}, "callbacks": state}, run / "checkpoints/last.ckpt")
    return []


def no_checkpoint(run: Path) -> list[str]:
    (run / "checkpoints/last.ckpt").write_text("nothing of the sort")
    return []


def no_config(run: Path) -> list[str]:
    (run / "config.yaml").unlink()
    return []


def empty_config(run: Path) -> list[str]:
    (run / "config.yaml").write_text("")
    return []


def taken(run: Path) -> list[str]:
    (run / "slim").mkdir()
    return []


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda run: ["--checkpoint", "gone.ckpt"], "There is no checkpoint 'gone.ckpt'"),
        (no_config, "There is no config.yaml in the folders above"),
        (lambda run: ["--config", "gone.yaml"], "There is no configuration 'gone.yaml'"),
        (empty_config, "is not the configuration of a run: it has no model"),
        (no_checkpoint, "last.ckpt' is not a checkpoint of Lightning"),
        (slim_weights, "last.ckpt' holds a slim network. Use one from before the cut"),
        (other_network, "last.ckpt' holds another network than .*config.yaml' describes"),
        (taken, "slim' exists already. Name another folder with --dirpath"),
        (lambda run: ["--amount", "1.5"], r"needs a share of channels in \(0, 1\), got amount=1.5"),
        (
            lambda run: ["--amount", "half"],
            r"amount needs a number in \(0, 1\), 'zeros', or one of Flops",
        ),
        (lambda run: ["--amount", "Flop(0.5)"], r"Threshold\(number\), got 'Flop\(0.5\)'"),
        (lambda run: ["--amount", "Flops(1e-6)"], r"Flops\(keep=1e-06\) cannot be met"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_bad_input_ends_in_one_sentence_and_writes_nothing(
    spoil: Callable[[Path], list[str]], sentence: str, slim: Slim, checkpoint: Path
) -> None:
    run = checkpoint.parents[1]
    extra = spoil(run)
    before = sorted(run.rglob("*"))
    with pytest.raises(SystemExit, match=f"^lightning-sparsity: .*{sentence}"):
        slim("--checkpoint", str(checkpoint), "--amount", "0.5", *extra)
    assert sorted(run.rglob("*")) == before
