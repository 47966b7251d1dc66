"""Code of a model's own that surgery meets in the wild: each kind comes out exact, or is refused.

Every network is compared with the masked one on inputs that the equivalence check has not seen.
"""

import gc
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_sparsity import surgery
from lightning_sparsity.surgery.observing import leaves_of, relative_difference
from lightning_sparsity.surgery.running import call

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
OTHERS = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Stem(nn.Module):
    """A convolution and a norm whose channels a head reads; `body` is what a test is about."""

    def __init__(self, body: Callable[["Stem", Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.head = nn.Conv2d(16, 4, 1)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.body = body

    def forward(self, x: Tensor) -> Any:
        return self.body(self, self.norm(self.conv(x)).relu())


def prepared(net: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for m in net.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias)
            assert m.running_mean is not None
            assert m.running_var is not None
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 1.5)
    return net.eval()


def halved(
    net: nn.Module, inputs: Any = IMAGES, **options: Any
) -> tuple[nn.Module, surgery.Plan, surgery.ChannelFlow]:
    """The network without half of its channels."""
    flow = surgery.trace(net, inputs)
    plan = flow.plan({n: torch.arange(k) % 2 == 1 for n, k in flow.norms.items()}, **options)
    return surgery.slim(net, plan), plan, flow


def check(net: nn.Module, small: nn.Module, plan: surgery.Plan, inputs: Any = OTHERS) -> None:
    with torch.no_grad():
        expected = list(leaves_of(call(surgery.mask(net, plan), inputs)))
        got = list(leaves_of(call(small, inputs)))
    dtypes = {x.dtype for x in expected if isinstance(x, Tensor) and x.is_floating_point()}
    allowed = 1e-12 if dtypes == {torch.float64} else 1e-5
    assert relative_difference(expected, got) <= allowed


@dataclass
class Output:
    """What some models return."""

    scores: Tensor
    width: int


def grids(net: Any, f: Tensor) -> Any:
    y = net.head(f)
    net.grids = [torch.ones(1) for _ in range(3)]
    return y, (net.box(f).sigmoid() + net.grids[0]) * net.grids[1] - net.grids[2]


def cached(net: Any, f: Tensor) -> Tensor:
    net.anchors = torch.arange(f.size(3), dtype=f.dtype).view(1, 1, 1, -1)
    return net.head(f) + net.anchors


def coordinates(net: Any, f: Tensor) -> Tensor:
    rows = torch.linspace(-1, 1, f.size(2), dtype=f.dtype).view(1, 1, -1, 1)
    return net.head(net.mix(torch.cat([f, rows.expand(len(f), 1, -1, f.size(3))], 1)).relu())


def class_token(net: Any, f: Tensor) -> Tensor:
    tokens = f.flatten(2).transpose(1, 2)
    first = torch.zeros(1, 1, 1, dtype=f.dtype).expand(len(f), 1, 16)
    return net.fc(torch.cat([first, tokens], 1))


def stacked(net: Any, f: Tensor) -> Tensor:
    y = net.head(f)
    return torch.stack([y, torch.linspace(0, 1, 8, dtype=f.dtype).expand_as(y)])


def collects(net: Any, f: Tensor) -> Tensor:
    y = net.head(f)
    net.__dict__.setdefault("terms", []).append(y.mean())
    return y


def pads_first(net: Any, f: Tensor) -> Tensor:
    return net.head(F.silu(net.mid_norm(net.mid(F.pad(F.silu(f), (1, 1, 1, 1))))))


EXACT: dict[str, tuple[Callable[[Any, Tensor], Any], dict[str, nn.Module]]] = {
    "plain tensors replaced": (grids, {"box": nn.Conv2d(16, 8, 1)}),
    "a tensor cached": (cached, {}),
    "coordinates": (coordinates, {"mix": nn.Conv2d(17, 16, 1)}),
    "a class token": (class_token, {"fc": nn.Linear(16, 4)}),
    "a computed tensor stacked": (stacked, {}),
    "type_as": (lambda net, f: net.head(f) + torch.arange(f.size(3)).type_as(f), {}),
    "to another tensor": (lambda net, f: net.head(f) + torch.arange(f.size(3)).to(f), {}),
    "zeros_like": (lambda net, f: net.head(torch.maximum(f, torch.zeros_like(f)) + f), {}),
    "zeros_like added": (lambda net, f: net.head(f + torch.zeros_like(f)), {}),
    "padding before a convolution": (
        pads_first,
        {"mid": nn.Conv2d(16, 16, 3), "mid_norm": nn.BatchNorm2d(16)},
    ),
    "tensors with a graph": (collects, {}),
}
COUNTS: dict[str, tuple[Callable[[Any, Tensor], Any], dict[str, nn.Module]]] = {
    "a size as a number": (
        lambda net, f: net.fc(f.mean((2, 3))) / f.size(1) ** 0.5,
        {"fc": nn.Linear(16, 4)},
    ),
    "a shape as a number": (lambda net, f: net.head(f) * f.shape[1], {}),
    "numel": (lambda net, f: net.head(f) / f[0].numel(), {}),
    "a size of a layer": (lambda net, f: net.head(f) / net.norm.num_features, {}),
    "sizes written out": (
        lambda net, f: net.fc(F.max_pool2d(f, 2).view(len(f), 16 * 4 * 4)),
        {"fc": nn.Linear(256, 4)},
    ),
    "sizes written out, all of them": (lambda net, f: net.head(f.view(-1, 16, 8, 8)), {}),
    "a mean of all": (lambda net, f: net.head(f) + f.sum() / f.numel(), {}),
    "a Gram matrix": (
        lambda net, f: torch.bmm(f.flatten(2), f.flatten(2).mT) / f[0].numel(),
        {},
    ),
    "a width that is returned": (lambda net, f: (net.head(f), f.shape[1]), {}),
    "a width in what is returned": (lambda net, f: Output(net.head(f), f.shape[1]), {}),
    "groups by number": (
        lambda net, f: net.head(f.view(len(f), 4, -1, 8, 8).transpose(1, 2).reshape(f.shape)),
        {},
    ),
}


@pytest.mark.parametrize("gather", [True, False], ids=["gather", "no gather"])
@pytest.mark.parametrize("kind", EXACT)
def test_code_that_does_not_count_is_cut_exactly(kind: str, gather: bool) -> None:
    body, layers = EXACT[kind]
    net = prepared(Stem(body, **layers)).double()
    small, plan, _ = halved(net, IMAGES.double(), gather=gather)
    check(net, small, plan, OTHERS.double())
    if gather and kind != "zeros_like":  # `maximum` of two activations is not followed
        assert plan.kept["norm"].numel() == 8
        assert len(small.conv.weight) == 8


@pytest.mark.parametrize("kind", COUNTS)
def test_code_that_counts_is_kept_whole_and_the_rest_is_cut(kind: str) -> None:
    body, layers = COUNTS[kind]
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 3, 1), Stem(body, **layers)
    )
    prepared(net).double()
    before = {name: x.clone() for name, x in net.state_dict().items()}
    small, plan, flow = halved(net, IMAGES.double())
    check(net, small, plan, OTHERS.double())
    assert plan.kept["1"].tolist() == [0, 2, 4, 6]
    assert flow.frozen
    assert "return" in kind or any(x.module[:1] == "3" for x in flow.frozen)
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())


