"""Finding typefaces, keeping those of the test split apart, and writing words in them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from string import ascii_letters
from typing import final
from zlib import crc32

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ["Typeface", "find_typefaces", "typefaces_of", "write_words"]

SCALES = (8.0, 10.5, 14.0, 18.0)  # heights of the letter x, in units of 1/64 of the image
SYMBOLS = ("cmex", "cmsy")  # these carry mathematical symbols where the letters should be


@final
@dataclass(frozen=True, order=True)
class Typeface:
    """One font file.

    Args:
        family: Name of the design. Bold, italic and the like belong to the same family.
        path: The TTF or OTF file.
    """

    family: str
    path: str

    def font(self, pixels: int) -> ImageFont.FreeTypeFont:
        """The typeface at an em height of `pixels`."""
        return _open(self.path, pixels)


def find_typefaces(folder: str | None = None) -> list[Typeface]:
    """Typefaces with Latin letters: those that matplotlib ships, and those of a folder.

    Args:
        folder: Searched, with all below it, for `.ttf` and `.otf` files. None: matplotlib's only.

    Raises:
        ValueError: The folder does not exist or holds no usable typeface.
    """
    faces = _in_folder(Path(matplotlib.get_data_path()) / "fonts" / "ttf")
    if folder is None:
        return faces
    if not Path(folder).expanduser().is_dir():
        raise ValueError(
            f"Curves needs a folder of TTF or OTF files, got fonts={folder!r}, which is no folder. "
            "Name an existing one, or leave fonts out for those that matplotlib ships."
        )
    extra = _in_folder(Path(folder).expanduser())
    if not extra:
        raise ValueError(
            f"Curves needs TTF or OTF files with Latin letters, got fonts={folder!r} with none. "
            "Put some there, or leave fonts out for those that matplotlib ships."
        )
    return sorted({*faces, *extra})


def typefaces_of(split: str, faces: Sequence[Typeface]) -> list[Typeface]:
    """Typefaces of one split: a checksum of the family decides, so no seed can move a family.

    Training and validation share theirs. Of the families of matplotlib, Computer Modern belongs
    to the test split, DejaVu and STIX to the others.
    """
    return [face for face in faces if (split == "test") == (crc32(face.family.encode()) % 4 == 3)]


def write_words(
    rng: np.random.Generator, words: Sequence[str], faces: Sequence[Typeface], canvas: int
) -> np.ndarray:
    """A grey picture of a few random words, one below the other, in one typeface and size.

    Args:
        rng: Chooses words, typeface, scale, stroke weight and place.
        words: To choose from.
        faces: To choose from.
        canvas: Height and width of the picture in pixels.

    Returns:
        Bytes of shape `(canvas, canvas)`, 255 where there is ink.
    """
    face = faces[int(rng.integers(len(faces)))]
    scale = float(rng.choice(SCALES)) * canvas / 64
    text = "\n".join(_lines(rng, words, int(canvas / (2.4 * scale))))
    pen = int(rng.integers(2)) * max(1, round(canvas / 128))
    picture = Image.new("L", (canvas, canvas))
    draw = ImageDraw.Draw(picture)
    em = scale / _x_height(face.path)
    font = face.font(round(em))
    left, top, right, bottom = draw.multiline_textbbox((0, 0), text, font=font)
    if right - left > canvas:
        font = face.font(round(em * canvas / (right - left)))
        left, top, right, bottom = draw.multiline_textbbox((0, 0), text, font=font)
    room = canvas - np.array([right - left, bottom - top])
    place = room * rng.uniform(0, 1, 2) - (left, top)
    draw.multiline_text((place[0], place[1]), text, 255, font, stroke_width=pen)
    return np.asarray(picture)


def _lines(rng: np.random.Generator, words: Sequence[str], most: int) -> list[str]:
    """At most `most` words, all in lower case, capitalised or in capitals."""
    chosen = rng.choice(words, size=rng.integers((most + 1) // 2, most + 1))
    case = (str.lower, str.capitalize, str.upper)[rng.choice(3, p=(0.5, 0.3, 0.2))]
    return [case(str(word)) for word in chosen]


def _in_folder(folder: Path) -> list[Typeface]:
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in {".ttf", ".otf"})
    faces = (Typeface(_family(path), str(path)) for path in paths if _has_letters(path))
    return sorted(faces)


def _family(path: Path) -> str:
    """Family of a font file; Computer Modern and STIX come in files with names of their own."""
    name = _open(str(path), 20).getname()[0] or path.stem
    return "Computer Modern" if re.fullmatch(r"cm[a-z]+\d+", name) else name


def _has_letters(path: Path) -> bool:
    """Whether each Latin letter has a glyph, and one of its own."""
    if path.name.startswith(SYMBOLS):
        return False
    try:
        font = _open(str(path), 20)
    except OSError as error:
        raise ValueError(
            f"Curves needs readable font files, got {str(path)!r}, which is not one. "
            "Take it out of the folder."
        ) from error
    glyphs = {bytes(font.getmask(letter)) for letter in (*ascii_letters, "\uffff")}
    return len(glyphs) == len(ascii_letters) + 1


@lru_cache(maxsize=512)
def _x_height(path: str) -> float:
    """Height of the letter x as a share of the em: typefaces of one em differ much in it."""
    _, top, _, bottom = _open(path, 100).getbbox("x")
    return (bottom - top) / 100


@lru_cache(maxsize=512)
def _open(path: str, pixels: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, pixels)
