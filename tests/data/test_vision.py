import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torchvision.datasets as tv

from lightning_sparsity.data import CIFAR10, CIFAR100, MNIST, SVHN, FashionMNIST, VisionData

REAL = Path(__file__).parents[2] / ".data"
COUNTS = {"train": 230, "t10k": 40}
PAPERS = {CIFAR10: True, CIFAR100: True, SVHN: False, MNIST: False, FashionMNIST: False}
each = pytest.mark.parametrize("data", PAPERS, ids=lambda data: data.__name__)


def write_idx(path: Path, values: np.ndarray) -> None:
    """The official format: two zeros, 8 for bytes, the number of dimensions, the dimensions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    path.write_bytes(header + values.astype(np.uint8).tobytes())


@pytest.fixture(params=[MNIST, FashionMNIST], ids=lambda data: data.__name__)
def tiny(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[type[VisionData], str]:
    """Files whose every image carries its own number in its first pixel; classes are uneven."""
    for name, count in COUNTS.items():
        images = np.zeros((count, 28, 28))
        images[:, 0, 0] = np.arange(count)
        labels = np.where(np.arange(count) < count // 2, 3, np.arange(count) % 10)
        folder = tmp_path / request.param.__name__ / "raw"
        write_idx(folder / f"{name}-images-idx3-ubyte", images)
        write_idx(folder / f"{name}-labels-idx1-ubyte", labels)
    return request.param, str(tmp_path)


def numbers(batches: Any) -> list[int]:
    return torch.cat([images[:, 0, 0, 0] for images, _ in batches]).mul(255).round().int().tolist()


def test_each_official_training_image_is_in_one_split_and_test_is_apart(
    tiny: tuple[type[VisionData], str],
) -> None:
    data = tiny[0](tiny[1], val=46, normalize=False)
    data.setup("fit")
    train, val = numbers(data.train_dataloader()), numbers(data.val_dataloader())
    assert (len(train), len(val)) == (184, 46)
    assert sorted(train + val) == list(range(230))
    assert train != sorted(train)
    data.setup("test")
    assert numbers(data.test_dataloader()) == numbers(data.predict_dataloader()) == list(range(40))


def test_validation_holds_each_class_in_proportion_and_does_not_change_with_the_seed(
    tiny: tuple[type[VisionData], str],
) -> None:
    first, second = (tiny[0](tiny[1], val=46, normalize=False, seed=seed) for seed in (0, 1))
    for data in (first, second):
        data.setup("fit")
    assert numbers(first.val_dataloader()) == numbers(second.val_dataloader())
    assert numbers(first.train_dataloader()) != numbers(second.train_dataloader())
    labels = torch.cat([labels for _, labels in first.val_dataloader()]).bincount(minlength=10)
    whole = labels + torch.cat([labels for _, labels in first.train_dataloader()]).bincount()
    assert (labels - whole * 46 / 230).abs().max() <= 1


def test_images_are_read_once_and_only_when_needed(
    tiny: tuple[type[VisionData], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[bool] = []
    original = tiny[0]._read
    monkeypatch.setattr(
        tiny[0],
        "_read",
        lambda self, train, download: read.append(train) or original(self, train, download),
    )
    data = tiny[0](tiny[1], val=46)
    data.prepare_data()
    assert read == []
    for stage in ("fit", "validate", "fit", "test", "predict"):
        data.setup(stage)
    assert read == [True, False]


def test_training_images_alone_are_distorted(tiny: tuple[type[VisionData], str]) -> None:
    data = tiny[0](tiny[1], val=46, normalize=False, augment=True)
    data.setup("fit")
    still = tiny[0](tiny[1], val=46, normalize=False, augment=False)
    still.setup("fit")
    assert numbers(data.val_dataloader()) == numbers(still.val_dataloader())
    assert numbers(data.train_dataloader()) != numbers(still.train_dataloader())


def test_normalising_applies_the_constants(tiny: tuple[type[VisionData], str]) -> None:
    plain, normal = (tiny[0](tiny[1], val=46, normalize=on) for on in (False, True))
    for data in (plain, normal):
        data.setup("fit")
    (before, _), (after, _) = (next(iter(data.val_dataloader())) for data in (plain, normal))
    assert torch.allclose(after, (before - normal.mean[0]) / normal.std[0], atol=1e-6)


def test_overfitting_sees_the_same_batches_in_every_epoch(
    tiny: tuple[type[VisionData], str],
) -> None:
    data = tiny[0](tiny[1], val=46, normalize=False)
    data.setup("fit")
    data.trainer = pl.Trainer(overfit_batches=2, logger=False, accelerator="cpu")
    loader = data.train_dataloader()
    assert numbers(loader) == numbers(loader)


@each
def test_the_papers_decide_what_is_distorted(data: type[VisionData]) -> None:
    assert data().augment is PAPERS[data]
    assert data(augment=not PAPERS[data]).augment is not PAPERS[data]


@each
@pytest.mark.parametrize("stage", ["fit", "test"])
def test_a_missing_folder_is_named_with_the_cure(
    data: type[VisionData], stage: str, tmp_path: Path
) -> None:
    with pytest.raises(
        FileNotFoundError, match=rf"{data.__name__} .*{tmp_path}.*--data.download true"
    ):
        data(str(tmp_path)).setup(stage)


@each
def test_files_are_fetched_only_when_asked(
    data: type[VisionData], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[bool, bool]] = []
    monkeypatch.setattr(
        data, "_read", lambda self, train, download: asked.append((train, download))
    )
    data().prepare_data()
    assert asked == []
    data(download=True).prepare_data()
    assert asked == [(True, True), (False, True)]


@pytest.mark.parametrize("data", [CIFAR10, CIFAR100], ids=lambda data: data.__name__)
def test_cifar_images_come_with_channels_first(
    data: type[VisionData], monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    content = SimpleNamespace(data=stored, targets=[i % 10 for i in range(60)])
    monkeypatch.setattr(tv, data.__name__, lambda *_, **__: content)
    module = data(normalize=False)
    module.setup("test")
    images, labels = next(iter(module.test_dataloader()))
    assert images.shape[1:] == module.input_shape
    assert np.array_equal(images.mul(255).round().byte().permute(0, 2, 3, 1), stored)
    assert labels.tolist() == content.targets


@pytest.mark.parametrize(("extra", "count"), [(False, 30), (True, 80)])
def test_svhn_adds_the_extra_images_on_request(
    extra: bool, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"train": 30, "extra": 50, "test": 20}

    def stored(_: str, split: str, **__: bool) -> SimpleNamespace:
        data = np.zeros((sizes[split], 3, 32, 32), dtype=np.uint8)
        return SimpleNamespace(data=data, labels=np.arange(sizes[split]) % 10)

    monkeypatch.setattr(tv, "SVHN", stored)
    module = SVHN(extra=extra, val=10)
    module.setup("fit")
    assert len(module.train_dataloader().images) == count - 10
    assert len(module.val_dataloader().images) == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val": 0}, "MNIST needs val >= 1, got val=0"),
        ({"batch_size": 0}, "MNIST needs batch_size >= 1, got batch_size=0"),
        ({"seed": -1}, "MNIST needs seed >= 0, got seed=-1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_named(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MNIST(**change)


def test_a_validation_split_that_leaves_nothing_to_train_on_is_refused(
    tiny: tuple[type[VisionData], str],
) -> None:
    with pytest.raises(ValueError, match="val below the 230 training images, got val=230"):
        tiny[0](tiny[1], val=230).setup("fit")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "folder", "count"),
    [(MNIST, "MNIST", 60_000), (CIFAR10, "cifar-10-batches-py", 50_000)],
    ids=["MNIST", "CIFAR10"],
)
def test_the_real_images_have_the_stated_size_mean_and_deviation(
    data: type[VisionData], folder: str, count: int
) -> None:
    if not (REAL / folder).is_dir():
        pytest.skip(f"needs the real {data.__name__} in {REAL}")
    module = data(str(REAL), augment=False)
    module.setup("fit")
    train, val = module.train_dataloader(), module.val_dataloader()
    assert (len(train.images), len(val.images)) == (count - 5000, 5000)
    assert (
        val.labels.bincount().sub(train.labels.bincount() * 5000 / (count - 5000)).abs().max() <= 2
    )
    channels = torch.cat([images for images, _ in val]).transpose(0, 1).flatten(1)
    assert channels.mean(1).abs().max() < 0.02
    # The papers' deviations of CIFAR are means of each image's own: smaller by a fifth.
    assert 0.98 < channels.std(1).min() <= channels.std(1).max() < 1.35
