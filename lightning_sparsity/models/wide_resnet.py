"""`WideResNet`: residual networks that are wide rather than deep."""

from typing import final

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_sparsity.models.initialisation import initialise

__all__ = ["WideResNet"]

WIDTHS = (16, 32, 64)


@final
class _Block(nn.Module):
    """Pre-activation block: two 3×3 convolutions, each after BatchNorm and ReLU, and dropout."""

    def __init__(self, inputs: int, width: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        changes = stride > 1 or inputs != width
        self.shortcut = nn.Conv2d(inputs, width, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        y = self.conv2(self.dropout(F.relu(self.norm2(self.conv1(active)))))
        total: Tensor = y + (x if self.shortcut is None else self.shortcut(active))
        return total


@final
class WideResNet(nn.Module):
    """Pre-activation ResNet with wide basic blocks for images of 32 pixels.

    WRN-28-10 with 10 classes has 36 479 194 parameters. The first convolutions of its blocks
    (`select="*.conv1"`) have 4 480 filters with 16 842 240 weights.

    Args:
        depth: Layers with weights, 6n + 4 for n blocks in each of the three stages.
        width: How many times wider than 16, 32 and 64 channels the stages are.
        dropout: Share of the inputs of each block's second convolution that training sets to zero,
            in `[0, 1)`.
        num_classes: Outputs of the last layer.
        in_channels: Channels of the images.

    Shape:
        `(N, in_channels, 32, 32)` to `(N, num_classes)` logits.

    Raises:
        ValueError: If `depth` is not 6n + 4, a count is below 1, or `dropout` is outside `[0, 1)`.

    Example:
        >>> sum(weight.numel() for weight in WideResNet(depth=16, width=8).parameters())
        10961370

    Reference:
        S. Zagoruyko and N. Komodakis, Wide residual networks, BMVC 2016.
        https://arxiv.org/abs/1605.07146
    """

    def __init__(
        self,
        depth: int = 28,
        width: int = 10,
        dropout: float = 0.3,
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"WideResNet needs depth to be 10, 16, 22, 28 …, got depth={depth}.")
        counts = {"width": width, "num_classes": num_classes, "in_channels": in_channels}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"WideResNet needs {name} >= 1, got {name}={count}.")
        if not 0 <= dropout < 1:
            raise ValueError(f"WideResNet needs 0 <= dropout < 1, got dropout={dropout}.")
        self.stem = nn.Conv2d(in_channels, WIDTHS[0], 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        inputs = WIDTHS[0]
        for stage, base in enumerate(WIDTHS):
            for i in range((depth - 4) // 6):
                stride = 2 if stage and not i else 1
                blocks.append(_Block(inputs, width * base, stride, dropout))
                inputs = width * base
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(inputs)
        self.classifier = nn.Linear(inputs, num_classes)
        initialise(self, scale=1.0)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of each class."""
        x = F.relu(self.norm(self.blocks(self.stem(images))))
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits
