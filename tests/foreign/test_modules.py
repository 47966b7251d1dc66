"""Modules of other people: whatever their shape, they train, end up slim, and train on."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

from lightning_sparsity import NetworkSlimming, surgery
from lightning_sparsity.surgery.running import call, tensors_in

Make = Callable[..., Any]
SIDE = 16


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = block(3, 8), block(8, 12, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.stem(x)).mean((2, 3))


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = Encoder(), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


class WithFeatures(Classifier):
    """A tuple of what is wanted and what is not."""

    def forward(self, x: Tensor) -> Any:
        features = self.backbone(x)
        return features, self.head(features)


class InDict(Classifier):
    def forward(self, x: Tensor) -> Any:
        features = self.backbone(x)
        return {"logits": self.head(features), "nested": {"features": [features]}}


class TwoInputs(nn.Module):
    """Images beside numbers about them."""

    def __init__(self) -> None:
        super().__init__()
        self.images, self.numbers = Encoder(), nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
        self.head = nn.Linear(20, 3)

    def forward(self, image: Tensor, numbers: Tensor) -> Tensor:
        return self.head(torch.cat([self.images(image), self.numbers(numbers).relu()], dim=1))


class UNet(nn.Module):
    """Down, up by a transposed convolution, and a skip that is concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = block(3, 8), block(8, 16)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.join, self.out = block(16, 8), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        deep = self.deep(F.max_pool2d(skip, 2))
        return self.out(self.join(torch.cat([skip, self.up(deep)], dim=1)))


class Detector(nn.Module):
    """A pyramid of two levels with heads that both levels share."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.low, self.high = block(3, 8), block(8, 8, stride=2), block(8, 12, stride=2)
        self.lateral = nn.ModuleList([nn.Conv2d(8, 8, 1), nn.Conv2d(12, 8, 1)])
        self.tower = block(8, 8)
        self.classes, self.boxes = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        low = self.low(self.stem(x))
        high = self.lateral[1](self.high(low))
        levels = [self.lateral[0](low) + F.interpolate(high, scale_factor=2.0), high]
        towers = [self.tower(level) for level in levels]
        return {
            "classes": [self.classes(t).permute(0, 2, 3, 1).flatten(1, 2) for t in towers],
            "boxes": [self.boxes(t).permute(0, 2, 3, 1).flatten(1, 2) for t in towers],
        }


class MLP(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Flatten(), nn.Linear(3 * SIDE**2, 16), nn.BatchNorm1d(16), nn.GELU(),
            nn.Linear(16, 12), nn.BatchNorm1d(12), nn.GELU(), nn.Dropout(0.1), nn.Linear(12, 3),
        )  # fmt: skip


def lraspp() -> nn.Module:
    return torchvision.models.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3
    )


class Theirs(pl.LightningModule):
    """The least that a LightningModule has to have."""

    def __init__(self, network: Callable[[], nn.Module] = Classifier) -> None:
        super().__init__()
        self.network = network()

    def loss(self, outputs: Any) -> Tensor:
        return torch.stack([x.float().square().mean() for x in tensors_in(outputs)]).sum()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(self.network(*batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-3)


class ItsOwnNetwork(Theirs):
    """Layers and `forward` in the LightningModule itself."""

    def __init__(self) -> None:
        pl.LightningModule.__init__(self)
        self.encoder, self.head = Encoder(), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(self(*batch))


class ManyThings(Theirs):
    """Metrics, a loss with weights, an exponential average, a frozen teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = MeanMetric()
        self.scale = nn.ParameterDict({"temperature": nn.Parameter(torch.ones(()))})
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.teacher = Classifier().requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self(*batch)
        loss = self.loss(logits * self.scale["temperature"] - self.teacher(*batch))
        self.seen(loss.detach())
        return loss


