"""The update of relaxed splitting inside real fits, against plain loops."""

from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, LambdaCallback
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from lightning_sparsity import RelaxedVariableSplitting, splitting
from lightning_sparsity.penalties import L0, L1, MCP, Grouped, GroupLasso, Penalty, TransformedL1
from lightning_sparsity.schedules import Warmup

LAM, BETA = 2e-3, 0.5
FC, CONV = "model.fc.weight", "model.conv2.weight"
NAMES = ["model.conv1.weight", CONV, FC]


def split_all(penalty: Penalty) -> dict[str, tuple[Penalty, float, float]]:
    return dict.fromkeys(NAMES, (penalty, LAM, BETA))


def adamw(weights: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(weights, lr=0.02, weight_decay=0.1)


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in net.named_parameters()}


class Recorder(Callback):
    """Keeps the weights after every batch."""

    def __init__(self) -> None:
        self.after: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.after.append(weights_of(pl_module))


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], atol: float = 0) -> None:
    for name, weight in theirs.items():
        torch.testing.assert_close(
            ours[name], weight, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize(
    ("penalty", "atol"),
    [(L0(), 0), (L1(), 2e-7), (TransformedL1(1.0), 5e-7), (MCP(1.0), 5e-7)],
    ids=repr,
)
def test_it_trains_as_the_plain_loop_does(
    penalty: Penalty, atol: float, tiny_net: Any, trainer: Any, by_hand: Any
) -> None:
    net, recorder = tiny_net(), Recorder()
    callback = RelaxedVariableSplitting(penalty, LAM, BETA)
    trainer(callback, recorder).fit(net)
    w = weights_of(by_hand(split_all(penalty)))
    assert_same(recorder.after[-1], w, atol)
    for name, u in weights_of(net).items():
        expected = recorder.after[-1][name]
        expected = penalty.prox(expected, LAM / BETA) if name in NAMES else expected
        assert torch.equal(u, expected)
    assert 0 < (net.model.fc.weight == 0).sum() < net.model.fc.weight.numel()


@pytest.mark.parametrize("accumulate", [2, 3])
def test_accumulated_gradients_are_pulled_once_per_step(
    accumulate: int, tiny_net: Any, trainer: Any, by_hand: Any
) -> None:
    recorder = Recorder()
    fitted = trainer(
        RelaxedVariableSplitting(L0(), LAM, BETA), recorder, accumulate_grad_batches=accumulate
    )
    fitted.fit(tiny_net())
    assert_same(recorder.after[-1], weights_of(by_hand(split_all(L0()), accumulate=accumulate)))


def test_clipping_sees_the_pull(tiny_net: Any, trainer: Any, by_hand: Any) -> None:
    norms: list[float] = []
    recorder = Recorder()
    spy = LambdaCallback(
        on_train_batch_end=lambda trainer, net, *_: norms.append(
            torch.cat([p.grad.flatten() for p in net.parameters()]).norm().item()
        )
    )
    callback = RelaxedVariableSplitting(L0(), LAM, 5.0, select="fc")
    trainer(callback, recorder, spy, gradient_clip_val=0.3).fit(tiny_net())
    by_hand_net = by_hand({FC: (L0(), LAM, 5.0)}, clip=0.3)
    assert_same(recorder.after[-1], weights_of(by_hand_net), 1e-7)
    assert max(norms) <= 0.3 * (1 + 1e-5)


@pytest.mark.parametrize("update", ["gradient", "decoupled"])
def test_bf16_mixed_trains_as_the_plain_loop_does(
    update: Any, tiny_net: Any, trainer: Any, by_hand: Any
) -> None:
    recorder = Recorder()
    callback = RelaxedVariableSplitting(L0(), LAM, BETA, update=update)
    trainer(callback, recorder, precision="bf16-mixed").fit(tiny_net())
    theirs = by_hand(split_all(L0()), autocast=torch.bfloat16, update=update)
    assert_same(recorder.after[-1], weights_of(theirs), 1e-7)


def fp16() -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))


def test_the_pull_is_not_scaled_with_the_loss_in_fp16(
    tiny_net: Any, trainer: Any, by_hand: Any
) -> None:
    recorder = Recorder()
    callback = RelaxedVariableSplitting(L0(), LAM, BETA)
    trainer(callback, recorder, plugins=fp16()).fit(tiny_net())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    theirs = by_hand(split_all(L0()), autocast=torch.float16, scaler=scaler)
    assert_same(recorder.after[-1], weights_of(theirs))


