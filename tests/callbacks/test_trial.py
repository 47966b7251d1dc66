"""The trial cut after the first batch: what it refuses, and that training does not notice it."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, LambdaCallback, ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_sparsity import NetworkSlimming, Regularization, amounts, surgery
from lightning_sparsity.callbacks import cutting, trial
from lightning_sparsity.models import ResNet20
from lightning_sparsity.penalties import GroupLasso
from lightning_sparsity.surgery import Flops, Params, Share, Threshold

Make = Callable[..., Any]


def slimming(folder: Path, **options: Any) -> NetworkSlimming:
    return NetworkSlimming(amount=options.pop("amount", 0.5), dirpath=str(folder), **options)


def lasso(folder: Path, lam: float = 0.01) -> Regularization:
    return Regularization(GroupLasso(), lam, groups="output_channels", dirpath=str(folder))


class Dropping(nn.Module):
    """A network that draws numbers while it trains."""

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 12, 3)
        self.norm1 = nn.BatchNorm2d(16) if norm else nn.Identity()
        self.norm2 = nn.BatchNorm2d(12) if norm else nn.Identity()
        self.dropout, self.fc = nn.Dropout(), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x)).relu()
        return self.fc(self.dropout(self.norm2(self.conv2(x)).relu()).mean((2, 3)))


class Record(Callback):
    """Keeps all that a training depends on, after every batch; comes after what it watches."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        tensors = dict(pl_module.state_dict())
        tensors |= {f"{n}.grad": p.grad for n, p in pl_module.named_parameters()}
        (optimizer,) = trainer.optimizers
        names = {id(p): n for n, p in pl_module.named_parameters()}
        for p, state in optimizer.state.items():
            tensors |= {f"{names[id(p)]}.{key}": x for key, x in state.items()}
        tensors["random"] = torch.get_rng_state()
        found: dict[str, Any] = {name: copy.deepcopy(x) for name, x in tensors.items()}
        found["modes"] = [m.training for m in pl_module.modules()]
        found["requires_grad"] = [p.requires_grad for p in pl_module.parameters()]
        found["hooks"] = sum(
            len(hooks)
            for m in pl_module.modules()
            for hooks in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks)
        )
        self.seen.append(found)


