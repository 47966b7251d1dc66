import shutil
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

from lightning_sparsity.data.curves import Curves
from lightning_sparsity.data.shaking import displacement_fields, drift, warp
from lightning_sparsity.data.typefaces import find_typefaces, typefaces_of, write_words
from lightning_sparsity.data.vocabulary import WORDS, words_of

SPLITS = ("train", "val", "test")
SHIPPED = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@pytest.fixture(scope="module")
def curves() -> Curves:
    data = Curves(train=60, val=12, test=12, batch_size=16)
    for stage in ("fit", "validate", "test"):
        data.setup(stage)
    return data


def test_gives_balanced_pictures_in_the_unit_interval(curves: Curves) -> None:
    batches = list(curves.train_dataloader())
    images, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    assert images.shape == (60, 1, 64, 64)
    assert images.dtype == torch.float32
    assert 0 <= images.min() < 0.1 < 0.9 < images.max() <= 1
    assert labels.bincount().tolist() == [30, 30]


@pytest.mark.parametrize("size", [32, 48])
def test_pictures_have_the_size_asked_for(size: int) -> None:
    images, _ = Curves(train=6, val=6, test=6, size=size).pictures("val")
    assert images.shape == (6, 1, size, size)


def test_one_seed_gives_the_same_pictures_whatever_the_global_random_state(curves: Curves) -> None:
    torch.manual_seed(123)
    np.random.seed(123)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    again = Curves(train=60, val=12, test=12)
    for split in SPLITS:
        for one, other in zip(curves.pictures(split), again.pictures(split), strict=True):
            assert torch.equal(one, other)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


def test_another_seed_gives_other_pictures(curves: Curves) -> None:
    other = Curves(train=60, val=12, test=12, seed=1)
    assert not torch.equal(curves.pictures("val")[0], other.pictures("val")[0])


def test_pictures_are_made_once(curves: Curves) -> None:
    assert curves.pictures("test")[0] is curves.pictures("test")[0]


def test_no_picture_is_in_two_splits(curves: Curves) -> None:
    everything = torch.cat([curves.pictures(split)[0] for split in SPLITS]).flatten(1)
    assert len(everything.unique(dim=0)) == 60 + 12 + 12


def test_validation_sees_plain_pictures_and_training_moved_ones(curves: Curves) -> None:
    shown = torch.cat([images for images, _ in curves.val_dataloader()])
    assert torch.equal(shown, curves.pictures("val")[0] / 255)
    shown = torch.cat([images for images, _ in curves.train_dataloader()]).flatten(1)
    stored = (curves.pictures("train")[0] / 255).flatten(1)
    assert torch.cdist(shown, stored).min(1).values.gt(0).float().mean() > 0.9


def test_words_of_the_splits_are_disjoint_and_complete() -> None:
    parts = [set(words_of(split)) for split in SPLITS]
    assert set.union(*parts) == set(WORDS)
    assert all(not one & other for one, other in combinations(parts, 2))
    assert len(WORDS) == len(set(WORDS))
    assert all(len(part) > 40 for part in parts)


def test_typefaces_of_the_test_split_are_of_other_families() -> None:
    train, val, test = (typefaces_of(split, find_typefaces()) for split in SPLITS)
    assert train == val
    assert len(train) >= 12
    assert len(test) >= 4
    assert not {face.family for face in train} & {face.family for face in test}


def test_typefaces_of_symbols_are_left_out() -> None:
    names = {Path(face.path).stem for face in find_typefaces()}
    assert {"DejaVuSans", "STIXGeneral", "cmr10"} <= names
    assert not names & {"cmsy10", "cmex10", "STIXSizOneSymReg", "LastResortHE-Regular"}


def test_typefaces_of_a_folder_are_added(tmp_path: Path) -> None:
    shutil.copy(SHIPPED / "DejaVuSans.ttf", tmp_path / "Mine.TTF")
    added = set(find_typefaces(str(tmp_path))) - set(find_typefaces())
    assert [face.path for face in added] == [str(tmp_path / "Mine.TTF")]


