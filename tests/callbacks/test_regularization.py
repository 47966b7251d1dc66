"""Penalties on weights inside real fits, and the cut of networks without BatchNorm."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn

from lightning_sparsity import (
    NetworkSlimming,
    Regularization,
    RelaxedVariableSplitting,
    SparsityMonitor,
    regularization,
    surgery,
)
from lightning_sparsity.penalties import (
    L0,
    L1,
    Grouped,
    GroupLasso,
    Penalty,
    SparseGroup,
    TransformedL1,
)
from lightning_sparsity.schedules import Warmup
from lightning_sparsity.selection import select_weights

Make = Callable[..., Any]
ROWS = {"groups": "output_channels"}
LASSO = SparseGroup(L1(), GroupLasso(weighted=True))


def lasso(tmp_path: Path, **options: Any) -> Regularization:
    """A group lasso under which some, and not all, of the channels of `TinyNet` die."""
    given: dict[str, Any] = {"update": "proximal", "dirpath": str(tmp_path), **ROWS, **options}
    return Regularization(
        GroupLasso(), given.pop("lam", 0.05), select=given.pop("select", "conv*"), **given
    )


def adamw(weights: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(weights, lr=0.02, weight_decay=0.1)


def train_by_hand(
    net: Any,
    data: Any,
    penalty: Penalty,
    lam: float,
    update: str,
    *,
    axis: int | None,
    accumulate: int = 1,
    clip: float | None = None,
) -> None:
    """Two epochs in plain torch."""
    optimizer, loader = net.optimizer(net.parameters()), data()
    weights = [layer.weight for layer in (net.model.conv1, net.model.conv2, net.model.fc)]
    for epoch in range(2):
        loader.set_epoch(epoch)
        for i, batch in enumerate(loader, start=1):
            (net.loss(batch) / accumulate).backward()
            if i % accumulate and i < len(loader):
                continue
            if update == "subgradient":
                for w in weights:
                    regularization.push(w.detach(), w.grad, penalty, lam, axis=axis)
            if clip is not None:
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
            group = optimizer.param_groups[0]
            if update == "proximal":
                for w in weights:
                    metric = regularization.metric_of(optimizer, group, w)
                    step = regularization.rate_of(optimizer, group) * lam
                    regularization.proximal_step(
                        w.detach(), penalty, step, metric=metric, axis=axis
                    )
            optimizer.zero_grad()


def assert_same(ours: Any, theirs: Any) -> None:
    found = dict(ours.named_parameters())
    for name, weight in theirs.named_parameters():
        assert torch.equal(found[name], weight), name


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"clip": 0.05}], ids=str)
@pytest.mark.parametrize("update", ["subgradient", "proximal"])
@pytest.mark.parametrize(("penalty", "axis"), [(TransformedL1(1.0), None), (LASSO, 0)], ids=str)
@pytest.mark.parametrize("make", [None, adamw], ids=["sgd", "adamw"])
def test_it_trains_as_the_plain_loop_does(
    make: Any,
    penalty: Any,
    axis: Any,
    update: Any,
    options: Any,
    tiny_net: Make,
    trainer: Make,
    data: Make,
) -> None:
    nets = [tiny_net() if make is None else tiny_net(make) for _ in range(2)]
    lam = 1e-3 if make is None else 1e-5
    groups: Any = "entries" if axis is None else "output_channels"
    callback = Regularization(penalty, lam, groups=groups, update=update, cut=False)
    names = {"accumulate": "accumulate_grad_batches", "clip": "gradient_clip_val"}
    trainer(callback, **{names[key]: x for key, x in options.items()}).fit(nets[0])
    train_by_hand(nets[1], data, penalty, lam, update, axis=axis, **options)
    assert_same(*nets)


def test_a_schedule_sets_the_weight_of_the_penalty(tiny_net: Make, trainer: Make) -> None:
    monitor = SparsityMonitor(every_n_steps=1)
    callback = Regularization(L1(), Warmup(0.01, epochs=2), update="proximal")
    trainer(callback, monitor).fit(tiny_net())
    lams = [figures["lam"] for figures in monitor.history]
    assert lams == sorted(lams)
    assert lams[0] < 0.003 < 0.007 < lams[-1]
    assert monitor.history[-1]["sparsity"] > 0
    assert monitor.history[-1]["objective"] > monitor.history[-1]["penalty"] > 0


@pytest.mark.parametrize("update", ["subgradient", "proximal"])
@pytest.mark.parametrize("groups", ["output_channels", "input_channels"])
def test_channels_that_are_zero_leave_the_network_when_training_ends(
    groups: Any, update: Any, tmp_path: Path, tiny_net: Make, trainer: Make
) -> None:
    lam = 0.05 if groups == "output_channels" else 0.07
    net, callback = tiny_net(), lasso(tmp_path, update=update, groups=groups, lam=lam)
    kill = ZeroOut(groups) if update == "subgradient" else Callback()
    trainer(kill, callback).fit(net)
    small = surgery.load(tiny_net().model, tmp_path / "slim")
    assert torch.equal(logits(small), logits(net.model))
    with callback.uncut(net):
        before = logits(net.model)
        dense = sum(p.numel() for p in net.parameters())
        assert net.model.conv1.weight.shape == (4, 1, 3, 3)
    torch.testing.assert_close(logits(net.model), before)
    report = json.loads((tmp_path / "slim" / "report.json").read_text())
    assert report["parameters"]["dense"] == dense == 362
    assert report["parameters"]["slim"] == sum(p.numel() for p in net.parameters()) < dense
    assert report["channels"]["dense"] == 14
    assert report["channels"]["slim"] < 14
    assert report["flops"]["slim"] < report["flops"]["dense"]
    assert report["proof"] < 1e-12
    assert report["layers"]["fc"] == {"dense": 4, "slim": 4}
    assert callback.is_over(net)


def test_a_network_in_which_nothing_is_zero_stays_as_large(
    tmp_path: Path, tiny_net: Make, trainer: Make
) -> None:
    net, callback = tiny_net(), lasso(tmp_path, lam=0.0)
    with pytest.warns(UserWarning, match="has cut nothing: no row and no column of a weight is"):
        trainer(callback).fit(net)
    assert not callback.is_over(net)
    with callback.uncut(net):
        before = logits(net.model)
    assert torch.equal(logits(net.model), before)
    report = json.loads((tmp_path / "slim" / "report.json").read_text())
    assert report["parameters"] == {"dense": 362, "slim": 362}


@pytest.mark.parametrize("update", ["subgradient", "proximal"])
def test_channels_close_to_zero_leave_the_network_as_well(
    update: Any, tmp_path: Path, tiny_net: Make, trainer: Make
) -> None:
    net, callback = tiny_net(), lasso(tmp_path, update=update, lam=1e-9)
    trainer(ZeroOut("output_channels"), callback).fit(net)
    report = json.loads((tmp_path / "slim" / "report.json").read_text())
    assert report["channels"] == {"dense": 14, "slim": 12}


class ZeroOut(Callback):
    """Brings two groups of a weight close to zero, as long training does."""

    def __init__(self, groups: Any) -> None:
        self.groups = groups

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        (conv2,) = select_weights(pl_module, "conv2", self.groups)
        with torch.no_grad():
            conv2.weight.movedim(conv2.axis, 0)[:2] = 3e-6


def logits(network: nn.Module) -> Tensor:
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return copy.deepcopy(network).eval()(x)


def perceptron() -> nn.Module:
    layers = [nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 4)]
    return nn.Sequential(nn.Flatten(), *layers)


def test_a_perceptron_loses_neurons_and_pixels(
    tmp_path: Path, tiny_net: Make, trainer: Make
) -> None:
    net = tiny_net(network=perceptron)
    neurons = Regularization(GroupLasso(), 0.01, update="proximal", **ROWS)  # type: ignore[arg-type]
    pixels = Regularization(
        GroupLasso(), 0.01, select="1", groups="input_channels", update="proximal"
    )
    run = trainer(neurons, pixels, max_epochs=6)
    run.fit(net)
    first, _, second, _, last = net.model[1:]
    assert first.in_features < 64
    assert first.out_features == second.in_features < 20
    assert second.out_features == last.in_features
    with neurons.uncut(net):
        before = logits(net.model)
    torch.testing.assert_close(logits(net.model), before)


def test_entries_are_cut_only_when_asked(tmp_path: Path, tiny_net: Make, trainer: Make) -> None:
    sizes = []
    for cut in (None, True):
        net = tiny_net()
        options: dict[str, Any] = {"update": "proximal", "cut": cut, "dirpath": str(tmp_path)}
        trainer(Regularization(L1(), 0.02, select="conv*", **options)).fit(net)
        sizes.append(sum(p.numel() for p in net.parameters()))
        assert (tmp_path / "slim").is_dir() == (cut is True)
    assert sizes[0] == 362 > sizes[1]


def pairs(tmp_path: Path) -> dict[str, list[Callback]]:
    """Callbacks that work side by side."""
    return {
        "nonconvex sparse group lasso": [
            RelaxedVariableSplitting(TransformedL1(1.0), 1e-3, 0.5),
            lasso(tmp_path),
        ],
        "group splitting": [
            RelaxedVariableSplitting(Grouped(L0()), 0.05, 0.5, select="conv*", **ROWS),  # type: ignore[arg-type]
            lasso(tmp_path, lam=0.01, update="subgradient"),
        ],
        "exclusive": [lasso(tmp_path), Regularization(L1(), 1e-3, update="proximal")],
    }


@pytest.mark.parametrize("name", pairs(Path()))
def test_callbacks_compose_in_any_order(
    name: str, tmp_path: Path, tiny_net: Make, trainer: Make
) -> None:
    ends, reports = [], []
    for i, step in enumerate((1, -1)):
        net, folder = tiny_net(), tmp_path / str(i)
        callbacks = pairs(folder)[name][::step]
        trainer(*callbacks, default_root_dir=folder).fit(net)
        ends.append(net.model)
        (report,) = folder.rglob("report.json")  # cut once
        reports.append(json.loads(report.read_text()))
    shapes = [[p.shape for p in end.parameters()] for end in ends]
    assert shapes[0] == shapes[1]
    assert reports[0]["parameters"] == reports[1]["parameters"]
    assert reports[0]["parameters"]["slim"] < reports[0]["parameters"]["dense"]
    if name != "exclusive":  # two proximal steps do not commute to the last digit
        torch.testing.assert_close(logits(ends[0]), logits(ends[1]))


@pytest.mark.parametrize("step", [1, -1])
def test_network_slimming_cuts_for_both(
    step: int, tmp_path: Path, norm_net: Make, trainer: Make
) -> None:
    net = norm_net()
    slimming = NetworkSlimming(amount=0.5, beta=1.0, dirpath=str(tmp_path / "s"))
    rows = lasso(tmp_path / "r")
    trainer(*[slimming, rows][::step]).fit(net)
    assert slimming.is_over(net)
    assert not rows.is_over(net)
    assert not (tmp_path / "r").exists()
    assert net.model.norm1.num_features + net.model.norm2.num_features <= 7


def test_a_second_fit_fine_tunes_without_penalty_and_without_a_cut(
    tmp_path: Path, tiny_net: Make, trainer: Make
) -> None:
    net, callback = tiny_net(), lasso(tmp_path)
    trainer(callback).fit(net)
    plain = copy.deepcopy(net)
    trainer(callback).fit(net)
    trainer().fit(plain)
    assert_same(net, plain)


@pytest.mark.parametrize("update", ["subgradient", "proximal"])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    update: Any, tmp_path: Path, tiny_net: Make, trainer: Make
) -> None:
    whole = tiny_net(adamw)
    keep = ModelCheckpoint(tmp_path, "epoch{epoch}", save_top_k=-1, auto_insert_metric_name=False)
    trainer(lasso(tmp_path, update=update, lam=1e-4, cut=False), keep, max_epochs=4).fit(whole)
    resumed = tiny_net(adamw)
    run = trainer(
        lasso(tmp_path, update=update, lam=1e-4, cut=False), copy.deepcopy(keep), max_epochs=4
    )
    run.fit(resumed, ckpt_path=tmp_path / "epoch1.ckpt")
    assert_same(resumed, whole)


def test_checkpoints_from_before_and_after_the_cut_load(
    tmp_path: Path, tiny_net: Make, trainer: Make
) -> None:
    net, keep = tiny_net(), ModelCheckpoint(tmp_path, "dense")
    run = trainer(lasso(tmp_path), keep)
    run.fit(net)
    run.save_checkpoint(tmp_path / "slim.ckpt")
    for name, shape in (("slim", net.model.conv1.weight.shape), ("dense", (4, 1, 3, 3))):
        fresh = tiny_net()
        run = trainer(lasso(tmp_path), copy.deepcopy(keep))
        run.test(fresh, ckpt_path=tmp_path / f"{name}.ckpt", verbose=False)
        assert fresh.model.conv1.weight.shape == shape
        torch.testing.assert_close(logits(fresh.model), logits(net.model))


def test_a_weight_that_would_die_is_named_and_keeps_its_largest_channel(
    tmp_path: Path, tiny_net: Make, trainer: Make
) -> None:
    net = tiny_net()
    expected = r"lam=50 leaves none of the output channels of 'model.conv1.weight', so the largest"
    with pytest.warns(UserWarning, match=expected):
        trainer(lasso(tmp_path, lam=50.0, select="conv1")).fit(net)
    assert net.model.conv1.weight.shape == (1, 1, 3, 3)


def test_a_split_weight_that_would_die_is_named_and_keeps_its_largest_channel(
    tiny_net: Make, trainer: Make
) -> None:
    net = tiny_net()
    callback = RelaxedVariableSplitting(GroupLasso(), 50.0, 1.0, select="conv1", **ROWS)  # type: ignore[arg-type]
    expected = r"lam=50 leaves none of the output channels of 'model.conv1.weight', so the largest"
    with pytest.warns(UserWarning, match=expected):
        trainer(callback).fit(net)
    assert net.model.conv1.weight.shape == (1, 1, 3, 3)


class Untraceable(nn.Module):
    """Fails on a batch that is not as large as those it trains with."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(144, 4)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            raise RuntimeError("no evaluation here")
        return self.fc(self.conv1(x).flatten(1))


