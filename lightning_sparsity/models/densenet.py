"""`DenseNet40`: the densely connected network of the slimming papers."""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_sparsity.models.initialisation import initialise

__all__ = ["DenseNet40"]

GROWTH, LAYERS, BLOCKS, STEM = 12, 12, 3, 24


@final
class _Layer(nn.Module):
    """BatchNorm, ReLU and a convolution whose outputs join its inputs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, GROWTH, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


@final
class _Transition(nn.Module):
    """BatchNorm, ReLU, a pointwise convolution, and half the resolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.norm(x))), 2)


@final
class DenseNet40(nn.Module):
    """DenseNet with 40 layers and growth 12, without bottlenecks, for images of 32 pixels.

    With 10 classes it has 1 059 298 parameters and 9 360 BatchNorm channels. The code of the papers
    counts 1 068 658 parameters: its index of selected channels is a parameter too.

    Args:
        num_classes: Outputs of the last layer.
        in_channels: Channels of the images.

    Shape:
        `(N, in_channels, 32, 32)` to `(N, num_classes)` logits.

    Reference:
        G. Huang, Z. Liu, L. van der Maaten and K. Q. Weinberger, Densely connected convolutional
        networks, CVPR 2017.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_channels, STEM, 3, padding=1, bias=False)]
        width = STEM
        for block in range(BLOCKS):
            layers += [_Transition(width)] if block else []
            layers += [_Layer(width + GROWTH * i) for i in range(LAYERS)]
            width += GROWTH * LAYERS
        self.features = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(width)
        self.classifier = nn.Linear(width, num_classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of each class."""
        x = F.relu(self.norm(self.features(images)))
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits
