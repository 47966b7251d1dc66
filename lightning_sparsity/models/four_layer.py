"""`FourLayerCNN`: two convolutions and two linear layers, with dropout, for MNIST."""

from typing import final

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["FourLayerCNN"]


@final
class FourLayerCNN(nn.Module):
    """Two 5×5 convolutions without bias and two linear layers, with dropout between all of them.

    With the defaults it has 1 087 010 parameters, 94 % of them in `fc1`.

    Args:
        num_classes: Outputs of `fc2`.
        in_channels: Channels of the images.
        dropout: Share of the inputs of `conv2`, `fc1` and `fc2` that training sets to zero, in
            `[0, 1)`.

    Shape:
        `(N, in_channels, 28, 28)` to `(N, num_classes)` logits.

    Raises:
        ValueError: If a count is below 1, or `dropout` is outside `[0, 1)`.

    Example:
        >>> sum(weight.numel() for weight in FourLayerCNN().parameters())
        1087010

    Reference:
        K. Bui, F. Park, S. Zhang, Y. Qi and J. Xin, Structured sparsity of convolutional neural
        networks via nonconvex sparse group regularization, Frontiers in Applied Mathematics and
        Statistics 6, 2021.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, dropout: float = 0.5) -> None:
        super().__init__()
        for name, count in {"num_classes": num_classes, "in_channels": in_channels}.items():
            if count < 1:
                raise ValueError(f"FourLayerCNN needs {name} >= 1, got {name}={count}.")
        if not 0 <= dropout < 1:
            raise ValueError(f"FourLayerCNN needs 0 <= dropout < 1, got dropout={dropout}.")
        self.conv1 = nn.Conv2d(in_channels, 32, 5, bias=False)
        self.conv2 = nn.Conv2d(32, 64, 5, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.fc1 = nn.Linear(1024, 1000)
        self.fc2 = nn.Linear(1000, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of each class."""
        x = self.dropout(F.relu(F.max_pool2d(self.conv1(images), 2)))
        x = self.dropout(F.relu(F.max_pool2d(self.conv2(x), 2)))
        x = self.dropout(F.relu(self.fc1(x.flatten(1))))
        logits: Tensor = self.fc2(x)
        return logits
