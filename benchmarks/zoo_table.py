"""What became of the networks of `zoo.py`, as lines of text and as Markdown."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

TITLES = {
    "exact": "exact, all dead channels gone",
    "frozen": "exact, some dead channels stay",
    "refused": "refused",
    "inexact": "wrong",
    "crash": "error",
    "slow": "over the time limit",
    "none": "no BatchNorm",
    "not built": "not built",
}
Record = dict[str, Any]
START, END = "<!-- tables of benchmarks/zoo.py -->", "<!-- end of the tables -->"


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
        cells = [_part(counted[k], len(some)) for k in shown]
        lines.append(f"| {label} | {len(some)} | " + " | ".join(cells) + " |")
    worst = max((x["difference"] for x in judged if x["outcome"] in ("exact", "frozen")), default=0)
    days = sorted({x["date"] for x in judged})
    without = sum(x["outcome"] == "none" for x in records)
    lines += [
        "",
        f"Measured on {' and '.join(dict.fromkeys([days[0], days[-1]]))} with torch "
        f"{judged[0]['torch']}. The largest relative difference of an exact one is {worst:.1e}. "
        f"{without} more networks have no BatchNorm.",
    ]
    for outcome in shown[1:]:
        lines += ["", f"**{TITLES[outcome].capitalize()}:**", ""]
        lines += [_item(x) for x in judged if x["outcome"] == outcome]
    return "\n".join(lines)


def _part(n: int, of: int) -> str:
    """A number and its fraction, and a dash for none."""
    return "–" if n == 0 else f"{n} (<1%)" if n < of / 100 else f"{n} ({n / of:.0%})"


def _item(record: Record) -> str:
    """Why one network is not cut as it could be."""
    why = record.get("error", "").partition(": ")[2] or "; ".join(reasons(record)[:3])
    if record["outcome"] == "frozen":
        gone = record["gone"] / max(record["dead"], 1)
        why = f"{gone:.0%} of the dead channels gone; {why}"
    if record["outcome"] == "inexact":
        why = f"differs by {record['difference']:.1e}, the check said {record['proof']:.1e}"
    short = " ".join(why.split())
    short = short if len(short) <= 200 else short[:200].rsplit(" ", 1)[0] + " …"
    return f"- {record['package']} `{record['name']}`{': ' if short else ''}{short}"


def replace(page: Path, records: list[Record]) -> None:
    """Write the tables between the marks of a page."""
    before, _, rest = page.read_text().partition(START)
    _, _, after = rest.partition(END)
    if not after:
        raise SystemExit(f"{page} has no lines {START} and {END}.")
    page.write_text(f"{before}{START}\n\n{markdown(records)}\n\n{END}{after}")
