"""One-step attacks and PGD: closed forms on linear nets, hand-written loops, and absence of side effects."""

from contextlib import nullcontext
from dataclasses import FrozenInstanceError, replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from jsonargparse import ArgumentParser
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lit_robust import losses
from lit_robust.attacks import (
    BPDA,
    CWPGD,
    FGSM,
    GAMAFW,
    GAMAPGD,
    PGD,
    RFGSM,
    Attack,
    AutoAttack,
    MultiTargetedPGD,
    NuclearNorm,
    Square,
    TargetedPGD,
)
from lit_robust.attacks.base import made_once
from lit_robust.guards import checked, crafting, frozen, network_mode
from tests.tiny import CLASSES, TinyNet, images, named

SHAPE = (1, 4, 4)
ALL_LOSSES = [losses.ce, losses.margin, losses.probability_margin, losses.dlr, losses.bce]
ATTACKS = [
    FGSM(0.1),
    FGSM(0.5, norm="l2"),
    RFGSM(0.1),
    RFGSM(0.1, variant="wong"),
    PGD(0.1, 0.04, steps=3),
    PGD(0.5, 0.2, steps=3, norm="l2"),
    PGD(0.1, 0.04, steps=3, init="gaussian", loss=losses.kl, compare_with="clean_logits"),
    PGD(0.1, 0.04, steps=3, init="rademacher", momentum=0.9, restarts=2),
    PGD(0.1, 0.04, steps=3, restarts=3, freeze_misclassified=True),
    PGD(0.1, 0.04, steps=3, targeted=True, loss=losses.margin),
    GAMAPGD(0.1, steps=8),
    GAMAPGD(0.5, steps=8, norm="l2", guide="clean"),
    GAMAFW(0.1, steps=8),
    GAMAFW(0.5, steps=8, norm="l2"),
    CWPGD(0.1, steps=3),
    TargetedPGD(0.1, steps=3, target_rank=-1),
    TargetedPGD(0.5, steps=3, norm="l2", towards=losses.dlr_targeted),
    MultiTargetedPGD(0.1, steps=3, targets=2),
    MultiTargetedPGD(0.5, steps=3, norm="l2", restarts=2),
    BPDA(PGD(0.1, steps=3), F.hardtanh),
]


def axis_net(v):
    """Logits (-t, t, t - 10, t - 20), t = v.x: every loss leaves class 0 along +v and class 1 along -v."""
    linear = nn.Linear(v.numel(), 4)
    linear.weight.data = torch.stack([-v.flatten(), v.flatten(), v.flatten(), v.flatten()])
    linear.bias.data = torch.tensor([0.0, 0.0, -10.0, -20.0])
    return nn.Sequential(nn.Flatten(), linear)


def smooth_net():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 5))


def conv_net():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(64, 5),
    )


def data(n=8, classes=5):
    return torch.rand(n, *SHAPE), torch.randint(classes, (n,))


class Counting(nn.Module):
    """Counts forwards and the images in each."""

    def __init__(self, net):
        super().__init__()
        self.net, self.rows = net, []

    def forward(self, x):
        self.rows.append(len(x))
        return self.net(x)


# Closed forms.


@pytest.mark.parametrize("loss", ALL_LOSSES)
@pytest.mark.parametrize("init", ["zero", "uniform"])
def test_linf_pgd_reaches_the_worst_case_of_a_linear_net_also_where_the_box_cuts(loss, init):
    v, eps = torch.randn(SHAPE), 0.1
    x, y = torch.rand(16, *SHAPE), torch.arange(16) % 2
    sign = (1 - 2 * y).view(-1, 1, 1, 1) * v.sign()
    x_adv = PGD(eps, eps / 4, steps=10, init=init, loss=loss)(axis_net(v), x, y)
    torch.testing.assert_close(x_adv, (x + eps * sign).clamp(0, 1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("loss", ALL_LOSSES)
@pytest.mark.parametrize(("init", "steps", "atol"), [("zero", 5, 1e-6), ("uniform", 150, 1e-4)])
def test_l2_pgd_reaches_the_worst_case_of_a_linear_net(loss, init, steps, atol):
    v, eps = torch.randn(SHAPE), 0.2
    x, y = 0.4 + 0.2 * torch.rand(8, *SHAPE), torch.arange(8) % 2
    direction = (1 - 2 * y).view(-1, 1, 1, 1) * v / v.norm()
    x_adv = PGD(eps, eps / 4, steps=steps, norm="l2", init=init, loss=loss)(axis_net(v), x, y)
    torch.testing.assert_close(x_adv, x + eps * direction, atol=atol, rtol=0)


def test_fgsm_is_one_clipped_signed_step():
    net, (x, y) = smooth_net(), data()
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(net(leaf), y), leaf)
    torch.testing.assert_close(FGSM(0.1)(net, x, y), (x + 0.1 * gradient.sign()).clamp(0, 1))
    step = 0.1 * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(FGSM(0.1, norm="l2")(net, x, y), (x + step).clamp(0, 1))


def noisy(x, size):
    torch.manual_seed(7)
    return x + size * torch.randn_like(x).sign()


def signed_gradient(net, x, y):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(net(leaf), y), leaf)[0].sign()


def test_rfgsm_of_tramer_spends_alpha_on_noise_and_the_rest_on_the_step():
    net, (x, y) = smooth_net(), data()
    start = noisy(x, 0.04).clamp(0, 1)
    expected = (start + 0.06 * signed_gradient(net, start, y)).clamp(0, 1)
    torch.manual_seed(7)
    torch.testing.assert_close(RFGSM(0.1, alpha=0.04)(net, x, y), expected)


def test_rfgsm_of_wong_steps_from_a_uniform_start_and_projects():
    net, (x, y) = smooth_net(), data()
    torch.manual_seed(7)
    start = (x + 0.1 * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    change = (start + 0.125 * signed_gradient(net, start, y) - x).clamp(-0.1, 0.1)
    torch.manual_seed(7)
    torch.testing.assert_close(RFGSM(0.1, variant="wong")(net, x, y), (x + change).clamp(0, 1))


def test_rfgsm_of_rmgm_leaves_the_ball_by_alpha():
    net, (x, y) = smooth_net(), data()
    start = noisy(x, 0.04)
    expected = (start + 0.1 * signed_gradient(net, start, y)).clamp(0, 1)
    torch.manual_seed(7)
    x_adv = RFGSM(0.1, alpha=0.04, variant="rmgm")(net, x, y)
    torch.testing.assert_close(x_adv, expected)
    assert (x_adv - x).abs().max() == pytest.approx(0.14, abs=1e-6)


# Hand-written loops.


def by_hand(net, x, y, start, *, eps, alpha, steps, norm="linf", momentum=0.0, clean=None, sign=1):
    """PGD in float64, as plainly as it can be written."""
    delta, velocity = start.double() - x.double(), torch.zeros_like(x.double())
    x, net = x.double(), net.double()
    points = []
    for _ in range(steps):
        leaf = (x + delta).requires_grad_()
        log_q = net(leaf).log_softmax(1)
        value = -log_q.gather(1, y[:, None]).sum() if clean is None else (clean.exp() * (clean - log_q)).sum()
        gradient = sign * torch.autograd.grad(value, leaf)[0]
        if momentum:
            velocity = momentum * velocity + gradient / gradient.abs().sum((1, 2, 3), keepdim=True)
            gradient = velocity
        if norm == "linf":
            delta = (delta + alpha * gradient.sign()).clamp(-eps, eps)
        else:
            delta = delta + alpha * gradient / gradient.square().sum((1, 2, 3), keepdim=True).sqrt()
            length = delta.square().sum((1, 2, 3), keepdim=True).sqrt()
            delta = torch.where(length > eps, delta * eps / length, delta)
        delta = (x + delta).clamp(0, 1) - x
        points.append((x + delta).float())
    net.float()
    return points


@pytest.mark.parametrize(("norm", "eps", "alpha"), [("linf", 0.1, 0.03), ("l2", 0.4, 0.15)])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("targeted", [False, True])
def test_pgd_equals_a_float64_loop_after_every_step(norm, eps, alpha, momentum, targeted):
    net, (x, y) = smooth_net(), data()
    attack = PGD(eps, alpha, steps=0, norm=norm, momentum=momentum, targeted=targeted)
    torch.manual_seed(3)
    start = attack(net, x, y)
    sign = -1 if targeted else 1
    points = by_hand(net, x, y, start, eps=eps, alpha=alpha, steps=6, norm=norm, momentum=momentum, sign=sign)
    for steps, point in enumerate(points, start=1):
        torch.manual_seed(3)
        torch.testing.assert_close(replace(attack, steps=steps)(net, x, y), point, atol=2e-6, rtol=0)


def test_kl_attack_compares_with_the_clean_logits():
    net, (x, y) = smooth_net(), data()
    attack = PGD(0.1, 0.03, steps=5, init="gaussian", loss=losses.kl, compare_with="clean_logits")
    torch.manual_seed(3)
    start = replace(attack, steps=0)(net, x, y)
    clean = net.double()(x.double()).log_softmax(1).detach()
    expected = by_hand(net, x, y, start, eps=0.1, alpha=0.03, steps=5, clean=clean)[-1]
    torch.manual_seed(3)
    torch.testing.assert_close(attack(net, x, y), expected, atol=2e-6, rtol=0)


def test_freezing_equals_a_loop_over_the_indices_that_are_still_correct():
    net, (x, _) = smooth_net(), data(32)
    y = net(x).argmax(1)
    y[:4] = (y[:4] + 1) % 5  # misclassified from the start
    eps, alpha, x_hand = 0.2, 0.02, x.clone()
    for _ in range(12):
        leaf = x_hand.clone().requires_grad_()
        logits = net(leaf)
        index = (logits.argmax(1) == y).nonzero()[:, 0]
        if not len(index):
            break
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y), leaf)
        moved = x_hand[index] + alpha * gradient[index].sign()
        x_hand[index] = torch.min(torch.max(moved, x[index] - eps), x[index] + eps).clamp(0, 1)
    x_adv = PGD(eps, alpha, steps=12, init="zero", freeze_misclassified=True)(net, x, y)
    torch.testing.assert_close(x_adv, x_hand)
    assert torch.equal(x_adv[:4], x[:4])
    wrong = net(x_adv).argmax(1) != y
    assert 4 < wrong.sum() < 32  # the case is not trivial


# Starts.


def test_zero_steps_return_the_start():
    net, (x, y) = smooth_net(), data()
    assert torch.equal(PGD(0.1, steps=0, init="zero")(net, x, y), x)
    assert 0 < (PGD(0.1, steps=0)(net, x, y) - x).abs().max() <= 0.1 + 1e-6


def test_the_start_does_not_share_memory_with_the_images():
    net, (x, y) = smooth_net(), data()
    PGD(0.1, steps=0, init="zero", clip_init=False)(net, x, y).zero_()
    assert x.abs().sum() > 0


def test_gaussian_starts_have_the_standard_deviation_of_trades():
    x, y = torch.full((500, *SHAPE), 0.5), torch.zeros(500, dtype=torch.int64)
    change = PGD(steps=0, init="gaussian")(smooth_net(), x, y) - x
    assert change.std() == pytest.approx(0.001, rel=0.05)
    assert PGD(steps=0, init="gaussian", init_size="1/255")(smooth_net(), x, y).std() == pytest.approx(
        1 / 255, rel=0.05
    )


def test_rademacher_starts_are_corners_of_the_ball():
    x, y = torch.full((50, *SHAPE), 0.5), torch.zeros(50, dtype=torch.int64)
    for size in (None, 0.05):
        change = PGD(0.1, steps=0, init="rademacher", init_size=size)(smooth_net(), x, y) - x
        torch.testing.assert_close(change.abs(), torch.full_like(x, size or 0.1))
        assert change.sign().mean().abs() < 0.15


@pytest.mark.parametrize("init", ["uniform", "gaussian", "rademacher"])
def test_starts_are_projected_unless_told_otherwise(init):
    x = torch.zeros(8, *SHAPE)
    attack = PGD(0.1, steps=0, init=init, init_size=0.3)
    start = attack.start(smooth_net(), x)
    assert start.min() >= 0
    assert start.max() <= 0.1 + 1e-6
    assert replace(attack, clip_init=False).start(smooth_net(), x).min() < -0.1


def test_a_sample_that_never_moves_from_an_unprojected_start_comes_back_into_the_threat_set():
    x, y = torch.zeros(8, *SHAPE), torch.zeros(8, dtype=torch.int64)
    for steps, freeze in ((0, False), (3, True)):
        attack = PGD(0.1, steps=steps, init="gaussian", init_size=0.5, clip_init=False, freeze_misclassified=freeze)
        x_adv = attack(smooth_net(), x, y)
        assert x_adv.min() >= 0
        assert x_adv.max() <= 0.1 + 1e-6


# Restarts.


def test_restarts_keep_a_break_before_a_larger_loss_and_the_larger_loss_otherwise():
    # Two pixels are the two logits; the label is 0. The loss rewards a small first pixel, broken or not.
    first = torch.tensor([[0.6, 0.7], [0.2, 0.1], [0.5, 0.1], [0.3, 0.4]])
    second = torch.tensor([[0.2, 0.1], [0.6, 0.7], [0.3, 0.1], [0.1, 0.2]])
    ends = iter([first, second])

    class Scripted(PGD):
        def run(self, net, x, y):
            return next(ends).clone()

    attack = Scripted(1.0, restarts=2, loss=lambda logits, y: -logits[:, 0])
    best = attack(nn.Identity(), first, torch.zeros(4, dtype=torch.int64))
    # broken first; broken second; neither: the larger loss; both: the larger loss
    torch.testing.assert_close(best, torch.stack([first[0], second[1], second[2], second[3]]))


def test_restarts_break_at_least_what_each_run_breaks():
    net, (x, _) = smooth_net(), data(64)
    y = net(x).argmax(1)
    attack = PGD(0.15, 0.05, steps=2)
    wrong = {
        (n, freeze): (net(replace(attack, restarts=n, freeze_misclassified=freeze)(net, x, y)).argmax(1) != y).sum()
        for n in (1, 6)
        for freeze in (False, True)
    }
    assert wrong[6, False] > wrong[1, False]
    assert wrong[6, True] > wrong[1, True]


def test_later_restarts_of_a_freezing_attack_see_survivors_only():
    net, (x, _) = smooth_net(), data(64)
    y = net(x).argmax(1)
    counting = Counting(net)
    PGD(0.15, 0.05, steps=2, restarts=3, freeze_misclassified=True)(counting, x, y)
    runs = [rows for rows, before in zip(counting.rows, [None, *counting.rows], strict=False) if rows != before]
    assert runs[0] == 64
    assert runs == sorted(runs, reverse=True)
    assert 0 < runs[-1] < 64


def test_an_attack_ends_when_nothing_is_left_to_break():
    net, (x, _) = Counting(smooth_net()), data()
    y = (net(x).argmax(1) + 1) % 5
    net.rows.clear()
    x_adv = PGD(0.1, 0.04, steps=10, init="zero", restarts=5, freeze_misclassified=True)(net, x, y)
    assert len(net.rows) == 2  # one to see it, one to compare runs
    assert torch.equal(x_adv, x)


class Wavering(nn.Module):
    """A net that misclassifies the first image in every second forward."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        lead = 2 - 0.1 * x.flatten(1).sum(1)
        flip = torch.tensor([-1.0 if self.calls % 2 == 0 else 1.0, 1.0])
        return torch.stack([lead * flip, torch.zeros(2)], dim=1)


def test_a_sample_that_becomes_correct_again_moves_again():
    x = torch.zeros(2, *SHAPE)
    attack = PGD(0.5, 0.01, steps=4, init="zero", loss=losses.margin, freeze_misclassified=True)
    x_adv = attack(Wavering(), x, torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(x_adv.amax((1, 2, 3)), torch.tensor([0.02, 0.04]))


# Cost.


@pytest.mark.parametrize(
    "extra", [{}, {"momentum": 0.9}, {"loss": losses.kl, "compare_with": "clean_logits"}], ids=named
)
def test_pgd_is_one_forward_and_one_backward_per_step(extra, monkeypatch):
    net, (x, y) = Counting(smooth_net()), data()
    backwards, grad = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **more: backwards.append(1) or grad(*args, **more))
    PGD(0.1, 0.04, steps=7, **extra)(net, x, y)
    assert len(net.rows) == 7 + ("compare_with" in extra)
    assert len(backwards) == 7


OUTSIDE = {"normalised": lambda x: (x - 0.13) / 0.3, "0 to 255": lambda x: 255 * x, "NaN": lambda x: x * torch.nan}


@pytest.mark.parametrize(
    "change", [lambda y: y * 0 - 100, lambda y: y - 1, lambda y: y + 50], ids=["-100", "-1", "+50"]
)
@pytest.mark.parametrize(
    "attack", [PGD(steps=1), FGSM(), NuclearNorm(), GAMAPGD(steps=2)], ids=lambda a: type(a).__name__
)
def test_labels_that_are_no_classes_are_refused(attack, change):
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.rand(4, 3, 2, 2)
    with pytest.raises(ValueError, match="label"):
        attack(net, x, change(torch.tensor([0, 1, 2, 0])))


@pytest.mark.parametrize("change", OUTSIDE)
@pytest.mark.parametrize("attack", ATTACKS, ids=named)
def test_images_outside_the_box_are_refused_and_not_clipped(attack, change):
    x, y = data()
    with pytest.raises(ValueError, match=r"^pixels .*eps"):
        attack(smooth_net(), OUTSIDE[change](x), y)


def test_images_that_the_caller_has_checked_are_not_checked_again():
    x, y = data()
    with checked():
        PGD(0.1)(smooth_net(), 2 * x, y)
    with pytest.raises(ValueError, match=r"^pixels "):
        PGD(0.1)(smooth_net(), 2 * x, y)


class NoHostSync(TorchDispatchMode):
    """Refuses operations that make the host wait for a value of the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        assert "_local_scalar_dense" not in name, "the host waits for the device"
        assert "nonzero" not in name, "the host waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("attack", [attack for attack in ATTACKS if getattr(attack, "restarts", 1) == 1], ids=named)