def test_a_width_is_kept_for_budgets_too() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 3, 1),
        Stem(lambda net, f: net.head(f) / f.size(1)),
    )
    prepared(net).double()
    flow = surgery.trace(net, IMAGES.double())
    plan = flow.plan_by(surgery.Params(0.8))
    small = surgery.slim(net, plan)
    sizes = [sum(x.numel() for x in m.parameters()) for m in (net, small)]
    assert sizes[1] <= 0.8 * sizes[0]
    check(net, small, plan, OTHERS.double())


def test_a_shape_taken_from_another_activation_ties_the_two() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)
            self.own, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.fc(x)
            return self.head(self.own(h) + self.norm(h.flatten(0, 1)).view_as(h))

    net = prepared(Net()).double()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    small, plan, flow = halved(net, x)
    check(net, small, plan, torch.randn(4, 3, 6, dtype=torch.float64))
    assert plan.verified
    assert not any("counts" in str(item) for item in flow.frozen)


@pytest.mark.parametrize(
    "body",
    [
        lambda net, f: net.head(f) + net.fc(F.one_hot(torch.arange(8) % 5, 5).float()).mean(),
        lambda net, f: net.head(f.float()),
    ],
    ids=["one hot", "float"],
)
def test_code_that_makes_float32_is_verified_in_float32(body: Any) -> None:
    net = prepared(Stem(body, fc=nn.Linear(5, 4)))
    small, plan, _ = halved(net)
    check(net, small, plan)
    assert "float32, since the model does not run in float64" in plan.verified
    assert plan.proof is not None
    assert plan.proof < 4e-6


