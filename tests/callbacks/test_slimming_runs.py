"""The cut inside real runs: files, checkpoints of both shapes, other callbacks, processes."""

import copy
import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LambdaCallback,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_sparsity import NetworkSlimming, RelaxedVariableSplitting, SlimNetwork, surgery
from lightning_sparsity.penalties import L0, L0Ball, TransformedL1
from lightning_sparsity.surgery import Flops, Params, Share

Make = Callable[..., Any]
UPDATES = ["subgradient", "splitting", "proximal"]


def slimming(tmp_path: Path, update: Any = "splitting", **options: Any) -> NetworkSlimming:
    penalty = TransformedL1(1.0) if update == "subgradient" else L0Ball(0.5, start=0, end=0.5)
    options = {"beta": None if update == "subgradient" else 1.0, **options}
    return NetworkSlimming(penalty, 0.01, update=update, dirpath=str(tmp_path), **options)


def channels(net: Any) -> int:
    return int(net.model.norm1.num_features + net.model.norm2.num_features)


def logits(network: nn.Module) -> Tensor:
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return copy.deepcopy(network).eval()(x)


@pytest.mark.parametrize("update", UPDATES)
def test_the_module_ends_up_slim_and_its_files_load(
    update: Any, tmp_path: Path, norm_net: Make, trainer: Make
) -> None:
    net = norm_net()
    callback = slimming(tmp_path, update)
    trainer(callback).fit(net)
    assert channels(net) == 7 if update != "subgradient" else channels(net) < 7
    again = surgery.load(norm_net().model, tmp_path / "slim")
    assert torch.equal(logits(again), logits(net.model))
    report = json.loads((tmp_path / "slim" / "report.json").read_text())
    assert report["channels"] == {"dense": 14, "slim": channels(net)}
    assert report["parameters"]["slim"] == sum(p.numel() for p in net.parameters())
    assert report["flops"]["slim"] < report["flops"]["dense"]
    assert report["proof"] < 1e-12
    assert report["layers"]["norm1"] == {"dense": 8, "slim": net.model.norm1.num_features}


@pytest.mark.parametrize("update", UPDATES)
def test_the_slim_network_computes_what_the_last_checkpoint_does_with_dead_scales_at_zero(
    update: Any, tmp_path: Path, norm_net: Make, trainer: Make
) -> None:
    net, keep = norm_net(), ModelCheckpoint(tmp_path, "last-epoch")
    trainer(slimming(tmp_path, update), keep).fit(net)
    dense = norm_net()
    state = torch.load(tmp_path / "last-epoch.ckpt", weights_only=True)["state_dict"]
    dense.load_state_dict(state)
    plan = json.loads((tmp_path / "slim" / "plan.json").read_text())
    with torch.no_grad():
        for name, dead in plan["dead"].items():
            dense.model.get_submodule(name).weight[dead] = 0
    torch.testing.assert_close(logits(net.model), logits(dense.model))


@pytest.mark.parametrize("amount", [Flops(0.4), Params(0.5)], ids=str)
def test_budgets_are_met(amount: Any, tmp_path: Path, norm_net: Make, trainer: Make) -> None:
    trainer(slimming(tmp_path, "subgradient", amount=amount)).fit(norm_net())
    report = json.loads((tmp_path / "slim" / "report.json").read_text())
    cost = report["flops" if isinstance(amount, Flops) else "parameters"]
    assert 0.6 * amount.keep < cost["slim"] / cost["dense"] <= amount.keep


def test_a_share_may_ask_for_round_widths(tmp_path: Path, norm_net: Make, trainer: Make) -> None:
    net = norm_net()
    trainer(slimming(tmp_path, "subgradient", amount=Share(0.6, round_to=4))).fit(net)
    report = json.loads((tmp_path / "slim" / "report.json").read_text())
    assert report["amount"] == "Share(share=0.6, round_to=4)"
    assert [layer["slim"] for layer in report["layers"].values()] == [4, 4]
    assert channels(net) == 8


def test_a_second_fit_fine_tunes_without_penalty_and_without_a_cut(
    tmp_path: Path, norm_net: Make, trainer: Make
) -> None:
    net, callback = norm_net(), slimming(tmp_path, "subgradient")
    trainer(callback).fit(net)
    before = channels(net)
    plain = copy.deepcopy(net)
    trainer(callback).fit(net)
    trainer().fit(plain)
    assert channels(net) == before
    for name, weight in plain.named_parameters():
        assert torch.equal(dict(net.named_parameters())[name], weight), name


