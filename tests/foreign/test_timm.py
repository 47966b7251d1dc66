"""Networks of timm, where it is installed."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_sparsity import NetworkSlimming, surgery

timm = pytest.importorskip("timm")
NAMES = [
    "resnet18", "mobilenetv3_small_100", "efficientnet_b0", "vgg11_bn", "regnety_002",
    "densenet121", "resnet26d",
]  # fmt: skip
WITHOUT_BATCHNORM = ["convnext_atto", "vit_tiny_patch16_224"]


def make(name: str) -> Any:
    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False, num_classes=4)
    for module in network.modules():
        if hasattr(module, "running_mean"):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.1)
    return network


class Theirs(pl.LightningModule):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.model = make(name)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.model(batch).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_is_traced_and_cut(name: str) -> None:
    network = make(name).eval()
    images = torch.randn(2, 3, 64, 64)
    flow = surgery.trace(network, images)
    plan = flow.plan_by(0.5)
    small = surgery.slim(network, plan)
    kept = sum(x.numel() for x in plan.kept.values()) / sum(flow.norms.values())
    assert plan.proof is not None
    assert plan.proof < 1e-12
    assert kept <= 0.51  # fewer where a channel that nobody reads goes with its reader
    assert sum(x.numel() for x in small.parameters()) < sum(x.numel() for x in network.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES[:5])
def test_an_epoch_ends_in_a_slim_network(
    name: str, tmp_path: Path, trainer: Callable[..., Any]
) -> None:
    net = Theirs(name)
    images = DataLoader([torch.rand(3, 64, 64) for _ in range(4)], batch_size=2)
    slimming = NetworkSlimming(amount=0.5, dirpath=str(tmp_path))
    trainer(slimming, max_epochs=1).fit(net, images)
    report = json.loads((tmp_path / "slim" / "report.json").read_text())
    assert report["proof"] < 1e-12
    small = surgery.load(make(name), tmp_path / "slim")
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(small.eval()(x), copy.deepcopy(net.model).eval()(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", WITHOUT_BATCHNORM)
def test_without_batchnorm_there_is_nothing_to_slim_and_it_is_said(
    name: str, tmp_path: Path, trainer: Callable[..., Any]
) -> None:
    run, images = trainer(NetworkSlimming(dirpath=str(tmp_path))), [torch.rand(2, 3, 64, 64)]
    with pytest.raises(ValueError, match="No module with a weight has a type that begins with Ba"):
        run.fit(Theirs(name), images)
