"""A run in words: the result in a sentence, the settings, how to load it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lightning_sparsity.report.curve import telling
from lightning_sparsity.report.files import Run, entry
from lightning_sparsity.report.rows import Row, number

__all__ = [
    "called",
    "ends",
    "gains",
    "headline",
    "loading",
    "result",
    "settings",
    "spelled",
]

LONGEST = 300  # characters of one setting
PARTS = ("model", "optimizer", "lr_scheduler")  # of a module, which are shown on lines of their own


class Gain(NamedTuple):
    """The result of a cut in one respect."""

    times: str
    what: str
    row: Row


def gains(rows: Sequence[Row]) -> Iterator[Gain]:
    """How much smaller and faster the slim network is, or larger and slower."""
    known = {row.name: row for row in rows if row.gain}
    timed = [row for row in known.values() if row.form == "ms"]
    for name in ("parameters", "FLOPs"):
        if name in known:
            gain = known[name].gain or 1.0
            word = "fewer" if gain >= 1 else "more"
            yield Gain(f"{max(gain, 1 / gain):.1f}×", f"{word} {name}", known[name])
    if timed:
        row = timed[-1]
        batch = row.name.rpartition(" ")[2]
        (low, high), (least, most) = row.spread or ((0, 0), (0, 0))
        gain = row.gain or 1.0
        times = f"{max(gain, 1 / gain):.1f}×"
        if least <= high and low <= most:
            yield Gain("as fast", f"at batch {batch}, within the spread", row)
        elif times == "1.0×":
            yield Gain("as fast", f"at batch {batch}", row)
        else:
            yield Gain(times, f"{'faster' if gain > 1 else 'slower'} at batch {batch}", row)


def result(rows: Sequence[Row]) -> str:
    """The result in one sentence."""
    parts = [f"{gain.times} {gain.what}" for gain in gains(rows)]
    known = {row.name: row for row in rows}
    zeros, all_of = known.get("non-zero"), known.get("parameters")
    if not parts and zeros and all_of and zeros.values[1] is not None and all_of.values[0]:
        share = 1 - zeros.values[1] / all_of.values[0]
        parts.append(f"{number(share, 'percent')} of the parameters exactly zero, no channel cut")
    row = headline(rows)
    if row is not None:
        dense, ships = (number(value, row.form) for value in ends(row))
        parts.append(f"{called(row)} {dense}\u00a0→\u00a0{ships}")
    return ", ".join(parts)


def headline(rows: Sequence[Row]) -> Row | None:
    """The metric that says most: the first accuracy, or else the first loss."""
    metrics = {row.name.partition(" ")[0]: row for row in reversed(rows) if row.gain is None}
    known = {name: row for name, row in metrics.items() if row.form in ("percent", "decimal")}
    return known.get(telling(dict(reversed(known.items()))))


def ends(row: Row) -> tuple[float | None, float | None]:
    """What the dense network has, and the one that ships: slim, or sparse without a cut."""
    dense, sparse, slim = row.values
    return dense, sparse if slim is None else slim


def called(row: Row) -> str:
    """The name of a metric in words."""
    metric = row.name.partition(" ")[0]
    split, _, rest = metric.partition("_")
    return f"{split} accuracy" if rest in ("acc", "accuracy") else metric


def spelled(value: Any) -> str:  # noqa: ANN401
    """An object of a configuration as Python writes it, without arguments that are None."""
    if not isinstance(value, Mapping) or "class_path" not in value:
        return repr(value)
    given = value.get("init_args") or {}
    if str(value["class_path"]).startswith("lightning.pytorch."):
        given = {}  # its defaults would fill the page
    inner = ", ".join(f"{k}={spelled(v)}" for k, v in given.items() if v is not None)
    return f"{str(value['class_path']).rpartition('.')[2]}({inner})"


def settings(run: Run) -> Iterator[tuple[str, list[str]]]:
    """What was trained, by name; from the configuration, or else from what the cut has noted."""
    config, cut = run.config, run.cut
    module, trainer = entry(config, "model"), entry(config, "trainer")
    given = entry(module, "init_args")
    plain = {k: v for k, v in given.items() if k not in PARTS}
    whole = {**module, "init_args": plain} if given else module
    found: dict[str, Any] = {
        "Network": given.get("model"),
        "Module": whole or None,
        "Data": config.get("data"),
        "Optimizer": given.get("optimizer") or config.get("optimizer"),
        "Learning rate": given.get("lr_scheduler") or config.get("lr_scheduler"),
        "Epochs": trainer.get("max_epochs"),
        "Precision": trainer.get("precision"),
        "Seed": config.get("seed_everything"),
    }
    for name, value in found.items():
        if value is not None:
            yield name, [_cropped(value if isinstance(value, str) else spelled(value))]
    callbacks = trainer.get("callbacks") or []
    if callbacks:
        listed = callbacks if isinstance(callbacks, list) else [callbacks]
        yield "Callbacks", [_cropped(spelled(callback)) for callback in listed]
    if not config:
        names = ("network", "penalty", "lam", "beta", "update", "select", "groups")
        yield from (
            (name.capitalize(), [_cropped(str(cut[name]))]) for name in names if name in cut
        )
    if "amount" in cut:
        yield "Amount to cut", [_cropped(str(cut["amount"]))]


def _cropped(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


def loading(run: Run) -> str:
    """Lines of Python that load the slim network; without one, the module of the checkpoint."""
    module = entry(run.config, "model")
    given = entry(module, "init_args")
    if not run.cut:
        checkpoint = run.summary.get("checkpoint") or "FILE.ckpt"
        path = str(module.get("class_path") or "")
        name = path.rpartition(".")[2] or "YourModule"
        return "\n".join([*_imports(path), f"module = {name}.load_from_checkpoint({checkpoint!r})"])
    where = str(run.cut.get("path") or "")
    network = given.get(where)
    if isinstance(network, Mapping) and "class_path" in network:
        made, paths = spelled(network), _paths(network)
    elif "class_path" in module:
        given = {k: v for k, v in given.items() if k not in PARTS[1:]}
        whole = {**module, "init_args": given}
        made, paths = spelled(whole) + (f".{where}" if where else ""), _paths(whole)
    else:
        path = str(run.cut.get("network") or "")
        known = path and "<" not in path and not path.startswith("__main__")
        made = f"{path.rpartition('.')[2] if known else 'YourNetwork'}(...)"
        paths = [path] if known else []
    lines = ["from lightning_sparsity import surgery"]
    lines += [line for path in paths for line in _imports(path)]
    return "\n".join([*lines, f"network = surgery.load({made}, {run.slim.as_posix()!r})"])


def _paths(value: Any) -> list[str]:  # noqa: ANN401
    """The class paths in an object of a configuration."""
    if not isinstance(value, Mapping) or "class_path" not in value:
        return []
    inner = (value.get("init_args") or {}).values()
    return [str(value["class_path"]), *(path for v in inner for path in _paths(v))]


def _imports(path: str) -> list[str]:
    module, _, name = path.rpartition(".")
    return [f"from {module} import {name}"] if module else []
