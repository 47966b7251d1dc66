"""A slim model on disk, and what damaged files say."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lightning_sparsity import surgery
from lightning_sparsity.models import ResNet20

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
}


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
