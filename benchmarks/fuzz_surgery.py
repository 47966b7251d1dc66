"""Random networks, cut at random: does the slim network compute what the masked one computes?

    python benchmarks/fuzz_surgery.py --networks 2000 --seed 0 --jobs 2
    python benchmarks/fuzz_surgery.py --only 17

Every network comes from its seed alone. It is traced, cut and run on inputs that the equivalence
check did not see; then the slim network is trained for a step, saved, loaded, copied and, now and
then, exported. A failure is printed as the smallest network that still shows it. Outcomes:

- exact: all checks passed; "frozen" if some channels were held, "identity" if nothing was cut
- refused: an error of this package that names the module, the function or the argument
- WRONG: a check failed
- CRASH: any other error, and refusals that do not name a module or a function
"""

import argparse
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from fuzz_checks import FAILURES, Case, Finding, Options, draw, judge, made, outputs, tensors
from fuzz_networks import (
    Node,
    Program,
    inputs_of,
    source_of,
)

SHRINK_SECONDS = 60
EXPORT_EVERY, THIRD_CUT_EVERY = 25, 3


def run(seed: int, *, again: bool) -> Finding:
    """Make the network of a seed and judge it."""
    torch.set_num_threads(1)
    case = draw(seed)
    try:
        source = source_of(case.program)
        inputs = inputs_of(case.program, 3, seed)
        sound = all(
            bool(x.isfinite().all()) and float(x.abs().max()) < 1e4
            for x in tensors(outputs(made(case, source, seed), inputs))
        )
    except Exception as error:
        return Finding(seed, "skipped", text=f"{type(error).__name__}: {error}", case=case)
    if not sound:
        return Finding(seed, "skipped", text="not well conditioned", case=case, source=source)
    return judge(case, source, options_of(seed, again=again))


def options_of(seed: int, *, again: bool) -> Options:
    """What is checked of the network of a seed."""
    export, third = seed % EXPORT_EVERY == 0, seed % THIRD_CUT_EVERY == 0
    return Options(again=again, export=export, third=third)


def shrink(found: Finding, *, again: bool) -> Finding:
    """The smallest case that still fails in the same way."""
    end = time.perf_counter() + SHRINK_SECONDS
    best, progress = found, True
    while progress and time.perf_counter() < end:
        progress = False
        assert best.case is not None
        for case in smaller(best.case):
            tried = _attempt(case, again=again)
            if tried is not None and (tried.outcome, tried.kind) == (best.outcome, best.kind):
                best, progress = tried, True
                break
            if time.perf_counter() > end:
                break
    return best


def _attempt(case: Case, *, again: bool) -> Finding | None:
    try:
        source = source_of(case.program)
        model = made(case, source, case.seed)
        outputs(model, inputs_of(case.program, 3, case.seed))
    except Exception:  # dropping a step can break what comes after it
        return None
    return judge(case, source, options_of(case.seed, again=again))


def smaller(case: Case) -> Iterator[Case]:
    """Cases that are simpler by one thing, the boldest first."""
    program = case.program
    if len(program.outputs) > 1:
        for name in program.outputs:
            yield _with(case, outputs=(name,), structure="single", nest=None)
    for i in reversed(range(len(program.nodes))):
        for kept in program.nodes[i].inputs if i else ("x0",):
            yield _with(case, **_without(program, i, kept))
    if program.nest:
        yield _with(case, nest=None)
    if len(program.outputs) > 1 and program.structure != "single":
        yield _with(case, structure="single")
    if program.structure == "training" and len(program.outputs) == 1:
        yield _with(case, structure="single")
    for i, node in enumerate(program.nodes):
        for other in (n.name for n in program.nodes[:i]):
            if other not in node.inputs and len(node.inputs) == 1:
                moved = replace(node, inputs=(other,))
                if _dead(program, node.inputs[0], i, moved):
                    nodes = (*program.nodes[:i], moved, *program.nodes[i + 1 :])
                    yield _with(case, nodes=nodes)
    plain: dict[str, Any] = {
        "zeros": False,
        "round_to": 1,
        "gather": True,
        "training": False,
        "keywords": False,
        "budget": "explicit",
        "keep_at_least": 1,
        "batch": 2,
        "amount": 0.5,
    }
    for key, value in plain.items():
        if getattr(case, key) != value:
            yield replace(case, **{key: value})
    if len(program.inputs) > 1 and not any("x1" in node.inputs for node in program.nodes):
        yield _with(case, inputs=program.inputs[:1])