def test_rounding_inside_is_no_difference() -> None:
    net = prepared(Stem(lambda net, f: net.head((f.float() * 1.1).double())))
    _, plan, _ = halved(net.double(), IMAGES.double())
    assert "with float32 in the model's own code" in plan.verified
    assert plan.proof is not None
    assert plan.proof < 4e-6


def test_a_lock_is_shared() -> None:
    net = prepared(Stem(lambda net, f: net.head(f))).double()
    net.lock = threading.Lock()
    small, plan, _ = halved(net, IMAGES.double())
    assert small.lock is net.lock
    check(net, small, plan, OTHERS.double())


def test_tensors_with_a_graph_do_not_stop_the_cut() -> None:
    net = prepared(Stem(collects)).double().train()
    net(IMAGES.double()).sum().backward()
    small, plan, _ = halved(net.eval(), IMAGES.double())
    check(net, small, plan, OTHERS.double())
    assert net.terms[0].grad_fn is not None


def counts_calls(net: Any, f: Tensor) -> Tensor:
    net.seen = net.seen + 1
    net.history.append(net.seen)
    net.table["last"] = net.seen
    net.newest = net.seen
    return net.head(f)


def test_a_trace_and_a_cut_leave_attributes_alone() -> None:
    net = prepared(Stem(counts_calls)).double()
    net.register_buffer("seen", torch.zeros(()))
    seen = net.seen
    net.history, net.table = [], {"first": 0}
    halved(net, IMAGES.double())
    assert net.seen is seen
    assert float(seen) == 0
    assert net.history == []
    assert net.table == {"first": 0}
    assert "newest" not in vars(net)


def test_constants_are_filled_in_behind_a_layer_without_tensors() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.Conv2d(3, 8, 3)
            self.head = nn.Conv2d(8, 2, 1)
            with torch.no_grad():
                self.a.weight[1::2] = 0

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.a(x)).relu() + self.b(x))

    net = Net().double().eval()
    small, plan, _ = halved(net, IMAGES.double())
    check(net, small, plan, OTHERS.double())
    assert len(small.a.weight) == 4


class FrozenBatchNorm2d(nn.Module):
    """A norm of buffers by the name of torchvision's, which may do something else."""

    def __init__(self, power: float) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(16) + 0.5)
        self.power = power

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5) ** self.power
        own = (self.bias - self.running_mean * scale).view(1, -1, 1, 1)
        return x * scale.view(1, -1, 1, 1) + own


@pytest.mark.parametrize("power", [-0.5, -0.4])
def test_a_frozen_norm_is_known_by_what_it_does(power: float) -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 3), FrozenBatchNorm2d(power), nn.Conv2d(16, 2, 1))
    net.double().eval()
    small, plan, flow = halved(net, IMAGES.double())
    check(net, small, plan, OTHERS.double())
    assert (len(small[0].weight) == 8) == (power == -0.5)
    assert ("computes something else" in str(flow)) == (power != -0.5)


def test_lazy_modules_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"those of '1' \(LazyConv2d\) have no shape yet: run"):
        surgery.trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.LazyConv2d(4, 3)), IMAGES)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
def test_scripted_modules_are_refused_by_name() -> None:
    scripted = torch.jit.script(nn.Conv2d(3, 8, 3))
    with pytest.raises(ValueError, match=r"'1' is compiled by TorchScript: give the model"):
        surgery.trace(nn.Sequential(nn.Conv2d(3, 3, 3), scripted), IMAGES)


def test_a_model_that_never_answers_alike_is_refused() -> None:
    state = iter(range(1000))
    net = prepared(Stem(lambda net, f: net.head(f) + next(state)))
    with pytest.raises(RuntimeError, match="something else each time"):
        halved(net)


def test_a_model_that_does_not_run_masked_is_not_blamed_on_the_slim_one() -> None:
    def picky(net: Any, f: Tensor) -> Tensor:
        assert bool((net.norm.weight != 0).all()), "no zero scales, please"
        return net.head(f)

    with pytest.raises(RuntimeError, match=r"uncut, does not run.*no zero scales, please"):
        halved(prepared(Stem(picky)))


def test_a_difference_of_a_detector_s_order_is_no_difference() -> None:
    def sorts(net: Any, f: Tensor) -> Any:
        scores = net.head(f).flatten()
        near = (scores * 1e14).round() / 1e14  # as rounding may do it
        return scores.sort().indices, near

    net = prepared(Stem(sorts)).double()
    small, plan, _ = halved(net, IMAGES.double())
    assert plan.proof is not None
    assert plan.proof <= 1e-12
    assert len(small.conv.weight) == 8


def heads_that_are_replaced(kind: str) -> nn.Module:
    net = prepared(Stem(grids, box=nn.Conv2d(16, 8, 1))).double()
    net.grids = [torch.zeros(1) for _ in range(3)]
    if kind == "prune":
        import torch.nn.utils.prune as prune

        prune.l1_unstructured(net.conv, "weight", 0.3)
    elif kind != "grids":
        getattr(nn.utils, kind)(net.conv)
    return net


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("kind", ["grids", "prune", "weight_norm", "spectral_norm"])
def test_fifty_traces_give_one_plan_whatever_the_allocator_does(kind: str) -> None:
    net = heads_that_are_replaced(kind)
    plans = set()
    for i in range(50):
        hostile = [torch.randn(1 + (i * j) % 7) for j in range(40)]
        del hostile[:: 2 + i % 3]
        if i % 5 == 0:
            gc.collect()
        flow = surgery.trace(net, IMAGES.double())
        plan = flow.plan({"norm": torch.arange(16) % 2 == 1})
        plans.add(str([(n, cut.to_json()) for n, cut in plan.cuts.items()]) + str(flow))
        net.grids = [torch.zeros(1) for _ in range(3)]
    assert len(plans) == 1


def test_processes_agree_on_a_plan() -> None:
    code = (
        "import torch, hashlib\n"
        "from tests.surgery import test_own_code as own\n"
        "net = own.heads_that_are_replaced('grids')\n"
        "flow = own.surgery.trace(net, own.IMAGES.double())\n"
        "plan = flow.plan({'norm': torch.arange(16) % 2 == 1})\n"
        "print(hashlib.sha256(str([c.to_json() for c in plan.cuts.values()]).encode()).hexdigest())"
    )
    root = __file__.rpartition("/tests/")[0]
    runs = [
        subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
        for _ in range(3)
    ]
    assert len({run.stdout for run in runs if not run.returncode}) == 1, runs[0].stderr
