"""A state dict in one file that leaves the zeros out. Nothing is pickled.

It is a safetensors file. A tensor with many zeros is stored as compressed sparse rows (CSR): the
values that are not zero, the column of each, and where each row begins. A row is what belongs to
one index of the first dimension, such as the weights of one output channel.

A SHA-256 digest in the header covers every byte of the file, so that a changed bit is found. It
guards against damage, not against somebody who changes the file and its digest.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from lightning_sparsity import disk
from lightning_sparsity.disk import write as write

__all__ = ["FileSize", "file_size", "load", "save"]

FORMAT, VERSION, WITHOUT_DIGEST = "lightning-sparsity sparse file", "2", "1"
PARTS = ("values", "columns", "rows")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
BYTES = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}  # of those, under their names in the header
COLUMNS = ("U8", "I16", "I32")
HEADER = 512  # about what three tensors take in the header of the file more than one
MOST_ENTRIES = 2**31 - 1  # that the beginnings of the rows can count
ALWAYS = 1 << 26  # bytes that any file may take in memory
TIMES = 1000  # as many bytes as the file has
LARGEST = 200_000_000


@final
@dataclass(frozen=True)
class FileSize:
    """Bytes that the state of a network takes on disk.

    Args:
        dense: In a plain safetensors file.
        sparse: In the file that `save` writes.
    """

    dense: int
    sparse: int


def save(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Write tensors to one file, each without its zeros where that takes fewer bytes.

    Args:
        state: Tensors by name, for example `model.state_dict()`. A tensor under two names is stored
            once.
        path: The file; it is complete or not there.

    Raises:
        ValueError: If an entry is not a dense tensor, or is named like the metadata of the file.
        OSError: If the file cannot be written. What was there is unchanged.

    Example:
        >>> import tempfile
        >>> weight = torch.zeros(500, 800)
        >>> weight[:, 0] = 1
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save({"fc.weight": weight}, f"{folder}/model.sparse")
        ...     torch.equal(load(f"{folder}/model.sparse")["fc.weight"], weight)
        True
    """
    for name, x in state.items():
        if not isinstance(x, Tensor) or x.layout != torch.strided:
            kind = x.layout if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"save needs a state of dense tensors, but {name!r} is {kind}.")
        if name == "__metadata__":
            raise ValueError("save cannot store a tensor named '__metadata__'. Rename it.")
    write(Path(path), _without_zeros(state))


