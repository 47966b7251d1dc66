"""Files that are complete or not there, and JSON and headers that are read with suspicion."""

import contextlib
import hashlib
import json
import math
import os
import secrets
import stat
from pathlib import Path
from typing import Any, BinaryIO

LONGEST_NUMBER = 20  # characters; enough for every integer of 64 bits
BLANK = "0" * 64  # stands for a digest while it is computed
CHUNK = 1 << 20
LONGEST_LINE = 200
DIMENSIONS = 64  # of a tensor, at most
LONGEST_HEADER = 100_000_000  # bytes, the limit of safetensors itself


def write(path: Path, content: bytes) -> None:
    """Write a file that is complete or not there, also after a crash; what it replaces stays.

    The content goes to a new file beside it, which is flushed to disk before it takes the name.

    Args:
        path: The file; its folder is made if need be. If it is a symbolic link, the link is
            replaced and what it points to is left alone.
        content: All of it.

    Raises:
        OSError: If the file cannot be written. What was there is unchanged.
    """
    # Exclusive creation: nothing that is there, a symbolic link included, is opened or followed.
    fresh = path.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with fresh.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            fresh.unlink()
        if isinstance(error, OSError):
            raise unwritable(path, error) from error
        raise
    _sync_folder(path.parent)


def move(source: Path, path: Path) -> None:
    """Give a file another name in its folder, in place of what had it.

    Args:
        source: The file.
        path: Its new name.

    Raises:
        OSError: If it cannot be renamed. Nothing has changed then.
    """
    try:
        os.replace(source, path)
    except OSError as error:
        raise unwritable(path, error) from error
    _sync_folder(path.parent)


def unwritable(path: Path, error: OSError) -> OSError:
    """The same error, with the folder and a cure in its message."""
    return OSError(
        error.errno,
        f"{path} cannot be written ({error.strerror or error}). Make "
        f"{path.parent} a folder with write permission and free space, or choose another one.",
    )


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read its bytes.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is a folder, a pipe or a device, from which reading may never end.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no file {path}. Name one that was saved.") from error
    except NotADirectoryError as error:
        raise ValueError(f"{path.parent} is not a folder") from error
    if not stat.S_ISREG(mode):
        raise ValueError("it is not a regular file")
    return path.open("rb")


def parse(text: bytes | str) -> Any:  # noqa: ANN401
    """JSON without what Python's reader lets pass.

    Args:
        text: In UTF-8.

    Raises:
        ValueError: If it is not JSON, is nested too deeply, names an entry twice, or has numbers
            that are not finite or do not fit into 64 bits.
    """
    try:
        return json.loads(
            text if isinstance(text, str) else text.decode(),
            object_pairs_hook=_table,
            parse_constant=_finite,
            parse_float=_finite,
            parse_int=_integer,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_header(file: BinaryIO) -> dict[str, Any]:
    """The header of a safetensors file; leaves the file where the tensors begin.

    Args:
        file: The file, open.

    Raises:
        ValueError: If it cannot be a header.
    """
    whole = file.seek(0, os.SEEK_END)
    file.seek(0)
    size = int.from_bytes(file.read(8), "little")
    if not 0 < size <= min(whole - 8, LONGEST_HEADER):
        raise ValueError(f"it is not a safetensors file (a header of {size} bytes does not fit)")
    try:
        header = parse(file.read(size))
    except ValueError as error:
        raise ValueError(f"it is not a safetensors file ({error})") from error
    about = header.get("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(about, dict) or not all(isinstance(x, str) for x in about.values()):
        raise ValueError("it is not a safetensors file (its metadata is not a table of text)")
    for name, entry in header.items():
        if name != "__metadata__" and not (isinstance(entry, dict) and _can_be(entry.get("shape"))):
            raise ValueError(f"{name!r} cannot have the shape that its header claims")
    return {**header, "__metadata__": about}


def first_line(error: BaseException) -> str:
    """What an error says, without the stack that torch may add, or much of what a file holds."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return line if len(line) <= LONGEST_LINE else line[:LONGEST_LINE] + " …"


def sealed(content: bytes) -> bytes:
    """A safetensors file with the digest of all its bytes in place of `BLANK` in its metadata."""
    digest = hashlib.sha256(content).hexdigest()
    return content.replace(_entry(BLANK), _entry(digest), 1)


def digest_of(file: BinaryIO, header: int, digest: str | None) -> str:
    """The digest that `sealed` would compute; leaves the file at its end.

    Args:
        file: The file, open.
        header: How many bytes come before the tensors.
        digest: What the metadata says the digest is.
    """
    file.seek(0)
    found = hashlib.sha256(file.read(header).replace(_entry(digest), _entry(BLANK), 1))
    while chunk := file.read(CHUNK):
        found.update(chunk)
    return found.hexdigest()


def _entry(digest: str | None) -> bytes:
    """As it stands in the metadata; nowhere else in a header, where quotes in text are escaped."""
    return f'"digest":"{digest}"'.encode()


def are_counts(numbers: object) -> bool:
    """Whether something is a list of whole numbers, none of them negative, true or false."""
    return isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in numbers)


def _can_be(shape: object) -> bool:
    """Whether a tensor of such a shape can exist, if perhaps not in memory."""
    if not isinstance(shape, list) or not are_counts(shape) or len(shape) > DIMENSIONS:
        return False
    return math.prod(n or 1 for n in shape) < 1 << 63


def _sync_folder(folder: Path) -> None:
    """Bring new names to disk, on systems where folders can be flushed."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("it names an entry twice")
    return table


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is not a finite number")
    return number


def _integer(text: str) -> int:
    if len(text) > LONGEST_NUMBER:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)
