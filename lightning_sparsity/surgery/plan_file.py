"""What `plan.json` says: a plan in numbers, strings and lists, each checked as it is read."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning_sparsity.disk import are_counts, first_line, open_regular, parse
from lightning_sparsity.surgery.plan import Cut, Plan

FORMAT, VERSION = "lightning-sparsity slim model", 1
LARGEST_PLAN = 1 << 26
Form = Callable[[Any], bool]


def _table_of(fits: Form) -> Form:
    return lambda x: isinstance(x, dict) and all(fits(entry) for entry in x.values())


def _is_text(x: object) -> bool:
    return isinstance(x, str)


def _is_layer(x: object) -> bool:
    return isinstance(x, dict) and all(
        are_counts(entry) for entry in x.values() if isinstance(entry, list)
    )


# What the entries of a record have to look like, whatever the model.
OF_PLAN: dict[str, Form] = {
    "gather": lambda x: isinstance(x, bool),
    "proof": lambda x: x is None or (isinstance(x, (int, float)) and not isinstance(x, bool)),
    "signature": _table_of(are_counts),
    "dead": _table_of(are_counts),
    "widths": _table_of(lambda n: are_counts([n])),
    "layers": _table_of(_is_layer),
}
OF_WEIGHTS: dict[str, Form] = {
    "weights": _is_text,
    "aliases": _table_of(_is_text),
    "tensors": _table_of(
        lambda x: isinstance(x, list) and len(x) == 2 and _is_text(x[0]) and are_counts(x[1])
    ),
}


def to_record(plan: Plan) -> dict[str, Any]:
    """All of a plan in numbers, strings and lists."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "gather": plan.gather,
        "proof": plan.proof,
        "signature": plan.signature,
        "dead": {name: mask.nonzero().flatten().tolist() for name, mask in plan.dead.items()},
        "widths": {name: mask.numel() for name, mask in plan.dead.items()},
        "layers": {name: cut.to_json() for name, cut in plan.cuts.items()},
    }


def read_record(path: Path, *, most: int = LARGEST_PLAN) -> dict[str, Any]:
    """What `plan.json` says, with its form checked.

    Args:
        path: The file.
        most: The most bytes that it may have.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no plan of a slim model, or damaged.
    """
    try:
        record = parse(content_of(path, most))
    except ValueError as error:
        raise damaged(path, str(error)) from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise damaged(path, "it is not the plan of a slim model")
    version = record.get("version")
    if type(version) is not int or version != VERSION:
        shown = version if isinstance(version, int) else f"of type {type(version).__name__}"
        raise damaged(path, f"it has version {shown}, this is version {VERSION}")
    check_form(record, OF_PLAN | OF_WEIGHTS, path)
    return record


def content_of(path: Path, most: int) -> bytes:
    """The bytes of a file; refuses one that has more than `most` before it reads any."""
    with open_regular(path) as file:
        size = file.seek(0, 2)
        if size > most:
            raise ValueError(f"it has {size:,} bytes, more than the {most:,} that can be right")
        file.seek(0)
        return file.read()


def check_form(record: Mapping[str, Any], forms: Mapping[str, Form], path: Path) -> None:
    """Refuse a record in which an entry is missing or has another form."""
    for key, fits in forms.items():
        if key not in record or not fits(record[key]):
            raise damaged(path, f"{key!r} is missing or malformed")


def cuts_of(record: Mapping[str, Any], path: Path) -> dict[str, Cut]:
    """The cut of each layer; refuses cuts that contradict themselves or the removed channels."""
    try:
        cuts = {name: Cut.from_json(entry) for name, entry in record["layers"].items()}
        for name, dead in record["dead"].items():
            width = cuts[name].layer.widths[0]
            if record["widths"][name] != width or sorted({*dead, width})[:-1] != dead:
                raise ValueError(f"the removed channels of {name!r} are not among its {width}")
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise damaged(
            path, f"an entry is missing or malformed ({type(error).__name__}: {first_line(error)})"
        ) from error
    return cuts


def digest_of(record: Mapping[str, Any]) -> str:
    """The digest of all that a record says, but for that of the weights, which hold this one."""
    content = {key: entry for key, entry in record.items() if key != "weights"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def damaged(path: Path, what: str) -> ValueError:
    """The error for a file that does not say what `save` wrote."""
    return ValueError(f"{path} cannot be trusted: {what}. Save the slim model again.")
