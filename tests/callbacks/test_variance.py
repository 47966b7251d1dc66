"""Variance guidance inside real fits, against plain loops."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.distributed import HashStore, destroy_process_group, init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor

from lightning_sparsity import (
    NetworkSlimming,
    RelaxedVariableSplitting,
    SparsityMonitor,
    VarianceGuidance,
    variance,
)
from lightning_sparsity.callbacks.conditions import check_whole
from lightning_sparsity.cli import recipes
from lightning_sparsity.cli.fit import parsed
from lightning_sparsity.penalties import L0, Grouped
from lightning_sparsity.schedules import Warmup
from lightning_sparsity.selection import Select, Selected

LAM = 0.05
NAMES = ["model.conv1.weight", "model.conv2.weight", "model.fc.weight"]


class Recorder(Callback):
    """Keeps the weights after every batch."""

    def __init__(self) -> None:
        self.after: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.after.append(weights_of(pl_module))


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in net.named_parameters()}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=2e-6)


def total(net: nn.Module, axis: int = 0, **options: Any) -> Tensor:
    """The divergence of all layers, for autograd."""
    weights = [weight for name, weight in net.named_parameters() if name in NAMES]
    return sum(
        (variance.divergence(variance.lengths(w, axis), **options) for w in weights),
        start=torch.zeros((), dtype=torch.float64),
    )


def by_hand(
    net: Any,
    data: Any,
    *,
    accumulate: int = 1,
    lams: tuple[float, float] = (LAM, LAM),
    autocast: torch.dtype | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """Two epochs in plain torch, the divergence differentiated by autograd."""
    optimizer = net.optimizer(net.parameters())
    for epoch, lam in enumerate(lams):
        data.set_epoch(epoch)
        for i, batch in enumerate(data, start=1):
            with torch.autocast("cpu", autocast) if autocast else nullcontext():
                loss = net.loss(batch) / accumulate
            loss.backward()
            if i % accumulate and i < len(data):
                continue
            (lam * total(net, **options)).backward()
            optimizer.step()
            optimizer.zero_grad()
    return weights_of(net)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target_cv": 1.2, "version": "histogram"},
        {"target_cv": 0.5, "groups": "input_channels", "select": ["conv2", "fc"]},
    ],
    ids=str,
)
def test_it_trains_as_the_plain_loop_does(
    options: Any, tiny_net: Any, trainer: Any, data: Any
) -> None:
    recorder = Recorder()
    trainer(VarianceGuidance(LAM, **options), recorder).fit(tiny_net())
    axis = int(options.pop("groups", "output_channels") == "input_channels")
    options.pop("select", None)  # the first layer has one input channel: its divergence is 0
    assert_same(recorder.after[-1], by_hand(tiny_net(), data(), axis=axis, **options))
    plain = by_hand(tiny_net(), data(), lams=(0, 0))
    assert not torch.allclose(recorder.after[-1][NAMES[1]], plain[NAMES[1]], atol=1e-3)


@pytest.mark.parametrize("accumulate", [2, 3])
def test_under_accumulation_it_is_added_once_per_step(
    accumulate: int, tiny_net: Any, trainer: Any, data: Any
) -> None:
    recorder = Recorder()
    fitted = trainer(VarianceGuidance(LAM), recorder, accumulate_grad_batches=accumulate)
    fitted.fit(tiny_net())
    assert_same(recorder.after[-1], by_hand(tiny_net(), data(), accumulate=accumulate))


def test_bf16_mixed_trains_as_the_plain_loop_does(tiny_net: Any, trainer: Any, data: Any) -> None:
    recorder = Recorder()
    trainer(VarianceGuidance(LAM), recorder, precision="bf16-mixed").fit(tiny_net())
    assert_same(recorder.after[-1], by_hand(tiny_net(), data(), autocast=torch.bfloat16))


def test_weights_in_half_precision_are_guided_too(tiny_net: Any, trainer: Any) -> None:
    results = []
    for lam in (0.0, 0.1):
        net = tiny_net()
        trainer(VarianceGuidance(lam), precision="bf16-true").fit(net)
        assert net.model.conv2.weight.dtype == torch.bfloat16
        results.append(variance.statistics(variance.lengths(net.model.conv2.weight)).cv)
    assert results[1] > results[0]


def test_several_optimizers_push_only_what_they_own(tiny_net: Any, trainer: Any, data: Any) -> None:
    class Manual(tiny_net):
        automatic_optimization = False

        def configure_optimizers(self) -> Any:
            convolutions = [*self.model.conv1.parameters(), *self.model.conv2.parameters()]
            return [self.optimizer(convolutions), self.optimizer(self.model.fc.parameters())]

        def training_step(self, batch: Any, batch_idx: int) -> None:
            first, second = self.optimizers()
            self.manual_backward(self.loss(batch))
            first.step()  # were all weights pushed here, `second` would push its own again
            second.step()
            first.zero_grad()
            second.zero_grad()

    recorder = Recorder()
    trainer(VarianceGuidance(LAM), recorder).fit(Manual())
    assert_same(recorder.after[-1], by_hand(tiny_net(), data()))


@pytest.mark.parametrize("update", ["gradient", "decoupled"])
def test_beside_a_splitting_the_order_does_not_matter(
    update: Any, tiny_net: Any, trainer: Any
) -> None:
    results = []
    for order in (1, -1):
        split = RelaxedVariableSplitting(
            Grouped(L0()),
            0.05,
            0.5,
            select="conv2",
            groups="output_channels",
            update=update,
            cut=False,
        )
        callbacks, recorder, net = [split, VarianceGuidance(LAM)], Recorder(), tiny_net()
        trainer(*callbacks[::order], recorder).fit(net)
        zeros = net.model.conv2.weight.flatten(1).eq(0)
        assert 0 < zeros.all(1).sum() < len(zeros)
        results.append(recorder.after[-1] | {"zeros": zeros})
    assert_same(*results)


def test_channels_that_are_dead_stay_dead(tiny_net: Any, trainer: Any) -> None:
    """Its bias keeps this one below zero, so the loss does not bring it back either."""
    net = tiny_net(lambda weights: torch.optim.SGD(weights, lr=0.1))
    with torch.no_grad():
        net.model.conv2.weight[2] = 0
        net.model.conv2.bias[2] = -1
    trainer(VarianceGuidance(0.2)).fit(net)
    alive = net.model.conv2.weight.flatten(1).ne(0).any(1)
    assert alive.tolist() == [True, True, False, True, True, True]


def test_it_raises_the_variance_of_the_channels_that_survive(tiny_net: Any, trainer: Any) -> None:
    found = []
    for lam in (0.0, 0.1):
        net = tiny_net()
        split = RelaxedVariableSplitting(
            Grouped(L0()), 0.01, 0.5, select="conv2", groups="output_channels", cut=False
        )
        guidance = VarianceGuidance(lam, target_cv=1.0, select="conv2")
        trainer(split, guidance, max_epochs=4).fit(net)
        found.append(variance.statistics(variance.lengths(net.model.conv2.weight)))
    assert found[1].active >= 3
    assert found[1].cv > 1.5 * found[0].cv


def test_it_works_beside_network_slimming(norm_net: Any, trainer: Any) -> None:
    net = norm_net()
    trainer(VarianceGuidance(LAM), NetworkSlimming(amount=0.5)).fit(net)
    trainer(VarianceGuidance(LAM, select=Select(exclude=["fc"]))).fit(net)
    assert net.model.conv1.out_channels < 8


def test_its_figures_reach_the_monitor(tiny_net: Any, trainer: Any) -> None:
    monitor, recorder = SparsityMonitor(1), Recorder()
    trainer(VarianceGuidance(Warmup(LAM, epochs=2)), monitor, recorder).fit(tiny_net())
    assert len(monitor.history) == 10
    for figures, weights in zip(monitor.history, recorder.after, strict=True):
        assert set(figures) == {"step", "penalty", "cv", "lam", "objective"}
        lengths = [weights[name].flatten(1).square().mean(1).sqrt() for name in NAMES]
        cvs = [s.std(correction=0) / s.mean() for s in lengths]
        assert figures["cv"] == pytest.approx(float(sum(cvs)) / 3, rel=1e-5)
        value = sum(float(variance.divergence(s)) for s in lengths)
        assert figures["penalty"] == pytest.approx(figures["lam"] * value, rel=1e-5)
    assert monitor.history[0]["lam"] < monitor.history[-1]["lam"] < LAM


def test_a_resumed_run_is_the_uninterrupted_one(
    tiny_net: Any, trainer: Any, tmp_path: Path
) -> None:
    whole, resumed = Recorder(), Recorder()
    trainer(VarianceGuidance(Warmup(LAM)), whole).fit(tiny_net())
    first = trainer(VarianceGuidance(Warmup(LAM)), max_epochs=1)
    first.fit(tiny_net())
    first.save_checkpoint(tmp_path / "half.ckpt")
    trainer(VarianceGuidance(Warmup(LAM)), resumed).fit(
        tiny_net(), ckpt_path=tmp_path / "half.ckpt"
    )
    assert_same(resumed.after[-1], whole.after[-1])


def test_layers_with_a_single_group_are_left_out(tiny_net: Any, trainer: Any) -> None:
    guidance = VarianceGuidance(LAM, groups="input_channels")  # conv1 has one input channel
    trainer(guidance).fit(tiny_net())
    assert len(guidance._weights) == 2
    with pytest.raises(ValueError, match=r"at least two input_channels, got model\.conv1"):
        trainer(VarianceGuidance(LAM, groups="input_channels", select="conv1")).fit(tiny_net())


def test_weights_that_are_not_finite_are_refused(tiny_net: Any, trainer: Any) -> None:
    net = tiny_net()
    net.model.fc.weight.data[0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"model\.fc\.weight needs finite entries, got 1"):
        trainer(VarianceGuidance(LAM)).fit(net)


@pytest.fixture
def _one_process() -> Iterator[None]:
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    destroy_process_group()


@pytest.mark.usefixtures("_one_process")
def test_sharded_weights_are_refused() -> None:
    weight = distribute_tensor(torch.ones(4, 2), init_device_mesh("cpu", (1,)))
    with pytest.raises(Exception, match="VarianceGuidance needs whole weights, but fc is sharded"):
        check_whole(VarianceGuidance(LAM), [Selected("fc", weight, 0)])


def test_two_of_them_are_told_apart() -> None:
    keys = {
        VarianceGuidance(LAM, **options).state_key
        for options in ({}, {"select": "fc"}, {"groups": "input_channels"})
    }
    assert len(keys) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lam": -0.1}, r"needs a finite lam >= 0, got lam=-0\.1"),
        ({"target_cv": -2.0}, r"needs target_cv between 0\.01 and 100\.0, got target_cv=-2\.0"),
        ({"groups": "entries"}, "got groups='entries'. Choose groups='output_channels' or"),
        ({"groups": "filters"}, "must be one of entries, output_channels.*, got 'filters'"),
        ({"version": "kl"}, "must be one of moments, histogram, got 'kl'"),
    ],
    ids=str,
)
def test_bad_arguments_are_named_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VarianceGuidance(**{"lam": LAM, **options})


YAML = """
trainer:
  callbacks:
    - class_path: VarianceGuidance
      init_args:
        lam: {class_path: Warmup, init_args: {value: 0.01, epochs: 2}}
        target_cv: 1.5
        select: {class_path: lightning_sparsity.selection.Select, init_args: {exclude: [fc]}}
        version: histogram
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_yaml_names_it_and_its_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning-sparsity"])
    Path("guided.yaml").write_text(YAML)
    configs = [f"--config={name}" for name in (recipes()["curves"], "guided.yaml")]
    made = parsed([*configs, "--trainer.accelerator=cpu", "--trainer.logger=false"])
    (guidance,) = [c for c in made.trainer.callbacks if isinstance(c, VarianceGuidance)]
    assert guidance.lam == Warmup(0.01, 2)
    assert (guidance.target_cv, guidance.version) == (1.5, "histogram")
    assert isinstance(guidance.select, Select)
    assert list(guidance.select.exclude) == ["fc"]
