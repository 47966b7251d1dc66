"""A slim model on disk, and what damaged files say."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_sparsity import surgery
from lightning_sparsity.models import ResNet20
from lightning_sparsity.surgery.plan_file import digest_of

IMAGE = torch.randn(1, 3, 32, 32)


class Tied(nn.Module):
    """Two layers with one weight, a layer in two places, and padding after a sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Sigmoid())
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.again = self.first
        self.one, self.two = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.two.weight = self.one.weight
        self.head = nn.ConvTranspose2d(8, 8, 2, groups=4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.first(self.stem(x)).relu()).relu()
        return self.head(self.two(self.one(x).relu()).relu())


class Grouped(nn.Sequential):
    """Groups that go, and groups that become narrower."""

    def __init__(self) -> None:
        convs = [nn.Conv2d(3, 12, 1), nn.Conv2d(12, 18, 3, groups=3), nn.Conv2d(18, 2, 1)]
        norms = [nn.BatchNorm2d(12), nn.BatchNorm2d(18)]
        super().__init__(convs[0], norms[0], nn.PReLU(), convs[1], norms[1], nn.PReLU(18), convs[2])


BUILDS: list[Callable[[], nn.Module]] = [ResNet20, Tied, Grouped]


@pytest.fixture(params=BUILDS, ids=["resnet", "tied", "grouped"])
def saved(request: pytest.FixtureRequest, tmp_path: Path, randomise: Any, draw_dead: Any) -> Any:
    model = randomise(request.param()).float()
    flow = surgery.trace(model, IMAGE)
    plan = flow.plan(draw_dead(flow, 0.6))
    small = surgery.slim(model, plan)
    surgery.save(small, plan, tmp_path / "slim")
    return request.param, small, tmp_path / "slim"


def test_it_comes_back_bit_for_bit(saved: Any) -> None:
    build, small, folder = saved
    fresh = build()
    before = {name: x.clone() for name, x in fresh.state_dict().items()}
    loaded = surgery.load(fresh, folder).eval()
    assert list(loaded.state_dict()) == list(small.state_dict())
    assert all(torch.equal(x, small.state_dict()[name]) for name, x in loaded.state_dict().items())
    assert torch.equal(loaded(IMAGE), small(IMAGE))
    assert all(torch.equal(x, before[name]) for name, x in fresh.state_dict().items())
    assert len(list(loaded.parameters())) == len(list(small.parameters()))
    loaded(IMAGE).square().sum().backward()


def test_it_comes_back_in_a_fresh_process(saved: Any, tmp_path: Path) -> None:
    build, small, folder = saved
    if build is not ResNet20:
        pytest.skip("the class has to be importable")
    torch.save({"image": IMAGE, "expected": small(IMAGE).detach()}, tmp_path / "case.pt")
    code = (
        "import torch; from lightning_sparsity import surgery;"
        "from lightning_sparsity.models import ResNet20;"
        f"case = torch.load({str(tmp_path / 'case.pt')!r});"
        f"small = surgery.load(ResNet20().eval(), {str(folder)!r});"
        "assert torch.equal(small(case['image']), case['expected'])"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_dtype_comes_from_the_file_and_mode_from_the_model(saved: Any) -> None:
    build, _, folder = saved
    loaded = surgery.load(build().double().train(), folder)
    assert loaded.training
    assert {x.dtype for x in loaded.parameters()} == {torch.float32}
    frozen = build().requires_grad_(False)
    assert not any(x.requires_grad for x in surgery.load(frozen, folder).parameters())


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    record = json.loads((folder / "plan.json").read_text())
    change(record)
    (folder / "plan.json").write_text(json.dumps(record))


def first_layer(record: dict[str, Any]) -> dict[str, Any]:
    return next(iter(record["layers"].values()))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def change_a_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name, x in tensors.items() if x.is_floating_point())
    save_file({**tensors, name: tensors[name] + 1}, folder / "model.safetensors")


