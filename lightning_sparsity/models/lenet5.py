"""`LeNet5`: the network on which the papers report MNIST."""

from typing import final

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["LeNet5"]


@final
class LeNet5(nn.Module):
    """LeNet-5 with the widths of Caffe: 20 and 50 channels, 500 hidden units.

    With the defaults it has 431 080 parameters, 93 % of them in `fc1`. Like the code of the papers,
    and unlike Caffe, it has a ReLU after the convolutions too.

    Args:
        num_classes: Outputs of `fc2`.
        in_channels: Channels of the images.

    Shape:
        `(N, in_channels, 28, 28)` to `(N, num_classes)` logits.

    Raises:
        ValueError: If a count is below 1.

    Example:
        >>> sum(weight.numel() for weight in LeNet5().parameters())
        431080

    Reference:
        Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, Gradient-based learning applied to document
        recognition, Proceedings of the IEEE 86(11), 1998.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        for name, count in {"num_classes": num_classes, "in_channels": in_channels}.items():
            if count < 1:
                raise ValueError(f"LeNet5 needs {name} >= 1, got {name}={count}.")
        self.conv1 = nn.Conv2d(in_channels, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(800, 500)
        self.fc2 = nn.Linear(500, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of each class."""
        x = images
        for conv in (self.conv1, self.conv2):
            x = F.relu(
                F.max_pool2d(conv(x), 2)
            )  # pooling first: a quarter of the work, same result
        logits: Tensor = self.fc2(F.relu(self.fc1(x.flatten(1))))
        return logits
