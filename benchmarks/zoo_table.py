"""What became of the networks of `zoo.py`, as lines of text and as Markdown."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

TITLES = {
    "exact": "exact, all dead channels gone",
    "frozen": "exact, some channels stay",
    "refused": "refused",
    "inexact": "larger difference",
    "crash": "error",
    "slow": "over the time limit",
    "none": "no BatchNorm",
    "not built": "not built",
}
Record = dict[str, Any]


def line(record: Record) -> str:
    """One line of the table."""
    gone = f"{record['gone'] / max(record['dead'], 1):.1%}" if "gone" in record else ""
    off = f"{record['difference']:.1e}" if "difference" in record else ""
    note = record.get("error", "") or "; ".join(str(x) for x in reasons(record))
    note = note if record.get("spread", 1) > 1e-6 else f"(hardly depends on the image) {note}"
    name, outcome = record["name"], record["outcome"]
    return f"{name:38s} {outcome:9s} {off:>8s} {gone:>7s} {record['seconds']:6.1f} s  {note[:150]}"


def reasons(record: Record) -> list[str]:
    """Why channels stay, without the names of modules."""
    counted: Counter[str] = Counter()
    for _, op, reason, channels in record.get("frozen", []):
        counted[f"{op} {reason}"] += channels
    kinds, channels = record.get("unknown", [[], 0])
    if channels:
        counted[f"{', '.join(kinds)} is not known as a BatchNorm layer"] = channels
    return [why for why, _ in counted.most_common()] if record["outcome"] == "frozen" else []


def read(path: Path) -> list[Record]:
    """The records so far, the last of each network."""
    lines = path.read_text().splitlines() if path.exists() else []
    records = [json.loads(x) for x in lines]
    return list({(x["package"], x["name"]): x for x in records}.values())


def by_package(records: list[Record]) -> dict[str, list[Record]]:
    """The records of each package, in its order."""
    found: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        found[record["package"]].append(record)
    return found


def markdown(records: list[Record]) -> str:
    """The tables of `docs/networks.md`."""
    judged = [x for x in records if x["outcome"] not in ("none", "not built")]
    shown = [k for k in TITLES if any(x["outcome"] == k for x in judged)]
    lines = [
        "| Package | Networks | " + " | ".join(TITLES[k].capitalize() for k in shown) + " |",
        "|---" + "|---:" * (1 + len(shown)) + "|",
    ]
    for package, some in [*by_package(judged).items(), ("All", judged)]:
        counted = Counter(x["outcome"] for x in some)
        label = package if package == "All" else f"{package} {some[0]['version']}"
        cells = [f"{counted[k]} ({counted[k] / len(some):.0%})" for k in shown]
        lines.append(f"| {label} | {len(some)} | " + " | ".join(cells) + " |")
    for title, outcomes in (
        ("Channels that stay", ["frozen"]),
        ("Not cut", ["refused", "inexact", "crash", "slow"]),
    ):
        chosen = [x for x in judged if x["outcome"] in outcomes]
        lines += ["", f"### {title}", ""]
        for record in chosen:
            gone = (
                f"{record['gone'] / max(record['dead'], 1):.0%} of the dead channels gone; "
                if outcomes == ["frozen"]
                else ""
            )
            why = record.get("error") or "; ".join(reasons(record)[:3]) or TITLES[record["outcome"]]
            lines.append(f"- {record['package']} `{record['name']}`: {gone}{_short(why)}")
    return "\n".join(lines)


def _short(why: str) -> str:
    return " ".join(why.split())[:240]