DAMAGE: dict[str, Callable[[Path], None]] = {
    "weights truncated": lambda f: truncate(f / "model.safetensors"),
    "weights changed": change_a_weight,
    "weights grown": lambda f: (f / "model.safetensors").write_bytes(bytes(1 << 22)),
    "plan truncated": lambda f: truncate(f / "plan.json"),
    "plan empty": lambda f: (f / "plan.json").write_text("[]"),
    "plan of the future": lambda f: rewrite(f, lambda r: r.update(version=2)),
    "channel out of range": lambda f: rewrite(f, lambda r: first_layer(r)["rows"].append(10**6)),
    "channel twice": lambda f: rewrite(f, lambda r: first_layer(r)["rows"].append(0)),
    "channel of text": lambda f: rewrite(f, lambda r: first_layer(r).update(rows=["0"])),
    "huge layer": lambda f: rewrite(f, lambda r: first_layer(r).update(width=10**12)),
    "huge mask": lambda f: rewrite(
        f, lambda r: r["widths"].update(dict.fromkeys(r["widths"], 10**12))
    ),
    "channel dropped": lambda f: rewrite(f, lambda r: first_layer(r)["rows"].pop()),
    "layer dropped": lambda f: rewrite(f, lambda r: r["layers"].popitem()),
    "layer renamed": lambda f: rewrite(f, lambda r: r["layers"].update(other=first_layer(r))),
    "proof changed": lambda f: rewrite(f, lambda r: r.update(proof=0.5)),
    "tensor dropped": lambda f: rewrite(f, lambda r: r["tensors"].popitem()),
    "alias invented": lambda f: rewrite(f, lambda r: r["aliases"].update(a="b")),
    "entry missing": lambda f: rewrite(f, lambda r: r.pop("gather")),
    "plan nested": lambda f: (f / "plan.json").write_text('{"format":' * 100_000),
    "plan not text": lambda f: (f / "plan.json").write_bytes(b'{"\xff": 1}'),
    "entry twice": lambda f: (f / "plan.json").write_text('{"version": 1, "version": 1}'),
    "version of truth": lambda f: rewrite(f, lambda r: r.update(version=True)),
    "proof not a number": lambda f: rewrite(f, lambda r: r.update(proof=float("nan"))),
    "number of 5000 digits": lambda f: (f / "plan.json").write_text("9" * 5000),
    "plan a folder": lambda f: ((f / "plan.json").unlink(), (f / "plan.json").mkdir()),
    "weights a folder": lambda f: (
        (f / "model.safetensors").unlink(),
        (f / "model.safetensors").mkdir(),
    ),
    "plan padded": lambda f: rewrite(f, lambda r: r.update(more="x" * (1 << 20))),
}


