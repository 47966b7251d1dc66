"""`MNISTNet`: a network for MNIST with four small convolutions."""

from typing import final

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MNISTNet"]


@final
class MNISTNet(nn.Module):
    """Two pairs of 3×3 convolutions, each followed by max-pooling, and two linear layers.

    With the defaults it has 332 032 parameters, 80 % of them in `fc1`. Nothing is padded.

    Args:
        num_classes: Outputs of `fc2`.
        in_channels: Channels of the images.
        hidden: Outputs of `fc1`.
        dropout: Share of the inputs of `fc1` and `fc2` that training sets to zero, in `[0, 1)`.

    Shape:
        `(N, in_channels, 28, 28)` to `(N, num_classes)` logits.

    Raises:
        ValueError: If a count is below 1, or `dropout` is outside `[0, 1)`.

    Example:
        >>> sum(weight.numel() for weight in MNISTNet().parameters())
        332032
    """

    def __init__(
        self, num_classes: int = 10, in_channels: int = 1, hidden: int = 258, dropout: float = 0.5
    ) -> None:
        super().__init__()
        counts = {"num_classes": num_classes, "in_channels": in_channels, "hidden": hidden}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"MNISTNet needs {name} >= 1, got {name}={count}.")
        if not 0 <= dropout < 1:
            raise ValueError(f"MNISTNet needs 0 <= dropout < 1, got dropout={dropout}.")
        self.conv1 = nn.Conv2d(in_channels, 32, 3)
        self.conv2 = nn.Conv2d(32, 32, 3)
        self.conv3 = nn.Conv2d(32, 64, 3)
        self.conv4 = nn.Conv2d(64, 64, 3)
        self.dropout = nn.Dropout(dropout)
        self.fc1 = nn.Linear(1024, hidden)
        self.fc2 = nn.Linear(hidden, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of each class."""
        x = F.relu(self.conv2(F.relu(self.conv1(images))))
        x = F.relu(self.conv4(F.relu(self.conv3(F.max_pool2d(x, 2)))))
        x = F.max_pool2d(x, 2).flatten(1)
        x = F.relu(self.fc1(self.dropout(x)))
        logits: Tensor = self.fc2(self.dropout(x))
        return logits
