"""What the times of a slim network mean and what to try next, in sentences."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from lightning_sparsity.report.benchmark import Row
from lightning_sparsity.report.latency import Timing
from lightning_sparsity.surgery.plan import Cut

__all__ = ["advise"]

NOISE = 0.1  # differences below it are no news
MULTIPLE, NAMED = 8, 6


def advise(
    rows: Sequence[Row], work: Mapping[str, int | None], cuts: Mapping[str, Cut]
) -> Iterator[str]:
    """Say what the figures show.

    Args:
        rows: Times of the networks `"dense"`, `"masked"` and `"slim"`, at least one row.
        work: FLOPs for one example by the name of the network, or None.
        cuts: How each layer of the slim network was cut, by its name.
    """
    quiet = [row for row in rows if _doubt(_masked(row)) <= NOISE]
    yield from _on_zeros(quiet)
    yield from _on_disturbed([row for row in rows if row not in quiet])
    if quiet:
        yield _on_work(quiet, work)
        yield from _on_batches(quiet)
    yield from _on_widths(cuts, work)
    yield from _on_gathers(cuts)


def _masked(row: Row) -> Timing:
    """Time of the masked network over that of the dense one: 1, where nothing disturbs."""
    return row.comparison.ratio("masked", to="dense")


def _doubt(ratio: Timing) -> float:
    """How far a ratio is from 1, and about one standard error of the median on top."""
    return abs(ratio.median - 1) + (ratio.high - ratio.low) / math.sqrt(ratio.runs)


def _on_zeros(quiet: Sequence[Row]) -> Iterator[str]:
    shares = [_masked(row).median for row in quiet]
    if shares:
        span = " to ".join(dict.fromkeys(f"{x:.2f}" for x in (min(shares), max(shares))))
        yield f"Zeros alone save no time: masked, the network takes {span} times as long as dense."


def _on_disturbed(rows: Sequence[Row]) -> Iterator[str]:
    ratios = [(row, _masked(row)) for row in rows]
    places = [
        f"{row.place}, batch {row.batch}: {x.median:.2f} (interquartile range {x.low:.2f} to "
        f"{x.high:.2f})"
        for row, x in ratios
    ]
    if places:
        yield (
            "Kernels multiply by zero as slowly as by anything else, but here the masked network "
            f"takes another time than the dense one, or nobody can tell: {'; '.join(places)}. "
            "Other work was in the way: measure again, on a quiet machine or with larger --seconds."
        )


def _on_work(rows: Sequence[Row], work: Mapping[str, int | None]) -> str:
    times = [row.comparison.ratio("slim", to="dense").median for row in rows]
    best, worst = rows[times.index(min(times))], rows[times.index(max(times))]
    dense, slim = work["dense"], work["slim"]
    left = "" if dense is None or slim is None else f"{slim / dense:.0%} of the FLOPs and "
    found = f"The slim network takes {left}{min(times):.0%} of the time {_where(best)}"
    if len(rows) > 1:
        found += f" at best, {max(times):.0%} {_where(worst)} at worst"
    if max(times) > 1 + NOISE:
        found += ": there it is slower than the dense one"
    return f"{found}."


def _where(row: Row) -> str:
    return f"({row.place}, batch {row.batch})"


def _on_batches(rows: Sequence[Row]) -> Iterator[str]:
    """The place where the size of the batch matters most, if it does."""
    pairs = [
        (min(same, key=lambda row: row.batch), max(same, key=lambda row: row.batch))
        for same in (list(group) for _, group in groupby(rows, lambda row: row.place))
    ]
    small, large = max(pairs, key=lambda pair: _gain(*pair))
    if _gain(small, large) > 1 + NOISE:
        yield (
            f"Larger batches gain more: {small.speed_up('slim').median:.2f} times as fast as the "
            f"dense network with {small.batch}, {large.speed_up('slim').median:.2f} times with "
            f"{large.batch} ({large.place}). With few examples, what every layer costs however "
            "small it is weighs most."
        )


def _gain(small: Row, large: Row) -> float:
    return large.speed_up("slim").median / small.speed_up("slim").median


def _on_widths(cuts: Mapping[str, Cut], work: Mapping[str, int | None]) -> Iterator[str]:
    """How the layers that lost channels divide by what kernels work in."""
    widths = {
        name: cut.rows.numel()
        for name, cut in cuts.items()
        if cut.layer.kind != "channel" and cut.rows.numel() < cut.layer.widths[0]
    }
    odd = [f"{name} ({n})" for name, n in widths.items() if n % MULTIPLE]
    if widths:
        eights, sixteens = (sum(n % m == 0 for n in widths.values()) for m in (8, 16))
        yield (
            f"Layers that lost channels: {len(widths)}; a multiple of 8 is left in {eights}, one "
            f"of 16 in {sixteens}. Kernels compute whole blocks of channels."
        )
    if odd:
        more = f" and {len(odd) - NAMED} more" if len(odd) > NAMED else ""
        rounded = sum(
            min(MULTIPLE * math.ceil(n / MULTIPLE), cuts[name].layer.widths[0])
            for name, n in widths.items()
        )
        dense, slim = work["dense"], work["slim"]
        same = "" if dense is None or slim is None else f"--amount 'Flops({slim / dense:.2g})' "
        yield (
            f"No multiple of {MULTIPLE}: {', '.join(odd[:NAMED])}{more}. Rounded up, these layers "
            f"have {rounded:,} channels in place of {sum(widths.values()):,}. Round widths may be "
            "faster with as many FLOPs: cut with "
            f"`lightning-sparsity slim … {same}--round-to {MULTIPLE}`, and measure again."
        )


def _on_gathers(cuts: Mapping[str, Cut]) -> Iterator[str]:
    copies = sum(cut.select is not None or cut.scatter is not None for cut in cuts.values())
    if copies:
        yield (
            f"Layers that pick their inputs or fill in channels, and copy activations for it: "
            f"{copies}. Where single images count, try `lightning-sparsity slim … --no-gather`, "
            "which cuts less and copies less."
        )