def forge(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the plan, and let both files know the other's digest as if it were right."""
    record = json.loads((folder / "plan.json").read_text())
    change(record)
    tensors = load_file(folder / "model.safetensors")
    weights = save_tensors(tensors, metadata={"plan": digest_of(record)})
    (folder / "model.safetensors").write_bytes(weights)
    record["weights"] = hashlib.sha256(weights).hexdigest()
    (folder / "plan.json").write_text(json.dumps(record))


def of_first_alias(record: dict[str, Any]) -> str:
    return next(iter(record["aliases"]))


FORGED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "rows of floats": lambda r: first_layer(r).update(
        rows=[float(n) for n in first_layer(r)["rows"]]
    ),
    "rows of truth": lambda r: first_layer(r).update(rows=[False, True]),
    "rows of lists": lambda r: first_layer(r).update(rows=[[0]]),
    "rows as text": lambda r: first_layer(r).update(rows="0123"),
    "rows missing": lambda r: first_layer(r).pop("rows"),
    "more leave than there are": lambda r: first_layer(r).update(
        width=1 << 24, scatter=list(range(len(first_layer(r)["rows"])))
    ),
    "wider than the model": lambda r: first_layer(r)["layer"].update(widths=[1 << 24, 1 << 24]),
    "another kind": lambda r: first_layer(r)["layer"].update(kind="channel", widths=[8, 8]),
    "a kind that is a list": lambda r: first_layer(r)["layer"].update(kind=["dense"]),
    "layer of nothing": lambda r: r["layers"].update({"": first_layer(r)}),
    "layer of text": lambda r: r["layers"].update(stem="0"),
    "no layers": lambda r: r.update(layers={}),
    "layers in a list": lambda r: r.update(layers=[]),
    "mask of another width": lambda r: r["widths"].update(dict.fromkeys(r["widths"], 1 << 24)),
    "mask without a width": lambda r: r["widths"].clear(),
    "mask that falls": lambda r: r["dead"].update({name: [1, 0] for name in r["dead"]}),
    "mask out of range": lambda r: r["dead"].update({name: [8] for name in r["dead"]}),
    "mask of another layer": lambda r: r["dead"].update(other=[]),
    "shapes of text": lambda r: r.update(signature=dict.fromkeys(r["signature"], "8")),
    "gather of numbers": lambda r: r.update(gather=1),
    "proof of text": lambda r: r.update(proof="0"),
    "dtype of numbers": lambda r: r["tensors"].update({"two.bias": [32, [8]]}),
    "dtype of integers": lambda r: r["tensors"]["two.bias"].__setitem__(0, "int64"),
    "dtype unknown": lambda r: r["tensors"]["two.bias"].__setitem__(0, "nn"),
    "tensor huge": lambda r: r["tensors"]["two.bias"].__setitem__(1, [1 << 40]),
    "tensor short": lambda r: r["tensors"]["two.bias"].pop(),
    "tensor of floats": lambda r: r["tensors"].update(
        {n: [d, [float(k) for k in shape]] for n, (d, shape) in r["tensors"].items()}
    ),
    "alias of a list": lambda r: r["aliases"].update({of_first_alias(r): ["one.weight"]}),
    "alias of nothing": lambda r: r["aliases"].update({of_first_alias(r): "nothing"}),
    "alias of itself": lambda r: r["aliases"].update({of_first_alias(r): of_first_alias(r)}),
    "alias of another shape": lambda r: r["aliases"].update({of_first_alias(r): "one.bias"}),
    "alias unlisted": lambda r: r["aliases"].update(a="one.bias"),
    "tensors missing": lambda r: r.pop("tensors"),
}


@pytest.mark.parametrize("change", FORGED)
@pytest.mark.parametrize("saved", [Tied], indirect=True, ids=["tied"])
def test_a_forged_plan_is_refused_though_its_digests_are_right(change: str, saved: Any) -> None:
    build, _, folder = saved
    forge(folder, FORGED[change])
    with pytest.raises(ValueError, match=r"cannot be trusted: .*Save the slim model again") as got:
        surgery.load(build(), folder)
    assert type(got.value) is ValueError


@pytest.mark.parametrize("saved", [Tied], indirect=True, ids=["tied"])
def test_what_does_not_matter_may_be_forged(saved: Any) -> None:
    build, small, folder = saved
    forge(folder, lambda r: r.update(more=[]))
    loaded = surgery.load(build(), folder)
    assert all(torch.equal(x, small.state_dict()[name]) for name, x in loaded.state_dict().items())


class Many(nn.Sequential):
    """Little memory, many norms."""

    def __init__(self) -> None:
        super().__init__(*(nn.BatchNorm1d(4) for _ in range(200)))


