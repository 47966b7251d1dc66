"""What happens to a batch of images on its way out of the loader, for all images at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from lightning_sparsity.data.loader import Augment

__all__ = ["Chain", "CropAndFlip", "Normalize"]


@final
@dataclass(frozen=True)
class Normalize:
    r"""Shift and scale each channel.

    $$ x \mapsto (x - \text{mean}) / \text{std} $$

    Args:
        mean: One number per channel, in units of the images.
        std: One number per channel, above 0.

    Shape:
        Images `(N, C, H, W)`.

    Raises:
        ValueError: If a `std` is not above 0.
    """

    mean: Sequence[float]
    std: Sequence[float]

    def __post_init__(self) -> None:
        if min(self.std) <= 0:
            raise ValueError(f"Normalize needs std > 0, got std={self.std}.")

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """The normalised images; nothing is random here."""
        mean, std = (images.new_tensor(numbers).view(-1, 1, 1) for numbers in (self.mean, self.std))
        return (images - mean).div_(std)


@final
@dataclass(frozen=True)
class CropAndFlip:
    """Move each image at random by up to `padding` pixels, and mirror half of them.

    Beyond its border an image is black. This is the augmentation of the papers for CIFAR: pad by 4,
    crop at random, flip horizontally.

    Args:
        padding: Largest shift in pixels, at least 0.
        flip: Whether each image is mirrored left to right with probability one half.

    Shape:
        Images `(N, C, H, W)` in [0, 1], so that 0 is black.

    Raises:
        ValueError: If `padding` is negative.
    """

    padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ValueError(f"CropAndFlip needs padding >= 0, got padding={self.padding}.")

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """The distorted images."""
        count, height, width = len(images), *images.shape[-2:]
        padded = F.pad(images, [self.padding] * 4)
        crops = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view of every possible crop
        y, x = torch.randint(2 * self.padding + 1, (2, count), generator=generator)
        cropped = crops[torch.arange(count), :, y, x]
        if not self.flip:
            return cropped
        mirrored = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
        return torch.where(mirrored, cropped.flip(-1), cropped)


@final
@dataclass(frozen=True)
class Chain:
    """Several steps, one after the other."""

    steps: Sequence[Augment]

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """What the last step gives."""
        for step in self.steps:
            images = step(images, generator)
        return images
