"""Which networks of other packages can be cut, and whether the result is exact.

    python benchmarks/zoo.py --out zoo.jsonl
    python benchmarks/zoo.py --out zoo.jsonl --packages timm monai --names resnet18 UNet
    python benchmarks/zoo.py --out zoo.jsonl --table
    python benchmarks/zoo.py --out zoo.jsonl --page docs/networks.md

Every network is built without weights, in float64 and evaluation mode, with random BatchNorm
statistics, scales and shifts, and traced on one image. A random 40 % of the channels of every
BatchNorm count as dead. What `slim` makes is compared with what `mask` makes on two new images,
here and not only by `plan.proof`. Networks whose own code does not run in float64 are compared in
float32. Each runs in a process of its own with a time limit. `--out` holds one JSON object per
network; what it holds already is not run again, and `--table`, `--markdown` and
`--page` only read it.
"""

import argparse
import json
import multiprocessing
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from zoo_networks import PACKAGES, Network
from zoo_table import TITLES, line, markdown, read, replace

from lightning_sparsity import surgery

SHARE = 0.4
EXACT = {"float64": 1e-12, "float32": 1e-4}
ROUNDINGS = 10  # of the inputs, whose effect a difference may be
Record = dict[str, Any]


def randomise(model: nn.Module) -> nn.Module:
    """Random statistics, scales and shifts for every norm, evaluation mode."""
    for module in model.modules():
        if not hasattr(module, "running_mean"):
            continue
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, x in own:
            if x.is_floating_point():
                low = 0.5 if name in ("weight", "running_var") else -0.5
                x.data = torch.rand_like(x) + low
    return model.eval()


def cast(item: Any, dtype: torch.dtype) -> Any:  # noqa: ANN401
    """Inputs in another precision."""
    if isinstance(item, Tensor):
        return item.to(dtype)
    return [cast(x, dtype) for x in item] if isinstance(item, list) else item


def tensors(item: object) -> Iterator[Tensor]:
    """All floating point tensors in what a model returns."""
    if isinstance(item, Tensor):
        if item.is_floating_point():
            yield item
    elif isinstance(item, (list, tuple)):
        for x in item:
            yield from tensors(x)
    elif isinstance(item, dict):
        for x in item.values():
            yield from tensors(x)
    elif hasattr(item, "__dict__"):
        yield from tensors(vars(item))


@torch.no_grad()
def answers(model: nn.Module, inputs: Any) -> list[Tensor]:  # noqa: ANN401
    """A model's outputs; for detectors what goes into the sorting of boxes as well."""
    heads: list[Tensor] = []
    watched = [m for n, m in model.named_modules() if n in ("head", "rpn.head")]
    hooks = [
        m.register_forward_hook(lambda _m, _a, made: heads.extend(x.clone() for x in tensors(made)))
        for m in watched
        if isinstance(inputs, list)
    ]
    torch.manual_seed(1)
    made = list(tensors(model(inputs)))
    for hook in hooks:
        hook.remove()
    return heads or made


def difference(expected: list[Tensor], got: list[Tensor]) -> float:
    """The largest difference, relative to the largest entry of each tensor."""
    if [x.shape for x in expected] != [x.shape for x in got]:
        return float("inf")
    worst = 0.0
    for a, b in zip(expected, got, strict=True):
        finite = a.isfinite()
        if not torch.equal(finite, b.isfinite()):
            return float("inf")
        a, b = a[finite].double(), b[finite].double()
        if a.numel():
            worst = max(worst, float((a - b).abs().max()) / (float(a.abs().max()) or 1.0))
    return worst


def spread(outputs: list[Tensor]) -> float:
    """How much the answers to the two images differ: a comparison of equal ones says little."""
    pairs = [(x[:1], x[1:]) for x in outputs if x.dim() and x.size(0) == 2]
    return max((difference([a], [b]) for a, b in pairs), default=float("inf"))