class WithoutForward(Theirs):
    """The same without a `forward` that says which part is the network."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.ParameterDict({"temperature": nn.Parameter(torch.ones(()))})

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(self.network(*batch) * self.scale["temperature"])


class FrozenBackbone(Theirs):
    def __init__(self) -> None:
        super().__init__()
        self.network.backbone.stem.requires_grad_(False)


class Adversaries(Theirs):
    """Two networks, two optimizers, steps by hand."""

    automatic_optimization = False

    def __init__(self) -> None:
        super().__init__(UNet)
        self.critic = Classifier()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer, output in zip(
            self.optimizers(), (self(*batch), self.critic(*batch)), strict=True
        ):
            optimizer.zero_grad()
            self.manual_backward(self.loss(output))
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(m.parameters(), 1e-3) for m in (self.network, self.critic)]


class Late(Theirs):
    """Makes its network when the Trainer asks for it."""

    def __init__(self) -> None:
        pl.LightningModule.__init__(self)
        self.network: Any = None

    def configure_model(self) -> None:
        if self.network is None:
            self.network = Classifier()


class Compiled(Theirs):
    """Compiled in one of three ways, by a backend that needs no compiler."""

    def __init__(self, way: str) -> None:
        super().__init__()
        whole: Any = self.network
        if way == "whole":
            self.network = torch.compile(whole, backend="eager")
        elif way == "part":
            whole.backbone = torch.compile(whole.backbone, backend="eager")
        else:
            whole.compile(backend="eager")


IMAGES, NUMBERS = (3, SIDE, SIDE), (4,)
MODULES: dict[str, Callable[[], pl.LightningModule]] = {
    "tuple": lambda: Theirs(WithFeatures),
    "dict": lambda: Theirs(InDict),
    "two inputs": lambda: Theirs(TwoInputs),
    "U-Net": lambda: Theirs(UNet),
    "detector": lambda: Theirs(Detector),
    "MLP": lambda: Theirs(MLP),
    "LR-ASPP": lambda: Theirs(lraspp),
    "its own network": ItsOwnNetwork,
    "many things": ManyThings,
    "without forward": WithoutForward,
    "frozen backbone": FrozenBackbone,
    "two optimizers": Adversaries,
    "configure_model": Late,
    "compiled": lambda: Compiled("whole"),
    "compiled in part": lambda: Compiled("part"),
    "compiled in place": lambda: Compiled("in place"),
}
SLOW = ("LR-ASPP", "compiled in part", "compiled in place")


def batches(net: Any) -> DataLoader[Any]:
    shapes = [IMAGES, NUMBERS] if isinstance(getattr(net, "network", None), TwoInputs) else [IMAGES]
    rows = [[torch.rand(shape) for shape in shapes] for _ in range(8)]
    return DataLoader(rows, batch_size=4)  # type: ignore[arg-type]


def spread_scales(net: nn.Module) -> None:
    """As training leaves them: no two alike, shifts that matter."""
    for norm in net.modules():
        if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(norm.weight, 0.2, 1.2)
            nn.init.normal_(norm.bias)


@torch.no_grad()
def outputs(network: nn.Module, inputs: Any) -> list[Tensor]:
    return list(tensors_in(call(copy.deepcopy(network).double().eval(), inputs)))


def cut(net: Any, folder: Path, trainer: Make, **options: Any) -> tuple[NetworkSlimming, Any]:
    """Train and cut; the callback and `report.json`."""
    spread_scales(net)
    slimming = NetworkSlimming(amount=0.5, dirpath=str(folder))
    trainer(slimming, **options).fit(net, batches(net))
    return slimming, json.loads((folder / "slim" / "report.json").read_text())


def check_masked(
    net: Any, slimming: NetworkSlimming, folder: Path, tolerance: float = 1e-5
) -> None:
    """The slim network computes what the one before the cut does without the dead scales."""
    path = slimming.state_dict()["cut"]["path"]
    inputs = tuple(x.double() for x in next(iter(batches(net))))
    slim = outputs(net.get_submodule(path), inputs)
    with slimming.uncut(net):
        masked = copy.deepcopy(net.get_submodule(path))
    for norm, dead in json.loads((folder / "slim" / "plan.json").read_text())["dead"].items():
        masked.get_submodule(norm).weight.data[dead] = 0
    for expected, got in zip(outputs(masked, inputs), slim, strict=True):
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.filterwarnings("ignore:Found .* in eval mode")  # the teacher
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in MODULES]
)
def test_it_ends_up_slim_as_masked_and_trains_on(name: str, tmp_path: Path, trainer: Make) -> None:
    net = MODULES[name]()
    slimming, report = cut(net, tmp_path, trainer)
    assert report["channels"]["slim"] < report["channels"]["dense"]
    assert report["proof"] < 1e-12
    check_masked(net, slimming, tmp_path)

    before = copy.deepcopy(net)
    trainer(slimming).fit(net, batches(net))
    old = [p for p in before.parameters() if p.requires_grad]
    new = [p for p in net.parameters() if p.requires_grad]
    assert [p.shape for p in old] == [p.shape for p in new]
    assert not any(torch.equal(a, b) for a, b in zip(old, new, strict=True))


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("32-true", 1e-5), ("bf16-mixed", 1e-5), ("bf16-true", 1e-2)]
)
def test_accumulating_and_clipping_in_any_precision(
    precision: str, tolerance: float, tmp_path: Path, trainer: Make
) -> None:
    net = Theirs()
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1, "precision": precision}
    slimming, report = cut(net, tmp_path, trainer, **options)
    assert report["channels"] == {"dense": 20, "slim": 10}
    check_masked(net, slimming, tmp_path, tolerance)


def test_frozen_layers_stay_whole_and_the_others_lose_what_training_made_zero(
    tmp_path: Path, trainer: Make
) -> None:
    net = FrozenBackbone()
    stem = copy.deepcopy(net.network.backbone.stem)
    cut(net, tmp_path, trainer)
    assert net.network.backbone.stem[1].num_features == 8
    assert torch.equal(net.network.backbone.stem[0].weight, stem[0].weight)
    assert net.network.backbone.body[1].num_features == 6


class Parts(Theirs):
    """A step that calls parts by themselves, and nothing that holds them all."""

    def __init__(self) -> None:
        pl.LightningModule.__init__(self)
        self.encoder, self.head = Encoder(), nn.Linear(12, 3)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(self.head(self.encoder(*batch)))


def test_of_parts_that_are_called_by_themselves_the_largest_is_cut_and_it_is_said(
    tmp_path: Path, trainer: Make
) -> None:
    net = Parts()
    with pytest.warns(UserWarning, match="cuts 'encoder' alone, since the step calls head beside"):
        slimming, report = cut(net, tmp_path, trainer)
    assert report["channels"] == {"dense": 20, "slim": 10}
    assert net.head.in_features == 12
    check_masked(net, slimming, tmp_path)


def test_the_network_inside_loads_without_the_module(tmp_path: Path, trainer: Make) -> None:
    net = Theirs()
    cut(net, tmp_path, trainer)
    small = surgery.load(Classifier(), tmp_path / "slim")
    inputs = tuple(x.double() for x in next(iter(batches(net))))
    assert torch.equal(outputs(small, inputs)[0], outputs(net.network, inputs)[0])


def test_what_was_compiled_runs_the_slim_network(tmp_path: Path, trainer: Make) -> None:
    net: Any = Compiled("whole")
    cut(net, tmp_path, trainer)
    images = torch.rand(2, *IMAGES)
    net.eval()
    assert torch.equal(net.network(images), net.network._orig_mod(images))
