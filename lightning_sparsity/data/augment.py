"""What happens to a batch of images on its way out of the loader, for all images at once."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from lightning_sparsity.data.loader import Augment

__all__ = ["Chain", "CropAndFlip", "Distortion", "Normalize", "Warp"]


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


class Distortion(ABC):
    """Changes each image of a batch at random so that it keeps its class."""

    @abstractmethod
    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """The distorted images."""


@final
@dataclass(frozen=True)
class CropAndFlip(Distortion):
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
class Warp(Distortion):
    """Turn, scale, shear, shift and bend each image at random, as handwriting varies.

    Every number is drawn evenly between its bounds. Bending moves a grid of 5 x 5 points and the
    pixels between them smoothly. Beyond its border an image is black.

    Args:
        turn: Largest angle in degrees, at least 0.
        scale: Largest change of size, as a share, in [0, 1).
        shear: Largest shear: pixels sideways per pixel down, at least 0.
        shift: Largest shift in pixels, at least 0.
        bend: Largest shift of a point of the grid in pixels, at least 0.

    Shape:
        Images `(N, C, H, W)` in [0, 1], so that 0 is black.

    Raises:
        ValueError: If a number is out of range.

    Reference: P. Simard, D. Steinkraus, J. Platt, Best practices for convolutional neural networks
        applied to visual document analysis, ICDAR 2003.
    """

    turn: float = 12.0
    scale: float = 0.12
    shear: float = 0.15
    shift: float = 2.5
    bend: float = 1.5

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0 or (name == "scale" and value >= 1):
                above = " and below 1" if name == "scale" else ""
                raise ValueError(f"Warp needs {name} >= 0{above}, got {name}={value}.")

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """The distorted images."""
        count, size = len(images), images.new_tensor([images.shape[-1], images.shape[-2]])

        def between(bound: float, *shape: int) -> Tensor:
            return (2 * torch.rand(count, *shape, generator=generator) - 1) * bound

        angle, scale = between(math.radians(self.turn)), 1 + between(self.scale)
        cosine, sine = angle.cos() / scale, angle.sin() / scale
        rows = [
            torch.stack([cosine, between(self.shear) - sine], 1),
            torch.stack([sine, cosine], 1),
        ]
        shift = between(self.shift, 2) * 2 / size
        matrix = torch.cat([torch.stack(rows, 1), shift.unsqueeze(2)], 2)
        grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
        if self.bend:
            points = between(self.bend, 2, 5, 5) * 2 / size.view(2, 1, 1)
            smooth = F.interpolate(points, images.shape[-2:], mode="bicubic", align_corners=True)
            grid = grid + smooth.movedim(1, -1)
        return F.grid_sample(images, grid, align_corners=False)


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
