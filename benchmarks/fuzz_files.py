"""Mutate the files of this package and look at what loading makes of them.

Run `python benchmarks/fuzz_files.py --mutations 10000 --seed 0`. Each mutation changes
`plan.json`, `model.safetensors` or a sparse file, byte by byte or as JSON. Half of the changed
files get new digests, so that they pass for files that were saved like that and the checks behind
the digests are reached. Loading has to give exactly the tensors that were saved (with new digests:
those that the files hold, as a reader of a few lines below finds them), or to raise a `ValueError`
or `FileNotFoundError` that names the file. Anything else is a finding: another error, another
tensor, more than 5 seconds, more than 200 MB.

Memory is limited, not sampled: while a file is loaded the address space of the process may grow by
200 MB (`RLIMIT_AS`, on Linux), so that an allocation that would go beyond fails there and then, and
is found among the causes of the error. `peak MB` is how much resident memory grew in fact.

`--only N` repeats mutation N of the same seed, with the traceback if it is a finding.
"""

import argparse
import hashlib
import json
import math
import random
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from lightning_sparsity import disk, sparse_file, surgery
from lightning_sparsity.surgery.plan_file import digest_of

try:
    import resource
except ImportError:  # there is no limit on Windows
    resource = None  # type: ignore[assignment]

SECONDS, MEGABYTES = 5.0, 200
PLAN, WEIGHTS, SPARSE = "plan.json", "model.safetensors", "model.sparse"
Files = dict[str, bytes]
State = dict[str, Tensor]


class Net(nn.Module):
    """Tied, grouped and residual layers, so that a plan has entries of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.one, self.two = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.two.weight = self.one.weight
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.groups = nn.Sequential(nn.Conv2d(8, 12, 1, groups=2), nn.PReLU(12))
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of an image."""
        x = self.two(self.one(self.stem(x).relu()).relu()).sigmoid()
        x = self.groups(x + self.block(x).relu())
        return self.head(x.mean((2, 3)))


def saved(folder: Path) -> tuple[Files, State, State]:
    """Files as they are saved, and the tensors of the slim model and of the sparse file."""
    torch.manual_seed(1)
    model = Net().eval()
    flow = surgery.trace(model, torch.randn(1, 3, 6, 6))
    dead = {name: torch.rand(n) < 0.5 for name, n in flow.norms.items()}
    plan = flow.plan(dead)
    small = surgery.slim(model, plan)
    surgery.save(small, plan, folder)
    weight = torch.randn(40, 60).where(torch.rand(40, 60) < 0.1, 0)
    state = {"fc.weight": weight, "fc.bias": torch.randn(7), "count": torch.tensor(3)}
    state |= {"conv.weight": torch.zeros(30, 5, 3, 3), "again": weight}
    sparse_file.save(state, folder / SPARSE)
    return {path.name: path.read_bytes() for path in folder.iterdir()}, small.state_dict(), state


# Changes of bytes.


def flip(rng: random.Random, content: bytes) -> bytes:
    """Up to three bits."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncate(rng: random.Random, content: bytes) -> bytes:
    """Drop the end, little or much of it."""
    return content[: -rng.randint(1, 64)] if rng.random() < 0.5 else content[: _at(rng, content)]


def extend(rng: random.Random, content: bytes) -> bytes:
    """Add something at the end."""
    more = rng.choice([bytes(rng.randint(1, 4096)), rng.randbytes(100), b" ", content])
    return content + more


def splice(rng: random.Random, content: bytes) -> bytes:
    """Copy, drop or blank out a part."""
    begin, other = _at(rng, content), _at(rng, content)
    size = rng.choice([1, 4, 8, 64, 1024])
    part = rng.choice([content[other : other + size], bytes(size), b""])
    return content[:begin] + part + content[begin + rng.choice([0, size]) :]


def resize_header(rng: random.Random, content: bytes) -> bytes:
    """Another size of the header in a safetensors file."""
    size = int.from_bytes(content[:8], "little")
    other = rng.choice([0, 1, size - 1, size + 1, 2**31, 2**40, 2**63, 2**64 - 1, len(content) - 8])
    return other.to_bytes(8, "little") + content[8:]


def _at(rng: random.Random, content: bytes) -> int:
    """A place: half of the time in the first 600 bytes, where headers are."""
    return rng.randrange(min(len(content), 600) if rng.random() < 0.5 else len(content))


# Changes of JSON. What Python cannot write stands as RAW in a string until it is text.

RAW = ["1" * 5000, "1e999", "[" * 50_000, "[" * 500 + "]" * 500, '"\\ud800"', "NaN", "-Infinity"]
ODD: list[Any] = [
    0, 1, -1, 2, 255, 2**15, 2**24, 2**24 + 1, 2**31 - 1, 2**31, 2**53, 2**62, 2**63, 2**64, 10**18,
    1.0, 0.5, -0.0, 1e300, True, False, None, "", "1", "F64", "float16", "int64", "nn", "fc.weight",
    "two.weight", "one.weight", [], {}, [0], [1, 0], [0, 0], [[0]], ["0"], [2**40], [2**24] * 3,
    [0.0], [1, 2**31 - 1], [1, 2**26], [2**31 - 1, 1], [1] * 70, {"0": 0}, list(range(100)),
]  # fmt: skip


def edited(rng: random.Random, content: Any) -> str:  # noqa: ANN401
    """JSON with up to three changes, each at a random place."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        _edit(rng, content)
    text = json.dumps(content)
    for i, raw in enumerate(RAW):
        text = text.replace(f'"RAW{i}"', raw)
    return text.replace('"TWICE', '"')