@pytest.mark.parametrize("face", find_typefaces(), ids=lambda face: Path(face.path).stem)
def test_every_typeface_leaves_ink(face: object) -> None:
    picture = write_words(np.random.default_rng(0), ["word"], [face], 128)  # type: ignore[list-item]
    assert picture.shape == (128, 128)
    assert picture.max() == 255
    assert picture.mean() < 128


def test_fields_have_the_strength_and_the_wavelength_asked_for() -> None:
    wavelength, rms = torch.tensor([5.0, 8.0, 16.0, 32.0]), torch.tensor([0.5, 1.0, 2.0, 4.0])
    fields = displacement_fields(np.random.default_rng(0), wavelength, rms, 64)
    assert torch.allclose(fields.square().mean((2, 3)).sqrt(), rms[:, None].expand(4, 2))
    power = torch.fft.fft2(fields).abs().square().sum(1)
    frequency = torch.hypot(torch.fft.fftfreq(64)[:, None], torch.fft.fftfreq(64))
    centre = (power * frequency).sum((1, 2)) / power.sum((1, 2))
    assert torch.allclose(centre * wavelength, torch.ones(4), atol=0.15)


def test_drift_has_the_strength_asked_for() -> None:
    moved = drift(np.random.default_rng(0), np.linspace(0, 60, 200), 5.0, 0.7)
    assert np.allclose(np.sqrt(np.square(moved).mean(0)), 0.7)


def test_warp_without_motion_only_halves_the_size() -> None:
    pictures = torch.rand(3, 1, 32, 32)
    still = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).expand(3, 2, 3)
    moved = warp(pictures, still, torch.zeros(3, 2, 16, 16))
    assert torch.allclose(moved, pictures.view(3, 1, 16, 2, 16, 2).mean((3, 5)), atol=1e-5)


def test_warp_shifts_by_pixels_of_the_result() -> None:
    pictures = torch.rand(1, 1, 32, 32)
    still = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]])
    shift = torch.tensor([3.0, -2.0]).view(1, 2, 1, 1).expand(1, 2, 16, 16)
    moved, plain = warp(pictures, still, shift), warp(pictures, still, torch.zeros(1, 2, 16, 16))
    assert torch.allclose(moved[..., 2:, :-3], plain[..., :-2, 3:], atol=1e-5)


def test_neither_ink_nor_sharpness_tells_the_class() -> None:
    images, labels = Curves(train=2, val=600, test=2).pictures("val")
    power = torch.fft.rfft2(images[:, 0].double()).abs().square()
    frequency = torch.hypot(torch.fft.fftfreq(64)[:, None], torch.fft.rfftfreq(64))
    fine = power[:, frequency > 0.15].sum(1) / power[:, frequency > 0].sum(1)
    for clue in (images.double().mean((1, 2, 3)), fine):
        regular, shaky = clue[labels == 0], clue[labels == 1]
        assert abs(regular.mean() - shaky.mean()) < 0.5 * clue.std()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": 0}, "train >= 2, got train=0"),
        ({"val": -3}, "val >= 2, got val=-3"),
        ({"test": 1}, "test >= 2, got test=1"),
        ({"size": 16}, "size >= 32, got size=16"),
        ({"seed": -1}, "seed >= 0, got seed=-1"),
        ({"batch_size": 0}, "batch_size >= 1, got batch_size=0"),
        ({"fonts": "/no/such/folder"}, "fonts='/no/such/folder', which is no folder"),
    ],
    ids=str,
)
def test_refuses_what_cannot_work(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Curves(**arguments)  # type: ignore[arg-type]


def test_refuses_a_folder_without_typefaces(tmp_path: Path) -> None:
    shutil.copy(SHIPPED / "cmsy10.ttf", tmp_path)
    with pytest.raises(ValueError, match=r"Latin letters, got fonts=.* with none"):
        Curves(fonts=str(tmp_path))


def test_refuses_a_broken_typeface(tmp_path: Path) -> None:
    (tmp_path / "broken.ttf").write_text("not a font")
    with pytest.raises(ValueError, match=r"readable font files, got .*broken\.ttf"):
        Curves(fonts=str(tmp_path))
