"""Batches cut from tensors that live in memory, in an order that a resumed run repeats exactly."""

from collections.abc import Callable, Iterator
from typing import TypeAlias, TypedDict, final

import numpy as np
import torch
from torch import Generator, Tensor

__all__ = ["Augment", "LoaderState", "TensorLoader"]

Augment: TypeAlias = Callable[[Tensor, Generator], Tensor]


class LoaderState(TypedDict):
    """Where a loader is: how many batches of which epoch it has given."""

    epoch: int
    position: int


@final
class TensorLoader:
    """Gives batches of images and labels, epoch after epoch, without worker processes.

    A data set that fits in memory is fastest when whole batches are cut from one tensor. Order and
    augmentation depend on `(seed, epoch, batch, rank)` alone and never touch the global random
    state, so a run that is resumed in the middle of an epoch sees the very batches it would have
    seen. Lightning saves and restores the position by `state_dict` and `load_state_dict`, and names
    the epoch by `sampler.set_epoch`. The position counts batches given. Lightning fetches none
    ahead, so these are the batches trained on, except in a checkpoint written during a batch.

    With several processes, rank `r` takes every `world_size`-th image of the common order. All
    ranks give the same number of batches, and no image is given twice or left out: a rank that has
    one image more than others carries it in its last batch. A small last batch is kept.

    Args:
        images: The images along the first dimension. `uint8` stays as it is in memory, and each
            batch is scaled to [0, 1]; other types are only converted to float32.
        labels: One class per image, turned into `int64`.
        batch_size: Images per batch and process, at least 1.
        shuffle: Whether every epoch has an order of its own.
        augment: Called with each batch of float images and a random generator; returns what is
            given out. Random distortion and normalisation belong here.
        seed: Of the order and the augmentation, at least 0.
        rank: Which process this is, from 0.
        world_size: How many processes share the data.

    Raises:
        ValueError: If the lengths differ, or a number is out of its range.

    Example:
        >>> loader = TensorLoader(torch.arange(5.0), torch.arange(5), 2)
        >>> [labels.tolist() for _, labels in loader]
        [[0, 1], [2, 3], [4]]
    """

    # Lightning looks at a loader's `batch_sampler` wherever it has a `sampler`.
    batch_sampler = None

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        *,
        shuffle: bool = False,
        augment: Augment | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        _check(images, labels, batch_size, seed, rank, world_size)
        self.images = images
        self.labels = labels.long()
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.augment = augment
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self._here = LoaderState(epoch=0, position=0)
        self._next = LoaderState(epoch=0, position=0)

    def __len__(self) -> int:
        """Batches per epoch, the same on every rank."""
        smallest_share = len(self.images) // self.world_size
        return -(-smallest_share // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # A generator reads this at its first batch: Lightning names the epoch after `iter(loader)`.
        epoch, first = self._next["epoch"], self._next["position"]
        self._next = LoaderState(epoch=epoch + 1, position=0)
        order = self._order(epoch)
        for batch in range(first, len(self)):
            self._here = LoaderState(epoch=epoch, position=batch + 1)
            stop = (batch + 1) * self.batch_size if batch + 1 < len(self) else len(order)
            chosen = order[batch * self.batch_size : stop]
            yield self._images(chosen, epoch, batch), self.labels[chosen]

    @property
    def sampler(self) -> "TensorLoader":
        """The loader itself: Lightning calls `loader.sampler.set_epoch` before every epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next; a loaded position in that epoch is kept."""
        if epoch != self._next["epoch"]:
            self._next = LoaderState(epoch=epoch, position=0)

    def state_dict(self) -> LoaderState:
        """How many batches of which epoch have been given."""
        return LoaderState(**self._here)

    def load_state_dict(self, state: LoaderState) -> None:
        """Go on after the batches that `state` has seen; after a whole epoch, with the next one."""
        self._here = LoaderState(**state)
        finished = state["position"] >= len(self)
        self._next = (
            LoaderState(epoch=state["epoch"] + 1, position=0) if finished else LoaderState(**state)
        )

    def _order(self, epoch: int) -> Tensor:
        if not self.shuffle:
            return torch.arange(self.rank, len(self.images), self.world_size)
        everyone = torch.randperm(len(self.images), generator=_generator(self.seed, epoch))
        return everyone[self.rank :: self.world_size]

    def _images(self, chosen: Tensor, epoch: int, batch: int) -> Tensor:
        images = self.images[chosen]
        images = images.float().div_(255) if images.dtype == torch.uint8 else images.float()
        if self.augment is None:
            return images
        return self.augment(images, _generator(self.seed, epoch, batch, self.rank))


def _generator(*key: int) -> Generator:
    # torch uses 32 bits of a seed: mix the key so that neighbouring keys give unrelated numbers.
    return Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


def _check(
    images: Tensor, labels: Tensor, batch_size: int, seed: int, rank: int, world_size: int
) -> None:
    count = len(images)
    if count != len(labels):
        raise ValueError(
            f"TensorLoader needs one label per image, got {count} images and {len(labels)} labels."
        )
    if batch_size < 1:
        raise ValueError(f"TensorLoader needs batch_size >= 1, got batch_size={batch_size}.")
    if seed < 0:
        raise ValueError(f"TensorLoader needs seed >= 0, got seed={seed}.")
    if not 0 <= rank < world_size:
        raise ValueError(
            f"TensorLoader needs 0 <= rank < world_size, got rank={rank}, world_size={world_size}."
        )
    if count < world_size:
        raise ValueError(
            f"TensorLoader needs an image per process, got {count} for world_size={world_size}."
        )
