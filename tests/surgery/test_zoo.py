"""The networks of torchvision: slim computes what mask computes on every one of them."""

import copy
import re
import sys
import time
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from lightning_sparsity import surgery
from lightning_sparsity.models import VGG19, DenseNet40, ResNet164
from lightning_sparsity.surgery.running import call, tensors_in

CROSS_SECTION = [
    "resnet18", "shufflenet_v2_x0_5", "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5",
    "regnet_y_400mf", "googlenet", "lraspp_mobilenet_v3_large",
]  # fmt: skip
DETECTORS = [
    "ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fasterrcnn_resnet50_fpn_v2", "retinanet_resnet50_fpn", "fcos_resnet50_fpn",
]  # fmt: skip
SEGMENTERS = [
    "fcn_resnet50", "fcn_resnet101", "deeplabv3_resnet50", "deeplabv3_resnet101",
    "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large",
]  # fmt: skip
TITLE = f"\n{'network':40s}    proof  float32     gone   params    slim   trace    plan    slim\n"
OURS = {"VGG19": VGG19, "DenseNet40": DenseNet40, "ResNet164": ResNet164}


def classifiers() -> list[str]:
    """All 58 with BatchNorm; the test that uses them checks that each has it."""
    without = re.compile(r"alexnet|convnext|squeezenet|swin|vit|vgg\d+$")
    names = torchvision.models.list_models(torchvision.models)
    return [name for name in names if not without.match(name)]


def build(name: str) -> nn.Module:
    if name in OURS:
        return OURS[name]()
    options: dict[str, Any] = {"weights": None}
    if name in DETECTORS + SEGMENTERS:
        options["weights_backbone"] = None
    if name in ("fcn_resnet50", "fcn_resnet101", "deeplabv3_resnet50", "deeplabv3_resnet101"):
        options["aux_loss"] = True
    if name in ("googlenet", "inception_v3"):
        options |= {"init_weights": False, "aux_logits": True}
    return torchvision.models.get_model(name, **options)


def example(name: str, dtype: torch.dtype) -> Any:
    if name in DETECTORS:
        return [torch.rand(3, 128, 160, dtype=dtype)]
    side = {"inception_v3": 299, "googlenet": 128, "maxvit_t": 224}.get(
        name, 32 if name in OURS else 96
    )
    return torch.randn(1, 3, side, side, dtype=dtype)


@torch.no_grad()
def settle(model: nn.Module, inputs: Any) -> nn.Module:
    """Statistics near to those of the inputs: with any others deep networks forget their image."""

    def adapt(norm: Any, args: tuple[Tensor, ...]) -> None:
        own = args[0].transpose(0, 1).flatten(1)
        var, mean = own.var(1, correction=0), own.mean(1)
        norm.running_mean.copy_(mean + 0.3 * var.sqrt() * torch.randn_like(mean))
        norm.running_var.copy_(torch.where(var > 1e-8, var, 1) * (0.5 + torch.rand_like(var)))

    norms = [module for module in model.modules() if hasattr(module, "running_mean")]
    hooks = [norm.register_forward_pre_hook(adapt) for norm in norms]
    model(inputs)
    for hook in hooks:
        hook.remove()
    return model


@torch.no_grad()
def compare_on_other_images(model: nn.Module, small: nn.Module, plan: surgery.Plan, x: Any) -> None:
    """The slim network on two images that neither the trace nor the equivalence check has seen."""
    images = torch.randn(2, *x.shape[1:], dtype=x.dtype)
    expected, got = (list(tensors_in(net(images))) for net in (surgery.mask(model, plan), small))
    assert len(expected) == len(got) > 0
    for a, b in zip(expected, got, strict=True):
        assert float((a - b).abs().max() / a.abs().max()) <= 1e-12
        assert float((a[0] - a[1]).abs().max() / a.abs().max()) > 1e-6  # else it says nothing