def test_a_network_that_cannot_be_traced_is_refused_after_one_batch(
    tmp_path: Path, tiny_net: Make, trainer: Make
) -> None:
    options = {"limit_val_batches": 0}
    with pytest.raises(ValueError, match=r"no evaluation here.* cut=False"):
        trainer(lasso(tmp_path), **options).fit(tiny_net(network=Untraceable))
    trainer(lasso(tmp_path, cut=False), **options).fit(tiny_net(network=Untraceable))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"penalty": L1(), "lam": -1.0}, "finite lam >= 0, got lam=-1.0"),
        ({"penalty": L1(), "update": "prox"}, "update must be one of subgradient, proximal"),
        ({"penalty": L0()}, r"L0\(\) has no slope to descend"),
        ({"penalty": GroupLasso()}, r"acts on rows, got groups='entries'"),
        ({"penalty": L1(), "groups": "output_channels"}, r"Did you mean Grouped\(L1\(\)\)"),
        (
            {
                "penalty": SparseGroup(TransformedL1(), GroupLasso()),
                "groups": "output_channels",
                "update": "proximal",
            },
            "no exact prox",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Regularization(**arguments)


def rprop(weights: Any) -> torch.optim.Optimizer:
    return torch.optim.Rprop(weights)


def test_an_optimizer_whose_metric_is_not_known_is_refused_before_training(
    tmp_path: Path, tiny_net: Make, trainer: Make
) -> None:
    with pytest.raises(ValueError, match=r"metric is known .* got Rprop"):
        trainer(lasso(tmp_path)).fit(tiny_net(rprop))


def test_weights_without_groups_are_named(tmp_path: Path, norm_net: Make, trainer: Make) -> None:
    callback = Regularization(GroupLasso(), select="nothing", **ROWS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'nothing' matches no weight"):
        trainer(callback).fit(norm_net())


DDP = """
from lightning_sparsity import Regularization, VarianceGuidance
from lightning_sparsity.penalties import GroupLasso

class Net(tiny.TinyNet):
    def train_dataloader(self):
        return shared_data(self.trainer)

def fit(name, **options):
    net = Net()
    rows = dict(groups="output_channels", select="conv*")
    more = dict(update="proximal", dirpath=f"{folder}/{name}")
    lasso = Regularization(GroupLasso(), 0.05, **rows, **more)
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[lasso, VarianceGuidance(0.01, **rows)], **options)
    trainer.fit(net)
    assert lasso.is_over(net)
    return trainer, net.state_dict()

trainer, state = fit("two", strategy="ddp", devices=2)
torch.save(state, f"{folder}/rank{trainer.global_rank}.pt")
trainer.strategy.barrier()
if trainer.global_rank == 0:
    torch.distributed.destroy_process_group()
    torch.save(fit("one", devices=1)[1], f"{folder}/alone.pt")
"""


def test_two_processes_end_with_one_slim_network_and_as_one_process_does(
    in_two_processes: Any,
) -> None:
    first, second, alone = in_two_processes(DDP)
    for name, weight in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], weight, rtol=1e-4, atol=1e-5)