def _edit(rng: random.Random, content: Any) -> None:  # noqa: ANN401
    """One change, inside."""
    while True:
        inside = [x for x in _values(content) if isinstance(x, (dict, list)) and x]
        if not inside or rng.random() < 0.25:
            break
        content = rng.choice(inside)
    keys = list(content) if isinstance(content, dict) else list(range(len(content)))
    if not keys:
        return
    key, other = rng.choice(keys), rng.choice(keys)
    rng.choice([_replace, _replace, _replace, _change, _drop, _add, _swap])(
        rng, content, (key, other)
    )


def _values(content: Any) -> list[Any]:  # noqa: ANN401
    return list(content.values() if isinstance(content, dict) else content)


Keys = tuple[Any, Any]


def _replace(rng: random.Random, content: Any, keys: Keys) -> None:  # noqa: ANN401
    raw = f"RAW{rng.randrange(len(RAW))}"
    content[keys[0]] = raw if rng.random() < 0.15 else json.loads(json.dumps(rng.choice(ODD)))


def _change(rng: random.Random, content: Any, keys: Keys) -> None:  # noqa: ANN401
    """Something near to what is there."""
    x = content[keys[0]]
    if isinstance(x, bool) or x is None:
        content[keys[0]] = not x
    elif isinstance(x, (int, float)):
        content[keys[0]] = rng.choice([x + 1, x - 1, -x, 2 * x, float(x), str(x), [x], 1 << 20])
    elif isinstance(x, str):
        content[keys[0]] = rng.choice([x + "x", x[:-1], x.upper(), [x], len(x)])
    elif isinstance(x, list):
        rng.choice([x.reverse, lambda: rng.shuffle(x), lambda: x.extend(x), x.clear])()
    else:
        content[keys[0]] = [list(pair) for pair in x.items()]


def _drop(_: random.Random, content: Any, keys: Keys) -> None:  # noqa: ANN401
    del content[keys[0]]


def _add(rng: random.Random, content: Any, keys: Keys) -> None:  # noqa: ANN401
    if isinstance(content, dict):
        content[rng.choice(["more", "", f"TWICE{keys[0]}", "x" * 1000])] = content[keys[1]]
    else:
        content.insert(rng.randrange(len(content)), rng.choice([*ODD, content[keys[1]]]))


def _swap(_: random.Random, content: Any, keys: Keys) -> None:  # noqa: ANN401
    content[keys[0]], content[keys[1]] = content[keys[1]], content[keys[0]]


def edit_header(rng: random.Random, content: bytes) -> bytes:
    """Change the header of a safetensors file, or a table in its metadata, as JSON."""
    header, rest = parted(content)
    tables = [name for name in ("sparse", "aliases") if name in header["__metadata__"]]
    if tables and rng.random() < 0.5:
        name = rng.choice(tables)
        about = header["__metadata__"]
        about[name] = edited(rng, json.loads(about[name]))
        return joined(compact(header), rest)
    return joined(edited(rng, header).replace('": ', '":'), rest)


def edit_plan(rng: random.Random, content: bytes) -> bytes:
    """Change a plan as JSON."""
    return edited(rng, json.loads(content)).encode(errors="surrogatepass")