@torch.no_grad()
def settle(model: nn.Module, inputs: Any) -> set[str]:  # noqa: ANN401
    """Move the statistics near to those of some inputs, so that the signal does not fade.

    Returns:
        The names of the norms that were called.
    """
    called: set[str] = set()
    names = {m: name for name, m in model.named_modules() if hasattr(m, "running_mean")}

    def adapt(norm: Any, args: tuple[Any, ...]) -> None:  # noqa: ANN401
        x, mean = args[0], norm.running_mean
        called.add(names[norm])
        if isinstance(mean, Tensor) and x.dim() > 1 and x.size(1) == mean.numel():
            own = x.detach().transpose(0, 1).flatten(1)
            var = own.var(1, correction=0)
            mean.copy_(own.mean(1) + 0.3 * var.sqrt() * torch.randn_like(mean))
            norm.running_var.copy_(torch.where(var > 1e-8, var, 1) * (0.5 + torch.rand_like(mean)))

    hooks = [m.register_forward_pre_hook(adapt) for m in names]
    answers(model, inputs)
    for hook in hooks:
        hook.remove()
    return called


def norms_of(model: nn.Module) -> dict[str, int]:
    """Every module with running statistics and its number of channels."""
    kept = {n: getattr(m, "running_mean", None) for n, m in model.named_modules()}
    return {name: mean.numel() for name, mean in kept.items() if isinstance(mean, Tensor)}


def runnable(network: Network, model: nn.Module, record: Record) -> tuple[nn.Module, Any, Any]:
    """The model and inputs in float64, or in float32 if its code does not run otherwise."""
    torch.manual_seed(0)
    single, pair = network.example(1), network.example(2)
    for dtype in (torch.float64, torch.float32):
        record["dtype"] = str(dtype).removeprefix("torch.")
        try:
            answers(model.to(dtype), cast(single, dtype))
        except Exception as error:
            if dtype == torch.float32:
                raise
            record["not in float64"] = f"{type(error).__name__}: {error}"[:300]
        else:
            return model, cast(single, dtype), cast(pair, dtype)
    raise AssertionError


def examine(network: Network, record: Record, **how: Any) -> None:  # noqa: ANN401
    """Cut one network and write into the record what happened."""
    torch.manual_seed(0)
    record |= {"outcome": "not built", "stage": "build"}
    model = randomise(network.build())
    record["norms"] = len(norms_of(model))
    model, inputs, fresh = runnable(network, model, record)
    if not record["norms"]:
        record["outcome"] = "none"
        return
    called = settle(model, fresh)
    record |= {"outcome": "crash", "stage": "trace"}
    flow = surgery.trace(model, inputs)
    record["frozen"] = [[x.module, x.op, x.reason, x.channels] for x in flow.frozen]
    scaled = {n for n in called if getattr(model.get_submodule(n), "weight", None) is not None}
    unknown = {n: k for n, k in norms_of(model).items() if n in scaled - set(flow.norms)}
    kinds = {type(model.get_submodule(n)).__name__ for n in unknown}
    record["unknown"] = [sorted(kinds), sum(unknown.values())]
    record["notes"] = [str(note) for note in flow.notes]
    dead = {n: torch.rand(k).argsort() < SHARE * k - 0.5 for n, k in flow.norms.items()}
    record["stage"] = "plan"
    plan = flow.plan(dead, **how)
    record["stage"] = "slim"
    try:
        small = surgery.slim(model, plan)
    except RuntimeError as error:
        if "differs" in str(error):
            record |= second_look(model, plan, fresh)
        raise
    record |= {"stage": "compare", "proof": plan.proof}
    expected = answers(surgery.mask(model, plan), fresh)
    record["difference"] = difference(expected, answers(small, fresh))
    record["spread"] = spread(expected)
    record["dead"] = sum(int(mask.sum()) for mask in dead.values())
    stay = {n: int(mask[plan.kept[n]].sum()) for n, mask in dead.items()}
    record["gone"] = record["dead"] - sum(stay.values())
    record["staying"] = {n: k for n, k in stay.items() if k}
    count = [sum(x.numel() for x in m.parameters()) for m in (model, small)]
    record |= {"stage": "", "parameters": count}
    record["outcome"] = "inexact"
    allowed = EXACT[record["dtype"]]
    if record["difference"] > allowed:  # a network may be sensitive to rounding by itself
        record |= second_look(model, plan, fresh)
        allowed = max(allowed, ROUNDINGS * record["rounding"])
    if record["difference"] <= allowed:
        there = record["dead"] + SHARE * sum(unknown.values())
        whole = record["gone"] >= 0.99 * there
        record["outcome"] = "exact" if whole else "frozen"


