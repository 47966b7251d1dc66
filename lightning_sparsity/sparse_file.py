"""A state dict in one file that leaves the zeros out. Nothing is pickled.

It is a safetensors file. A tensor with many zeros is stored as compressed sparse rows (CSR): the
values that are not zero, the column of each, and where each row begins. A row is what belongs to
one index of the first dimension, such as the weights of one output channel.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

__all__ = ["FileSize", "file_size", "load", "save"]

FORMAT, VERSION = "lightning-sparsity sparse file", "1"
PARTS = ("values", "columns", "rows")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
HEADER = 512  # about what three tensors take in the header of the file more than one
MOST_ENTRIES = 2**31 - 1  # that the beginnings of the rows can count
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
        ValueError: If an entry is not a dense tensor.

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
    write(Path(path), _without_zeros(state))


def load(path: str | Path) -> dict[str, Tensor]:
    """The tensors that `save` wrote, on the CPU, with all their zeros.

    Types, shapes and values are those that were saved, bit for bit, except that a negative zero may
    come back as a positive one.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or another kind of file.
    """
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise _unreadable(path, f"it is not a safetensors file ({error})") from error
    if (about.get("format"), about.get("version")) != (FORMAT, VERSION):
        raise _unreadable(path, "sparse_file.save of this version did not write it")
    try:
        for name, shape in json.loads(about["sparse"]).items():
            values, columns, rows = (stored.pop(f"{name}:{part}") for part in PARTS)
            stored[name] = _with_zeros(values, columns, rows, shape)
        return stored | {n: stored[first] for n, first in json.loads(about["aliases"]).items()}
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise _unreadable(path, f"a part is missing or malformed ({error})") from error


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


def write(path: Path, content: bytes) -> None:
    """Write a file that is complete or not there."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)


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
    about = {"sparse": json.dumps(shapes), "aliases": json.dumps(aliases)}
    return save_tensors(content, metadata={"format": FORMAT, "version": VERSION, **about})


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


def _with_zeros(values: Tensor, columns: Tensor, rows: Tensor, shape: list[int]) -> Tensor:
    entries = math.prod(shape)
    if not 0 < entries <= MOST_ENTRIES or rows.shape != (shape[0] + 1,):
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


def _unreadable(path: str | Path, why: str) -> ValueError:
    return ValueError(f"{path} cannot be read: {why}. Save it again with sparse_file.save.")
