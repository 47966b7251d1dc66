"""`MNISTNet`: a network for MNIST with three convolutions and two linear layers."""

from typing import final

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MNISTNet"]


@final
class MNISTNet(nn.Module):
    """Three convolutions with BatchNorm, the first and the last max-pooled, and two linear layers.

    With the defaults it has 332 002 parameters, 82 % of them in `fc1`. Nothing is padded.

    Args:
        num_classes: Outputs of `fc2`.
        in_channels: Channels of the images.
        hidden: Outputs of `fc1`.
        dropout: Share of the inputs of `fc2` that training sets to zero, in `[0, 1)`; half of it
            for those of `fc1`.

    Shape:
        `(N, in_channels, 28, 28)` to `(N, num_classes)` logits.

    Raises:
        ValueError: If a count is below 1, or `dropout` is outside `[0, 1)`.

    Example:
        >>> sum(weight.numel() for weight in MNISTNet().parameters())
        332002
    """

    def __init__(
        self, num_classes: int = 10, in_channels: int = 1, hidden: int = 266, dropout: float = 0.3
    ) -> None:
        super().__init__()
        counts = {"num_classes": num_classes, "in_channels": in_channels, "hidden": hidden}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"MNISTNet needs {name} >= 1, got {name}={count}.")
        if not 0 <= dropout < 1:
            raise ValueError(f"MNISTNet needs 0 <= dropout < 1, got dropout={dropout}.")
        self.conv1 = nn.Conv2d(in_channels, 32, 5, bias=False)
        self.norm1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, 3, bias=False)
        self.norm2 = nn.BatchNorm2d(64)
        self.conv3 = nn.Conv2d(64, 64, 3, bias=False)
        self.norm3 = nn.BatchNorm2d(64)
        self.dropout1 = nn.Dropout(dropout / 2)
        self.fc1 = nn.Linear(1024, hidden, bias=False)
        self.norm4 = nn.BatchNorm1d(hidden)
        self.dropout2 = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of each class."""
        x = F.relu(self.norm1(F.max_pool2d(self.conv1(images), 2)))
        x = F.relu(self.norm2(self.conv2(x)))
        x = F.relu(self.norm3(F.max_pool2d(self.conv3(x), 2)))
        x = self.fc1(self.dropout1(x.flatten(1)))
        logits: Tensor = self.fc2(self.dropout2(F.relu(self.norm4(x))))
        return logits
