"""`VGG19`: the plain deep network of the slimming papers."""

from typing import final

from torch import Tensor, nn

from lightning_sparsity.models.initialisation import initialise

__all__ = ["VGG19"]

STAGES = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)


@final
class VGG19(nn.Module):
    """VGG-19 for images of 32 pixels: 16 convolutions with BatchNorm, and one linear layer.

    With 10 classes it has 20 035 018 parameters and 5 504 BatchNorm channels.

    Args:
        num_classes: Outputs of the last layer.
        in_channels: Channels of the images.

    Shape:
        `(N, in_channels, 32, 32)` to `(N, num_classes)` logits.

    Reference:
        Z. Liu, J. Li, Z. Shen, G. Huang, S. Yan and C. Zhang, Learning efficient convolutional
        networks through network slimming, ICCV 2017.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, stage in enumerate(STAGES):
            layers += [nn.MaxPool2d(2)] if i else []
            for width in stage:
                conv = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
                layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                in_channels = width
        self.features = nn.Sequential(*layers, nn.AvgPool2d(2))
        self.classifier = nn.Linear(in_channels, num_classes)
        initialise(self)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of each class."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits
