"""TRADES, MART, and PGD that stops early."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lit_robust import losses
from lit_robust.attacks import FGSM, PGD, FriendlyPGD
from lit_robust.callbacks import AttributeRamp
from lit_robust.defenses import MART, TRADES, FriendlyAT
from lit_robust.schedules import Staircase
from lit_robust.threats import L2, Linf
from tests.formulas import Passes, assert_same_batch, forwards, in_float64, one_batch, smooth_net
from tests.methods import ATTACK, EPS, build
from tests.tiny import CLASSES, TinyNet, images, loader, trainer

L2_ATTACK = PGD(eps=1.0, step_size=1.0, steps=2, norm="l2")
#: Far and long enough for some samples to be misclassified on the way.
FRIENDLY = FriendlyPGD(0.3, step_size=0.06, steps=6, omega=0.0)


# TRADES and MART.


@pytest.mark.parametrize("attack", [ATTACK, L2_ATTACK], ids=["linf", "l2"])
def test_trades_with_beta_0_has_natural_trainings_loss_and_gradient(attack):
    batch, net = images(8), TinyNet().train()
    _, values, gradients = one_batch(build(TRADES, attack=attack, beta=0.0).train(), batch)
    expected = losses.ce(net(batch.x), batch.y)
    torch.testing.assert_close(values, expected.detach(), rtol=0, atol=1e-6)
    expected.mean().backward()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=0, atol=1e-6)


def trades_by_the_formula(z_adv, z, y):
    p, q = z.softmax(dim=1), z_adv.softmax(dim=1)
    return -p[torch.arange(len(y)), y].log() + 6 * (p * (p / q).log()).sum(dim=1)


def mart_by_the_formula(z_adv, z, y):
    rows = torch.arange(len(y))
    p, q = z.softmax(dim=1), z_adv.softmax(dim=1)
    others = q.scatter(1, y.unsqueeze(1), 0).amax(dim=1)
    boosted = -q[rows, y].log() - (1.0001 - others).log()
    return boosted + 5 * (p * (p / q).log()).sum(dim=1) * (1 - p[rows, y])


@pytest.mark.parametrize(("method", "formula"), [(TRADES, trades_by_the_formula), (MART, mart_by_the_formula)])
def test_loss_and_gradient_are_the_formulas_in_float64_through_both_distributions(method, formula):
    batch, x_adv = images(8), images(8, seed=1).x
    defense, net = build(method).train(), in_float64(TinyNet()).train()
    expected = formula(net(x_adv.double()), net(batch.x.double()), batch.y)
    found = defense.loss(batch, x_adv)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    found.mean().backward()
    expected.mean().backward()
    for mine, its in zip(defense.net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(mine.grad.double(), its.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", [TRADES, MART])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_perturbation_is_the_formulas_in_float64(method, norm):
    """Two steps from a normal start that is not clipped: on the KL divergence, or on the cross-entropy."""
    batch, eps, size = images(8), {"linf": 0.1, "l2": 1.0}[norm], {"linf": 0.07, "l2": 0.7}[norm]
    net = smooth_net()
    with torch.no_grad():
        net[1].weight.mul_(5)  # far enough from the clean prediction for float32 to tell the KL's gradient
    x, y, ball = batch.x.double(), batch.y, {"linf": Linf, "l2": L2}[norm](eps)
    reference = in_float64(net)
    p = reference(x).softmax(dim=1).detach()
    torch.manual_seed(3)
    x_adv = x + 0.001 * torch.randn(batch.x.shape)
    for _ in range(2):
        x_adv = x_adv.detach().requires_grad_()
        q = reference(x_adv).softmax(dim=1)
        objective = (p * (p / q).log()).sum() if method is TRADES else -q[torch.arange(8), y].log().sum()
        (gradient,) = torch.autograd.grad(objective, x_adv)
        x_adv = ball.project(x_adv.detach() + size * ball.steepest_step(gradient), x)
    torch.manual_seed(3)
    found = build(method, net=net, attack=PGD(eps, size, steps=2, norm=norm)).perturb(batch)
    off = (found.double() - x_adv).abs() > 1e-3
    assert off.float().mean() < 0.01  # where a gradient is almost 0 its sign is not certain


def test_both_give_pgd_their_start_and_their_objective_and_keep_the_rest():
    attack = PGD(EPS, step_size=0.04, steps=3, norm="l2", init="zero", momentum=0.5, restarts=2)
    near = {"init": "gaussian", "init_size": 0.001, "clip_init": False}
    trades, mart = build(TRADES, attack=attack), build(MART, attack=attack)
    assert trades.adversary() == replace(attack, **near, loss=losses.kl, compare_with="clean_logits")
    assert mart.adversary() == replace(attack, **near, loss=losses.ce, compare_with="label")
    trades.attack = replace(trades.attack, eps=0.05)  # as a ramp does
    assert trades.adversary().eps == 0.05


@pytest.mark.parametrize(("method", "reference"), [(TRADES, [("eval", False)]), (MART, [])])
def test_a_batch_is_k_attack_passes_and_two_training_passes_which_alone_move_batch_norm(method, reference, tmp_path):
    defense = build(method)
    expected = [*reference, *[("eval", True)] * ATTACK.steps, ("train", True), ("train", True)]
    assert forwards(defense, tmp_path) == expected
    assert int(defense.net.body[1].num_batches_tracked) == 2


@pytest.mark.parametrize(("method", "adversary_first"), [(TRADES, True), (MART, False)])
def test_the_order_of_the_updates_forwards_is_the_codes(method, adversary_first):
    batch, x_adv, seen = images(8), images(8, seed=1).x, []
    defense = build(method).train()
    defense.net.register_forward_pre_hook(lambda net, args: seen.append(args[0]))
    defense.loss(batch, x_adv)
    assert [torch.equal(x, x_adv) for x in seen] == [adversary_first, not adversary_first]


# Stopping early.


def stopped_by_the_formula(net, x, y, start, attack):
    """Each sample alone, in float64; and the number of evaluated points."""
    net, points, looks = in_float64(net), [], 0
    for image, label, x_adv in zip(x.double().split(1), y.split(1), start.double().split(1), strict=True):
        left, p = attack.tau, net(image).softmax(dim=1).detach()
        for _ in range(attack.steps):
            x_adv = x_adv.detach().requires_grad_()
            logits = net(x_adv)
            looks += 1
            wrong = logits.argmax() != label
            if wrong and left == 0:
                break
            left -= int(wrong)
            q = logits.softmax(dim=1)
            objective = -q[0, label] if attack.loss is losses.ce else (p * (p / q).log()).sum()
            (gradient,) = torch.autograd.grad(objective, x_adv)
            x_adv = Linf(attack.eps).project(x_adv.detach() + attack.step_size * gradient.sign(), image)
        points.append(x_adv.detach())
    return torch.cat(points).float(), looks


@pytest.fixture(scope="module")
def unsure_net() -> nn.Module:
    """A net that classifies most images correctly, and misclassifies them after some steps."""
    batch, net = images(24), smooth_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(10):
        optimizer.zero_grad()
        F.cross_entropy(net(batch.x), batch.y).backward()
        optimizer.step()
    return net


@pytest.mark.parametrize("tau", [0, 1, 2])
@pytest.mark.parametrize("loss", [losses.ce, losses.kl])
def test_each_sample_stops_as_if_it_were_alone_and_costs_no_pass_afterwards(unsure_net, tau, loss):
    x, y = images(24, seed=5)[:2]
    attack = replace(FRIENDLY, tau=tau, loss=loss, compare_with="label" if loss is losses.ce else "clean_logits")
    torch.manual_seed(3)
    expected, looks = stopped_by_the_formula(unsure_net, x, y, attack.start(unsure_net, x), attack)
    passes = Passes(unsure_net)
    torch.manual_seed(3)
    found = attack(unsure_net, x, y)
    assert ((found - expected).abs() > 1e-3).float().mean() < 0.01  # where the sign of a gradient is in doubt
    assert len(x) < looks < len(x) * attack.steps
    assert passes.backward == looks
    assert passes.forward == looks + (len(x) if loss is losses.kl else 0)  # the clean images once


def test_with_a_large_tau_and_no_noise_it_is_pgd(unsure_net):
    x, y = images(24, seed=5)[:2]
    found = []
    for attack in (replace(FRIENDLY, tau=6), PGD(0.3, step_size=0.06, steps=6)):
        torch.manual_seed(3)
        found.append(attack(unsure_net, x, y))
    torch.testing.assert_close(*found)
    torch.manual_seed(3)
    assert not torch.equal(replace(FRIENDLY, tau=0)(unsure_net, x, y), found[1])


def test_images_that_are_misclassified_from_the_start_stay_there_after_one_look(unsure_net):
    x = images(24, seed=5).x
    y = unsure_net(x).argmin(dim=1)
    passes = Passes(unsure_net)
    assert torch.equal(replace(FRIENDLY, init="zero")(unsure_net, x, y), x)
    assert (passes.forward, passes.backward) == (24, 24)


def test_omega_is_the_standard_deviation_of_each_steps_noise():
    x, y = torch.full((8, 3, 8, 8), 0.5), torch.zeros(8, dtype=torch.int64)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES))  # has the same logits for all images: no gradient
    nn.init.zeros_(flat[1].weight)
    nn.init.zeros_(flat[1].bias)
    attack = FriendlyPGD(eps=0.5, step_size=0.02, steps=4, init="zero", omega=0.01)
    assert (attack(flat, x, y) - x).std().item() == pytest.approx(0.01 * 4**0.5, rel=0.05)


def test_friendly_at_trains_with_cross_entropy_on_the_friendly_images(unsure_net):
    batch = images(24, seed=5)
    defense = build(FriendlyAT, net=unsure_net, attack=PGD(0.3, step_size=0.06, steps=6), tau=1, omega=0.0)
    torch.manual_seed(3)
    x_adv = defense.perturb(batch)
    torch.manual_seed(3)
    assert torch.equal(x_adv, replace(FRIENDLY, tau=1)(unsure_net, batch.x, batch.y))
    expected = F.cross_entropy(in_float64(unsure_net)(x_adv.double()), batch.y, reduction="none")
    torch.testing.assert_close(defense.loss(batch, x_adv).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("defense", "attribute"),
    [
        (lambda: build(FriendlyAT, net=smooth_net()), "tau"),
        (lambda: build(TRADES, net=smooth_net(), attack=FRIENDLY), "attack.tau"),
    ],
    ids=["FriendlyAT", "FAT for TRADES"],
)
def test_a_ramp_drives_tau(defense, attribute, tmp_path):
    defense, seen = defense(), []
    defense.net.register_forward_hook(lambda *_: seen.append(defense.adversary().tau))
    ramp = AttributeRamp(attribute, Staircase([0, 1], [0, 2]))
    trainer(tmp_path, max_epochs=2, callbacks=[ramp]).fit(defense, loader(images(8)))
    assert (seen[1], seen[-1]) == (0, 2)


def test_at_beta_0_fat_for_trades_is_trades():
    same = {"net": smooth_net(), "beta": 0.0}
    assert_same_batch(build(TRADES, attack=FRIENDLY, **same), build(TRADES, **same), images(8))


# What is refused.


@pytest.mark.parametrize(
    ("make", "error", "named"),
    [
        (lambda: build(TRADES, beta=-1.0), ValueError, "beta="),
        (lambda: build(TRADES, beta=float("inf")), ValueError, "beta="),
        (lambda: build(MART, beta=float("nan")), ValueError, "beta="),
        (lambda: build(TRADES, attack=FGSM(EPS)), TypeError, "TRADES .*attack=.* FGSM"),
        (lambda: build(MART, attack=FGSM(EPS)), TypeError, "MART .*attack=.* FGSM"),
        (lambda: build(FriendlyAT, attack=FGSM(EPS)), TypeError, "FriendlyAT .*attack=.* FGSM"),
        (lambda: build(FriendlyAT, attack=FRIENDLY), TypeError, "FriendlyAT .*attack=.* FriendlyPGD"),
        (lambda: build(FriendlyAT, tau=-1), ValueError, "tau="),
        (lambda: build(FriendlyAT, omega=-0.1), ValueError, "omega="),
        (lambda: FriendlyPGD(momentum=0.9), ValueError, "FriendlyPGD .*momentum"),
        (lambda: FriendlyPGD(targeted=True), ValueError, "FriendlyPGD .*targeted"),
        (lambda: FriendlyPGD(freeze_misclassified=True), ValueError, "FriendlyPGD .*freeze_misclassified"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(make, error, named):
    with pytest.raises(error, match=f"^{named}"):
        make()
