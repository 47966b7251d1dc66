"""Relaxed splitting in whole runs: evaluation, checkpoints, resuming, interruption, processes."""

import copy
import pickle
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    LambdaCallback,
    ModelCheckpoint,
)
from torch import Tensor, nn

from lightning_sparsity import RelaxedVariableSplitting, SparsityMonitor
from lightning_sparsity.penalties import L0, L1
from lightning_sparsity.schedules import Growing, Warmup
from lightning_sparsity.selection import Select

LAM, BETA = 1e-2, 0.5
FC = "model.fc.weight"
NAMES = ["model.conv1.weight", "model.conv2.weight", FC]


def soft() -> RelaxedVariableSplitting:
    """With l1: shrinking twice is not shrinking once, so a second time would show."""
    return RelaxedVariableSplitting(L1(), LAM, BETA)


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in net.named_parameters()}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def shrunk(weights: dict[str, Tensor], step: float = LAM / BETA) -> dict[str, Tensor]:
    return {n: L1().prox(w, step) if n in NAMES else w for n, w in weights.items()}


class Recorder(Callback):
    """Keeps the weights after every batch, and those before and after every validation."""

    def __init__(self) -> None:
        self.after: list[dict[str, Tensor]] = []
        self.outside: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.after.append(weights_of(pl_module))

    def watch(self) -> tuple[Callback, Callback]:
        """One callback to list before the splitting and one to list after it."""

        def keep(trainer: Any, net: nn.Module) -> None:
            self.outside.append(weights_of(net))

        return LambdaCallback(on_validation_start=keep), LambdaCallback(on_validation_end=keep)


def test_evaluations_see_the_sparse_copy_and_leave_the_weights_as_they_were(
    tiny_net: Any, trainer: Any
) -> None:
    net, recorder = tiny_net(), Recorder()
    first, last = recorder.watch()
    trainer(first, soft(), last, val_check_interval=2).fit(net)
    befores, afters = recorder.outside[::2], recorder.outside[1::2]
    assert len(net.seen) == len(befores) == len(afters) == 1 + 2 * 2  # with the sanity check
    for before, seen, after in zip(befores, net.seen, afters, strict=True):
        assert same(before, after)
        assert same(seen, shrunk(before))
        assert (seen[FC] == 0).any()
        assert not (before[FC] == 0).any()


def test_the_last_weights_are_the_copy_of_the_last_ones_trained(
    tiny_net: Any, trainer: Any
) -> None:
    net, recorder = tiny_net(), Recorder()
    fitted = trainer(soft(), recorder)
    fitted.fit(net)
    final = weights_of(net)
    assert same(final, shrunk(recorder.after[-1]))
    fitted.test(net, verbose=False)
    fitted.validate(net, verbose=False)
    assert all(same(seen, final) for seen in net.seen[-2:])
    assert same(weights_of(net), final)
    assert same(dict(net.state_dict()), final)


def test_a_second_fit_goes_on(tiny_net: Any, trainer: Any) -> None:
    net, recorder = tiny_net(), Recorder()
    fitted = trainer(soft(), recorder, max_epochs=1)
    fitted.fit(net)
    start = weights_of(net)
    fitted.fit_loop.max_epochs = 2
    fitted.fit(net)
    assert len(recorder.after) == 10
    assert not (recorder.after[5][FC] == start[FC]).all()
    assert same(weights_of(net), shrunk(recorder.after[-1]))
    trainer(soft(), max_epochs=1).fit(net)
    assert (net.model.fc.weight == 0).any()


def checkpoints(folder: Path, **options: Any) -> ModelCheckpoint:
    return ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1, **options)


def test_checkpoints_hold_the_copy_and_the_weights_beside_it(
    tmp_path: Path, tiny_net: Any, trainer: Any
) -> None:
    recorder, callback = Recorder(), soft()
    trainer(callback, recorder, checkpoints(tmp_path)).fit(tiny_net())
    for step, w in enumerate(recorder.after, start=1):
        path = tmp_path / f"step={step}.ckpt"
        saved = torch.load(path, weights_only=True)
        assert same(dict(saved["state_dict"]), shrunk(w))
        beside = saved["callbacks"][callback.state_key]["weights"]
        assert same(beside, {name: w[name] for name in NAMES})
        loaded = tiny_net.load_from_checkpoint(path, weights_only=True)
        assert same(weights_of(loaded), shrunk(w))
        assert (loaded.model.fc.weight == 0).any()