@pytest.mark.parametrize(
    ("make", "norm"),
    [
        (slimming, True),
        (lambda folder: slimming(folder, compensate="mean"), True),
        (lambda folder: slimming(folder, amount=Threshold(1e-3)), True),
        (lasso, True),
        (lasso, False),
    ],
    ids=["share", "mean", "threshold", "zeros", "without norms"],
)
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.filterwarnings("ignore:.*has cut nothing")
def test_training_is_bit_for_bit_what_it_is_without_the_trial(
    make: Make,
    norm: bool,
    accumulate: int,
    tmp_path: Path,
    tiny_net: Make,
    trainer: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nothing(flow: surgery.ChannelFlow, *_: object, **__: object) -> Any:
        return flow.model, Untried()

    class Untried:
        def removes_anything(self) -> bool:
            return True

    def train(folder: Path) -> list[dict[str, Any]]:
        torch.manual_seed(3)
        net, record = tiny_net(network=lambda: Dropping(norm)), Record()
        run = trainer(make(folder), record, accumulate_grad_batches=accumulate)
        run.fit(net)
        return record.seen

    tried = train(tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr(cutting, "try_cut", nothing)
        patch.setattr(cutting, "try_files", lambda *_: None)
        untried = train(tmp_path / "b")
    assert len(tried) == len(untried) == 10
    assert "model.fc.weight.grad" in tried[0]
    assert "model.fc.weight.momentum_buffer" in tried[-1]
    for ours, theirs in zip(tried, untried, strict=True):
        assert ours.keys() == theirs.keys()
        for name, x in ours.items():
            same = torch.equal(x, theirs[name]) if isinstance(x, Tensor) else x == theirs[name]
            assert same, name


class Unrepeatable(Dropping):
    """Every copy of it computes something else, so no cut of it can be checked."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + id(self) % 1009)


@pytest.mark.parametrize(
    "make",
    [
        slimming,
        lambda folder: slimming(folder, amount=Threshold(1e-9)),
        lambda folder: slimming(folder, amount=Flops(0.5)),
        lambda folder: slimming(folder, compensate="mean"),
        lasso,
    ],
    ids=["share", "threshold", "flops", "mean", "zeros"],
)
@pytest.mark.parametrize("fast", [False, True], ids=["", "fast_dev_run"])
def test_a_network_that_a_cut_would_break_is_refused_after_one_batch(
    make: Make, fast: bool, tmp_path: Path, tiny_net: Make, trainer: Make
) -> None:
    run = trainer(make(tmp_path / "new"), max_epochs=50, fast_dev_run=fast)
    with pytest.raises(RuntimeError, match=r"returns something else at .*counts channels"):
        run.fit(tiny_net(network=Unrepeatable))
    assert run.global_step == 1
    assert not (tmp_path / "new").exists()


def test_without_norms_it_is_refused_as_early_and_the_way_out_is_named(
    tmp_path: Path, tiny_net: Make, trainer: Make
) -> None:
    run = trainer(lasso(tmp_path), max_epochs=50)
    with pytest.raises(RuntimeError, match=r"returns something else at .*cut=False"):
        run.fit(tiny_net(network=lambda: Unrepeatable(norm=False)))
    assert run.global_step == 1


def test_a_folder_that_cannot_be_written_is_named_after_one_batch(
    tmp_path: Path, norm_net: Make, trainer: Make
) -> None:
    (tmp_path / "slim").write_text("a file")
    run = trainer(slimming(tmp_path), max_epochs=50)
    with pytest.raises(OSError, match=r"cannot be written to the folder .*slim.*dirpath="):
        run.fit(norm_net())
    assert run.global_step == 1
    assert [path.name for path in tmp_path.iterdir()] == ["slim"]


class Stateful(Dropping):
    """It has a state that no file of tensors can hold."""

    def get_extra_state(self) -> str:
        return "words"

    def set_extra_state(self, state: str) -> None:
        pass


def test_a_network_that_cannot_be_stored_is_refused_after_one_batch(
    tmp_path: Path, tiny_net: Make, trainer: Make
) -> None:
    run = trainer(slimming(tmp_path / "new"), max_epochs=50)
    with pytest.raises(ValueError, match=r"state is tensors, but '_extra_state' is a str"):
        run.fit(tiny_net(network=Stateful))
    assert run.global_step == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("before", [[], ["deep"], ["deep", "deep/slim", "deep/slim/plan.json"]])
def test_the_trial_leaves_the_folder_as_it_was(
    before: list[str], tmp_path: Path, norm_net: Make, trainer: Make
) -> None:
    for name in before:
        path = tmp_path / name
        path.write_text("old") if path.suffix else path.mkdir()
    seen: list[list[str]] = []

    def look(*_: object) -> None:
        seen.append(sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")))

    watch = LambdaCallback(on_train_batch_end=look)
    trainer(slimming(tmp_path / "deep"), watch).fit(norm_net())
    assert seen == [before] * len(seen)
    assert (tmp_path / "deep/slim/model.safetensors").exists()


def test_every_fit_tries_once_also_when_it_resumes(
    tmp_path: Path, norm_net: Make, trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[object] = []

    def count(flow: surgery.ChannelFlow, *args: Any, **options: Any) -> Any:
        tries.append(flow)
        return trial.try_cut(flow, *args, **options)

    monkeypatch.setattr(cutting, "try_cut", count)
    keep = ModelCheckpoint(tmp_path, "epoch{epoch}", save_top_k=-1, auto_insert_metric_name=False)
    trainer(slimming(tmp_path), keep, max_epochs=3).fit(norm_net())
    assert len(tries) == 1
    run = trainer(slimming(tmp_path), copy.deepcopy(keep), max_epochs=3)
    run.fit(norm_net(), ckpt_path=tmp_path / "epoch0.ckpt")
    assert len(tries) == 2


@pytest.mark.filterwarnings("ignore:.*has cut nothing")
def test_a_network_of_which_nothing_can_go_is_named_in_a_warning(
    tmp_path: Path, tiny_net: Make, trainer: Make
) -> None:
    class Borrowed(nn.Module):
        """Other code uses the weights of its layers, so all of them stay."""

        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.fc = nn.Conv2d(1, 4, 8), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = (self.conv1(x) + F.conv2d(x, self.conv1.weight)).flatten(1)
            return self.fc(x) + x @ self.fc.weight

    with pytest.warns(UserWarning, match=r"will cut nothing: no channel of 'model' can go") as on:
        trainer(lasso(tmp_path, 0.0)).fit(tiny_net(network=Borrowed))
    (warning,) = [str(w.message) for w in on if "will cut nothing" in str(w.message)]
    assert "conv1: weight is used outside the layer" in warning


@pytest.mark.parametrize("gather", [True, False])
@pytest.mark.parametrize("amount", [None, 0.5, Threshold(1e-9)], ids=str)
def test_the_trial_removes_about_half_of_fresh_channels(gather: bool, amount: Any) -> None:
    flow = trial.follow(ResNet20(), torch.rand(4, 3, 32, 32))
    small, plan = trial.try_cut(flow, amount, gather=gather)
    assert plan.proof is not None
    assert plan.proof < 1e-12
    before = sum(flow.norms.values())
    after = sum(index.numel() for index in plan.kept.values())
    assert 0.4 < after / before < 0.7
    x = torch.rand(2, 3, 32, 32)
    assert not torch.allclose(*small.eval()(x))  # it still looks at its inputs


def test_an_error_at_the_end_names_the_last_checkpoint_and_the_command(
    tmp_path: Path, norm_net: Make, trainer: Make
) -> None:
    def spoil(trainer: Any, pl_module: Any) -> None:
        pl_module.model.norm1.weight.data[0] = torch.nan

    keep = ModelCheckpoint(tmp_path, "kept")
    run = trainer(LambdaCallback(on_train_end=spoil), slimming(tmp_path), keep)
    with pytest.raises(ValueError, match=r"as 'norm1\.weight' holds NaN") as caught:
        run.fit(norm_net())
    path = str(tmp_path / "kept.ckpt")
    assert f"lightning-sparsity slim --checkpoint {path} --amount 0.5" in str(caught.value)
    assert repr(path) in str(caught.value)


def test_an_error_in_writing_at_the_end_names_it_too(
    tmp_path: Path, norm_net: Make, trainer: Make
) -> None:
    def spoil(*_: object) -> None:
        (tmp_path / "slim").write_text("a file")

    keep = ModelCheckpoint(tmp_path, "kept")
    run = trainer(LambdaCallback(on_train_end=spoil), slimming(tmp_path), keep)
    with pytest.raises(OSError, match=r"slim.*The last checkpoint is '.*kept\.ckpt'"):
        run.fit(norm_net())


@pytest.mark.parametrize(
    "amount",
    [None, 0.3, Share(0.25, round_to=4), Flops(0.5), Params(0.5, round_to=8), Threshold(1e-6)],
    ids=str,
)
def test_the_command_takes_the_amount_that_the_error_names(amount: Any) -> None:
    words = trial._option(amount).replace("'", "").split()
    assert words[0] == "--amount"
    got = amounts.parse(words[1])
    wanted = amount.share if isinstance(amount, Share) else amount
    if isinstance(amount, surgery.Budget) and amount.round_to > 1:
        assert words[2:] == ["--round-to", str(amount.round_to)]
        wanted = amount.share if isinstance(amount, Share) else type(amount)(amount.keep)  # type: ignore[attr-defined]
    else:
        assert words[2:] == []
    assert got == wanted


def test_a_copy_of_the_network_does_not_hold_the_batches(norm_net: Make) -> None:
    net = norm_net()
    inputs = cutting.Inputs()
    inputs.watch(net)
    net.model(torch.rand(4, 1, 8, 8, requires_grad=True) * 2)
    assert inputs.found(net)[0] == "model"
    (hook,) = copy.deepcopy(net.model)._forward_pre_hooks.values()
    assert not hook.seen


def test_an_error_that_a_trainer_takes_for_the_end_of_the_data_is_raised(
    tmp_path: Path, norm_net: Make, trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        next(iter([]))

    monkeypatch.setattr(cutting, "try_cut", fail)
    with pytest.raises(RuntimeError, match=r"The cut failed: StopIteration\(\)"):
        trainer(slimming(tmp_path)).fit(norm_net())


ONE_FAILS = """
from lightning_sparsity import NetworkSlimming

class Net(tiny.TinyNet):
    def __init__(self):
        super().__init__(network=tiny.NormCNN)

    def train_dataloader(self):
        return shared_data(self.trainer)

class Spoil(pl.Callback):
    def on_train_batch_end(self, trainer, pl_module, *_):
        def count(module, args, result):
            return result + id(module) % 1009
        if trainer.global_rank == FAILING:
            pl_module.model.conv2.register_forward_hook(count)

trainer = pl.Trainer(
    max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, strategy="ddp",
    enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, devices=2,
    callbacks=[Spoil(), NetworkSlimming(dirpath=folder)])
message = ""
try:
    trainer.fit(Net())
except RuntimeError as error:
    message = str(error)
torch.save([message, trainer.global_step], f"{folder}/rank{trainer.global_rank}.pt")
torch.save([], f"{folder}/alone.pt")
"""


@pytest.mark.parametrize("failing", [0, 1])
def test_where_one_process_refuses_the_other_stops_as_well(
    failing: int, in_two_processes: Any
) -> None:
    found = in_two_processes(ONE_FAILS.replace("FAILING", str(failing)))[:2]
    assert [step for _, step in found] == [1, 1]
    assert "returns something else at" in found[failing][0]
    assert "failed in another process" in found[1 - failing][0]
