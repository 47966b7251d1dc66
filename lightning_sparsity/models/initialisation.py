"""The initial weights of the slimming papers' networks."""

from torch import nn

__all__ = ["initialise"]


def initialise(model: nn.Module, *, scale: float = 0.5) -> None:
    """Draw convolutions from N(0, 2 / (k² C_out)), and start every BatchNorm at one scale.

    Scales that start at 0.5 instead of 1 have half the way to zero.

    Args:
        model: The network, changed in place.
        scale: The BatchNorm scales to start from. Shifts start at 0.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, scale)
            nn.init.zeros_(module.bias)
