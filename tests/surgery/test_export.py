"""Networks as `.pt2` and `.onnx` files: what a program without this package computes with them."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_sparsity import surgery
from lightning_sparsity.models import ResNet20

MISSING = [
    name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None
]
ONNX = pytest.param(
    ".onnx", marks=pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not installed")
)


class PreActivation(nn.Module):
    """A residual block that starts with a norm, so that only a gather makes it smaller."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.two(self.norms[1](self.one(self.norms[0](x).relu())).relu())
        return self.head(self.norms[2](x).relu().mean((2, 3)))


class Two(nn.Module):
    """Two inputs, and outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(3, 4, 1), nn.Conv2d(2, 4, 1)

    def forward(self, wide: Tensor, narrow: Tensor) -> dict[str, Any]:
        both = self.wide(wide) - self.narrow(narrow)
        return {"both": both, "parts": [self.narrow(narrow)]}


class Fixed(nn.Linear):
    """A layer whose code counts the examples."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(2, 3))


class Branching(nn.Linear):
    """A layer whose code asks for values."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else x


@pytest.fixture
def make_slim(randomise: Any, draw_dead: Any) -> Callable[[nn.Module], nn.Module]:
    def make_slim(model: nn.Module) -> nn.Module:
        model = randomise(model).float()
        flow = surgery.trace(model, torch.randn(1, 3, 8, 8))
        return surgery.slim(model, flow.plan(draw_dead(flow, 0.5)))

    return make_slim


def run(path: Path, *inputs: Tensor) -> list[Tensor]:
    """The outputs of a file, by nothing but torch or onnxruntime."""
    if path.suffix == ".pt2":
        out = torch.export.load(path).module()(*inputs)
        return [out] if isinstance(out, Tensor) else [out["both"], *out["parts"]]
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    feed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
    return [torch.from_numpy(y) for y in session.run(None, feed)]


@pytest.mark.parametrize("build", [ResNet20, PreActivation])
@pytest.mark.parametrize("suffix", [".pt2", ONNX])
def test_the_file_of_a_slim_network_computes_the_same_for_any_batch(
    suffix: str, build: Callable[[], nn.Module], make_slim: Any, tmp_path: Path
) -> None:
    small = make_slim(build())
    assert any(name.endswith(".select") for name, _ in small.named_modules())
    path = tmp_path / "new" / f"small{suffix}"
    difference = surgery.export(small, torch.randn(2, 3, 8, 8), path)
    assert difference < 1e-5
    assert sorted(path.parent.iterdir()) == [path]
    for batch in (1, 2, 5):
        images = torch.randn(batch, 3, 8, 8)
        with torch.no_grad():
            torch.testing.assert_close(run(path, images)[0], small(images))


@pytest.mark.parametrize("suffix", [".pt2", ONNX])
def test_an_example_alone_is_enough_for_any_batch(suffix: str, tmp_path: Path) -> None:
    model, path = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(inplace=True)), tmp_path / f"m{suffix}"
    surgery.export(model, torch.randn(1, 3, 4, 4), path)
    images = torch.randn(3, 3, 4, 4)
    torch.testing.assert_close(run(path, images)[0], model(images).detach())


@pytest.mark.parametrize("suffix", [".pt2", ONNX])
@pytest.mark.parametrize("by_name", [False, True])
def test_several_inputs_and_outputs_keep_their_order(
    suffix: str, by_name: bool, tmp_path: Path
) -> None:
    model, path = Two(), tmp_path / f"two{suffix}"
    wide, narrow = torch.randn(2, 3, 4, 4), torch.randn(2, 2, 4, 4)
    given = {"narrow": narrow, "wide": wide} if by_name else (wide, narrow)
    assert surgery.export(model, given, path) < 1e-5
    if not by_name:
        expected = model(wide, narrow)
        got = run(path, wide, narrow)
        torch.testing.assert_close(got, [expected["both"].detach(), expected["parts"][0].detach()])


@pytest.mark.parametrize("suffix", [".pt2", ONNX])
def test_the_model_and_the_examples_stay_as_they_were(suffix: str, tmp_path: Path) -> None:
    inplace = nn.ELU(inplace=True)  # works on the examples themselves
    model = nn.Sequential(inplace, nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout()).train()
    model[1].eval()
    calls: list[int] = []
    model[1].register_forward_hook(lambda *_: calls.append(1))
    before = {name: (id(x), x.clone()) for name, x in model.state_dict(keep_vars=True).items()}
    examples = torch.randn(2, 3, 4, 4)
    copy = examples.clone()
    assert surgery.export(model, examples, tmp_path / f"m{suffix}") < 1e-5
    after = model.state_dict(keep_vars=True)
    assert all(id(after[n]) == i and torch.equal(after[n], x) for n, (i, x) in before.items())
    assert [m.training for m in model] == [True, False, True, True]
    assert len(model[1]._forward_hooks) == 1
    assert torch.equal(examples, copy)


@pytest.mark.parametrize("suffix", [".pt2", ONNX])
def test_the_file_is_in_evaluation_mode(suffix: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout())
    images, path = torch.randn(2, 3, 4, 4), tmp_path / f"m{suffix}"
    surgery.export(model, images, path)
    torch.testing.assert_close(run(path, images)[0], model.eval()(images).detach())


@pytest.mark.parametrize("suffix", [".pt2", ONNX])
def test_no_paths_of_this_machine_are_in_the_file(suffix: str, tmp_path: Path) -> None:
    surgery.export(PreActivation(), torch.randn(2, 3, 4, 4), tmp_path / f"m{suffix}")
    content = (tmp_path / f"m{suffix}").read_bytes()
    assert Path(__file__).name.encode() not in content
    assert str(Path(torch.__file__).parent).encode() not in content


def test_a_pt2_file_runs_where_this_package_is_not_imported(make_slim: Any, tmp_path: Path) -> None:
    small, images, path = make_slim(ResNet20()), torch.randn(3, 3, 8, 8), tmp_path / "small.pt2"
    surgery.export(small, images, path)
    torch.save({"images": images, "expected": small(images).detach()}, tmp_path / "case.pt")
    code = (
        "import sys, torch\n"
        "sys.modules['lightning_sparsity'] = None  # any import of it fails\n"
        f"case = torch.load({str(tmp_path / 'case.pt')!r})\n"
        f"network = torch.export.load({str(path)!r}).module()\n"
        "torch.testing.assert_close(network(case['images']), case['expected'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("model", "examples", "reason"),
    [
        (Fixed(3, 4), torch.randn(2, 3), "Fixed cannot be exported to m.pt2: .*batch"),
        (nn.Bilinear(3, 3, 2), (torch.randn(2, 3), torch.randn(2, 3)), None),
        (nn.Linear(3, 2), torch.tensor([1.0, 2.0, 3.0]), "Linear cannot be exported to m.pt2: "),
        (Two(), (torch.randn(3, 4, 4), torch.randn(2, 4, 4)), "no first dimension in common"),
    ],
    ids=["fixed", "pairs", "no batch", "several sizes"],
)
def test_a_batch_that_cannot_vary_is_fixed_with_a_reason(
    model: nn.Module, examples: Any, reason: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "m.pt2"
    if reason is None:
        surgery.export(model, examples, path)
    else:
        sentence = f"m.pt2 takes inputs of the shapes of the examples alone, not .*: .*{reason}"
        with pytest.warns(UserWarning, match=sentence):
            surgery.export(model, examples, path)
    given = examples if isinstance(examples, tuple) else (examples,)
    expected = model(*given)
    first = expected["both"] if isinstance(expected, dict) else expected
    torch.testing.assert_close(run(path, *given)[0], first.detach())


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"files ending in \.pt2 or \.onnx, got '.*m\.pth'"):
        surgery.export(nn.Linear(3, 2), torch.randn(2, 3), tmp_path / "m.pth")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    sentence = r"\.onnx needs .*onnxscript.*: pip install \"lightning-sparsity\[onnx\]\"\."
    with pytest.raises(ModuleNotFoundError, match=sentence):
        surgery.export(nn.Linear(3, 2), torch.randn(2, 3), tmp_path / "m.onnx")
    surgery.export(nn.Linear(3, 2), torch.randn(2, 3), tmp_path / "m.pt2")


def test_a_model_that_cannot_be_traced_says_why_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(
        RuntimeError, match=r"^Branching cannot be exported to m\.pt2: .*data-dependent.*$"
    ) as raised:
        surgery.export(Branching(3, 3), torch.randn(2, 3), tmp_path / "m.pt2")
    assert "\n" not in str(raised.value)
    assert raised.value.__cause__ is not None
    assert not list(tmp_path.iterdir())


class TwoFaced(nn.Linear):
    """A layer that shows the exporter something else."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1.001 if torch.compiler.is_compiling() else 1)


def test_a_file_that_would_differ_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    path.write_text("what was there")
    with pytest.raises(
        RuntimeError, match=r"would differ from TwoFaced by 1\.0e-03 \(relative\), more than 1e-04"
    ):
        surgery.export(TwoFaced(3, 2), torch.randn(2, 3), path)
    assert path.read_text() == "what was there"