def test_the_host_never_waits_while_training(attack):
    net, (x, y) = smooth_net(), data()
    with checked(), NoHostSync():
        attack(net, x, y)


class Curriculum(PGD):
    """Moves the samples whose margin is small, as a training attack may."""

    def movers(self, net, x, y):
        return lambda x_adv, logits, gradient: losses.probability_margin(logits, y) <= 0


def test_an_attack_that_overrides_movers_needs_no_host_sync_either():
    net, (x, y) = smooth_net(), data(32)
    with checked(), NoHostSync():
        x_adv = Curriculum(0.1, init="zero")(net, x, y)
    moved = (x_adv != x).flatten(1).any(dim=1)
    assert torch.equal(moved, losses.probability_margin(net(x), y) <= 0)
    assert 0 < moved.sum() < 32


def test_the_check_for_host_syncs_can_fail():
    net, (x, y) = smooth_net(), data()
    with pytest.raises(AssertionError, match="the host waits"), NoHostSync():
        PGD(0.1, freeze_misclassified=True)(net, x, y)


# Side effects, and gradient modes.


@pytest.mark.parametrize("mode", [nullcontext, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("attack", ATTACKS, ids=named)
def test_every_attack_stays_in_its_set_in_every_gradient_mode(attack, mode):
    net = smooth_net()
    with mode():
        x, y = data()
        torch.manual_seed(1)
        x_adv = attack(net, x, y)
        change = (x_adv - x).flatten(1)
        size = change.norm(dim=1) if getattr(attack, "norm", "linf") == "l2" else change.abs().amax(1)
        assert (size > 0).all()
        assert (size <= attack.eps + 1e-6).all()
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1
    assert x_adv.dtype == torch.float32
    assert not x_adv.requires_grad
    torch.manual_seed(1)
    assert torch.equal(attack(net, x.clone(), y.clone()), x_adv)


def test_crafting_yields_tensors_that_a_graph_may_hold():
    with torch.inference_mode():
        images, labels = data()
        with crafting(images, labels) as (x, y):
            assert torch.is_grad_enabled()
            assert not x.is_inference()
            assert not y.is_inference()
        assert not torch.is_grad_enabled()
    assert torch.equal(x, images)
    with crafting(x, y) as (same, _):
        assert same.data_ptr() == x.data_ptr()  # no copy where none is needed


@pytest.mark.parametrize("attack", ATTACKS, ids=named)
def test_parameters_get_no_gradient_and_keep_the_one_they_have(attack):
    net, (x, y) = conv_net(), data()
    attack(net, x, y)
    assert all(parameter.grad is None for parameter in net.parameters())
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    attack(net, x, y)
    assert all((parameter.grad == 1).all() and parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize("attack", ATTACKS, ids=named)
def test_the_images_of_the_caller_stay_as_they_are(attack):
    net, (x, y) = smooth_net(), data()
    before = x.clone()
    attack(net, x.requires_grad_(), y)
    assert torch.equal(x, before)
    assert x.grad is None


@pytest.mark.parametrize("attack", ATTACKS, ids=named)
def test_attacks_keep_the_memory_format(attack):
    net, x, y = (
        conv_net().to(memory_format=torch.channels_last),
        torch.rand(4, 1, 4, 4),
        torch.randint(5, (4,)),
    )
    net[0] = nn.Conv2d(3, 4, 3, padding=1).to(memory_format=torch.channels_last)
    x = torch.rand(4, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    assert attack(net, x, y).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_losses_are_float32_under_autocast(loss):
    net, (x, y) = smooth_net(), data()
    seen = []

    def watched(logits, y):
        seen.append((logits.dtype, loss(logits, y).dtype))
        return loss(logits, y)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        x_adv = PGD(0.1, 0.04, steps=3, loss=watched)(net, x, y)
    assert set(seen) == {(torch.bfloat16, torch.float32)}
    assert x_adv.dtype == torch.float32
    assert (x_adv - x).abs().max() <= 0.1 + 1e-6


def test_training_after_an_attack_in_the_same_autocast_still_gets_gradients():
    net, (x, y) = smooth_net(), data()
    attack = PGD(0.1, 0.04, steps=2, init="gaussian", loss=losses.kl, compare_with="clean_logits")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses.ce(net(attack(net, x, y)), y).mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())


def test_eval_mode_leaves_batch_norm_alone_and_train_mode_updates_it():
    net, (x, y) = conv_net(), data()
    before = net[1].running_mean.clone()
    with network_mode(net, "eval"):
        PGD(0.1, 0.04, steps=2)(net, x, y)
    assert torch.equal(net[1].running_mean, before)
    with network_mode(net, "train"):
        PGD(0.1, 0.04, steps=2)(net, x, y)
    assert net[1].num_batches_tracked == 2


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("fails", [False, True])
def test_network_mode_restores_every_modules_own_flag(mode, fails):
    net = conv_net()
    net[1].eval()
    before = [module.training for module in net.modules()]
    with pytest.raises(RuntimeError, match="broken") if fails else nullcontext(), network_mode(net, mode):
        assert [module.training for module in net.modules()] == [mode == "train" and flag for flag in before]
        if fails:
            raise RuntimeError("broken")
    assert [module.training for module in net.modules()] == before
    assert len(set(before)) == 2


def test_train_mode_within_eval_mode_is_the_mode_before_it():
    net = conv_net()
    net[1].eval()
    before = [module.training for module in net.modules()]
    with network_mode(net, "eval"), network_mode(net, "eval"):
        around = nn.Sequential(net).eval()
        with network_mode(around, "train"):
            assert around.training
            assert [module.training for module in net.modules()] == before
            with network_mode(net, "eval"):
                assert not any(module.training for module in net.modules())
    net.eval()
    with network_mode(net, "train"):
        assert all(module.training for module in net.modules())


def test_a_net_in_eval_mode_is_put_into_train_mode_by_its_own_method():
    class Freezes(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[1].eval()
            return self

    net = Freezes(*conv_net()).eval()
    with network_mode(net, "train"):
        assert [module.training for module in net] == [module is not net[1] for module in net]
    assert not any(module.training for module in net.modules())


@pytest.mark.parametrize("fails", [False, True])
def test_frozen_restores_every_parameters_own_flag(fails):
    net, (x, y) = conv_net(), data()
    net[0].weight.requires_grad_(False)
    before = [parameter.requires_grad for parameter in net.parameters()]
    with pytest.raises(RuntimeError, match="broken") if fails else nullcontext(), frozen(net):
        assert not any(parameter.requires_grad for parameter in net.parameters())
        PGD(0.1, steps=1)(net, x, y)
        if fails:
            raise RuntimeError("broken")
    assert [parameter.requires_grad for parameter in net.parameters()] == before


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_vanished_gradient_moves_nothing_and_gives_no_nan(norm, momentum):
    net, (x, y) = axis_net(torch.zeros(SHAPE)), data(classes=2)
    assert torch.equal(PGD(0.1, init="zero", norm=norm, momentum=momentum)(net, x, y), x)


def test_an_eps_of_zero_returns_the_images():
    net, (x, y) = smooth_net(), data()
    for attack in ATTACKS[:3] + ATTACKS[4:6]:
        torch.testing.assert_close(replace(attack, eps=0)(net, x, y), x, atol=1e-7, rtol=0)


# Arguments.


def test_magnitudes_are_read_from_fractions_and_kept_as_floats():
    attack = PGD(eps="8/255", step_size="2/255", init_size="1/255")
    assert attack == PGD(8 / 255, 2 / 255, init_size=1 / 255) == replace(PGD(step_size=2 / 255), init_size=1 / 255)
    values = (attack.eps, attack.step_size, attack.init_size, FGSM().eps, AutoAttack().eps)
    assert all(isinstance(value, float) for value in values)  # that remember how they were written
    assert replace(attack, eps="4/255").eps == 4 / 255
    assert PGD(eps=3.0, step_size=2.0, norm="l2").eps == 3.0


def test_attacks_are_values():
    assert PGD() == PGD()
    assert PGD() != PGD(steps=11)
    assert len({PGD(), PGD(), FGSM()}) == 2
    with pytest.raises(FrozenInstanceError):
        PGD().eps = 0.1


@pytest.mark.parametrize(
    ("attack", "arguments", "named"),
    [
        (PGD, {"eps": 8}, "eps="),
        (PGD, {"step_size": 2}, "step_size="),
        (PGD, {"init_size": 2}, "init_size="),
        (FGSM, {"eps": 8}, "eps="),
        (RFGSM, {"eps": 8}, "eps="),
        (RFGSM, {"alpha": 8}, "alpha="),
        (AutoAttack, {"eps": 8}, "eps="),
        (PGD, {"eps": -0.1}, "eps="),
        (PGD, {"eps": "8/0"}, "eps="),
        (PGD, {"step_size": float("nan")}, "step_size="),
        (PGD, {"steps": -1}, "steps="),
        (PGD, {"steps": 2.5}, "steps="),
        (PGD, {"restarts": 0}, "restarts="),
        (PGD, {"norm": "l1"}, "norm="),
        (FGSM, {"norm": "l1"}, "norm="),
        (PGD, {"init": "noise"}, "init="),
        (PGD, {"compare_with": "y"}, "compare_with="),
        (PGD, {"momentum": -1}, "momentum="),
        (PGD, {"compare_with": "clean_logits"}, "loss=ce .*compare_with="),
        (PGD, {"loss": losses.kl}, "loss=kl .*compare_with="),
        (PGD, {"loss": losses.kl, "compare_with": "clean_logits", "init": "zero"}, "init="),
        (PGD, {"loss": losses.kl, "compare_with": "clean_logits", "targeted": True}, "compare_with=.*targeted="),
        (RFGSM, {"variant": "fast"}, "variant="),
        (RFGSM, {"eps": 0.1, "alpha": 0.2}, "alpha=0.2 .*eps=0.1"),
        (AutoAttack, {"version": "v2"}, "version="),
        (AutoAttack, {"norm": "l1"}, "norm="),
        (AutoAttack, {"batch_size": 0}, "batch_size="),
        (AutoAttack, {"seed": -1}, "seed="),
    ],
    ids=named,
)
def test_bad_arguments_are_refused_by_name(attack, arguments, named):
    with pytest.raises(ValueError, match=f"^{named}"):
        attack(**arguments)


def test_a_loss_that_is_no_function_is_refused():
    with pytest.raises(TypeError, match=r"^loss='ce'"):
        PGD(loss="ce")


def test_a_loss_that_averages_is_refused():
    net, (x, y) = smooth_net(), data()
    with pytest.raises(ValueError, match=r"loss .* 8 samples .*\(\)"):
        PGD(loss=F.cross_entropy)(net, x, y)


def test_images_that_are_integers_are_refused():
    net, (x, y) = smooth_net(), data()
    with pytest.raises(ValueError, match=r"images .*torch\.uint8"):
        PGD()(net, (255 * x).byte(), y)


MARGIN = "lit_robust.losses.margin"


def test_attacks_are_read_from_yaml_and_written_back_as_they_came():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Attack, "attack")
    config = parser.parse_object(
        {
            "attack": {
                "class_path": "PGD",
                "init_args": {"eps": "4/255", "step_size": "1/255", "loss": MARGIN},
            }
        }
    )
    text = parser.dump(config)
    for line in ("eps: 4/255", "step_size: 1/255", f"loss: {MARGIN}"):
        assert line in text
    build = getattr(parser, "instantiate", None) or parser.instantiate_classes  # renamed in jsonargparse 4.49
    assert build(parser.parse_string(text)).attack == PGD(4 / 255, 1 / 255, loss=losses.margin)


@pytest.mark.parametrize("attack", [PGD(steps=1), FGSM(), GAMAPGD(steps=1)], ids=lambda attack: type(attack).__name__)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool])
def test_one_hot_integers_are_refused_by_what_to_give_instead(attack, dtype):
    batch = images(8)
    one_hot = torch.nn.functional.one_hot(batch.y, CLASSES).to(dtype)
    with pytest.raises(ValueError, match=r"^labels of shape \(8, 4\) .*argmax"):
        attack(TinyNet(), batch.x, one_hot)


def test_soft_labels_are_those_of_the_classes_where_they_are_certain():
    batch = images(8)
    soft = torch.nn.functional.one_hot(batch.y, CLASSES).float()
    attack = FGSM(eps=0.1)
    assert torch.equal(attack(TinyNet(), batch.x, soft), attack(TinyNet(), batch.x, batch.y))


# An attack that is called by itself, on whatever a user has.


class Object(nn.Module):
    """Returns an object with logits, such as a net of transformers."""

    def __init__(self):
        super().__init__()
        self.net = smooth_net()

    def forward(self, x):
        return SimpleNamespace(logits=self.net(x))


@pytest.mark.parametrize("attack", ATTACKS, ids=named)
def test_the_logits_of_an_object_are_taken(attack):
    net, (x, y) = Object(), data()
    torch.manual_seed(0)
    expected = attack(net.net, x, y)
    torch.manual_seed(0)
    assert torch.equal(attack(net, x, y), expected)
    assert not net._forward_hooks


class Returns(nn.Module):
    """Returns something made of logits."""

    def __init__(self, change):
        super().__init__()
        self.net, self.change = smooth_net(), change

    def forward(self, x):
        return self.change(self.net(x))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda z: (z, z), r"\(Returns\) returns tuple "),
        (lambda z: {"logits": z}, "returns dict "),
        (lambda z: None, "returns NoneType "),
        (lambda z: z.sum(dim=1), r"returns a tensor .*\(\d+,\) "),
        (lambda z: z.argmax(dim=1, keepdim=True), "returns logits of torch.int64"),
        (lambda z: z * torch.nan, "NaN or infinite"),
        (lambda z: z.to(torch.complex64), "returns logits of torch.complex64"),
        (lambda z: z[:, :1], r"labels .*\(Returns\) returns 1 logits"),
    ],
)
@pytest.mark.parametrize("attack", [PGD(0.1, steps=2), FGSM(0.1), Square(0.1, queries=2)], ids=named)
def test_a_net_whose_output_is_no_use_to_an_attack_is_refused(attack, change, told):
    with pytest.raises(ValueError, match=told):
        attack(Returns(change), *data())


