"""The classical image data sets, in memory, with a validation split that is never tested on."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import torch
import torchvision.datasets as tv
from lightning.pytorch import LightningDataModule
from torch import Generator, Tensor
from typing_extensions import override

from lightning_sparsity.data.augment import Chain, CropAndFlip, Distortion, Normalize
from lightning_sparsity.data.loader import Augment, TensorLoader

__all__ = ["CIFAR10", "CIFAR100", "MNIST", "SVHN", "FashionMNIST", "VisionData"]


class VisionData(LightningDataModule, ABC):
    """An image data set that torchvision can read, split in training, validation and test images.

    Validation images are taken out of the official training images, each class in proportion, and
    are the same for every `seed`: results of several seeds compare on the same images. The official
    test images are used by `test` and `predict` alone. The images are read once, at the first
    `setup`, and stay in memory as bytes. Nothing is downloaded unless asked for.

    Args:
        root: Folder with the files, as torchvision lays them out.
        batch_size: Images per batch and process.
        val: Number of validation images, at least 1.
        augment: Whether training images are distorted at random: shifted by up to 4 pixels (2 for
            28 x 28 images) and, where that keeps the class, mirrored. `None` does what the papers
            do: yes for CIFAR, no for the others. Or what to do instead, for example `Warp()`.
        normalize: Whether each channel is brought to about zero mean and unit variance, by the
            constants of the papers. If not, images are in [0, 1].
        download: Whether files that are missing are fetched.
        seed: Of the order and the distortion of training images.

    Shape:
        Batches are float images `(N, *input_shape)` and integer labels `(N,)` below `num_classes`.

    Raises:
        FileNotFoundError: In `setup`, if the files are missing or broken.
        ValueError: If `val` leaves no image for one of the splits.

    Reference:
        Z. Liu, J. Li, Z. Shen, G. Huang, S. Yan and C. Zhang, Learning Efficient Convolutional
        Networks through Network Slimming, ICCV 2017 (constants and augmentation of CIFAR and SVHN).
    """

    num_classes: ClassVar[int] = 10
    input_shape: ClassVar[tuple[int, int, int]]
    mean: ClassVar[tuple[float, ...]]
    std: ClassVar[tuple[float, ...]]
    distortion: ClassVar[Distortion]
    augmented_in_papers: ClassVar[bool] = False

    def __init__(
        self,
        root: str = ".data",
        *,
        batch_size: int = 128,
        val: int = 5000,
        augment: bool | Distortion | None = None,
        normalize: bool = True,
        download: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, given, floor in (
            ("val", val, 1),
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
        ):
            if given < floor:
                raise ValueError(
                    f"{type(self).__name__} needs {name} >= {floor}, got {name}={given}."
                )
        self.root = root
        self.batch_size = batch_size
        self.val = val
        self.augment = self.augmented_in_papers if augment is None else augment
        self.normalize = normalize
        self.download = download
        self.seed = seed
        self._splits: dict[str, tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def _read(self, train: bool, download: bool) -> tuple[Tensor, Tensor]:
        """The official training or test images as bytes `(N, C, H, W)`, and their labels."""

    @override
    def prepare_data(self) -> None:
        """Fetch what is missing, if that was asked for."""
        if self.download:
            for train in (True, False):
                self._read(train, download=True)

    @override
    def setup(self, stage: str) -> None:
        """Read the images that the stage needs and that are not there yet."""
        if stage in ("fit", "validate") and "train" not in self._splits:
            images, labels = self._read_or_explain(train=True)
            held_out = _spread(labels, self.val, type(self).__name__)
            self._splits["train"] = images[~held_out], labels[~held_out]
            self._splits["val"] = images[held_out], labels[held_out]
        if stage in ("test", "predict") and "test" not in self._splits:
            self._splits["test"] = self._read_or_explain(train=False)

    @override
    def train_dataloader(self) -> TensorLoader:
        # Whoever overfits on a few batches wants the same ones in every epoch.
        trainer: Any = self.trainer  # whose `overfit_batches` is hidden from type checkers
        overfit = trainer is not None and trainer.overfit_batches > 0
        distortion = self.augment if isinstance(self.augment, Distortion) else self.distortion
        steps: list[Augment] = [distortion] if self.augment else []
        return self._loader("train", steps, shuffle=not overfit)

    @override
    def val_dataloader(self) -> TensorLoader:
        return self._loader("val", [])

    @override
    def test_dataloader(self) -> TensorLoader:
        return self._loader("test", [])

    @override
    def predict_dataloader(self) -> TensorLoader:
        return self._loader("test", [])

    def _loader(self, split: str, steps: list[Augment], *, shuffle: bool = False) -> TensorLoader:
        if self.normalize:
            steps = [*steps, Normalize(self.mean, self.std)]
        return TensorLoader(
            *self._splits[split],
            self.batch_size,
            shuffle=shuffle,
            augment=Chain(steps),
            seed=self.seed,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
        )

    def _read_or_explain(self, train: bool) -> tuple[Tensor, Tensor]:
        try:
            return self._read(train, download=False)
        except RuntimeError as error:  # what torchvision raises for files missing or damaged
            raise FileNotFoundError(
                f"{type(self).__name__} needs its files in a complete state in the folder "
                f"root={str(Path(self.root).resolve())!r}. Name the right folder, or let them be "
                f"fetched: download=True (--data.download true)."
            ) from error


def _spread(labels: Tensor, count: int, who: str) -> Tensor:
    """Mark `count` of the labels, drawn at random but evenly over the classes; always the same."""
    if count >= len(labels):
        raise ValueError(
            f"{who} needs val below the {len(labels)} training images, got val={count}."
        )
    shuffled = torch.randperm(len(labels), generator=Generator().manual_seed(0))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    marked = torch.zeros(len(labels), dtype=torch.bool)
    marked[by_class[torch.arange(count) * len(labels) // count]] = True
    return marked


def _gray(data: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401 - torchvision types none of its data
    return data.data.unsqueeze(1), data.targets


def _colour(data: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401 - torchvision types none of its data
    return torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets)


@final
class MNIST(VisionData):
    """Handwritten digits: 60 000 training and 10 000 test images, 28 x 28, gray."""

    input_shape = (1, 28, 28)
    mean, std = (0.1307,), (0.3081,)
    distortion = CropAndFlip(2, flip=False)

    @override
    def _read(self, train: bool, download: bool) -> tuple[Tensor, Tensor]:
        return _gray(tv.MNIST(self.root, train, download=download))


@final
class FashionMNIST(VisionData):
    """Pieces of clothing: 60 000 training and 10 000 test images, 28 x 28, gray."""

    input_shape = (1, 28, 28)
    mean, std = (0.2860,), (0.3530,)
    distortion = CropAndFlip(2)

    @override
    def _read(self, train: bool, download: bool) -> tuple[Tensor, Tensor]:
        return _gray(tv.FashionMNIST(self.root, train, download=download))


@final
class CIFAR10(VisionData):
    """Photographs of 10 kinds: 50 000 training and 10 000 test images, 32 x 32, colour."""

    input_shape = (3, 32, 32)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    distortion = CropAndFlip(4)
    augmented_in_papers = True

    @override
    def _read(self, train: bool, download: bool) -> tuple[Tensor, Tensor]:
        return _colour(tv.CIFAR10(self.root, train, download=download))


@final
class CIFAR100(VisionData):
    """Photographs of 100 kinds: 50 000 training and 10 000 test images, 32 x 32, colour."""

    num_classes = 100
    input_shape = (3, 32, 32)
    mean, std = CIFAR10.mean, CIFAR10.std  # the papers use the same constants for both
    distortion = CropAndFlip(4)
    augmented_in_papers = True

    @override
    def _read(self, train: bool, download: bool) -> tuple[Tensor, Tensor]:
        return _colour(tv.CIFAR100(self.root, train, download=download))


@final
class SVHN(VisionData):
    """House numbers: 73 257 training and 26 032 test images, 32 x 32, colour.

    Reading the files needs SciPy (`pip install scipy`).

    Args:
        root: Folder with the files, as torchvision lays them out.
        extra: Whether the 531 131 easier images of the `extra` split are training images too, as in
            the papers. Takes 1.6 GB of memory.
        batch_size: As for every `VisionData`, like all that follow.
        val: Number of validation images.
        augment: Whether training images are shifted at random. `None`: no, as the papers.
        normalize: Whether each channel is normalised.
        download: Whether files that are missing are fetched.
        seed: Of the order and the distortion of training images.
    """

    input_shape = (3, 32, 32)
    mean, std = (0.43768, 0.44377, 0.47280), (0.19803, 0.20102, 0.19704)
    distortion = CropAndFlip(4, flip=False)

    def __init__(
        self,
        root: str = ".data",
        *,
        extra: bool = False,
        batch_size: int = 128,
        val: int = 5000,
        augment: bool | Distortion | None = None,
        normalize: bool = True,
        download: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(
            root,
            batch_size=batch_size,
            val=val,
            augment=augment,
            normalize=normalize,
            download=download,
            seed=seed,
        )
        self.extra = extra

    @override
    def _read(self, train: bool, download: bool) -> tuple[Tensor, Tensor]:
        splits = ["train"] + ["extra"] * self.extra if train else ["test"]
        parts = [tv.SVHN(self.root, split, download=download) for split in splits]
        images = torch.from_numpy(np.concatenate([part.data for part in parts]))
        return images, torch.from_numpy(np.concatenate([part.labels for part in parts]))