def follow(name: str, model: nn.Module, draw_dead: Any) -> str:
    """Cut 40 % of all channels, compare, train a step; one line of the table."""
    inputs = example(name, torch.float64)
    settle(model, inputs)
    start = time.perf_counter()
    flow = surgery.trace(model, inputs)
    assert flow.norms
    traced = time.perf_counter() - start
    dead = draw_dead(flow, 0.4)
    start = time.perf_counter()
    plan = flow.plan(dead)
    planned = time.perf_counter() - start
    start = time.perf_counter()
    small = surgery.slim(model, plan)
    slimmed = time.perf_counter() - start
    assert plan.proof is not None
    assert plan.proof <= 1e-12
    gone = {n: int(d.sum() - d[plan.kept[n]].sum()) for n, d in dead.items()}
    share = sum(gone.values()) / max(sum(int(d.sum()) for d in dead.values()), 1)
    assert share >= 0.99
    single = difference_in_float32(model, small, plan, inputs)
    assert single <= 1e-5
    if name not in DETECTORS:
        compare_on_other_images(model, small, plan, inputs)
        train_a_step(copy.deepcopy(small).float(), name)
    counts = [sum(x.numel() for x in m.parameters()) for m in (model, small)]
    return (
        f"{name:40s} {plan.proof:8.1e} {single:8.1e} {share:8.2%} {counts[0] / 1e6:8.2f} "
        f"{counts[1] / 1e6:8.2f} {traced:7.2f} {planned:7.2f} {slimmed:7.2f}"
    )


def difference_in_float32(
    model: nn.Module, small: nn.Module, plan: surgery.Plan, inputs: Any
) -> float:
    """The same in single precision; for detectors, at their raw heads."""
    made: list[list[Tensor]] = []
    for net in (surgery.mask(model, plan), small):
        single, seen = copy.deepcopy(net).float().eval(), list[Tensor]()
        for name, module in single.named_modules():
            if isinstance(inputs, list) and name in ("head", "rpn.head"):
                module.register_forward_hook(lambda _m, _a, out, s=seen: s.extend(tensors_in(out)))
        with torch.no_grad():
            whole = call(
                single, [x.float() for x in inputs] if isinstance(inputs, list) else inputs.float()
            )
        made.append(seen or list(tensors_in(whole)))
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(*made, strict=True))


def train_a_step(small: nn.Module, name: str) -> None:
    images: Tensor = torch.cat([example(name, torch.float32)] * 2)
    optimizer = torch.optim.SGD(small.train().parameters(), lr=1e-3)
    loss = sum(x.square().mean() for x in tensors_in(small(images)))
    assert isinstance(loss, Tensor)
    loss.backward()
    optimizer.step()
    assert all(x.isfinite().all() for x in tensors_in(small(images)))


@pytest.mark.parametrize("name", CROSS_SECTION)
def test_a_cross_section_of_the_zoo(name: str, randomise: Any, draw_dead: Any) -> None:
    follow(name, randomise(build(name)), draw_dead)


@pytest.mark.parametrize("name", CROSS_SECTION)
def test_round_widths_are_exact_too(name: str, randomise: Any, draw_dead: Any) -> None:
    inputs = example(name, torch.float64)
    model = settle(randomise(build(name)), inputs)
    flow = surgery.trace(model, inputs)
    plan = flow.plan(draw_dead(flow, 0.5), round_to=8)
    small = surgery.slim(model, plan)
    assert plan.proof is not None
    assert plan.proof <= 1e-12
    compare_on_other_images(model, small, plan, inputs)
    for layer, cut in plan.cuts.items():
        rows, columns = cut.rows.numel(), cut.columns.numel() + cut.ones
        for n, dense in zip((rows, columns), cut.layer.widths, strict=True):
            assert n % 8 == 0 or n == dense or cut.layer.kind == "grouped", layer


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classifiers", "segmenters", "detectors", "ours"])
def test_the_whole_zoo(kind: str, randomise: Any, draw_dead: Any, capsys: Any) -> None:
    families = {"segmenters": SEGMENTERS, "detectors": DETECTORS, "ours": list(OURS)}
    names = classifiers() if kind == "classifiers" else families[kind]
    with capsys.disabled():
        sys.stdout.write(TITLE)
        for name in names:
            sys.stdout.write(follow(name, randomise(build(name)), draw_dead) + "\n")
            sys.stdout.flush()
    assert kind != "classifiers" or len(names) == 58


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.4, 0.7, 0.95])
@pytest.mark.parametrize("name", ["vgg16_bn", "resnet50", *OURS])
def test_nothing_dead_stays(name: str, share: float, randomise: Any, draw_dead: Any) -> None:
    model = randomise(build(name))
    flow = surgery.trace(model, example(name, torch.float64))
    plan = flow.plan_by(share) if share == 0.95 else flow.plan(draw_dead(flow, share))
    small = surgery.slim(model, plan)
    assert plan.proof is not None
    assert plan.proof <= 1e-12
    dead = sum(int(mask.sum()) for mask in plan.dead.values())
    stay = sum(int(plan.dead[n][kept].sum()) for n, kept in plan.kept.items())
    assert stay <= 0.01 * dead
    assert sum(x.numel() for x in small.parameters()) < sum(x.numel() for x in model.parameters())