def test_a_checkpoint_of_the_weights_alone_is_sparse(
    tmp_path: Path, tiny_net: Any, trainer: Any
) -> None:
    recorder = Recorder()
    trainer(soft(), recorder, checkpoints(tmp_path, save_weights_only=True)).fit(tiny_net())
    saved = torch.load(tmp_path / "step=7.ckpt", weights_only=True)
    assert same(dict(saved["state_dict"]), shrunk(recorder.after[6]))
    loaded = tiny_net.load_from_checkpoint(tmp_path / "step=7.ckpt", weights_only=True)
    assert same(weights_of(loaded), shrunk(recorder.after[6]))


other_callbacks = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
other_folder = pytest.mark.filterwarnings("ignore:The dirpath has changed")


@other_callbacks
@pytest.mark.parametrize("which", ["best", "last"])
def test_testing_a_checkpoint_does_not_shrink_twice(
    which: str, tmp_path: Path, tiny_net: Any, trainer: Any
) -> None:
    net = tiny_net()
    saver = ModelCheckpoint(tmp_path, monitor="val_loss", save_last=True)
    fitted = trainer(soft(), saver)
    fitted.fit(net)
    fitted.test(net, ckpt_path=which, verbose=False, weights_only=True)
    path = saver.best_model_path if which == "best" else saver.last_model_path
    saved = dict(torch.load(path, weights_only=True)["state_dict"])
    assert same(net.seen[-1], saved)
    assert same(weights_of(net), saved)
    fresh = tiny_net()
    trainer(soft()).test(fresh, ckpt_path=path, verbose=False, weights_only=True)
    assert same(fresh.seen[-1], saved)


STRENGTHS = {
    "numbers": (LAM, BETA),
    "schedules": (Warmup(LAM, epochs=2.5), Growing(BETA, 2.0, every_n_epochs=1)),
}


@other_folder
@pytest.mark.parametrize("step", [3, 5, 8], ids=lambda step: f"step {step}")
@pytest.mark.parametrize("update", ["gradient", "decoupled"])
@pytest.mark.parametrize("strengths", STRENGTHS.values(), ids=STRENGTHS.keys())
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    step: int, update: Any, strengths: Any, tmp_path: Path, tiny_net: Any, trainer: Any
) -> None:
    def fit(folder: Path, resume: Path | None = None) -> tuple[dict[str, Tensor], Any]:
        net, recorder = tiny_net(), Recorder()
        callback = RelaxedVariableSplitting(L1(), *strengths, update=update)
        fitted = trainer(callback, recorder, SparsityMonitor(2), checkpoints(folder), max_epochs=3)
        fitted.fit(net, ckpt_path=resume, weights_only=True)
        return weights_of(net), recorder.after

    whole, batches = fit(tmp_path / "a")
    resumed, rest = fit(tmp_path / "b", tmp_path / "a" / f"step={step}.ckpt")
    assert len(rest) == len(batches) - step
    assert all(same(ours, theirs) for ours, theirs in zip(rest, batches[step:], strict=True))
    assert same(resumed, whole)


@other_callbacks
def test_a_checkpoint_written_when_training_ends_resumes_exactly_too(
    tmp_path: Path, tiny_net: Any, trainer: Any
) -> None:
    recorder, whole = Recorder(), Recorder()
    late = ModelCheckpoint(tmp_path, save_last=True, every_n_epochs=100)
    trainer(soft(), recorder, late, max_epochs=1).fit(tiny_net())
    trainer(soft(), recorder, max_epochs=2).fit(
        tiny_net(), ckpt_path=tmp_path / "last.ckpt", weights_only=True
    )
    trainer(soft(), whole, max_epochs=2).fit(tiny_net())
    assert len(recorder.after) == len(whole.after)
    assert same(recorder.after[-1], whole.after[-1])


def test_resuming_a_finished_run_leaves_its_sparse_network(
    tmp_path: Path, tiny_net: Any, trainer: Any
) -> None:
    nets = [tiny_net(), tiny_net()]
    strengths = Warmup(LAM, epochs=1), Growing(BETA, 2.0, 1)
    for net, resume in zip(nets, (None, tmp_path / "step=10.ckpt"), strict=True):
        fitted = trainer(RelaxedVariableSplitting(L1(), *strengths), checkpoints(tmp_path))
        fitted.fit(net, ckpt_path=resume, weights_only=True)
    assert same(*(weights_of(net) for net in nets))