def load(path: str | Path, *, largest: int | None = None) -> dict[str, Tensor]:
    """The tensors that `save` wrote, on the CPU, with all their zeros.

    Types, shapes and values are those that were saved, bit for bit, except that a negative zero may
    come back as a positive one.

    Zeros take no room in the file, so that a small file can claim any amount of memory: no tensor
    is made before the header has shown that all of them take at most `largest` bytes.

    Args:
        path: The file.
        largest: How many bytes all tensors that were stored without zeros may take in memory. None:
            64 MiB or, if that is more, 1000 times the size of the file. A state with up to 99.9 %
            zeros takes less; a large one in which whole layers are zero may take more.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, of another kind, or its tensors take more memory.

    Example:
        ```python
        sizes = [x.nbytes for x in model.state_dict().values()]
        model.load_state_dict(sparse_file.load("model.sparse", largest=sum(sizes)))
        ```
    """
    path = Path(path)
    with _refusing(path):
        header, size = _read_header(path)
        shapes, aliases = _tables(header)
    _check_room(path, header, shapes, max(ALWAYS, TIMES * size) if largest is None else largest)
    with _refusing(path), safe_open(path, "pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for name, shape in shapes.items():
            stored[name] = _with_zeros(shape, *(stored.pop(f"{name}:{part}") for part in PARTS))
        return stored | {name: stored[first] for name, first in aliases.items()}


def file_size(network: nn.Module) -> FileSize | None:
    """What the state of a network takes on disk, measured by serialising it in memory.

    Args:
        network: The network, on any device. What its state holds besides tensors is left out.

    Returns:
        The bytes; None for networks of more than 200 MB, or with tensors that files cannot hold.
    """
    dense = dense_size(network)
    return None if dense is None else FileSize(dense, len(_without_zeros(_state(network))))


def dense_size(network: nn.Module) -> int | None:
    """The bytes of `file_size` with the zeros, without the work of leaving them out.

    Args:
        network: The network, on any device.
    """
    state = _state(network)
    try:
        if sum(x.nbytes for x in state.values()) > LARGEST:
            return None
        return len(save_tensors({name: _plain(x) for name, x in unique(state)[0].items()}))
    except Exception:  # tensors of other libraries may refuse anything; there is no size then
        return None


def unique(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor once, and the names under which it appears again, with its first name."""
    first: dict[tuple[Any, ...], str] = {}
    found, aliases = {}, {}
    for name, x in tensors.items():
        place = (x.device, x.data_ptr(), x.dtype, tuple(x.shape), x.stride())
        key = place if x.numel() else (name,)
        if key in first:
            aliases[name] = first[key]
        else:
            first[key], found[name] = name, x
    return found, aliases


def _state(network: nn.Module) -> dict[str, Tensor]:
    return {name: x for name, x in network.state_dict().items() if isinstance(x, Tensor)}


def _plain(x: Tensor) -> Tensor:
    """A copy with memory of its own, which safetensors asks for."""
    return x.detach().cpu().clone(memory_format=torch.contiguous_format)


def _without_zeros(state: Mapping[str, Tensor]) -> bytes:
    tensors, aliases = unique(state)
    content: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name, x in tensors.items():
        parts = {f"{name}:{part}": y for part, y in zip(PARTS, _compressed(x), strict=False)}
        if parts and not parts.keys() & state.keys():
            content |= parts
            shapes[name] = list(x.shape)
        else:
            content[name] = _plain(x)
    about = {"format": FORMAT, "version": VERSION, "digest": disk.BLANK}
    tables = {"sparse": json.dumps(shapes), "aliases": json.dumps(aliases)}
    return disk.sealed(save_tensors(content, metadata=about | tables))


def _compressed(x: Tensor) -> Iterator[Tensor]:
    """Values, columns and beginnings of rows, if they take fewer bytes than the tensor."""
    if x.dtype not in FLOATS or not x.dim() or not 0 < x.numel() <= MOST_ENTRIES:
        return
    matrix = x.detach().cpu().reshape(len(x), -1)
    index = _index_type(matrix.shape[1])
    size = int(matrix.count_nonzero()) * (x.itemsize + index.itemsize) + 4 * (len(x) + 1)
    if size + HEADER >= x.nbytes:
        return
    kept = matrix != 0
    yield matrix[kept]
    yield kept.nonzero()[:, 1].to(index)
    yield nn.functional.pad(kept.sum(1).cumsum(0), (1, 0)).to(torch.int32)


def _index_type(columns: int) -> torch.dtype:
    """The smallest type that counts them."""
    if columns <= 2**8:
        return torch.uint8
    return torch.int16 if columns <= 2**15 else torch.int32


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a file and the size of the file, whose digest is right."""
    with disk.open_regular(path) as file:
        header = disk.read_header(file)
        about, begin = header["__metadata__"], file.tell()
        version, digest = about.get("version"), about.get("digest")
        if about.get("format") != FORMAT or version not in (VERSION, WITHOUT_DIGEST):
            raise ValueError("sparse_file.save of this version did not write it")
        if digest != disk.digest_of(file, begin, digest) and (
            version == VERSION or digest is not None
        ):
            raise ValueError("its content has changed since its digest was computed")
        return header, file.tell()


def _tables(header: Mapping[str, Any]) -> tuple[dict[str, list[int]], dict[str, str]]:
    """The shapes of tensors stored without zeros, and the further names of tensors, checked."""
    about = header["__metadata__"]
    shapes, aliases = (disk.parse(about.get(table, "null")) for table in ("sparse", "aliases"))
    if not isinstance(shapes, dict) or not isinstance(aliases, dict):
        raise ValueError("a part is missing or malformed")
    names = set(header) - {"__metadata__"}
    for name, shape in shapes.items():
        parts = [f"{name}:{part}" for part in PARTS]
        if name in names or not names.issuperset(parts):
            raise ValueError(f"the parts of {name!r} are not there")
        names = names.difference(parts) | {name}
        if not disk.are_counts(shape) or not 0 < len(shape) <= disk.DIMENSIONS or not _count(shape):
            raise ValueError(f"{name!r} cannot have the shape that it claims")
        dtypes = [header[part].get("dtype") for part in parts]
        if dtypes[0] not in BYTES or dtypes[1] not in COLUMNS or dtypes[2] != "I32":
            raise ValueError(f"the parts of {name!r} cannot have the types {dtypes}")
    for name, first in aliases.items():
        if name in names or not isinstance(first, str) or first not in names:
            raise ValueError(f"the other name of {name!r} is not there")
    return shapes, aliases


def _count(shape: list[int]) -> int:
    """How many entries there are; 0 if they are more than can be stored."""
    return entries if max(shape) <= MOST_ENTRIES >= (entries := math.prod(shape)) else 0


def _check_room(
    path: Path, header: Mapping[str, Any], shapes: Mapping[str, list[int]], largest: int
) -> None:
    """Refuse tensors that take more memory than they may, before any of them is made."""
    room = sum(_count(shape) * BYTES[header[f"{n}:values"]["dtype"]] for n, shape in shapes.items())
    if room > largest:
        raise ValueError(
            f"{path} claims tensors of {room:,} bytes, more than largest={largest:,}. If you trust "
            f"the file, load it with largest={room}."
        )


def _with_zeros(shape: list[int], values: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    entries = math.prod(shape)
    if rows.shape != (shape[0] + 1,):
        raise ValueError(f"{tuple(rows.shape)} beginnings of rows do not fit shape {shape}")
    begins, width = rows.long(), entries // shape[0]
    counts, place = begins.diff(), columns.long()
    ends = (int(begins[0]), int(begins[-1]))
    if ends != (0, len(values)) or values.shape != columns.shape or bool((counts < 0).any()):
        raise ValueError("the rows do not hold the values")
    if bool(((place < 0) | (place >= width)).any()):
        raise ValueError(f"a column is outside 0 … {width - 1}")
    place += torch.arange(shape[0]).repeat_interleave(counts) * width
    if bool((place.diff() <= 0).any()):
        raise ValueError("the columns of a row are not in order")
    return values.new_zeros(entries).index_copy_(0, place, values).view(shape)


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Say of whatever cannot be read which file it is, and what to do."""
    try:
        yield
    except (
        SafetensorError, LookupError, TypeError, ValueError, AttributeError, RuntimeError
    ) as error:  # fmt: skip
        raise ValueError(
            f"{path} cannot be read: {disk.first_line(error)}. Save it again with sparse_file.save."
        ) from error
