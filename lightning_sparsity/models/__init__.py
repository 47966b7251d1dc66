"""The networks of the papers, as plain modules."""

from lightning_sparsity.models.curvenet import CurveNet
from lightning_sparsity.models.densenet import DenseNet40
from lightning_sparsity.models.four_layer import FourLayerCNN
from lightning_sparsity.models.lenet5 import LeNet5
from lightning_sparsity.models.mnist_net import MNISTNet
from lightning_sparsity.models.resnet import ResNet20, ResNet56, ResNet164
from lightning_sparsity.models.vgg import VGG19
from lightning_sparsity.models.wide_resnet import WideResNet

__all__ = [
    "VGG19",
    "CurveNet",
    "DenseNet40",
    "FourLayerCNN",
    "LeNet5",
    "MNISTNet",
    "ResNet20",
    "ResNet56",
    "ResNet164",
    "WideResNet",
]
