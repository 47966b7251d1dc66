"""`ImageClassifier`: the plain training loop around any network that gives logits."""

from typing import final

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

__all__ = ["ImageClassifier"]


@final
class ImageClassifier(LightningModule):
    """Trains a network to name the class of an image, by cross-entropy.

    Nothing in here knows of sparsity: that is what callbacks add. It logs `train_loss` at every
    step and, once per epoch, `train_acc`, `val_loss`, `val_acc`, `test_loss` and `test_acc` (shares
    in [0, 1], over all processes).

    A checkpoint written by the command line holds the configuration and is loaded by
    `ImageClassifier.load_from_checkpoint(path)`. One of a network made in Python does not hold its
    class: `load_from_checkpoint(path, model=LeNet5())`. Both load with `weights_only=True`.

    Args:
        model: The network, from images `(N, C, H, W)` to logits `(N, num_classes)`.
        num_classes: Number of classes, at least 2.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes the learning rate schedule from the optimizer; stepped once per epoch. A
            schedule that watches a metric watches its `monitor`, or else `val_loss`.
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        channels_last: Whether weights and images are laid out with the channels innermost, which
            is faster for convolutions on most machines and computes the same.

    Shape:
        Batches are pairs of float images `(N, C, H, W)` and integer labels `(N,)`.

    Raises:
        ValueError: If a number is out of its range.
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int = 10,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        label_smoothing: float = 0.0,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"ImageClassifier needs num_classes >= 2, got {num_classes=}.")
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                f"ImageClassifier needs 0 <= label_smoothing < 1, got {label_smoothing=}."
            )
        self.save_hyperparameters(ignore=["model", "optimizer", "lr_scheduler"])
        if "_instantiator" in self.hparams:  # from the command line: there all three are plain text
            self.save_hyperparameters()
        layout = torch.channels_last if channels_last else torch.preserve_format
        self.model = model.to(memory_format=layout)
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.label_smoothing = label_smoothing
        self.layout = layout
        accuracies = (
            MulticlassAccuracy(num_classes, average="micro", validate_args=False) for _ in range(3)
        )
        self.train_acc, self.val_acc, self.test_acc = accuracies
        # Metrics, because a logged number is averaged over processes regardless of their shares.
        self.val_loss, self.test_loss = MeanMetric(), MeanMetric()

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Logits of each class."""
        logits: Tensor = self.model(images.to(memory_format=self.layout))
        return logits

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optimizer(self.parameters())
        if self.lr_scheduler is None:
            return optimizer
        schedule = self.lr_scheduler(optimizer)
        monitor = getattr(schedule, "monitor", "val_loss")
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": monitor}}

    @override
    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        self.train_acc.update(logits, labels)
        self.log("train_loss", loss, prog_bar=True)
        self.log("train_acc", self.train_acc, on_step=False, on_epoch=True)
        return loss

    @override
    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self._evaluate("val", self.val_loss, self.val_acc, batch)

    @override
    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self._evaluate("test", self.test_loss, self.test_acc, batch)

    @override
    def predict_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Probability of each class."""
        images, _ = batch
        return self.forward(images).softmax(-1)

    def _evaluate(
        self,
        stage: str,
        mean_loss: MeanMetric,
        accuracy: MulticlassAccuracy,
        batch: tuple[Tensor, Tensor],
    ) -> None:
        images, labels = batch
        logits = self(images)
        mean_loss.update(F.cross_entropy(logits, labels), weight=len(labels))
        accuracy.update(logits, labels)
        self.log(f"{stage}_loss", mean_loss)
        self.log(f"{stage}_acc", accuracy, prog_bar=True)