class BrokenError(RuntimeError):
    pass


@pytest.mark.parametrize("update", ["gradient", "decoupled"])
def test_an_exception_in_validation_brings_the_weights_back(
    update: Any, tiny_net: Any, trainer: Any
) -> None:
    class Failing(tiny_net):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            raise BrokenError("on purpose")

    net, recorder = Failing(), Recorder()
    callback = RelaxedVariableSplitting(L1(), LAM, BETA, update=update)
    with pytest.raises(BrokenError, match="on purpose"):
        trainer(callback, recorder, num_sanity_val_steps=0).fit(net)
    assert same(weights_of(net), recorder.after[-1])
    assert same(net.seen[-1], shrunk(recorder.after[-1]))


def test_after_ctrl_c_the_network_is_usable(tiny_net: Any, trainer: Any) -> None:
    class Interrupted(tiny_net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if batch_idx == 3 and self.trainer.max_epochs == 2:
                raise KeyboardInterrupt
            return super().training_step(batch, batch_idx)

    net, recorder = Interrupted(), Recorder()
    fitted = trainer(soft(), recorder)
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit):
            fitted.fit(net)
    finally:
        signal.signal(signal.SIGINT, handler)
    w = recorder.after[-1]
    assert same(weights_of(net), w)
    assert same(dict(net.state_dict()), shrunk(w))
    fitted.validate(net, verbose=False)
    assert same(net.seen[-1], shrunk(w))
    # A new attempt on other weights hears nothing of the first.
    again, recorder = RelaxedVariableSplitting(L1(), LAM, BETA, select="fc"), Recorder()
    states: list[dict[str, Tensor]] = []
    peek = LambdaCallback(
        on_train_batch_end=lambda _, net, *__: states.append(dict(net.state_dict()))
    )
    trainer(again, recorder, peek, max_epochs=1).fit(net)
    assert same(states[-1], recorder.after[-1] | {FC: shrunk(recorder.after[-1])[FC]})
    assert not (net.model.conv2.weight == 0).any()
    assert (net.model.fc.weight == 0).any()


