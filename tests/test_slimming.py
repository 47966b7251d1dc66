"""Slimming on tensors: each way to lower the penalty, and the cut."""

import pytest
import torch
from torch import Tensor, nn

from lightning_sparsity import slimming, surgery
from lightning_sparsity.penalties import L1, MCP, GroupLasso, L0Ball, L1MinusL2, TransformedL1


def scales() -> list[Tensor]:
    return [nn.Parameter(torch.tensor(x)) for x in ([0.5, -0.2, 0.9], [0.1, 0.3])]


def test_the_subgradient_of_all_scales_is_added_to_their_gradients() -> None:
    x = scales()
    x[0].grad = torch.ones(3)
    slimming.push(x, MCP(1.0), 0.1)
    torch.testing.assert_close(x[0].grad, 1 + 0.1 * torch.tensor([0.5, -0.8, 0.1]))
    assert x[1].grad is None


def test_a_penalty_on_a_tensor_sees_all_scales_as_one_vector() -> None:
    x = scales()
    for scale in x:
        scale.grad = torch.zeros_like(scale)
    slimming.push(x, L1MinusL2(1.0), 1.0)
    joint = torch.cat([scale.detach() for scale in x])
    expected = joint.sign() - joint / joint.norm()
    torch.testing.assert_close(torch.cat([scale.grad for scale in x]), expected)


def test_the_ball_ranks_the_scales_of_all_layers_together() -> None:
    copies = slimming.split(scales(), L0Ball(0.4), 1.0)
    assert [c.tolist() for c in copies] == [pytest.approx([0.5, 0, 0.9]), pytest.approx([0, 0.3])]


def test_a_layer_that_would_die_keeps_its_largest_scale() -> None:
    copies = slimming.split(scales(), L0Ball(0.8), 1.0)
    assert [c.tolist() for c in copies] == [pytest.approx([0, 0, 0.9]), pytest.approx([0, 0.3])]


def test_the_ball_takes_the_same_share_of_equal_scales_from_every_layer() -> None:
    x = [torch.ones(n) for n in (4, 10, 6)]
    copies = slimming.split(x, L0Ball(0.5), 1.0)
    assert [int((c == 0).sum()) for c in copies] == [2, 5, 3]
    x[0][1], x[1][:] = 0.5, 0.5
    copies = slimming.split(x, L0Ball(0.3), 1.0)  # six of the eleven
    assert [(c == 0).nonzero().flatten().tolist() for c in copies] == [[1], [0, 1, 2, 3, 4], []]


def test_a_layer_of_equal_scales_that_would_die_keeps_one_of_them() -> None:
    x = [torch.tensor([0.5, -0.5, 0.5, 0.1]), torch.ones(4)]
    copies = slimming.split(x, L1(), 0.75)
    assert [c.tolist() for c in copies] == [[0, 0, 0.5, 0], [0.25] * 4]


def test_the_pull_is_beta_times_the_gap() -> None:
    x = scales()
    x[0].grad = torch.ones(3)
    slimming.pull(x, slimming.split(x, L1(), 0.25), 2.0)
    torch.testing.assert_close(x[0].grad, 1 + 2 * torch.tensor([0.25, -0.2, 0.25]))


def test_the_proximal_step_solves_its_two_problems() -> None:
    """Both updates minimise a quadratic plus, for the copy, the penalty: tried on a fine grid."""
    lam, beta, rate = 0.3, 2.0, 0.1
    x, copies = scales(), [torch.tensor([0.4, 0.0, 0.7]), torch.tensor([0.2, 0.35])]
    before = torch.cat([s.detach() for s in x])
    xi = torch.cat(copies)
    slimming.proximal_step(x, copies, TransformedL1(1.0), lam=lam, beta=beta, rate=rate)
    grid = torch.linspace(-1, 1, 200_001).double()
    rho = 2 * grid.abs() / (1 + grid.abs())
    for i, (scale, copy) in enumerate(zip(torch.cat(x), torch.cat(copies), strict=True)):
        near = (grid - before[i]).square() / (2 * rate) + beta / 2 * (grid - xi[i]).square()
        assert scale.item() == pytest.approx(grid[near.argmin()].item(), abs=1e-5)
        sparse = (grid - xi[i]).square() / (2 * rate) + beta / 2 * (grid - scale).square()
        assert copy.item() == pytest.approx(grid[(sparse + lam * rho).argmin()].item(), abs=1e-4)


