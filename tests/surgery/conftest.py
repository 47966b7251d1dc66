"""Random statistics and random dead channels, the same in every test."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_sparsity.surgery import ChannelFlow

Randomise = Callable[[nn.Module], nn.Module]
DrawDead = Callable[[ChannelFlow, float], dict[str, Tensor]]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def randomise() -> Randomise:
    """Random statistics, scales and shifts for all norms; float64, evaluation mode."""

    def randomise(model: nn.Module) -> nn.Module:
        for module in model.modules():
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            if not hasattr(module, "running_mean"):
                continue
            for name, x in own:
                if x.is_floating_point():
                    low = 0.5 if name in ("weight", "running_var") else -0.5
                    x.data = torch.rand_like(x) + low
        return model.double().eval()

    return randomise


@pytest.fixture
def draw_dead() -> DrawDead:
    """Draw dead channels independently for every BatchNorm layer."""

    def draw(flow: ChannelFlow, share: float) -> dict[str, Tensor]:
        return {name: torch.rand(n) < share for name, n in flow.norms.items()}

    return draw