@pytest.mark.parametrize("update", ["gradient", "decoupled"])
def test_a_step_that_fp16_skips_moves_nothing(update: Any, tiny_net: Any, trainer: Any) -> None:
    class Overflowing(tiny_net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.loss(batch) * (float("inf") if batch_idx == 2 else 1.0)

    recorder = Recorder()
    callback = RelaxedVariableSplitting(L0(), LAM, BETA, update=update)
    trainer(callback, recorder, plugins=fp16(), max_epochs=1).fit(Overflowing())
    assert_same(recorder.after[2], recorder.after[1])
    for before, after in ((0, 1), (2, 3)):
        assert not torch.equal(recorder.after[before][FC], recorder.after[after][FC])


@pytest.mark.parametrize("optimizer", [adamw, torch.optim.SGD], ids=["AdamW", "SGD"])
def test_the_decoupled_update_moves_the_weights_after_the_step(
    optimizer: Any, tiny_net: Any, trainer: Any, by_hand: Any
) -> None:
    recorder = Recorder()
    callback = RelaxedVariableSplitting(L0(), LAM, BETA, update="decoupled")
    trainer(callback, recorder, accumulate_grad_batches=2).fit(tiny_net(optimizer))
    theirs = by_hand(split_all(L0()), net=tiny_net(optimizer), update="decoupled", accumulate=2)
    assert_same(recorder.after[-1], weights_of(theirs), 1e-7)


@pytest.mark.parametrize("update", ["gradient", "decoupled"])
def test_several_optimizers_pull_only_what_they_own(
    update: Any, tiny_net: Any, trainer: Any, by_hand: Any
) -> None:
    class Manual(tiny_net):
        automatic_optimization = False

        def configure_optimizers(self) -> Any:
            convolutions = [*self.model.conv1.parameters(), *self.model.conv2.parameters()]
            return [self.optimizer(convolutions), self.optimizer(self.model.fc.parameters())]

        def training_step(self, batch: Any, batch_idx: int) -> None:
            first, second = self.optimizers()
            self.manual_backward(self.loss(batch))
            first.step()  # were the pull of all weights added here, `second` would add it again
            second.step()
            first.zero_grad()
            second.zero_grad()

    recorder = Recorder()
    callback = RelaxedVariableSplitting(L0(), LAM, BETA, update=update)
    trainer(callback, recorder).fit(Manual())
    assert_same(recorder.after[-1], weights_of(by_hand(split_all(L0()), update=update)), 1e-7)


@pytest.mark.parametrize("update", ["gradient", "decoupled"])
def test_lbfgs_runs(update: Any, tiny_net: Any, data: Any, trainer: Any) -> None:
    net = tiny_net(lambda weights: torch.optim.LBFGS(weights, lr=0.1, max_iter=3))
    (everything,) = data(20)
    before = net.loss(everything).item()
    callback = RelaxedVariableSplitting(L0(), 1e-4, BETA, update=update)
    trainer(callback).fit(net, data(10))
    assert net.loss(everything).item() < before
    assert (net.model.fc.weight == 0).any()


def test_two_callbacks_split_different_weights(tiny_net: Any, trainer: Any, by_hand: Any) -> None:
    recorder = Recorder()
    first = RelaxedVariableSplitting(L0(), LAM, BETA, select="conv*")
    second = RelaxedVariableSplitting(Grouped(L0()), LAM, 1.0, select="fc", groups="input_channels")
    third = RelaxedVariableSplitting(Grouped(L0()), LAM, 1.0, select="fc", groups="output_channels")
    assert len({first.state_key, second.state_key, third.state_key}) == 3
    trainer(first, RelaxedVariableSplitting(L1(), LAM, 1.0, select="fc"), recorder).fit(tiny_net())
    splits = dict.fromkeys(NAMES[:2], (L0(), LAM, BETA)) | {FC: (L1(), LAM, 1.0)}
    assert_same(recorder.after[-1], weights_of(by_hand(splits)), 5e-7)


@pytest.mark.parametrize("penalty", [L0(), TransformedL1(0.5), Grouped(L0())], ids=repr)
def test_channels_last_changes_nothing(penalty: Penalty, tiny_net: Any, trainer: Any) -> None:
    groups: Any = "output_channels" if penalty.acts == "rows" else "entries"
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        recorder, net = Recorder(), tiny_net().to(memory_format=layout)
        callback = RelaxedVariableSplitting(penalty, LAM, BETA, groups=groups, cut=False)
        trainer(callback, recorder).fit(net)
        assert net.model.conv2.weight.is_contiguous(memory_format=layout)
        results.append(recorder.after[-1])
    assert_same(*results, 1e-6)


@pytest.mark.parametrize("penalty", [GroupLasso(), Grouped(L0())], ids=repr)
@pytest.mark.parametrize(("groups", "axis"), [("output_channels", 0), ("input_channels", 1)])
def test_penalties_on_rows_drop_whole_channels(
    penalty: Penalty, groups: Any, axis: int, tiny_net: Any, trainer: Any
) -> None:
    net, recorder = tiny_net(), Recorder()
    threshold = net.model.conv2.weight.detach().movedim(axis, 0).flatten(1).norm(dim=1).median()
    step = float(threshold if penalty == GroupLasso() else threshold**2 / 2)
    callback = RelaxedVariableSplitting(
        penalty, step / 16, 1 / 16, select="conv2", groups=groups, cut=False
    )
    trainer(callback, recorder, max_epochs=1).fit(net)
    dropped = net.model.conv2.weight.movedim(axis, 0).flatten(1).eq(0)
    assert 0 < dropped.all(1).sum() < len(dropped)
    assert torch.equal(dropped.all(1), dropped.any(1))
    w = recorder.after[-1][CONV].movedim(axis, 0)
    expected = penalty.prox(w.flatten(1), step).view(w.shape).movedim(0, axis)
    assert torch.equal(net.model.conv2.weight, expected)


@pytest.mark.parametrize("update", ["gradient", "decoupled"])
def test_a_compiled_step_trains_alike_and_compiles_before_the_first_batch(
    update: Any, tiny_net: Any, trainer: Any
) -> None:
    """Also where a schedule begins with nothing to do."""
    torch._dynamo.reset()
    splitting._kernel.cache_clear()
    if not splitting.compiles(torch.ones(4), L0(), 0.1, in_place=update == "decoupled"):
        pytest.skip("torch.compile finds no C++ compiler")
    results, graphs = [], []
    count = LambdaCallback(
        on_train_batch_start=lambda *_: graphs.append(
            torch._dynamo.utils.counters["stats"]["unique_graphs"]
        )
    )
    for compiled in (False, True):
        recorder = Recorder()
        callback = RelaxedVariableSplitting(
            L0(), Warmup(LAM, epochs=1), BETA, update=update, compiled=compiled
        )
        trainer(callback, recorder, count).fit(tiny_net())
        assert callback._use_kernel == compiled
        results.append(recorder.after[-1])
    assert_same(*results, 1e-7)
    assert graphs[10] > 0
    assert len(set(graphs[10:])) == 1


def test_compiling_pays_in_long_runs_only(
    tiny_net: Any, trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Penalty] = []

    def compiles(weight: Tensor, penalty: Penalty, *_: Any, **__: Any) -> bool:
        asked.append(penalty)
        return False

    monkeypatch.setattr(splitting, "compiles", compiles)
    trainer(RelaxedVariableSplitting(L0(), LAM, BETA)).fit(tiny_net())
    assert not asked
    monkeypatch.setattr("lightning_sparsity.callbacks.splitting._WORTH_COMPILING", 3480)
    trainer(RelaxedVariableSplitting(L0(), LAM, BETA)).fit(tiny_net())
    assert asked == [L0()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lam": -1e-6}, "needs a finite lam >= 0, got lam=-1e-06"),
        ({"lam": float("nan")}, "needs a finite lam >= 0, got lam=nan"),
        ({"lam": float("inf")}, "needs a finite lam >= 0, got lam=inf"),
        ({"beta": 0.0}, r"needs a finite beta > 0, got beta=0\.0"),
        ({"beta": -2.0}, r"needs a finite beta > 0, got beta=-2\.0"),
        ({"beta": float("nan")}, "needs a finite beta > 0, got beta=nan"),
        ({"update": "adam"}, "must be 'gradient' or 'decoupled', got 'adam'"),
        ({"groups": "filters"}, "must be one of entries, output_channels.*, got 'filters'"),
        ({"penalty": GroupLasso()}, r"GroupLasso\(.*\) acts on rows, got groups='entries'. Choose"),
        ({"groups": "input_channels"}, r"L0\(\) acts on entries.*Did you mean Grouped\(L0\(\)\)"),
    ],
    ids=str,
)
def test_bad_arguments_are_named_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RelaxedVariableSplitting(**{"penalty": L0(), **options})