def test_the_same_callback_cuts_another_network_anew(
    tmp_path: Path, norm_net: Make, trainer: Make
) -> None:
    callback, nets = slimming(tmp_path), [norm_net(), norm_net()]
    for net in nets:
        trainer(callback).fit(net)
    assert [channels(net) for net in nets] == [7, 7]
    assert torch.equal(logits(nets[0].model), logits(nets[1].model))


def test_a_dense_checkpoint_loads_into_the_slim_module_and_says_so(
    tmp_path: Path,
    norm_net: Make,
    trainer: Make,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("lightning", "lightning.pytorch"):  # they may keep their messages to themselves
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    net = norm_net()
    callback, keep = slimming(tmp_path), ModelCheckpoint(tmp_path, monitor="val_loss")
    run = trainer(callback, keep)
    run.fit(net)
    with caplog.at_level("INFO"):
        (metrics,) = run.test(net, ckpt_path="best", verbose=False)
    assert "holds the dense network again" in caplog.text
    assert channels(net) == 14
    assert metrics["val_loss"] == pytest.approx(float(keep.best_model_score), rel=1e-5)


def test_a_checkpoint_saved_after_the_cut_resumes_in_a_fresh_dense_module(
    tmp_path: Path, norm_net: Make, trainer: Make
) -> None:
    """`save_last` with nothing saved before writes when training has ended: slim."""
    net, callback = norm_net(), slimming(tmp_path)
    run = trainer(callback)
    run.fit(net)
    run.save_checkpoint(tmp_path / "slim.ckpt")
    tested = norm_net()
    (metrics,) = trainer(slimming(tmp_path / "b")).test(
        tested, ckpt_path=tmp_path / "slim.ckpt", verbose=False
    )
    assert torch.equal(logits(tested.model), logits(net.model))
    assert metrics["val_loss"] == pytest.approx(run.validate(net, verbose=False)[0]["val_loss"])

    resumed = norm_net()
    trainer(slimming(tmp_path / "c"), max_epochs=4).fit(resumed, ckpt_path=tmp_path / "slim.ckpt")
    assert channels(resumed) == channels(net)
    assert not (tmp_path / "c").exists()  # cut once, not twice


def test_a_slim_checkpoint_keeps_the_momentum(
    tmp_path: Path, norm_net: Make, trainer: Make
) -> None:
    net, callback = norm_net(), slimming(tmp_path)
    run = trainer(callback)
    run.fit(net)
    state = run.optimizers[0].state
    for weight in net.parameters():
        assert weight in state
        assert state[weight]["momentum_buffer"].shape == weight.shape


@pytest.mark.parametrize("update", UPDATES)
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    update: Any, tmp_path: Path, norm_net: Make, trainer: Make
) -> None:
    whole = norm_net()
    keep = ModelCheckpoint(tmp_path, "epoch{epoch}", save_top_k=-1, auto_insert_metric_name=False)
    trainer(slimming(tmp_path, update), keep, max_epochs=4).fit(whole)
    resumed = norm_net()
    run = trainer(slimming(tmp_path, update), copy.deepcopy(keep), max_epochs=4)
    run.fit(resumed, ckpt_path=tmp_path / "epoch1.ckpt")
    for name, weight in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], weight), name


def test_other_callbacks_run_beside_it(tmp_path: Path, norm_net: Make, trainer: Make) -> None:
    net = norm_net()
    run = trainer(
        EarlyStopping("val_loss", patience=0, min_delta=100.0),
        slimming(tmp_path),
        ModelCheckpoint(tmp_path, monitor="val_loss", save_last=True),
        max_epochs=5,
    )
    run.fit(net)
    assert run.current_epoch < 5
    assert channels(net) < 14
    run.test(net, ckpt_path="last", verbose=False)