@pytest.mark.parametrize(
    ("x", "y", "error", "told"),
    [
        (lambda x: x.tolist(), lambda y: y, TypeError, "^x="),
        (lambda x: x.numpy(), lambda y: y, TypeError, "^x="),
        (lambda x: x, lambda y: None, TypeError, "^y=None"),
        (lambda x: x[0], lambda y: y[0], ValueError, "labels of shape"),
        (lambda x: x, lambda y: y[:3], ValueError, r"labels of shape \(3,\) for"),
        (lambda x: x.repeat(1, 5, 1, 1), lambda y: y, ValueError, r"cannot read .* torch\.float32 \("),
        (lambda x: x.half(), lambda y: y, ValueError, r"cannot read .* torch\.float16 \("),
    ],
)
@pytest.mark.parametrize("attack", [PGD(0.1, steps=2), FGSM(0.1), Square(0.1, queries=2)], ids=named)
def test_images_and_labels_that_no_attack_can_use_are_refused(attack, x, y, error, told):
    images, labels = data()
    with pytest.raises(error, match=told):
        attack(smooth_net(), x(images), y(labels))


def test_an_error_of_an_attack_that_has_begun_is_not_the_images():
    class Breaks(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            if self.calls > 1:
                raise RuntimeError("a defect")
            return x.flatten(1)[:, :10]

    with pytest.raises(RuntimeError, match=r"^a defect$"):
        PGD(0.1, steps=3)(Breaks(), *data())


@pytest.mark.parametrize("value", [3, [3]], ids=["hashable", "unhashable"])
def test_an_attack_that_refuses_its_arguments_is_built_only_once(value):
    built = []

    @made_once
    def build(value):
        built.append(value)
        raise TypeError("refused")

    with pytest.raises(TypeError, match="refused"):
        build(value)
    assert built == [value]
