"""What is checked of one random network that is cut at random, and what came of it."""

import copy
import random
import re
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from fuzz_networks import (
    Program,
    generate,
    inputs_of,
    network,
    prepare,
    seed_of,
)
from torch import Tensor, nn

from lightning_sparsity import surgery
from lightning_sparsity.surgery.storage import to_record

TOLERANCE, SINGLE_TOLERANCE, LARGEST_NOISE = 1e-12, 1e-3, 1e-9
CHAOS = 1e-6
"""A network that one rounding changes by more tells nothing: a sign of zero decides in it."""
NOISE = 1000
"""By how much a difference may exceed the effect of rounding the inputs once."""
VANISHING = 0.1
"""Smaller results of these networks, whose activations are near one, are compared by this scale."""
ABOUT_ARGUMENTS = (
    "cannot be met|keeps every width|found nothing that can be cut|has none in its run"
    "|no such layer ran|keep_at_least"
)
MAY_REFUSE = r"surgery\.trace\(|flow\.plan|surgery\.slim\("
FAILURES = ("WRONG", "CRASH")


@dataclass(frozen=True)
class Case:
    """A program, and how its network is cut."""

    seed: int
    program: Program
    budget: str = "explicit"
    amount: float = 0.5
    gather: bool = True
    round_to: int = 1
    keep_at_least: int = 1
    zeros: bool = False
    batch: int = 2
    training: bool = False
    keywords: bool = False

    def describe(self) -> str:
        """How the network is cut, in one line."""
        own = {key: x for key, x in vars(self).items() if key not in ("program", "seed")}
        return ", ".join(f"{key}={x}" for key, x in own.items())


@dataclass
class Finding:
    """What came of one network."""

    seed: int
    outcome: str
    kind: str = ""
    text: str = ""
    case: Case | None = None
    source: str = ""
    seconds: float = 0.0
    worst: float = 0.0


class WrongError(Exception):
    """A check failed."""


@dataclass
class Options:
    """What is checked."""

    again: bool = False
    export: bool = False
    third: bool = False
    notes: set[str] = field(default_factory=set)


def draw(seed: int) -> Case:
    """The case of a seed."""
    rng = random.Random(seed ^ 0x5EED)
    budget = rng.choice(("explicit", "explicit", "share", "flops", "params", "threshold"))
    program = generate(seed)
    # A norm with the statistics of the batch needs more than one value per channel.
    own_statistics = any("track_running_stats=False" in node.template for node in program.nodes)
    return Case(
        seed,
        program,
        budget=budget,
        amount=rng.uniform(0.15, 0.85),
        gather=rng.random() < 0.65,
        round_to=rng.choice((1, 1, 4, 8)),
        keep_at_least=rng.choice((0, 1, 1, 2)),
        zeros=rng.random() < 0.4,
        batch=max(rng.choice((1, 2, 3)), 1 + own_statistics),
        training=rng.random() < 0.5,
        keywords=rng.random() < 0.15,
    )


def made(case: Case, source: str, seed: int) -> nn.Module:
    """The network of a case, with the weights of a seed."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = network(source)
    model = model if case.program.single else model.double()
    prepare(model, inputs_of(case.program, 4, seed), seed, zeros=case.zeros)
    return model.train(case.training)


def given(case: Case, inputs: tuple[Tensor, ...]) -> Any:  # noqa: ANN401
    """Inputs in one of the forms that `trace` takes."""
    if case.keywords:
        return {f"x{i}": x for i, x in enumerate(inputs)}
    return inputs[0] if len(inputs) == 1 else inputs


@torch.no_grad()
def outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:  # noqa: ANN401
    """What a model makes of copies of the inputs, in evaluation mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    result = model(*[x.clone() for x in inputs])
    for module, training in modes:
        module.training = training
    return result


