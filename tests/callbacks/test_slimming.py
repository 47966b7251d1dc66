"""Each update of network slimming inside real fits, against plain loops."""

from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from lightning_sparsity import NetworkSlimming, SparsityMonitor, slimming
from lightning_sparsity.penalties import L1, MCP, SCAD, L0Ball, Lp, Penalty, TransformedL1
from lightning_sparsity.schedules import Warmup
from lightning_sparsity.surgery import Flops, Share

SCALES = ["model.norm1.weight", "model.norm2.weight"]


class Recorder(Callback):
    """Keeps all weights after every batch."""

    def __init__(self) -> None:
        self.after: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.after.append({n: p.detach().clone() for n, p in pl_module.named_parameters()})


def train_by_hand(
    net: Any,
    data: Any,
    penalty: Penalty,
    *,
    lam: float,
    beta: float,
    update: str,
    accumulate: int = 1,
    clip: float | None = None,
) -> dict[str, Tensor]:
    """Two epochs in plain torch."""
    optimizer, loader = net.optimizer(net.parameters()), data()
    parameters = dict(net.named_parameters())
    scales = [parameters[name] for name in SCALES]
    xi = [scale.detach().clone() for scale in scales]
    steps = 0
    for epoch in range(2):
        loader.set_epoch(epoch)
        for i, batch in enumerate(loader, start=1):
            (net.loss(batch) / accumulate).backward()
            if i % accumulate and i < len(loader):
                continue
            with torch.no_grad():
                now = penalty.at(steps / (2 * -(-len(loader) // accumulate)))
                joint = torch.cat(scales)
                if update == "subgradient":
                    move = lam * now.subgradient(joint)
                elif update == "splitting":
                    move = beta * (joint - torch.cat(slimming.split(scales, now, lam / beta)))
                else:
                    move = torch.zeros_like(joint)
                for scale, part in zip(scales, move.split([8, 6]), strict=True):
                    scale.grad += part
            if clip is not None:
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
            if update == "proximal":
                rate = optimizer.param_groups[0]["lr"]
                slimming.proximal_step(scales, xi, now, lam=lam, beta=beta, rate=rate)
            optimizer.zero_grad()
            steps += 1
    return {n: p.detach() for n, p in net.named_parameters()}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"clip": 0.05}], ids=str)
@pytest.mark.parametrize(
    ("penalty", "update", "beta"),
    [
        (TransformedL1(1.0), "subgradient", None),
        (Lp(0.5), "subgradient", None),
        (SCAD(0.5, 2.0), "splitting", 0.5),
        (L0Ball(0.5), "splitting", 0.5),
        (MCP(1.0), "proximal", 5.0),
    ],
    ids=repr,
)
def test_it_trains_as_the_plain_loop_does(
    penalty: Penalty,
    update: Any,
    beta: float | None,
    options: dict[str, Any],
    norm_net: Any,
    data: Any,
    trainer: Any,
) -> None:
    recorder = Recorder()
    callback = NetworkSlimming(penalty, 0.05, update=update, beta=beta)
    trainer(
        callback,
        recorder,
        accumulate_grad_batches=options.get("accumulate", 1),
        gradient_clip_val=options.get("clip"),
    ).fit(norm_net())
    by_hand = train_by_hand(
        norm_net(), data, penalty, lam=0.05, beta=beta or 1.0, update=update, **options
    )
    assert_same(recorder.after[-1], by_hand)


@pytest.mark.parametrize("update", ["splitting", "proximal"])
def test_evaluations_see_the_sparse_copy_and_training_goes_on_with_the_scales(
    update: Any, norm_net: Any, trainer: Any
) -> None:
    net, recorder = norm_net(), Recorder()
    callback = NetworkSlimming(L0Ball(0.5, end=0.1), update=update, beta=1.0)
    trainer(callback, recorder, max_epochs=1, num_sanity_val_steps=0).fit(net)
    seen = torch.cat([net.seen[-1][name] for name in SCALES])
    assert int((seen == 0).sum()) == 7
    if update == "splitting":
        assert (torch.cat([recorder.after[-1][name] for name in SCALES]) != 0).all()


def test_without_copies_evaluations_see_the_scales(norm_net: Any, trainer: Any) -> None:
    net, recorder = norm_net(), Recorder()
    trainer(NetworkSlimming(L1(), lam=0.1), recorder, max_epochs=1).fit(net)
    assert_same(net.seen[-1], recorder.after[-1])


def test_the_monitor_shows_its_figures(norm_net: Any, trainer: Any) -> None:
    monitor = SparsityMonitor(every_n_steps=1)
    callback = NetworkSlimming(L0Ball(0.5, start=0, end=0.5), update="splitting", beta=1.0)
    trainer(callback, monitor, max_epochs=2).fit(norm_net())
    sparsity = [point["sparsity"] for point in monitor.history]
    assert sparsity[0] == 0
    assert sparsity[-1] == 0.5
    assert sparsity == sorted(sparsity)
    assert all(point["penalty"] >= 0 for point in monitor.history)


def test_strengths_may_follow_a_schedule(norm_net: Any, trainer: Any) -> None:
    monitor = SparsityMonitor(every_n_steps=1)
    trainer(NetworkSlimming(L1(), lam=Warmup(0.2, epochs=2)), monitor).fit(norm_net())
    lam = [point["lam"] for point in monitor.history]
    assert lam == sorted(lam)
    assert lam[0] < 0.05 < 0.15 < lam[-1] <= 0.2


def test_without_a_penalty_the_ball_of_the_amount_is_taken() -> None:
    default = NetworkSlimming(amount=0.3)
    assert (default.penalty, default.update, default.beta) == (L0Ball(0.3), "splitting", 3.0)
    assert NetworkSlimming(amount=Share(0.4)).penalty == L0Ball(0.4)
    budget = NetworkSlimming(amount=Flops(0.5))
    assert (budget.penalty, budget.update) == (TransformedL1(1.0), "subgradient")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"amount": 1.0}, "share of channels in \\(0, 1\\), got amount=1.0"),
        ({"amount": 0}, "got amount=0"),
        ({"lam": -1.0}, "lam >= 0, got lam=-1.0"),
        ({"beta": 0.0, "update": "splitting"}, "beta > 0, got beta=0.0"),
        ({"penalty": L1(), "beta": 1.0}, "leave beta out"),
        ({"update": "magic"}, "got 'magic'"),
        ({"compensate": "median"}, "shift, mean, statistics, got 'median'"),
        ({"penalty": L0Ball(), "update": "subgradient"}, "use update='splitting'"),
    ],
    ids=str,
)
def test_bad_arguments_are_named_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NetworkSlimming(**options)