def _dead(program: Program, name: str, i: int, moved: Node) -> bool:
    """Whether nobody reads an activation once a node reads another one."""
    rest = [*program.nodes[:i], moved, *program.nodes[i + 1 :]]
    return name.startswith("v") and not any(name in node.inputs for node in rest)


def _with(case: Case, **changes: Any) -> Case:  # noqa: ANN401
    return replace(case, program=replace(case.program, **changes))


def _without(program: Program, i: int, kept: str) -> dict[str, Any]:
    """A program without one node: what it read stands for what it made."""
    gone = program.nodes[i].name

    def swap(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(kept if name == gone else name for name in names)

    nodes = [replace(n, inputs=swap(n.inputs)) for n in program.nodes if n.name != gone]
    outs = tuple(dict.fromkeys(swap(program.outputs)))
    nest = None if program.nest is None else _narrowed(program.nest, i)
    return {"nodes": tuple(nodes), "outputs": outs, "nest": nest}


def _narrowed(nest: tuple[int, int], i: int) -> tuple[int, int] | None:
    first, last = nest[0] - (i < nest[0]), nest[1] - (i < nest[1])
    return (first, last) if first < last else None


def show(found: Finding) -> None:
    """Print a failure with its network."""
    assert found.case is not None
    print(f"\n{'=' * 100}\n{found.outcome}, seed {found.seed}: {found.text[:1200]}")
    print(f"cut with {found.case.describe()}; inputs {found.case.program.inputs}")
    print(found.source.partition("FrozenBatchNorm2d\n\n")[2], flush=True)


def findings(seeds: range, jobs: int, *, again: bool) -> Iterator[Finding]:
    """What comes of each seed, in order."""
    job: Callable[[int], Finding] = Job(again)
    if jobs == 1:
        yield from map(job, seeds)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(job, seeds, chunksize=4)


@dataclass(frozen=True)
class Job:
    """`run`, for other processes."""

    again: bool

    def __call__(self, seed: int) -> Finding:
        """What comes of a seed."""
        return run(seed, again=self.again)


def main() -> int:
    """Run the command; 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="the first network's seed")
    parser.add_argument("--start", type=int, default=0, help="skip this many networks")
    parser.add_argument("--only", type=int, help="one seed, with its program before shrinking")
    parser.add_argument("--again", action="store_true", help="cut slim networks again")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--shrink", type=int, default=2, help="failures of a kind to make small")
    args = parser.parse_args()
    seeds = range(args.seed + args.start, args.seed + args.networks)
    if args.only is not None:
        seeds = range(args.only, args.only + 1)
    counts, worst, start = Counter[str](), 0.0, time.perf_counter()
    kinds: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for number, found in enumerate(findings(seeds, args.jobs, again=args.again), 1):
        counts[found.outcome] += 1
        worst = max(worst, found.worst)
        if found.kind:
            kinds[found.outcome, found.kind].append(found)
        if args.only is not None:
            print(found.outcome)
            show(found)
        if found.outcome in FAILURES and len(kinds[found.outcome, found.kind]) <= args.shrink:
            show(shrink(found, again=args.again))
        if number % 50 == 0:
            seconds = (time.perf_counter() - start) / number
            print(f"{number} networks, {seconds:.2f} s each: {dict(counts)}", flush=True)
    print(f"\n{sum(counts.values())} networks, largest difference {worst:.1e}")
    for outcome, count in counts.most_common():
        print(f"  {outcome}: {count}")
    for (outcome, kind), some in sorted(kinds.items(), key=lambda item: -len(item[1])):
        seeds_shown = ", ".join(str(found.seed) for found in some[:8])
        print(f"{outcome} {len(some)} x {kind}\n    seeds {seeds_shown}")
    return int(any(counts[outcome] for outcome in FAILURES))


if __name__ == "__main__":
    sys.exit(main())