@pytest.mark.parametrize("first", [True, False])
def test_zero_weights_of_splitting_leave_with_the_channels(
    first: bool, tmp_path: Path, norm_net: Make, trainer: Make
) -> None:
    net = norm_net()
    splitting = RelaxedVariableSplitting(L0(), 0.02, 1.0, select="fc")
    pair = [splitting, slimming(tmp_path)]
    run = trainer(*(pair if first else pair[::-1]))
    run.fit(net)
    assert channels(net) <= 7  # fewer where all weights that read a channel are zero
    assert bool((net.model.fc.weight == 0).any())
    run.save_checkpoint(tmp_path / "end.ckpt")
    other = norm_net()
    trainer(slimming(tmp_path / "b"), splitting).test(
        other, ckpt_path=tmp_path / "end.ckpt", verbose=False
    )
    assert torch.equal(logits(other.model), logits(net.model))


def test_averages_listed_before_are_cut_and_listed_after_are_refused(
    tmp_path: Path, norm_net: Make, trainer: Make
) -> None:
    averaging = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging")
    average = averaging.EMAWeightAveraging(decay=0.5)
    net = norm_net()
    trainer(average, slimming(tmp_path, "subgradient")).fit(net)
    assert channels(net) < 14
    with pytest.raises(MisconfigurationException, match="needs to come after EMAWeightAveraging"):
        trainer(slimming(tmp_path), averaging.EMAWeightAveraging()).fit(norm_net())


def test_stochastic_weight_averaging_listed_after_is_refused(
    tmp_path: Path, norm_net: Make, trainer: Make
) -> None:
    with pytest.raises(MisconfigurationException, match="needs to come after StochasticWeight"):
        trainer(slimming(tmp_path), StochasticWeightAveraging(0.1)).fit(norm_net())


