import pytest
import torch
from torch import Generator
from torchvision.transforms.functional import normalize

from lightning_sparsity.data.augment import Chain, CropAndFlip, Normalize, Warp


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


def test_a_warp_of_nothing_leaves_images_as_they_are() -> None:
    images = torch.rand(4, 2, 9, 7)
    still = Warp(turn=0, scale=0, shear=0, shift=0, bend=0)(images, generator())
    assert torch.allclose(still, images, atol=1e-5)


@pytest.mark.parametrize("name", ["turn", "scale", "shear", "shift", "bend"])
def test_every_part_of_a_warp_moves_a_disc_a_little_and_differently_for_each_image(
    name: str,
) -> None:
    y, x = torch.meshgrid(torch.arange(28.0) - 9, torch.arange(28.0) - 12, indexing="ij")
    disc = ((x.square() + y.square()) < 25).float().expand(6, 1, 28, 28)
    zero = dict.fromkeys(("turn", "scale", "shear", "shift", "bend"), 0.0)
    bound = {"turn": 12, "scale": 0.12, "shear": 0.15, "shift": 2.5, "bend": 1.5}[name]
    moved = Warp(**{**zero, name: bound})(disc, generator())
    assert not torch.allclose(moved[0], moved[1], atol=0.05)
    assert torch.equal(moved, Warp(**{**zero, name: bound})(disc, generator()))
    for axis, centre in ((3, 12.0), (2, 9.0)):
        places = torch.arange(28.0).view([-1 if d == axis else 1 for d in range(4)])
        centres = (moved * places).sum((1, 2, 3)) / moved.sum((1, 2, 3))
        assert (centres - centre).abs().max() < 3
    assert (moved.sum((1, 2, 3)) / disc[0].sum() - 1).abs().max() < 0.4


def test_a_chain_is_its_steps_in_order() -> None:
    images = torch.rand(3, 1, 2, 2)
    chain = Chain([lambda batch, _: batch + 1, Normalize((0.0,), (2.0,))])
    assert torch.allclose(chain(images, generator()), (images + 1) / 2)
    assert torch.equal(Chain([])(images, generator()), images)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="padding >= 0, got padding=-1"):
        CropAndFlip(-1)
    with pytest.raises(ValueError, match="bend >= 0, got bend=-1"):
        Warp(bend=-1)
    with pytest.raises(ValueError, match=r"scale >= 0 and below 1, got scale=1\.5"):
        Warp(scale=1.5)
    with pytest.raises(ValueError, match=r"std > 0, got std=\(1.0, 0.0\)"):
        Normalize((0.0, 0.0), (1.0, 0.0))