def flat(item: Any, path: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    """All leaves of nested results with their places."""
    if isinstance(item, dict):
        for key, x in item.items():
            yield from flat(x, f"{path}[{key!r}]")
    elif isinstance(item, (list, tuple)):
        yield f"{path} {type(item).__name__}", len(item)
        for i, x in enumerate(item):
            yield from flat(x, f"{path}[{i}]")
    else:
        yield path, item


def difference(expected: Any, got: Any) -> float:  # noqa: ANN401
    """The largest relative difference of any tensor.

    Raises:
        WrongError: If structure, shapes or dtypes differ.
    """
    a, b = list(flat(expected)), list(flat(got))
    if [path for path, _ in a] != [path for path, _ in b]:
        raise WrongError(f"structure: {[p for p, _ in a]} became {[p for p, _ in b]}")
    worst = 0.0
    for (path, x), (_, y) in zip(a, b, strict=True):
        if not isinstance(x, Tensor) or not isinstance(y, Tensor):
            if x != y:
                raise WrongError(f"structure: {path or 'the result'} was {x}, is {y}")
            continue
        if x.shape != y.shape or x.dtype != y.dtype:
            raise WrongError(
                f"shape: {path or 'the result'} was {x.dtype} {list(x.shape)}, "
                f"is {y.dtype} {list(y.shape)}"
            )
        off = float((x - y).abs().max()) / max(float(x.abs().max()), VANISHING)
        worst = max(worst, off if off == off else float("inf"))
    return worst


def same_values(masked: nn.Module, small: nn.Module, case: Case, name: str) -> float:
    """Compare on inputs of other values, batch sizes and image sizes.

    Raises:
        WrongError: If the difference is more than rounding.
    """
    worst = 0.0
    for batch, grow in ((case.batch, 0), (case.batch + 1, 0), (3, 4)):
        inputs = inputs_of(case.program, batch, case.seed + 1 + batch + grow, grow)
        try:
            expected = outputs(masked, inputs)
        except Exception:
            if not grow:
                raise
            continue
        if grow and not all(x.dim() and x.size(0) == batch for x in tensors(expected)):
            continue  # `view(-1, n)` has made several examples of one
        off = difference(expected, outputs(small, inputs))
        tolerance = SINGLE_TOLERANCE if case.program.single else TOLERANCE
        if off > tolerance:
            step = 2.0**-23 if case.program.single else 2.0**-52
            noise = difference(expected, outputs(shaken(masked, step), _shaken(inputs, step)))
            if noise > CHAOS:
                continue
            if not off <= min(NOISE * noise, LARGEST_NOISE):
                raise WrongError(
                    f"values: {name} differs by {off:.1e} (relative; batch {batch}, images "
                    f"{'larger' if grow else 'as traced'}; rounding the inputs: {noise:.1e})"
                )
            continue
        worst = max(worst, 0.0 if case.program.single else off)
    return worst


def shaken(model: nn.Module, step: float) -> nn.Module:
    """A copy with all weights off by one rounding."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for x in model.parameters():
            x.copy_(_shaken((x,), step)[0])
    return model


def _shaken(tensors: tuple[Tensor, ...], step: float) -> tuple[Tensor, ...]:
    return tuple(x + x.abs() * step * torch.randn_like(x).sign() for x in tensors)


def tensors(item: Any) -> list[Tensor]:  # noqa: ANN401
    """The tensors among results."""
    return [x for _, x in flat(item) if isinstance(x, Tensor)]


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """All that `trace` and its like must not change."""
    hooks = [key for key in vars(model) if "hooks" in key]
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        found[f"{name}: mode"] = module.training
        found[f"{name}: class"] = type(module)
        for key in hooks:
            found[f"{name}: {key}"] = list(getattr(module, key, ()))
        for key, x in vars(module).items():
            if key not in ("_parameters", "_buffers", "_modules") and key not in hooks:
                for path, leaf in flat(x):
                    kept = leaf.clone() if isinstance(leaf, Tensor) else leaf
                    plain = isinstance(kept, (Tensor, int, float, str, bool, type(None)))
                    found[f"{name}: attribute {key}{path}"] = kept if plain else id(leaf)
        for key, x in [
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        ]:
            found[f"{name}: tensor {key}"] = (id(x), x.requires_grad, sorted(x.__dict__))
            found[f"{name}: value {key}"] = x.detach().clone()
    found["random state"] = torch.get_rng_state()
    return found


def check_untouched(before: dict[str, Any], model: nn.Module) -> None:
    """Refuse any change of a model.

    Raises:
        WrongError: If there is one.
    """
    after = fingerprint(model)
    for key in {**before, **after}:
        x, y = before.get(key), after.get(key)
        same = (
            isinstance(y, Tensor) and x.shape == y.shape and bool(torch.equal(x, y))
            if isinstance(x, Tensor)
            else not isinstance(y, Tensor) and x == y
        )
        if not same:
            raise WrongError(f"touched: {key} has changed")


def plan_of(flow: surgery.ChannelFlow, case: Case, salt: int) -> surgery.Plan:
    """A plan as the case wants it; by explicit masks where a budget makes no sense."""
    options: dict[str, Any] = {"gather": case.gather, "round_to": case.round_to}
    amounts = {
        "share": case.amount,
        "flops": surgery.Flops(case.amount),
        "params": surgery.Params(case.amount),
        "threshold": surgery.Threshold(0 if case.amount < 0.5 else case.amount),
    }
    if case.budget in amounts:
        try:
            return flow.plan_by(amounts[case.budget], keep_at_least=case.keep_at_least, **options)
        except ValueError as error:
            if not re.search(ABOUT_ARGUMENTS, str(error)):
                raise
    dead = {}
    for name, n in flow.norms.items():
        own = random.Random(seed_of(salt, name))
        share = own.choice((0, 0.3, 0.5, 0.7, 0.9, 1))
        dead[name] = torch.tensor([own.random() < share for _ in range(n)])
    return flow.plan(dead, **options)


def plain_record(plan: surgery.Plan) -> dict[str, Any]:
    """A plan in numbers, without what `slim` measures."""
    return {key: x for key, x in to_record(plan).items() if key != "proof"}


def train_step(model: nn.Module, case: Case) -> bool:
    """One step of SGD; whether loss and weights are finite."""
    model.train()
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        result = model(*inputs_of(case.program, 4, case.seed + 9))
    made_by_weights = [x for x in tensors(result) if x.requires_grad]
    loss = torch.stack([x.square().mean() for x in made_by_weights]).sum()
    loss.backward()
    torch.optim.SGD(model.parameters(), 1e-3).step()
    return bool(loss.isfinite()) and all(bool(x.isfinite().all()) for x in model.parameters())


def check_training(model: nn.Module, small: nn.Module, case: Case) -> None:
    """If the dense model trains, the slim one trains.

    Raises:
        WrongError: If its loss or weights are not finite.
    """
    try:
        fine = train_step(copy.deepcopy(model), case)
    except Exception:  # not every random network can be trained
        return
    if fine and not train_step(copy.deepcopy(small), case):
        raise WrongError("training: loss or weights are not finite")


def check_bits(small: nn.Module, other: nn.Module, case: Case, name: str) -> None:
    """Refuse any difference of state or outputs.

    Raises:
        WrongError: If there is one.
    """
    a, b = small.state_dict(), other.state_dict()
    if list(a) != list(b):
        raise WrongError(f"{name}: other keys, {sorted(set(a) ^ set(b))}")
    for key, x in a.items():
        if x.dtype != b[key].dtype or not torch.equal(x, b[key]):
            raise WrongError(f"{name}: {key} differs")
    inputs = inputs_of(case.program, 3, case.seed + 5)
    if difference(outputs(small, inputs), outputs(other, inputs)):
        raise WrongError(f"{name}: outputs differ")


def check_export(model: nn.Module, small: nn.Module, case: Case, folder: str) -> None:
    """If the dense model can be exported, the slim one can."""
    example = given(case, inputs_of(case.program, 2, case.seed))
    try:
        surgery.export(model, example, Path(folder) / "dense.pt2")
    except RuntimeError:
        return
    surgery.export(small, example, Path(folder) / "slim.pt2")


def check(case: Case, source: str, options: Options) -> float:
    """Cut the network of a case and check all there is to check.

    Returns:
        The largest relative difference.

    Raises:
        WrongError: If a check fails.
    """
    model = made(case, source, case.seed)
    example = given(case, inputs_of(case.program, case.batch, case.seed))
    before = fingerprint(model)
    flow = surgery.trace(model, example)
    plan = plan_of(flow, case, case.seed)
    second = plan_of(surgery.trace(model, example), case, case.seed)
    if plain_record(plan) != plain_record(second):
        raise WrongError("plan: two traces give two plans")
    options.notes |= {"frozen"} if flow.frozen else set()
    options.notes |= set() if plan.removes_anything() else {"identity"}
    small = surgery.slim(model, plan)
    masked = surgery.mask(model, plan)
    check_untouched(before, model)
    if [m.training for m in masked.modules()] != [
        m.training for n, m in small.named_modules() if not n.endswith(("select", "scatter"))
    ]:
        raise WrongError("modes: the slim model is in another mode")
    worst = same_values(masked, small, case, "slim")
    check_training(model, small, case)
    check_bits(small, copy.deepcopy(small), case, "copy")
    fresh = made(case, source, case.seed + 1)
    with tempfile.TemporaryDirectory() as folder:
        surgery.save(small, plan, folder)
        check_bits(small, surgery.load(fresh, folder), case, "load")
        if options.export:
            check_export(model, small, case, folder)
    if options.again:
        worst = max(worst, check_again(small, fresh, case, options))
    return worst


def check_again(small: nn.Module, fresh: nn.Module, case: Case, options: Options) -> float:
    """Cut a slim network once or twice more; save it and load it from the dense one."""
    worst = 0.0
    for number in range(2 + options.third)[1:]:
        example = given(case, inputs_of(case.program, case.batch, case.seed + number))
        before = fingerprint(small)
        plan = plan_of(
            surgery.trace(small, example), replace(case, budget="explicit"), case.seed + number
        )
        smaller, masked = surgery.slim(small, plan), surgery.mask(small, plan)
        check_untouched(before, small)
        name = ("slim", "cut twice", "cut three times")[number]
        worst = max(worst, same_values(masked, smaller, case, name))
        with tempfile.TemporaryDirectory() as folder:
            surgery.save(smaller, plan, folder)
            check_bits(smaller, surgery.load(fresh, folder), case, f"load of {name}")
        small = smaller
    check_training(small, small, case)
    return worst


def judge(case: Case, source: str, options: Options) -> Finding:
    """Check a case and say what came of it."""
    start = time.perf_counter()
    worst, kind, text = 0.0, "", ""
    try:
        with warnings.catch_warnings(), torch.random.fork_rng([]):
            warnings.simplefilter("ignore")
            worst = check(case, source, options)
        outcome = "exact"
        outcome += " (nothing cut)" if "identity" in options.notes else ""
        outcome += ", parts frozen" if "frozen" in options.notes else ""
    except WrongError as error:
        outcome, text = "WRONG", str(error)
        kind = _kind(text.partition(":")[0])
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        trail = traceback.extract_tb(error.__traceback__)
        ours = [entry for entry in trail if "lightning_sparsity" in entry.filename]
        refused = _is_refusal(error, trail, source) and re.search(MAY_REFUSE, _stage(trail))
        outcome = "refused" if refused else "CRASH"
        place = f" [{ours[-1].name}]" if ours and not refused else ""
        text += f"{place} (in {_stage(trail)})"
        kind = _kind(text)
    seconds = time.perf_counter() - start
    return Finding(case.seed, outcome, kind, text, case, source, seconds, worst)


def _is_refusal(error: Exception, trail: traceback.StackSummary, source: str) -> bool:
    if not isinstance(error, (ValueError, RuntimeError)):
        return False
    if "/surgery/" not in trail[-1].filename:
        return False
    message = str(error)
    if re.search("needs example inputs that|does not run", message):
        return False
    names = set(re.findall(r"self\.(\w+)", source)) - {"training"}
    if "at 'the end of the model'" in message:  # the network's own forward, which has no name
        return True
    return bool(re.search(ABOUT_ARGUMENTS, message)) or any(
        re.search(rf"\b{re.escape(name)}\b", message) for name in names
    )


def _stage(trail: traceback.StackSummary) -> str:
    """The function of `check` in which an error came up."""
    lines = [e.line or "" for e in trail if e.filename.endswith("fuzz_checks.py")]
    return lines[-1].strip() if lines else "?"


def _kind(text: str) -> str:
    """A message without the names and numbers of one network."""
    text = text.split("\n")[0]
    text = re.sub(r"'[^']*'|`[^`]*`|\[[^\[\]]*\]\)?", "…", text)
    text = re.sub(r"\b\d[\d.]*(e[-+]?\d+)?\b", "#", text)
    return re.sub(r"\b(?=\w*[a-z])\w*\d+\w*\b", "NAME", text)[:160]
