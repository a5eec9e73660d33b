"""PGD on margins: Carlini and Wagner's, towards one class, towards several."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from lit_robust import losses
from lit_robust.attacks import CWPGD, PGD, MultiTargetedPGD, TargetedPGD
from lit_robust.defenses import TRADES
from tests.formulas import smooth_net
from tests.methods import build
from tests.test_attacks import Counting, axis_net
from tests.tiny import CLASSES, images, named
from tests.trained import held_out, trained

ATTACKS = [CWPGD(), TargetedPGD(), TargetedPGD(towards=losses.ce_targeted), MultiTargetedPGD(targets=2)]
EPS, N = 0.15, 300


def seeded(attack, *args, seed=1):
    torch.manual_seed(seed)
    return attack(*args)


# Closed forms.


@pytest.mark.parametrize("attack", ATTACKS, ids=named)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_worst_case_of_a_linear_net_is_reached(attack, norm):
    v, eps = torch.randn(1, 4, 4), {"linf": 0.1, "l2": 0.2}[norm]
    x, y = 0.4 + 0.2 * torch.rand(8, 1, 4, 4), torch.arange(8) % 2
    direction = (1 - 2 * y).view(-1, 1, 1, 1) * (v.sign() if norm == "linf" else v / v.norm())
    x_adv = replace(attack, eps=eps, norm=norm, step_size=eps / 4, init="zero")(axis_net(v), x, y)
    torch.testing.assert_close(x_adv, x + eps * direction, atol=1e-6, rtol=0)


class Logits(nn.Module):
    """An image's pixels are its logits."""

    def forward(self, x):
        return x.flatten(1)


def pixels(rows):
    return torch.tensor(rows).view(len(rows), 1, 1, -1)


def test_each_target_gets_the_whole_bound_where_pixels_are_logits():
    x, y = pixels([[0.5, 0.3, 0.4, 0.2], [0.3, 0.5, 0.2, 0.4]]), torch.tensor([0, 1])
    for rank, targets in ((1, [2, 3]), (2, [1, 0]), (3, [3, 2]), (-1, [3, 2])):
        expected = x.clone()
        for row, target in enumerate(targets):
            expected[row, 0, 0, [int(y[row]), target]] += torch.tensor([-0.05, 0.05])
        x_adv = TargetedPGD(0.05, init="zero", target_rank=rank)(Logits(), x, y)
        torch.testing.assert_close(x_adv, expected)


def test_the_likeliest_class_is_ranked_without_the_label_where_the_image_is_misclassified():
    logits, y = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]]), torch.tensor([1, 1])
    assert TargetedPGD().target(logits, y).tolist() == [0, 2]
    assert TargetedPGD(target_rank=-1).target(logits, y).tolist() == [2, 0]


def test_multi_targeted_keeps_the_target_that_gains_most():
    """The second most likely class is reached, because its logit reacts more to the pixels."""
    slopes = torch.tensor([0.0, 1.0, 4.0])

    class Steep(nn.Module):
        def forward(self, x):
            return torch.tensor([0.3, 0.2, 0.0]) + slopes * (x.flatten(1) - 0.5)

    x, y = torch.full((1, 1, 1, 3), 0.5), torch.tensor([0])
    one, two = (MultiTargetedPGD(0.08, init="zero", targets=n)(Steep(), x, y) for n in (1, 2))
    assert losses.margin(Steep()(one), y).item() == pytest.approx(0.2 + 0.08 - 0.3, abs=1e-6)
    assert losses.margin(Steep()(two), y).item() == pytest.approx(4 * 0.08 - 0.3, abs=1e-6)


def test_an_image_stays_where_its_margin_has_reached_kappa():
    x, y = pixels([[0.5, 0.4], [0.5, 0.4]]), torch.tensor([0, 0])
    for kappa, margin in ((0.09, 0.1), (None, 0.3)):  # a step of 0.02 changes the margin by 0.04
        attack = CWPGD(0.2, 0.02, steps=20, init="zero", kappa=kappa)
        torch.testing.assert_close(losses.margin(Logits()(attack(Logits(), x, y)), y), torch.full((2,), margin))


def test_without_a_bound_it_is_pgd_on_the_margin():
    net, batch = smooth_net(), images(12)
    mine, plain = CWPGD(0.1, kappa=None), PGD(0.1, loss=losses.margin)
    assert torch.equal(seeded(mine, net, batch.x, batch.y), seeded(plain, net, batch.x, batch.y))
    assert torch.equal(seeded(CWPGD(0.1), net, batch.x, batch.y), seeded(plain, net, batch.x, batch.y))


def test_targeted_cw_reaches_the_given_class():
    x, target = pixels([[0.5, 0.4, 0.3]]), torch.tensor([2])
    x_adv = CWPGD(0.12, targeted=True, init="zero")(Logits(), x, target)
    assert Logits()(x_adv).argmax(1).tolist() == [2]


def test_towards_the_most_likely_class_by_cross_entropy_is_targeted_pgd():
    net, batch = smooth_net(), images(12)
    target = net(batch.x).scatter(1, batch.y[:, None], -torch.inf).argmax(1)
    mine = seeded(TargetedPGD(0.1, towards=losses.ce_targeted), net, batch.x, batch.y)
    assert torch.equal(mine, seeded(PGD(0.1, targeted=True), net, batch.x, target))