def parted(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file and what comes after it."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def joined(header: str, rest: bytes) -> bytes:
    """A safetensors file of both."""
    text = header.encode(errors="surrogatepass")
    return len(text).to_bytes(8, "little") + text + rest


def compact(header: dict[str, Any]) -> str:
    """JSON without spaces, as safetensors writes it."""
    return json.dumps(header, separators=(",", ":"))


# New digests, so that a change passes for what was saved.


def resealed(files: Files, name: str) -> Files | None:
    """The files with new digests after one of them has changed; None where there is no way."""
    try:
        if name == SPARSE:
            end = 8 + int.from_bytes(files[name][:8], "little")
            blank = re.sub(
                rb'"digest":"[0-9a-f]{64}"',
                f'"digest":"{disk.BLANK}"'.encode(),
                files[name][:end],
                count=1,
            )
            return files | {name: disk.sealed(blank + files[name][end:])}
        if name == PLAN:
            header, rest = parted(files[WEIGHTS])
            header["__metadata__"]["plan"] = digest_of(json.loads(files[PLAN]))
            files = files | {WEIGHTS: joined(compact(header), rest)}
        digest = hashlib.sha256(files[WEIGHTS]).hexdigest().encode()
        plan = re.sub(rb'"weights": "[0-9a-f]{64}"', b'"weights": "' + digest + b'"', files[PLAN])
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return None
    return files | {PLAN: plan}


BYTES = {"flip": flip, "truncate": truncate, "extend": extend, "splice": splice}


def mutated(rng: random.Random, files: Files) -> tuple[str, str, bool, Files]:
    """Which file was changed and how, whether digests are new, and the files."""
    name = rng.choice([PLAN, WEIGHTS, SPARSE])
    changes: dict[str, Callable[[random.Random, bytes], bytes]] = dict(BYTES)
    edit = edit_plan if name == PLAN else edit_header
    if name != PLAN:
        changes["header size"] = resize_header
    how = rng.choice([*changes, *["json"] * 6, "file"])
    if how == "file":  # gone, or another one in its place
        other = rng.choice([*files])
        kept = {n: content for n, content in files.items() if n != name}
        return name, how, False, kept if other == name else kept | {name: files[other]}
    changed = files | {name: (edit if how == "json" else changes[how])(rng, files[name])}
    new = resealed(changed, name) if rng.random() < 0.5 else None
    return name, how, new is not None, changed if new is None else new


# What has to come out.


def expected_slim(files: Files) -> State:
    """What a slim folder with right digests says, by a few lines."""
    record, tensors = json.loads(files[PLAN]), load_tensors(files[WEIGHTS])
    return {name: tensors[record["aliases"].get(name, name)] for name in record["tensors"]}


def expected_sparse(files: Files) -> State:
    """What a sparse file with a right digest says, by a few lines."""
    stored, about = load_tensors(files[SPARSE]), parted(files[SPARSE])[0]["__metadata__"]
    for name, shape in json.loads(about["sparse"]).items():
        values, columns, rows = (stored.pop(f"{name}:{p}") for p in ("values", "columns", "rows"))
        dense = torch.zeros(math.prod(shape), dtype=values.dtype).view(shape[0], -1)
        for i, (begin, end) in enumerate(zip(rows[:-1].tolist(), rows[1:].tolist(), strict=True)):
            dense[i, columns[begin:end].long()] = values[begin:end]
        stored[name] = dense.view(shape)
    return stored | {name: stored[first] for name, first in json.loads(about["aliases"]).items()}


def same(found: State, expected: State) -> bool:
    """Whether two states have the same names, types, shapes and bits."""
    return found.keys() == expected.keys() and all(
        (x.dtype, x.shape) == (expected[name].dtype, expected[name].shape)
        and bits(x) == bits(expected[name])
        for name, x in found.items()
    )


def bits(x: Tensor) -> bytes:
    """The bytes of a tensor."""
    return x.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


# Loading, watched.


class TooLong(BaseException):
    """The time is over; nobody may catch it."""


@contextmanager
def limited() -> Iterator[None]:
    """Inside, time is short and the process can grow by 200 MB and no more."""

    def stop(*_: object) -> None:
        raise TooLong

    if resource is None or not sys.platform.startswith("linux"):
        yield
        return
    before, own = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, stop)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEGABYTES * 2**20
    try:
        resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
        signal.setitimer(signal.ITIMER_REAL, 2 * SECONDS)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, own)
        resource.setrlimit(resource.RLIMIT_AS, before)


