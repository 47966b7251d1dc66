"""`Curves`: regular against shaky writing, made on the fly."""

from typing import final, get_args

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Generator, Tensor
from typing_extensions import override

from lightning_sparsity.data.augment import CropAndFlip
from lightning_sparsity.data.loader import TensorLoader
from lightning_sparsity.data.typefaces import find_typefaces, typefaces_of
from lightning_sparsity.data.vocabulary import Split, words_of
from lightning_sparsity.data.writing import Writer

__all__ = ["Curves"]

CHUNK = 240  # pictures made at a time: small enough to stay in the cache, a multiple of 6


@final
class Curves(LightningDataModule):
    """Shaky against regular writing at several scales: the task of Xue and Xin, remade.

    The data of the paper was never published and its abstract only names the task, so everything
    here is ours: words in many typefaces and sizes, and synthetic handwriting of pen strokes. All
    strokes are displaced by random fields of one wavelength. Shaky writing has a tremor, regular
    writing an equally strong but slow sway. The share of ink, the blur and the noise say little
    about the class, and a linear classifier on pixels does no better than chance.

    Words and typefaces of the test split occur in neither training nor validation; the words of
    validation do not occur in training. The pictures are made at the first `setup`, in memory, the
    same ones for the same seed, without touching the global random state. Training pictures are
    flipped, transposed and shifted at random: mirrored writing is as shaky as before.

    Args:
        train: Number of training pictures, half of them shaky.
        val: Number of validation pictures.
        test: Number of test pictures.
        size: Height and width of the pictures in pixels, at least 32. All scales grow with it.
        seed: Of the pictures and the order of training.
        fonts: Folder with more typefaces (TTF or OTF files). None: those that matplotlib ships.
        batch_size: Pictures per batch and process.

    Shape:
        Batches are float images `(N, 1, size, size)` in [0, 1] with ink near 1, and integer labels
        `(N,)`: 0 is regular, 1 is shaky.

    Raises:
        ValueError: If a number is out of its range or the folder of typefaces is of no use.

    Reference:
        F. Xue and J. Xin, Learning Sparse Neural Networks via l0 and Tl1 by a Relaxed Variable
        Splitting Method with Application to Multi-scale Curve Classification, World Congress on
        Global Optimization, 2019. https://arxiv.org/abs/1902.07419
    """

    classes = ("regular", "shaky")

    def __init__(
        self,
        train: int = 12_000,
        val: int = 2_000,
        test: int = 4_000,
        size: int = 64,
        seed: int = 0,
        fonts: str | None = None,
        batch_size: int = 128,
    ) -> None:
        super().__init__()
        floors = {"train": 2, "val": 2, "test": 2, "size": 32, "seed": 0, "batch_size": 1}
        given = {
            "train": train, "val": val, "test": test, "size": size, "seed": seed,
            "batch_size": batch_size,
        }  # fmt: skip
        for name, floor in floors.items():
            if given[name] < floor:
                raise ValueError(f"Curves needs {name} >= {floor}, got {name}={given[name]}.")
        self.counts: dict[Split, int] = {"train": train, "val": val, "test": test}
        self.size = size
        self.input_shape = (1, size, size)
        self.seed = seed
        self.batch_size = batch_size
        self._faces = find_typefaces(fonts)
        self._pictures: dict[Split, tuple[Tensor, Tensor]] = {}

    @override
    def setup(self, stage: str) -> None:
        """Make the pictures that the stage needs and that are not there yet."""
        needs: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",)}
        for split in needs.get(stage, ("test",)):
            self.pictures(split)

    def pictures(self, split: Split) -> tuple[Tensor, Tensor]:
        """All pictures of a split as bytes, and their labels; made once.

        Args:
            split: `"train"`, `"val"` or `"test"`.

        Returns:
            Bytes of shape `(N, 1, size, size)`, 255 where there is ink, and labels of shape `(N,)`.
        """
        if split not in self._pictures:
            writer = Writer(words_of(split), typefaces_of(split, self._faces), self.size)
            rng = np.random.default_rng([self.seed, get_args(Split).index(split)])
            count = self.counts[split]
            chunks = [writer.write(rng, min(CHUNK, count - i)) for i in range(0, count, CHUNK)]
            images, labels = zip(*chunks, strict=True)
            self._pictures[split] = torch.cat(images), torch.cat(labels)
        return self._pictures[split]

    @override
    def train_dataloader(self) -> TensorLoader:
        return self._loader("train")

    @override
    def val_dataloader(self) -> TensorLoader:
        return self._loader("val")

    @override
    def test_dataloader(self) -> TensorLoader:
        return self._loader("test")

    @override
    def predict_dataloader(self) -> TensorLoader:
        return self._loader("test")

    def _loader(self, split: Split) -> TensorLoader:
        training = split == "train"
        return TensorLoader(
            *self.pictures(split),
            self.batch_size,
            shuffle=training,
            augment=_move if training else None,
            seed=self.seed,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
        )


def _move(images: Tensor, generator: Generator) -> Tensor:
    """Flip each picture in both directions and transpose it, at random, and shift it a little."""
    down, across, turned = torch.rand(3, len(images), 1, 1, 1, generator=generator) < 0.5
    images = torch.where(down, images.flip(-2), images)
    images = torch.where(across, images.flip(-1), images)
    images = torch.where(turned, images.mT, images)
    return CropAndFlip(images.shape[-1] // 8, flip=False)(images, generator)
