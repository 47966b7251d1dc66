"""Random displacements of one wavelength: the tremor of a hand, or the slow sway of a calm one."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["displacement_fields", "drift", "warp"]

BANDWIDTH = 0.2  # relative width of the band around the wavelength
WAVES = 4  # in the motion of a pen


def displacement_fields(
    rng: np.random.Generator, wavelength: Tensor, rms: Tensor, size: int
) -> Tensor:
    r"""Random vector fields whose spectrum is a ring around one spatial frequency.

    $$
    \hat d(k) = \exp\Bigl(-\frac{\log^2(\lambda |k|)}{2 \sigma^2}\Bigr)\, n(k),
    \qquad n \text{ complex white noise}, \quad \sigma = 0.2,
    $$

    scaled to the root mean square asked for.

    Args:
        rng: Source of the noise.
        wavelength: One per field, in pixels.
        rms: Root mean square of each component of each field, in pixels.
        size: Height and width of the fields in pixels.

    Returns:
        Float fields of shape `(N, 2, size, size)`; they repeat periodically.
    """
    shape = (len(wavelength), 2, size, size // 2 + 1, 2)
    noise = torch.view_as_complex(torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)))
    frequency = torch.hypot(torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None])
    # log 0 = -inf: the ring leaves the mean displacement out
    ring = (torch.log(frequency * wavelength.view(-1, 1, 1, 1)) / BANDWIDTH).square().div(-2).exp()
    fields: Tensor = torch.fft.irfft2(noise * ring, s=(size, size))
    return fields * (rms.view(-1, 1, 1, 1) / fields.square().mean((-2, -1), keepdim=True).sqrt())


def drift(rng: np.random.Generator, arc: np.ndarray, wavelength: float, rms: float) -> np.ndarray:
    """Random displacement along a pen's path: the one-dimensional sibling of the fields.

    Args:
        rng: Source of wavelengths and phases.
        arc: Length of the path up to each of its points, in pixels, shape `(P,)`.
        wavelength: Centre of the band, in pixels of path.
        rms: Root mean square of each component over the path, in pixels.

    Returns:
        Displacement of each point, shape `(P, 2)`.
    """
    lengths = wavelength * np.exp(BANDWIDTH * rng.standard_normal((WAVES, 1, 2)))
    phases = rng.uniform(0, 2 * np.pi, (WAVES, 1, 2))
    moved = np.cos(2 * np.pi * arc[:, None] / lengths + phases).sum(0)
    return np.asarray(moved * (rms / np.sqrt(np.square(moved).mean(0))))


def warp(pictures: Tensor, matrices: Tensor, fields: Tensor) -> Tensor:
    """Transform pictures about their centre, displace their strokes, and halve their size.

    Args:
        pictures: Grey pictures of shape `(N, 1, 2S, 2S)`.
        matrices: From places in the result to places in the picture, shape `(N, 2, 3)`, in units of
            half the picture.
        fields: Displacements in pixels of the result, shape `(N, 2, S, S)`.

    Returns:
        Pictures of shape `(N, 1, S, S)`, each pixel the mean of four samples.
    """
    size = fields.shape[-1]
    fine = F.interpolate(fields * (2 / size), scale_factor=2, mode="bilinear", align_corners=False)
    x = (torch.arange(2 * size) + 0.5) / size - 1
    a, b, c = matrices[..., None, None].unbind(2)
    grid = (a * x + c + b * x[:, None] + fine).permute(0, 2, 3, 1)
    return F.avg_pool2d(F.grid_sample(pictures, grid, align_corners=False), 2)
