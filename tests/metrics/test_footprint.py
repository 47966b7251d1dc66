import torch
from torch import Tensor, nn

from lightning_sparsity.metrics import flops, footprint
from lightning_sparsity.sparse_file import file_size


def network() -> nn.Sequential:
    made = nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(72, 2)
    )
    with torch.no_grad():
        made[3].weight[:, :36] = 0
    return made


def test_it_counts_what_is_there() -> None:
    made, images = network(), torch.rand(4, 1, 5, 5)
    found = footprint(made, images)
    assert found.parameters == 72 + 16 + 144 + 2
    zeros = sum(int((x == 0).sum()) for x in made.parameters())
    assert zeros >= 72
    assert found.nonzero == found.parameters - zeros
    assert found.flops == flops(made, images[:1]).total
    assert found.bytes_on_disk == file_size(made)
    assert found.plain_bytes == file_size(made).dense  # type: ignore[union-attr]
    assert found.channels == {"1": 8}
    assert found.layers == {"0": 72, "3": 144}


def test_without_batchnorm_channels_are_outputs() -> None:
    made = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(72, 2))
    assert footprint(made).channels == {"0": 8, "2": 2}


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4, bias=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.layer(x + y)


def test_a_network_with_several_inputs_is_counted_for_one_example() -> None:
    assert footprint(TwoInputs(), (torch.rand(5, 3), torch.rand(5, 3))).flops == 12


def test_what_cannot_be_counted_is_none() -> None:
    assert footprint(TwoInputs()).flops is None
    assert footprint(TwoInputs(), {"x": torch.rand(5, 3)}).flops is None
    assert footprint(TwoInputs(), torch.rand(5, 3)).flops is None  # the call fails
