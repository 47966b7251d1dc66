"""`ResNet164`, the residual network of the slimming papers, and `ResNet20` and `ResNet56`."""

from typing import final

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_sparsity.models.initialisation import initialise

__all__ = ["ResNet20", "ResNet56", "ResNet164"]

WIDTHS = (16, 32, 64)


@final
class _Bottleneck(nn.Module):
    """Pre-activation block: 1×1, 3×3 and 1×1 convolution, each after BatchNorm and ReLU."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        changes = stride > 1 or inputs != 4 * width
        shortcut = nn.Conv2d(inputs, 4 * width, 1, stride, bias=False) if changes else nn.Identity()
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.norm1(x)))
        y = self.conv2(F.relu(self.norm2(y)))
        y = self.conv3(F.relu(self.norm3(y)))
        total: Tensor = self.shortcut(x) + y
        return total


@final
class ResNet164(nn.Module):
    """Pre-activation ResNet with 164 layers for images of 32 pixels: 18 bottlenecks per stage.

    With 10 classes it has 1 703 258 parameters and 12 112 BatchNorm channels. The code of the
    papers counts 1 711 338 parameters: its index of selected channels is a parameter too.

    Args:
        num_classes: Outputs of the last layer.
        in_channels: Channels of the images.

    Shape:
        `(N, in_channels, 32, 32)` to `(N, num_classes)` logits.

    Reference:
        K. He, X. Zhang, S. Ren and J. Sun, Identity mappings in deep residual networks, ECCV 2016.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, WIDTHS[0], 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        inputs = WIDTHS[0]
        for stage, width in enumerate(WIDTHS):
            for i in range(18):
                blocks.append(_Bottleneck(inputs, width, 2 if stage and not i else 1))
                inputs = 4 * width
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(inputs)
        self.classifier = nn.Linear(inputs, num_classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of each class."""
        x = F.relu(self.norm(self.blocks(self.stem(images))))
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


@final
class _Basic(nn.Module):
    """Two 3×3 convolutions with BatchNorm; the sum with the shortcut goes through the last ReLU."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        conv = nn.Conv2d(inputs, width, 1, stride, bias=False)
        changes = stride > 1 or inputs != width
        self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(width)) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.shortcut(x) + self.norm2(self.conv2(y)))


class _CifarResNet(nn.Module):
    """Three stages of basic blocks at widths 16, 32 and 64."""

    def __init__(self, blocks_per_stage: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, WIDTHS[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(WIDTHS[0])
        blocks: list[nn.Module] = []
        inputs = WIDTHS[0]
        for stage, width in enumerate(WIDTHS):
            for i in range(blocks_per_stage):
                blocks.append(_Basic(inputs, width, 2 if stage and not i else 1))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(inputs, num_classes)
        initialise(self, scale=1.0)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of each class."""
        x = self.blocks(F.relu(self.norm(self.stem(images))))
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


@final
class ResNet20(_CifarResNet):
    """ResNet with 20 layers for images of 32 pixels, 272 474 parameters and 784 BatchNorm channels.

    Where the width changes, the shortcut is a 1×1 convolution with BatchNorm.

    Args:
        num_classes: Outputs of the last layer.
        in_channels: Channels of the images.

    Shape:
        `(N, in_channels, 32, 32)` to `(N, num_classes)` logits.

    Reference:
        K. He, X. Zhang, S. Ren and J. Sun, Deep residual learning for image recognition, CVPR 2016.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__(3, num_classes, in_channels)


@final
class ResNet56(_CifarResNet):
    """ResNet with 56 layers, 855 770 parameters and 2 128 BatchNorm channels. See `ResNet20`.

    Args:
        num_classes: Outputs of the last layer.
        in_channels: Channels of the images.

    Shape:
        `(N, in_channels, 32, 32)` to `(N, num_classes)` logits.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__(9, num_classes, in_channels)
