import pytest
import torch
from torch import Generator
from torchvision.transforms.functional import normalize

from lightning_sparsity.data.augment import Chain, CropAndFlip, Normalize


def generator() -> Generator:
    return Generator().manual_seed(0)


def test_normalize_agrees_with_torchvision() -> None:
    images = torch.rand(5, 3, 4, 6)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    expected = normalize(images, list(mean), list(std))
    assert torch.allclose(Normalize(mean, std)(images, generator()), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("flip", [True, False])
def test_every_image_is_one_of_its_crops_and_all_crops_occur(flip: bool) -> None:
    image = torch.arange(1.0, 61.0).view(3, 4, 5)
    padded = torch.nn.functional.pad(image, [1] * 4)
    crops = [padded[:, y : y + 4, x : x + 5] for y in range(3) for x in range(3)]
    if flip:
        crops += [crop.flip(-1) for crop in crops]
    moved = CropAndFlip(1, flip=flip)(image.expand(400, 3, 4, 5), generator())
    found = [[i for i, crop in enumerate(crops) if torch.equal(crop, one)] for one in moved]
    assert all(len(matches) == 1 for matches in found)
    assert {match for (match,) in found} == set(range(len(crops)))


def test_a_chain_is_its_steps_in_order() -> None:
    images = torch.rand(3, 1, 2, 2)
    chain = Chain([lambda batch, _: batch + 1, Normalize((0.0,), (2.0,))])
    assert torch.allclose(chain(images, generator()), (images + 1) / 2)
    assert torch.equal(Chain([])(images, generator()), images)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="padding >= 0, got padding=-1"):
        CropAndFlip(-1)
    with pytest.raises(ValueError, match=r"std > 0, got std=\(1.0, 0.0\)"):
        Normalize((0.0, 0.0), (1.0, 0.0))