# What it costs.


def test_multi_targeted_costs_its_runs_and_two_forwards_for_each():
    net, batch = Counting(smooth_net()), images(8)
    MultiTargetedPGD(0.1, steps=4, targets=2)(net, batch.x, batch.y)
    assert len(net.rows) == 2 * (4 + 2)
    net.rows.clear()
    MultiTargetedPGD(0.1, steps=4)(net, batch.x, batch.y)
    assert len(net.rows) == (CLASSES - 1) * (4 + 2)  # no more targets than there are wrong classes


# On a trained net: 300 images, L-infinity 0.15.


def broken(net, attack, seed=1):
    x, y = (part[:N] for part in held_out())
    return net(seeded(attack, net, x, y, seed=seed)).argmax(1) != y


def test_multi_targeted_breaks_all_that_its_runs_break():
    """The runs are the same for the same random numbers; 9 targets leave fewer than any single one."""
    net, attack, first = trained("pgd"), MultiTargetedPGD(EPS, steps=10, init="zero"), TargetedPGD(EPS, init="zero")
    together = broken(net, attack)
    singles = [broken(net, replace(first, target_rank=rank)) for rank in range(1, 10)]
    assert torch.equal(together, torch.stack(singles).any(dim=0))
    assert together.sum() > max(single.sum() for single in singles)


def test_multi_targeted_is_stronger_than_pgd_of_as_many_restarts():
    net = trained("pgd")
    assert broken(net, MultiTargetedPGD(EPS)).sum() >= broken(net, PGD(EPS, restarts=9)).sum()


def by_hand(net, x, y, loss, eps=EPS, steps=20):
    """Signed steps of eps / 8 on a loss of logits, from a random start."""
    x_adv = x + eps * (2 * torch.rand_like(x) - 1)
    for _ in range(steps):
        x_adv = x_adv.clamp(0, 1).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(net(x_adv), y), x_adv)
        x_adv = torch.max(torch.min(x_adv + eps / 8 * gradient.sign(), x + eps), x - eps)
    return x_adv.detach().clamp(0, 1)


def cw_of_madry(logits, y):
    mask = nn.functional.one_hot(y, 10)
    correct, wrong = (mask * logits).sum(1), ((1 - mask) * logits - 1e4 * mask).amax(1)
    return -torch.relu(correct - wrong + 50).sum()


def towards(rank, net, x, y):
    ordered = (net(x).detach() - 1e4 * nn.functional.one_hot(y, 10)).sort(dim=1, descending=True).indices
    target = ordered[:, rank - 1]
    rows = range(len(y))
    return lambda logits, y: (logits[rows, target] - logits[rows, y]).sum()


def test_each_is_as_strong_as_an_implementation_typed_out_here():
    net, (x, y) = trained("pgd"), (part[:N] for part in held_out())

    def share(x_adv):
        return (net(x_adv).argmax(1) != y).float().mean().item()

    torch.manual_seed(1)
    cw = share(by_hand(net, x, y, cw_of_madry))
    runs = [by_hand(net, x, y, towards(rank, net, x, y)) for rank in range(1, 10)]
    several = torch.stack([net(run).argmax(1) != y for run in runs]).any(0).float().mean().item()
    arguments = {"eps": EPS, "step_size": EPS / 8, "steps": 20}
    assert broken(net, CWPGD(**arguments)).float().mean() >= cw - 0.01
    assert broken(net, TargetedPGD(**arguments)).float().mean() >= share(runs[0]) - 0.01
    assert broken(net, MultiTargetedPGD(**arguments)).float().mean() >= several - 0.01


# Arguments.


@pytest.mark.parametrize(
    ("attack", "arguments"),
    [
        (CWPGD, {"kappa": -1}),
        (CWPGD, {"kappa": math.inf}),
        (TargetedPGD, {"target_rank": 0}),
        (TargetedPGD, {"target_rank": -2}),
        (TargetedPGD, {"target_rank": 1.5}),
        (MultiTargetedPGD, {"targets": 0}),
        (MultiTargetedPGD, {"eps": 8}),
    ],
    ids=named,
)
def test_arguments_that_make_no_sense_are_refused(attack, arguments):
    with pytest.raises(ValueError, match=f"^{next(iter(arguments))}="):
        attack(**arguments)


@pytest.mark.parametrize("attack", [TargetedPGD, MultiTargetedPGD])
def test_a_loss_that_is_no_function_is_refused(attack):
    with pytest.raises(TypeError, match=r"^towards='margin'"):
        attack(towards="margin")


def test_a_rank_that_the_net_has_no_class_for_is_refused():
    batch = images(4)
    with pytest.raises(ValueError, match=r"^target_rank=4 "):
        TargetedPGD(target_rank=CLASSES)(smooth_net(), batch.x, batch.y)


@pytest.mark.parametrize("attack", ATTACKS, ids=named)
def test_a_method_with_an_objective_of_its_own_refuses_it(attack):
    with pytest.raises(TypeError, match=rf"TRADES .*not {type(attack).__name__}"):
        build(TRADES, attack=attack)


@pytest.mark.parametrize("attack", ATTACKS, ids=named)
def test_attacks_are_values(attack):
    assert attack == replace(attack) != replace(attack, eps=0.1)
    assert hash(attack) == hash(replace(attack))