def test_a_proximal_step_at_rate_zero_moves_nothing() -> None:
    x, copies = scales(), [torch.ones(3), torch.ones(2)]
    slimming.proximal_step(x, copies, L1(), lam=1.0, beta=2.0, rate=0.0)
    assert torch.cat(copies).tolist() == [1] * 5
    assert torch.equal(torch.cat(x), torch.cat(scales()))


@pytest.mark.parametrize(
    ("penalty", "update", "coupled", "message"),
    [
        (L1(), "lasso", False, "one of subgradient, splitting, proximal, got 'lasso'"),
        (L1(), "subgradient", True, "leave beta out"),
        (GroupLasso(), "splitting", False, "GroupLasso.* acts on rows"),
        (L0Ball(), "subgradient", False, "use update='splitting'"),
    ],
)
def test_what_does_not_go_together_is_refused(
    penalty: L1, update: str, coupled: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        slimming.check(penalty, update, coupled=coupled)


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 10, 3, padding=1), nn.BatchNorm2d(10), nn.ReLU()),
        *(nn.Conv2d(10, 10, 3, padding=1), nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 4, 1)),
    ).eval()
    for i in (1, 4):
        nn.init.uniform_(net[i].weight, 0.5, 1.5)
        nn.init.uniform_(net[i].bias, 0.1, 0.5)
    return net


def test_a_cut_by_share_removes_the_smallest_scales_and_proves_it() -> None:
    net, x = network(), torch.randn(2, 3, 6, 6)
    made = slimming.cut(net, x, 0.5)
    assert sum(int(dead.sum()) for dead in made.plan.dead.values()) == 11  # the element too
    assert made.plan.proof is not None
    assert made.plan.proof < 1e-12
    with torch.no_grad():
        torch.testing.assert_close(made.network(x), surgery.mask(net, made.plan)(x))


@pytest.mark.parametrize("compensate", ["shift", "mean", "statistics"])
@pytest.mark.parametrize("amount", [surgery.Share(0.6, round_to=4), None], ids=str)
def test_a_cut_leaves_round_widths(
    amount: surgery.Budget | None, compensate: slimming.Compensate
) -> None:
    net, x = network(), torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        net[1].weight[:3] = net[4].weight[:5] = 0
    round_to = 4 if amount is None else None
    made = slimming.cut(net, x, amount, compensate=compensate, batches=[x], round_to=round_to)
    assert {made.network[i].num_features for i in (1, 4)} <= {4, 8}
    assert made.network[6].in_channels % 4 == 0
    assert made.plan.proof is not None
    assert made.plan.proof < 1e-12


@pytest.mark.parametrize("amount", [0.5, surgery.Share(0.5)], ids=str)
@pytest.mark.parametrize("zeros", [10, 12])
def test_where_enough_scales_are_zero_exactly_those_go(
    zeros: int, amount: float | surgery.Budget
) -> None:
    net = network()
    with torch.no_grad():
        net[1].weight[:5], net[4].weight[: zeros - 5] = 0, 0
    plan = slimming.cut(net, torch.randn(2, 3, 6, 6), amount).plan
    assert [int(dead.sum()) for dead in plan.dead.values()] == [5, zeros - 5]


def test_new_statistics_are_those_of_the_slim_network_on_all_batches() -> None:
    net, batches = network(), [(torch.randn(4, 3, 6, 6),) for _ in range(3)]
    made = slimming.cut(net, batches[0], 0.4, compensate="statistics", batches=batches)
    seen = []
    made.network[1].register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    with torch.no_grad():
        for batch in batches:
            made.network(*batch)
    mean = torch.cat(seen).mean((0, 2, 3))
    torch.testing.assert_close(made.network[1].running_mean, mean)
    assert not made.network.training


def test_compensation_without_batches_is_refused() -> None:
    with pytest.raises(ValueError, match="'mean' needs batches, got none"):
        slimming.cut(network(), torch.randn(2, 3, 6, 6), 0.4, compensate="mean")