def resident(what: str) -> int:
    """Resident memory (`VmRSS`), or its peak since it was last asked for (`VmHWM`), in kB."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    found = re.search(rf"{what}:\s+(\d+)", status.read_text())
    if what == "VmRSS":
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    return int(found[1]) if found else 0


def memory_failed(error: BaseException | None) -> bool:
    """Whether an allocation beyond the limit is among the causes of an error."""
    while error is not None:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


@dataclass
class Outcome:
    """What became of one mutation."""

    name: str
    how: str
    resealed: bool
    result: str
    seconds: float
    megabytes: float
    error: BaseException | None = None

    @property
    def is_finding(self) -> bool:
        """Whether it should not have come out like this."""
        return self.result not in ("right", "refused")


def judge(
    folder: Path, load: Callable[[], State], expected: Callable[[], State]
) -> tuple[str, float, float, BaseException | None]:
    """What loading comes to, in how many seconds and MB."""
    before, start, error, found = resident("VmRSS"), time.perf_counter(), None, None
    try:
        with limited():
            found = load()
    except (Exception, TooLong) as raised:
        error = raised
    seconds = time.perf_counter() - start
    grown = max(resident("VmHWM") - before, 0) / 1024
    if memory_failed(error) or grown > MEGABYTES:
        result = "too much memory"
    elif seconds > SECONDS:
        result = "too long"
    elif type(error) in (ValueError, FileNotFoundError):
        clear = str(folder) in str(error) and "\n" not in str(error)
        result = "refused" if clear else "the error is not one line that names the file"
    elif found is None:
        result = f"{type(error).__name__}: {str(error)[:80]}"
    else:
        try:
            result = "right" if same(found, expected()) else "other tensors"
        except Exception as raised:
            result, error = f"loads, but is no such file ({raised})", raised
    return result, seconds, grown, error


def outcome(index: int, seed: int, folder: Path, origin: tuple[Files, State, State]) -> Outcome:
    """Make one mutation, load it, judge."""
    files, slim, sparse = origin
    name, how, new, changed = mutated(random.Random(f"{seed}/{index}"), files)
    for each in (PLAN, WEIGHTS, SPARSE):
        (folder / each).unlink(missing_ok=True)
    for each, content in changed.items():
        (folder / each).write_bytes(content)
    model = Net().eval()
    if name == SPARSE:
        result = judge(
            folder,
            lambda: sparse_file.load(folder / SPARSE),
            lambda: expected_sparse(changed) if new else sparse,
        )
    else:
        result = judge(
            folder,
            lambda: dict(surgery.load(model, folder).state_dict()),
            lambda: expected_slim(changed) if new else slim,
        )
    return Outcome(name, how, new, *result)


def fuzz(mutations: range, seed: int) -> list[Outcome]:
    """Make mutations, each by its number and the seed alone."""
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        origin = saved(Path(first))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return [outcome(i, seed, Path(second), origin) for i in mutations]


def summary(outcomes: list[Outcome]) -> str:
    """A table of what was changed and what came of it."""
    lines = [
        f"{'file':18s} {'change':12s} {'digests':8s} {'number':>7s} {'refused':>8s} {'right':>6s} "
        f"{'findings':>9s} {'seconds':>8s} {'peak MB':>8s}"
    ]
    rows = sorted({(o.name, o.how, o.resealed) for o in outcomes})
    for row in [*rows, None]:
        of = [o for o in outcomes if row in (None, (o.name, o.how, o.resealed))]
        name, how, new = row or ("all", "", False)
        counts = Counter(o.result for o in of)
        digests = "" if row is None else ("new" if new else "old")
        lines.append(
            f"{name:18s} {how:12s} {digests:8s} {len(of):7d} {counts['refused']:8d} "
            f"{counts['right']:6d} {sum(o.is_finding for o in of):9d} "
            f"{max(o.seconds for o in of):8.3f} {max(o.megabytes for o in of):8.1f}"
        )
    return "\n".join(lines)


def main() -> int:
    """Read the arguments, run, print; 1 if there is a finding."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mutations", type=int, default=10_000, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="what they depend on")
    parser.add_argument("--only", type=int, help="the number of the one to repeat")
    args = parser.parse_args()
    torch.set_num_threads(1)
    chosen = range(args.mutations) if args.only is None else range(args.only, args.only + 1)
    outcomes = fuzz(chosen, args.seed)
    print(summary(outcomes))
    for i, o in zip(chosen, outcomes, strict=True):
        if o.is_finding:
            print(f"mutation {i}: {o.name}, {o.how}, new digests {o.resealed}: {o.result}")
        if args.only is not None and o.error is not None:
            traceback.print_exception(o.error)
    return int(any(o.is_finding for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
