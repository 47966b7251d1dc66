"""Data as `LightningDataModule`s, held in memory."""

from lightning_sparsity.data.augment import CropAndFlip, Warp
from lightning_sparsity.data.curves import Curves
from lightning_sparsity.data.loader import TensorLoader
from lightning_sparsity.data.vision import CIFAR10, CIFAR100, MNIST, SVHN, FashionMNIST, VisionData

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "SVHN",
    "CropAndFlip",
    "Curves",
    "FashionMNIST",
    "TensorLoader",
    "VisionData",
    "Warp",
]