def test_two_of_them_are_refused(tmp_path: Path, norm_net: Make, trainer: Make) -> None:
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `NetworkSlim"):
        trainer(slimming(tmp_path), slimming(tmp_path, "subgradient")).fit(norm_net())


def test_a_fast_dev_run_cuts_and_writes_nothing(
    tmp_path: Path, norm_net: Make, trainer: Make
) -> None:
    net = norm_net()
    trainer(slimming(tmp_path, "subgradient"), fast_dev_run=True).fit(net)
    assert channels(net) < 14
    assert not list(tmp_path.iterdir())


def test_what_makes_up_for_channels_makes_a_difference(
    tmp_path: Path, norm_net: Make, trainer: Make
) -> None:
    outputs = []
    for compensate in ("shift", "mean", "statistics"):
        net = norm_net()
        trainer(slimming(tmp_path, "subgradient", compensate=compensate)).fit(net)
        report = json.loads((tmp_path / "slim" / "report.json").read_text())
        assert report["proof"] < 1e-12
        outputs.append(logits(net.model))
    shift, mean, statistics = outputs
    assert not torch.equal(shift, mean)
    assert not torch.equal(shift, statistics)


def test_a_slim_network_is_fine_tuned_and_resumed_from_its_folder(
    tmp_path: Path, norm_net: Make, trainer: Make
) -> None:
    net = norm_net()
    trainer(slimming(tmp_path)).fit(net)
    from_memory = copy.deepcopy(net)
    trainer(max_epochs=3).fit(from_memory)

    source = SlimNetwork(str(tmp_path / "slim"))
    keep = ModelCheckpoint(tmp_path, "tuned{epoch}", save_top_k=-1, auto_insert_metric_name=False)
    from_folder, resumed = norm_net(), norm_net()
    run = trainer(source, keep, max_epochs=3)
    run.fit(from_folder)
    run.test(from_folder, verbose=False)
    trainer(source, copy.deepcopy(keep), max_epochs=3).fit(
        resumed, ckpt_path=tmp_path / "tuned1.ckpt"
    )
    for tuned in (from_folder, resumed):
        for name, weight in from_memory.state_dict().items():
            assert torch.equal(tuned.state_dict()[name], weight), name


def test_a_slim_network_finds_its_place_in_a_module_that_is_its_own_network(
    tmp_path: Path, data: Make, trainer: Make
) -> None:
    net, other = Parts(), Parts()
    trainer(slimming(tmp_path, "subgradient")).fit(net, data())
    trainer(SlimNetwork(str(tmp_path / "slim")), max_epochs=1).fit(other, data())
    assert other.norm.num_features == net.norm.num_features


def test_a_slim_network_of_another_module_is_refused(
    tmp_path: Path, norm_net: Make, tiny_net: Make, trainer: Make
) -> None:
    trainer(slimming(tmp_path)).fit(norm_net())
    with pytest.raises(ValueError, match=r"nothing in TinyNet that the network in .*slim"):
        trainer(SlimNetwork(str(tmp_path / "slim"))).fit(tiny_net())
    with pytest.raises(FileNotFoundError, match=r"plan\.json"):
        trainer(SlimNetwork(str(tmp_path))).fit(norm_net())


DDP = """
from lightning_sparsity import NetworkSlimming
from lightning_sparsity.penalties import L0Ball

class Net(tiny.TinyNet):
    def __init__(self):
        super().__init__(network=tiny.NormCNN)
        with torch.no_grad():  # no ties that rounding would decide
            self.model.norm1.weight.copy_(torch.linspace(0.3, 1.1, 8))
            self.model.norm2.weight.copy_(torch.linspace(0.37, 1.0, 6))
        self.train()

    def train(self, mode=True):  # batch statistics would be those of one process
        super().train(mode)
        for norm in (self.model.norm1, self.model.norm2):
            norm.eval()
        return self

    def train_dataloader(self):
        return shared_data(self.trainer)

def fit(name, **options):
    net = Net()
    ball = L0Ball(0.5, start=0, end=0.5)
    slimming = NetworkSlimming(ball, update="splitting", beta=1.0, compensate="mean",
                               dirpath=f"{folder}/{name}")
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[slimming], **options)
    trainer.fit(net)
    return trainer, net.state_dict()

trainer, state = fit("two", strategy="ddp", devices=2)
torch.save(state, f"{folder}/rank{trainer.global_rank}.pt")
trainer.strategy.barrier()
if trainer.global_rank == 0:
    torch.distributed.destroy_process_group()
    torch.save(fit("one", devices=1)[1], f"{folder}/alone.pt")
"""


def test_two_processes_end_with_one_slim_network_and_as_one_process_does(
    tmp_path: Path, in_two_processes: Any
) -> None:
    first, second, alone = in_two_processes(DDP)
    for name, weight in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], weight, rtol=1e-5, atol=1e-6)
    plans = [json.loads((tmp_path / n / "slim" / "plan.json").read_text()) for n in ("one", "two")]
    assert plans[0]["dead"] == plans[1]["dead"]


class Parts(pl.LightningModule):
    """Layers of its own, put together in `forward` as most people do."""

    def __init__(self, call: str = "self") -> None:
        super().__init__()
        self.call = call
        self.temperature = nn.Parameter(torch.ones(()))
        self.conv = nn.Conv2d(1, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 36, 4)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.norm(self.conv(images)))
        return self.head(x.flatten(1)) / self.temperature, x.mean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        if self.call == "self":
            y, _ = self(images)
        else:
            y = self.head(F.relu(self.norm(self.conv(images))).flatten(1))
        return F.cross_entropy(y, labels)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters())


@pytest.mark.parametrize("call", ["self", "parts"])
def test_a_module_that_is_its_own_network_is_cut(
    call: str, tmp_path: Path, data: Make, trainer: Make
) -> None:
    net = Parts(call)
    if call == "parts":
        net.example_input_array = torch.rand(2, 1, 8, 8)
    run = trainer(slimming(tmp_path, "subgradient"))
    run.fit(net, data())
    assert net.norm.num_features == 3
    assert net.trainer is run
    assert {id(p) for p in net.parameters()} == {
        id(p) for p in run.optimizers[0].param_groups[0]["params"]
    }
    again = surgery.load(Parts(), tmp_path / "slim")
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(again.eval()(x)[0], net.eval()(x)[0])


def test_a_network_that_cannot_be_seen_is_refused_after_one_batch(
    tmp_path: Path, data: Make, trainer: Make
) -> None:
    run = trainer(slimming(tmp_path, "subgradient"), max_epochs=50)
    with pytest.raises(ValueError, match=r"Call the module itself.*example_input_array"):
        run.fit(Parts("parts"), data())
    assert run.global_step == 1


def test_a_budget_that_cannot_be_met_is_refused_after_one_batch(
    tmp_path: Path, norm_net: Make, trainer: Make
) -> None:
    run = trainer(slimming(tmp_path, "subgradient", amount=Params(0.01)), max_epochs=50)
    with pytest.raises(ValueError, match=r"cannot be met: .* a share of 0"):
        run.fit(norm_net())
    assert run.global_step == 1


def test_a_network_without_batchnorm_is_refused(
    tmp_path: Path, tiny_net: Make, trainer: Make
) -> None:
    with pytest.raises(ValueError, match="begins with BatchNorm or SyncBatchNorm"):
        trainer(slimming(tmp_path)).fit(tiny_net())


def test_scales_that_are_not_finite_are_named(
    tmp_path: Path, norm_net: Make, trainer: Make
) -> None:
    net = norm_net()
    with torch.no_grad():
        net.model.norm2.weight[0] = torch.nan
    with pytest.raises(ValueError, match=r"model\.norm2\.weight needs finite entries"):
        trainer(slimming(tmp_path)).fit(net)


def test_a_ball_needs_a_training_with_an_end(tmp_path: Path, norm_net: Make, trainer: Make) -> None:
    with pytest.raises(MisconfigurationException, match="Set max_epochs or max_steps"):
        trainer(slimming(tmp_path), max_epochs=-1, max_time="00:00:01:00").fit(norm_net())


def test_an_error_in_the_cut_leaves_the_network_as_it_was(
    tmp_path: Path, norm_net: Make, trainer: Make
) -> None:
    net = norm_net()

    def spoil(trainer: Any, pl_module: Any) -> None:
        pl_module.model.fc.weight.data.fill_(torch.nan)

    run = trainer(LambdaCallback(on_train_end=spoil), slimming(tmp_path))
    with pytest.raises(ValueError, match=r"as 'fc\.weight' holds NaN: the training has diverged"):
        run.fit(net)
    assert channels(net) == 14
    assert not (tmp_path / "slim").exists()


def test_nothing_is_left_on_the_module(tmp_path: Path, norm_net: Make, trainer: Make) -> None:
    net, callback = norm_net(), slimming(tmp_path)
    trainer(callback).fit(net)
    assert "on_load_checkpoint" not in vars(net)
    assert not any(m._forward_pre_hooks for n, m in net.named_modules() if "norm" in n)
    pickle.loads(pickle.dumps(copy.deepcopy(callback)))


def test_it_works_for_the_network_before_the_cut_too(
    tmp_path: Path, norm_net: Make, trainer: Make
) -> None:
    net, callback = norm_net(), slimming(tmp_path)
    with pytest.raises(ValueError, match="has not cut this module"), callback.uncut(net):
        pass
    trainer(callback).fit(net)
    slim = logits(net.model)
    with callback.uncut(net):
        assert channels(net) == 14
        torch.testing.assert_close(logits(net.model), slim)
    assert callback.is_over(net)
    assert torch.equal(logits(net.model), slim)


def test_before_a_cut_that_was_made_elsewhere_there_is_no_network(
    tmp_path: Path, norm_net: Make, trainer: Make
) -> None:
    net, callback = norm_net(), slimming(tmp_path)
    run = trainer(callback)
    run.fit(net)
    run.save_checkpoint(tmp_path / "slim.ckpt")
    loaded, other = norm_net(), slimming(tmp_path / "b")
    trainer(other).test(loaded, ckpt_path=tmp_path / "slim.ckpt", verbose=False)
    with pytest.raises(ValueError, match="it was slim in its checkpoint"), other.uncut(loaded):
        pass
    assert torch.equal(logits(loaded.model), logits(net.model))

    from_folder, fresh = norm_net(), slimming(tmp_path / "c")
    trainer(SlimNetwork(str(tmp_path / "slim")), fresh).test(from_folder, verbose=False)
    with pytest.raises(ValueError, match="has not cut this module"), fresh.uncut(from_folder):
        pass


def test_a_slim_checkpoint_in_a_slim_module_is_not_cut_again(
    tmp_path: Path, norm_net: Make, trainer: Make
) -> None:
    net, callback = norm_net(), slimming(tmp_path)
    run = trainer(callback)
    run.fit(net)
    run.save_checkpoint(tmp_path / "slim.ckpt")
    resumed, source = norm_net(), SlimNetwork(str(tmp_path / "slim"))
    trainer(source, slimming(tmp_path / "b"), max_epochs=4).fit(
        resumed, ckpt_path=tmp_path / "slim.ckpt"
    )
    assert channels(resumed) == channels(net)
    assert not (tmp_path / "b").exists()