def second_look(model: nn.Module, plan: surgery.Plan, inputs: Tensor) -> Record:
    """How wrong a refused network would be, and how much rounding of its inputs changes it."""
    masked, small = surgery.mask(model, plan), surgery.slim(model, plan, verify=False)
    expected = answers(masked, inputs)
    rounded = inputs * (1 + torch.finfo(inputs.dtype).eps * torch.randn_like(inputs).sign())
    return {
        "unverified": difference(expected, answers(small, inputs)),
        "rounding": difference(expected, answers(masked, rounded)),
    }


def is_refusal(error: Exception) -> bool:
    """Whether surgery itself said no."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    own = "lightning_sparsity" in last.filename and "raise " in (last.line or "")
    return own and isinstance(error, (ValueError, RuntimeError))


def attempt(network: Network, record: Record, how: dict[str, Any]) -> None:
    """Examine a network; an error becomes part of the record."""
    try:
        examine(network, record, **how)
    except Exception as error:
        if record["outcome"] != "not built" and is_refusal(error):
            record["outcome"] = "refused"
        record["error"] = f"{type(error).__name__}: {error}"[:1500]
        where = traceback.extract_tb((error.__cause__ or error).__traceback__)[-6:]
        record["where"] = [f"{Path(x.filename).name}:{x.lineno} {x.line}" for x in where]


def work(network: Network, answer: Connection, how: dict[str, Any]) -> None:
    """Attempt a network in a process of its own."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    record: Record = {}
    attempt(network, record, how)
    answer.send(record)


def run(network: Network, limit: float, how: dict[str, Any]) -> Record:
    """What becomes of one network, within a time limit."""
    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=work, args=(network, there, how))
    start = time.perf_counter()
    process.start()
    there.close()
    record: Record = {"outcome": "slow"}
    try:
        if here.poll(limit):
            record = here.recv()
    except EOFError:
        record = {"outcome": "crash", "error": "The process ended without an answer."}
    process.kill()
    process.join()
    record["seconds"] = round(time.perf_counter() - start, 1)
    head = {"package": network.package, "name": network.name, "date": str(date.today())}
    versions = {"version": _version(network.package), "torch": torch.__version__}
    return head | versions | record


def _version(package: str) -> str:
    try:
        return version(package.replace("_", "-"))
    except PackageNotFoundError:
        return "?"


def main() -> None:
    """Run what is asked for and not there yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("zoo.jsonl"), help="JSON lines file")
    parser.add_argument("--packages", nargs="*", default=list(PACKAGES), choices=list(PACKAGES))
    parser.add_argument("--names", nargs="*", help="only these networks")
    parser.add_argument("--no-gather", action="store_true", help="plan without gathering")
    parser.add_argument("--round-to", type=int, default=1, help="plan round widths")
    parser.add_argument("--limit", type=float, default=60, help="seconds per network")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("--markdown", action="store_true", help="the same as Markdown")
    parser.add_argument("--page", type=Path, help="write that into this page, docs/networks.md")
    options = parser.parse_args()
    how = {"gather": not options.no_gather, "round_to": options.round_to}
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    there = {(x["package"], x["name"]): x for x in read(options.out)}
    if options.page:
        return replace(options.page, list(there.values()))
    if options.markdown:
        return print(markdown(list(there.values())))
    for package in options.packages:
        try:
            networks = [] if options.table else list(PACKAGES[package]())
        except ImportError as error:
            print(f"\n{package}: not installed ({error})")
            continue
        print(f"\n{package} {_version(package)}", flush=True)
        for record in [x for key, x in there.items() if key[0] == package and options.table]:
            print(line(record))
        for network in networks:
            fresh = (network.package, network.name) not in there
            if fresh and (not options.names or network.name in options.names):
                record = run(network, options.limit, how)
                with options.out.open("a") as file:
                    file.write(json.dumps(record) + "\n")
                print(line(record), flush=True)
    records = [x for x in read(options.out) if x["package"] in options.packages]
    counted = Counter(x["outcome"] for x in records)
    print("\n" + ", ".join(f"{n} {TITLES[k]}" for k, n in counted.most_common()))
    return None


if __name__ == "__main__":
    main()
