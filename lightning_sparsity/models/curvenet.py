"""`CurveNet`: the small network that tells shaky from regular writing."""

from typing import final

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CurveNet"]


@final
class CurveNet(nn.Module):
    """Three convolutions with max-pooling, then one large fully connected layer.

    The network of Xue and Xin as far as their abstract describes it. The widths are ours, and so is
    the batch normalisation, without which training takes several times as long. With the defaults
    `fc` holds 94 % of the weights, which is what makes it worth training sparse.

    Args:
        size: Height and width of the images, a multiple of 8.
        width: Channels of the first convolution; each next one has twice as many.
        hidden: Outputs of `fc`.
        in_channels: Channels of the images.
        num_classes: Outputs of `head`.

    Shape:
        `(N, in_channels, size, size)` to `(N, num_classes)` logits.

    Raises:
        ValueError: If `size` is not a positive multiple of 8, or a count is below 1.

    Example:
        >>> CurveNet().fc
        Linear(in_features=2048, out_features=128, bias=True)

    Reference:
        F. Xue and J. Xin, Learning Sparse Neural Networks via l0 and Tl1 by a Relaxed Variable
        Splitting Method with Application to Multi-scale Curve Classification, World Congress on
        Global Optimization, 2019. https://arxiv.org/abs/1902.07419
    """

    def __init__(
        self,
        size: int = 64,
        width: int = 8,
        hidden: int = 128,
        in_channels: int = 1,
        num_classes: int = 2,
    ) -> None:
        super().__init__()
        if size < 8 or size % 8:
            raise ValueError(
                f"CurveNet needs size to be a positive multiple of 8, got size={size}."
            )
        counts = {
            "width": width, "hidden": hidden, "in_channels": in_channels, "num_classes": num_classes
        }  # fmt: skip
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"CurveNet needs {name} >= 1, got {name}={count}.")
        self.conv1, self.norm1 = _convolution(in_channels, width)
        self.conv2, self.norm2 = _convolution(width, 2 * width)
        self.conv3, self.norm3 = _convolution(2 * width, 4 * width)
        self.fc = nn.Linear(4 * width * (size // 8) ** 2, hidden)
        self.head = nn.Linear(hidden, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of each class."""
        x = F.max_pool2d(F.relu(self.norm1(self.conv1(images))), 2)
        x = F.max_pool2d(F.relu(self.norm2(self.conv2(x))), 2)
        x = F.max_pool2d(F.relu(self.norm3(self.conv3(x))), 2)
        logits: Tensor = self.head(F.relu(self.fc(x.flatten(1))))
        return logits


def _convolution(before: int, after: int) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    # the normalisation subtracts the mean: a bias before it would do nothing
    return nn.Conv2d(before, after, 5, padding=2, bias=False), nn.BatchNorm2d(after)
