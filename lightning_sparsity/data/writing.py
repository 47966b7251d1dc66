"""Pictures of regular and of shaky writing, from words or strokes to labelled tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_sparsity.data.shaking import displacement_fields, warp
from lightning_sparsity.data.strokes import write_strokes
from lightning_sparsity.data.typefaces import Typeface, write_words

__all__ = ["Writer"]

# In units of 1/64 of the picture. Only the wavelength of the motion tells the classes apart.
SWAY = (36.0, 64.0)
TREMOR = (4.5, 6.5)
RMS = (1.0, 1.2)


@final
@dataclass(frozen=True)
class Writer:
    """Writes pictures, each text twice: once with a regular hand, once with a shaky one.

    Both hands move the strokes equally far. The regular one sways, at wavelengths beyond the height
    of a letter; the shaky one trembles, at wavelengths below it. Two of three texts are words, the
    third is handwriting of strokes. Place, rotation, slant, zoom, softness, contrast and noise are
    drawn from the same distributions for both.

    Args:
        words: Words to write.
        faces: Typefaces to write them in.
        size: Height and width of the pictures in pixels.
    """

    words: Sequence[str]
    faces: Sequence[Typeface]
    size: int

    def write(self, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        """A batch of pictures, regular and shaky in turn.

        Args:
            rng: Decides everything.
            count: Number of pictures.

        Returns:
            Bytes of shape `(count, 1, size, size)`, and labels: 0 is regular, 1 is shaky.
        """
        shaky = torch.arange(count) % 2
        bounds = torch.tensor([SWAY, TREMOR])[shaky]
        wavelengths = bounds[:, 0] + (bounds[:, 1] - bounds[:, 0]) * _uniform(rng, count)
        rms = RMS[0] + (RMS[1] - RMS[0]) * _uniform(rng, count)
        strokes = torch.arange(count) // 2 % 3 == 2
        drawn = self._draw(rng, strokes, wavelengths, rms)
        scale = self.size / 64
        # strokes were moved along the pen's path: their picture is only transformed
        moved = torch.where(strokes, 0.0, rms * scale)
        fields = displacement_fields(rng, wavelengths * scale, moved, self.size)
        pictures = warp(drawn, _transformations(rng, count), fields)
        return _photograph(rng, pictures), shaky

    def _draw(
        self, rng: np.random.Generator, strokes: Tensor, wavelengths: Tensor, rms: Tensor
    ) -> Tensor:
        """Pictures of twice the size, before any displacement of words."""
        canvas = 2 * self.size
        drawn = np.empty((len(strokes), 1, canvas, canvas), np.uint8)
        for i, by_pen in enumerate(strokes.tolist()):
            if by_pen:
                drawn[i] = write_strokes(rng, canvas, float(wavelengths[i]), float(rms[i]))
            elif i % 2 == 0:
                drawn[i : i + 2] = write_words(rng, self.words, self.faces, canvas)
        return torch.from_numpy(drawn).float().div_(255)


def _uniform(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.random(shape, dtype=np.float32))


def _transformations(rng: np.random.Generator, count: int) -> Tensor:
    """Small random rotations, slants, zooms and shifts."""
    turn, slant, *zoom, dx, dy = (2 * _uniform(rng, 6, count) - 1).unbind()
    angle = 0.15 * turn
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    shear = torch.diag_embed(torch.exp(0.12 * torch.stack(zoom, 1)))
    shear[:, 0, 1] = 0.3 * slant
    return torch.cat([rotation @ shear, 0.05 * torch.stack([dx, dy], 1)[..., None]], 2)


def _photograph(rng: np.random.Generator, pictures: Tensor) -> Tensor:
    """Bytes, after random softness, contrast and noise."""
    softness, contrast, noise = _uniform(rng, 3, len(pictures), 1, 1, 1).unbind()
    pictures = torch.lerp(pictures, F.avg_pool2d(pictures, 3, 1, 1), 0.6 * softness)
    grain = torch.from_numpy(rng.standard_normal(tuple(pictures.shape), dtype=np.float32))
    pictures = pictures * (0.6 + 0.4 * contrast) + 0.04 * noise * grain
    return pictures.mul_(255).round_().clamp_(0, 255).to(torch.uint8)
