import itertools
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from lightning_sparsity.data.loader import TensorLoader

COUNT, BATCH = 22, 4


def loader(**options: object) -> TensorLoader:
    images = torch.arange(COUNT * 6, dtype=torch.uint8).view(COUNT, 1, 2, 3)
    return TensorLoader(images, torch.arange(COUNT), BATCH, **options)


def seen(batches: TensorLoader) -> list[int]:
    return torch.cat([labels for _, labels in batches]).tolist()


def noise(images: Tensor, generator: Generator) -> Tensor:
    return images + torch.randn(images.shape, generator=generator)


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, COUNT)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.layer(images.flatten(1)), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.9)


def fit(folder: Path, resume: Path | None = None, **options: object) -> Tensor:
    torch.manual_seed(0)
    net = Net()
    trainer = pl.Trainer(
        **options,
        accelerator="cpu",
        logger=False,
        callbacks=ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(net, loader(shuffle=True, augment=noise), ckpt_path=resume)
    return net.layer.weight.detach().clone()


@pytest.mark.parametrize("step", [3, 6, 8, 12], ids=lambda step: f"step {step}")
@pytest.mark.parametrize(
    ("until", "options"),
    [
        ({"max_epochs": 3}, {}),
        ({"max_steps": 15}, {}),
        ({"max_epochs": 5}, {"limit_train_batches": 4}),
        ({"max_epochs": 5}, {"accumulate_grad_batches": 2}),
    ],
    ids=["epochs", "steps", "limited epochs", "accumulated"],
)
def test_a_resumed_fit_ends_with_the_same_bits(
    tmp_path: Path, until: dict[str, int], step: int, options: dict[str, int]
) -> None:
    whole = fit(tmp_path / "whole", **until, **options)
    half = fit(tmp_path / "half", max_steps=step, **options)
    resumed = fit(tmp_path / "half", tmp_path / f"half/step={step}.ckpt", **until, **options)
    assert not torch.equal(half, whole)
    assert torch.equal(resumed, whole)


def test_without_shuffling_everything_comes_once_in_order_with_a_small_last_batch() -> None:
    batches = list(loader())
    assert [len(labels) for _, labels in batches] == [4, 4, 4, 4, 4, 2]
    assert len(loader()) == 6
    assert torch.cat([labels for _, labels in batches]).equal(torch.arange(COUNT))
    images = torch.cat([images for images, _ in batches])
    assert torch.allclose(images, loader().images / 255, rtol=1e-7)


def test_every_epoch_has_its_own_order_of_the_same_images() -> None:
    one = loader(shuffle=True)
    first, second = seen(one), seen(one)
    assert sorted(first) == sorted(second) == list(range(COUNT))
    assert first != second
    assert first != list(range(COUNT))


def test_an_epoch_is_the_same_however_it_is_reached() -> None:
    walked, named = loader(shuffle=True, augment=noise), loader(shuffle=True, augment=noise)
    list(walked)
    named.set_epoch(1)
    for ours, theirs in zip(walked, named, strict=True):
        assert all(map(torch.equal, ours, theirs))


def test_every_epoch_is_augmented_differently() -> None:
    one = loader(augment=noise)
    (first, _), (second, _) = next(iter(one)), next(iter(one))
    assert not torch.equal(first, second)


def test_the_seed_changes_order_and_augmentation() -> None:
    assert seen(loader(shuffle=True, seed=1)) != seen(loader(shuffle=True, seed=2))
    first, second = (next(iter(loader(augment=noise, seed=seed)))[0] for seed in (1, 2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("position", [0, 1, 5, 6])
def test_a_loaded_position_goes_on_with_the_batches_not_yet_given(position: int) -> None:
    whole = loader(shuffle=True, augment=noise)
    two_epochs = [*whole, *whole]
    stopped = loader(shuffle=True, augment=noise)
    list(itertools.islice(stopped, position))
    resumed = loader(shuffle=True, augment=noise)
    resumed.load_state_dict(stopped.state_dict())
    rest = [*resumed, *resumed][: len(two_epochs) - position]
    for ours, theirs in zip(rest, two_epochs[position:], strict=False):
        assert all(map(torch.equal, ours, theirs))


def test_a_pass_that_was_left_early_is_not_taken_up_again() -> None:
    one = loader()
    list(itertools.islice(one, 2))
    assert seen(one) == list(range(COUNT))


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_share_the_images_in_equally_many_batches(world_size: int, shuffle: bool) -> None:
    ranks = [loader(shuffle=shuffle, rank=r, world_size=world_size) for r in range(world_size)]
    batches = [list(one) for one in ranks]
    assert {len(one) for one in batches} == {len(ranks[0])}
    labels = [label for one in batches for _, some in one for label in some.tolist()]
    assert sorted(labels) == list(range(COUNT))
    sizes = [len(some) for one in batches for _, some in one]
    assert min(sizes) >= 1
    assert max(sizes) <= BATCH + 1


def test_ranks_are_augmented_differently() -> None:
    images = torch.zeros(8, 1, 2, 2)
    first, second = (
        next(iter(TensorLoader(images, torch.zeros(8), 4, augment=noise, rank=r, world_size=2)))[0]
        for r in (0, 1)
    )
    assert not torch.equal(first, second)


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    list(loader(shuffle=True, augment=noise))
    assert torch.equal(torch.get_rng_state(), before)


def test_images_in_memory_survive_an_augmentation_that_works_in_place() -> None:
    images = torch.ones(4, 1, 2, 2)
    list(TensorLoader(images, torch.zeros(4), 2, augment=lambda batch, _: batch.zero_()))
    assert images.eq(1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(3)}, "one label per image, got 4 images and 3 labels"),
        ({"batch_size": 0}, "batch_size >= 1, got batch_size=0"),
        ({"seed": -1}, "seed >= 0, got seed=-1"),
        ({"rank": 2, "world_size": 2}, "rank=2, world_size=2"),
        ({"world_size": 5}, "an image per process, got 4 for world_size=5"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_named(change: dict[str, object], message: str) -> None:
    good = {"images": torch.zeros(4, 1), "labels": torch.zeros(4), "batch_size": 2}
    with pytest.raises(ValueError, match=message):
        TensorLoader(**{**good, **change})