def test_a_callback_may_be_used_again_after_an_interruption(tiny_net: Any, trainer: Any) -> None:
    callback, net, other = soft(), tiny_net(), tiny_net()
    fail = LambdaCallback(on_train_epoch_end=lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer(callback, fail).fit(net)
    trainer(callback).fit(other)
    trainer(soft()).fit(fresh := tiny_net())
    assert same(weights_of(other), weights_of(fresh))
    assert not net._state_dict_hooks
    assert not other._state_dict_hooks


def test_callbacks_of_lightning_run_beside_it(tmp_path: Path, tiny_net: Any, trainer: Any) -> None:
    averaging = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging")
    net = tiny_net()
    average = averaging.EMAWeightAveraging(decay=0.5)
    means: list[dict[str, Tensor]] = []
    peek = LambdaCallback(
        on_train_end=lambda *_: means.append(weights_of(average._average_model.module))
    )
    saver = ModelCheckpoint(tmp_path, monitor="val_loss", save_last=True)
    stopper = EarlyStopping("sparsity", mode="max", patience=0, check_on_train_epoch_end=True)
    fitted = trainer(
        peek, average, soft(), SparsityMonitor(1), saver, stopper, max_epochs=4,
        num_sanity_val_steps=0,
    )  # fmt: skip
    fitted.fit(net)
    assert same(weights_of(net), shrunk(means[-1]))
    assert (net.model.fc.weight == 0).any()
    assert "sparsity" in fitted.callback_metrics
    assert Path(saver.last_model_path).is_file()


@pytest.mark.parametrize("name", ["EMAWeightAveraging", "StochasticWeightAveraging"])
def test_averages_that_would_replace_the_sparse_weights_are_refused(
    name: str, tiny_net: Any, trainer: Any
) -> None:
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    if not hasattr(callbacks, name):
        pytest.skip(f"this Lightning has no {name}")
    options = {"swa_lrs": 0.1} if name.startswith("Stochastic") else {}
    average = getattr(callbacks, name)(**options)
    with pytest.raises(MisconfigurationException, match=f"needs to come after {name}"):
        trainer(soft(), average).fit(tiny_net())


def test_it_survives_copying_and_pickling_before_and_after_training(
    tiny_net: Any, trainer: Any
) -> None:
    callback, net = RelaxedVariableSplitting(L0(), Growing(1e-3), 0.1, select="fc"), tiny_net()
    for _ in range(2):
        for other in (pickle.loads(pickle.dumps(callback)), copy.deepcopy(callback)):
            assert other.state_key == callback.state_key
            assert (other.penalty, other.lam, other.beta) == (L0(), Growing(1e-3), 0.1)
        trainer(callback, max_epochs=1).fit(net)
    assert same(weights_of(copy.deepcopy(net)), weights_of(net))


DDP = """
from lightning_sparsity import RelaxedVariableSplitting, SparsityMonitor
from lightning_sparsity.penalties import TransformedL1

class Net(tiny.TinyNet):
    def train_dataloader(self):
        return shared_data(self.trainer)

class Recorder(pl.Callback):
    def on_train_batch_end(self, trainer, net, *_):
        self.dense = {n: p.detach().clone() for n, p in net.named_parameters()}

def fit(**options):
    net, recorder = Net(), Recorder()
    split = RelaxedVariableSplitting(TransformedL1(1.0), 2e-3, 0.5)
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[split, SparsityMonitor(5), recorder], **options)
    trainer.fit(net)
    final = {n: p.detach() for n, p in net.named_parameters()}
    return trainer, {"final": final, "dense": recorder.dense}

trainer, result = fit(strategy="ddp", devices=2)
torch.save(result, f"{folder}/rank{trainer.global_rank}.pt")
trainer.strategy.barrier()
if trainer.global_rank == 0:
    torch.distributed.destroy_process_group()
    torch.save(fit(devices=1)[1], f"{folder}/alone.pt")
"""


def test_two_processes_end_alike_and_as_one_with_twice_the_batch(in_two_processes: Any) -> None:
    first, second, alone = in_two_processes(DDP)
    for kind in ("dense", "final"):
        assert same(first[kind], second[kind])
    for name, weight in alone["dense"].items():
        torch.testing.assert_close(first["dense"][name], weight, rtol=1e-5, atol=1e-6)
    assert (first["final"][FC] == 0).any()


def test_the_sanity_check_alone_changes_nothing(tiny_net: Any, trainer: Any) -> None:
    net = tiny_net()
    before = weights_of(net)
    trainer(soft(), limit_train_batches=0, max_steps=0, max_epochs=-1).fit(net)
    assert same(weights_of(net), shrunk(before))


def fits(net: Any, trainer: Any, **options: Any) -> None:
    arguments: dict[str, Any] = {"penalty": L0(), "lam": LAM, "beta": BETA, **options}
    trainer(RelaxedVariableSplitting(**arguments)).fit(net)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"select": "fd"}, r"'fd' matches no weight of a Conv or Linear module\. Near it: .*fc"),
        ({"select": Select(exclude=["*"])}, r"exclude=\['\*'\] leaves none of the weights"),
        ({"select": Select(types=["BatchNorm"])}, "type that begins with BatchNorm.*has Conv2d"),
        (
            {"update": "decoupled", "beta": 20.0},
            r"lr \* beta <= 1, got lr=0\.1 and beta=20\.0\. Lower beta",
        ),
    ],
    ids=str,
)
def test_a_run_that_cannot_work_does_not_start(
    options: dict[str, Any], message: str, tiny_net: Any, trainer: Any
) -> None:
    net = tiny_net()
    before = weights_of(net)
    with pytest.raises((ValueError, MisconfigurationException), match=message):
        fits(net, trainer, **options)
    assert same(weights_of(net), before)
    assert not net.seen


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value: float, tiny_net: Any, trainer: Any) -> None:
    net = tiny_net()
    net.model.conv2.weight.data[0, 0] = value
    with pytest.raises(ValueError, match=r"model\.conv2\.weight needs finite entries, got 9"):
        fits(net, trainer)


def test_a_network_without_shapes_yet_is_refused(tiny_net: Any, trainer: Any) -> None:
    class Lazy(tiny_net):
        def configure_model(self) -> None:
            self.model.fc = nn.LazyLinear(4)

    with pytest.raises(ValueError, match=r"'model\.fc' has no shape yet\. Run the model"):
        fits(Lazy(), trainer)