class Largest(TorchDispatchMode):
    """Notes how many entries the largest tensor has that is made inside."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.entries = max(self.entries, result.numel())
        return result


def test_a_small_plan_cannot_take_much_memory(tmp_path: Path) -> None:
    flow = surgery.trace(Many().eval(), torch.rand(2, 4))
    plan = flow.plan({})
    surgery.save(surgery.slim(Many().eval(), plan), plan, tmp_path)
    model = Many()
    with Largest() as seen:
        surgery.load(model, tmp_path)
    assert 0 < seen.entries <= 16

    def widen(record: dict[str, Any]) -> None:
        for name, entry in record["layers"].items():
            entry["layer"]["widths"] = [1 << 24, 1 << 24]
            entry.update(width=1 << 24, scatter=entry["rows"])
            record["widths"][name] = 1 << 24

    forge(tmp_path, widen)
    message = "cannot be trusted: layer '0' cannot be cut like this"
    with Largest() as seen, pytest.raises(ValueError, match=message):
        surgery.load(model, tmp_path)
    assert seen.entries <= 16


def pair(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Crash(BaseException):
    """What nothing cleans up after."""


@pytest.mark.parametrize("survived", [0, 1, 2])
@pytest.mark.parametrize("saved", [Tied], indirect=True, ids=["tied"])
def test_after_a_crash_the_older_or_the_newer_model_loads(
    survived: int, saved: Any, randomise: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, old, folder = saved
    model = randomise(build()).float()
    flow = surgery.trace(model, IMAGE)
    plan = flow.plan({"stem.1": torch.arange(8) < 5})
    new = surgery.slim(model, plan)
    replace, left = os.replace, [None] * survived

    def interrupted(source: Path, target: Path) -> None:
        if not left:
            raise Crash("stopped")
        left.pop()
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        patch.setattr(Path, "unlink", lambda *_: None)
        with pytest.raises(Crash, match="stopped"):
            surgery.save(new, plan, folder)
    expected = (new if survived == 2 else old).state_dict()
    found = surgery.load(build(), folder).state_dict()
    assert all(torch.equal(x, expected[name]) for name, x in found.items())
    surgery.save(new, plan, folder)
    assert (folder / "model.safetensors").exists()
    assert not (folder / "model.next.safetensors").exists()
    assert all(
        torch.equal(x, new.state_dict()[name])
        for name, x in surgery.load(build(), folder).state_dict().items()
    )


@pytest.mark.parametrize("saved", [Tied], indirect=True, ids=["tied"])
def test_a_save_that_fails_leaves_what_was_there(
    saved: Any, randomise: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, _, folder = saved
    before = pair(folder)
    model = randomise(build()).float()
    plan = surgery.trace(model, IMAGE).plan({})
    new = surgery.slim(model, plan)
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if target.name == "plan.json":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"plan\.json cannot be written .*Make .*slim a folder with"):
        surgery.save(new, plan, folder)
    assert pair(folder) == before


@pytest.mark.parametrize("saved", [Tied], indirect=True, ids=["tied"])
def test_a_folder_that_is_a_file_is_named(saved: Any, tmp_path: Path, randomise: Any) -> None:
    build, small, _ = saved
    model = randomise(build())
    plan = surgery.trace(model, IMAGE.double()).plan({})
    file = tmp_path / "file"
    file.write_text("what was there")
    with pytest.raises(OSError, match=r"cannot be written .*Make .*file a folder"):
        surgery.save(surgery.slim(model, plan), plan, file)
    assert file.read_text() == "what was there"
    with pytest.raises(ValueError, match=r"plan\.json cannot be trusted: .*file is not a folder"):
        surgery.load(small, file)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("saved", [Tied], indirect=True, ids=["tied"])
def test_a_damaged_file_is_refused(damage: str, saved: Any) -> None:
    build, _, folder = saved
    DAMAGE[damage](folder)
    with pytest.raises(ValueError, match=r"cannot be trusted: .*Save the slim model again"):
        surgery.load(build(), folder)


@pytest.mark.parametrize("name", ["plan.json", "model.safetensors"])
def test_a_missing_file_is_named(name: str, saved: Any) -> None:
    build, _, folder = saved
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        surgery.load(build(), folder)


def test_another_model_is_refused(saved: Any) -> None:
    with pytest.raises(ValueError, match="belongs to another model"):
        surgery.load(ResNet20(num_classes=7), saved[2])


def test_weights_of_another_run_are_refused(tmp_path: Path, randomise: Any, draw_dead: Any) -> None:
    for run in ("a", "b"):
        model = randomise(ResNet20()).float()
        flow = surgery.trace(model, IMAGE)
        plan = flow.plan({name: torch.arange(n) % 2 == 0 for name, n in flow.norms.items()})
        surgery.save(surgery.slim(model, plan), plan, tmp_path / run)
    (tmp_path / "a" / "plan.json").replace(tmp_path / "b" / "plan.json")
    with pytest.raises(ValueError, match=r"not the file that plan\.json was saved with"):
        surgery.load(ResNet20(), tmp_path / "b")


def test_only_the_model_of_the_plan_is_saved(tmp_path: Path, randomise: Any) -> None:
    model = randomise(ResNet20())
    flow = surgery.trace(model, IMAGE.double())
    plan = flow.plan({"norm": torch.arange(16) < 8})
    with pytest.raises(ValueError, match="the model that the plan made"):
        surgery.save(model, plan, tmp_path / "slim")
    assert not (tmp_path / "slim").exists()
