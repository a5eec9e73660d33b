"""Which point of its run PGD keeps, gradients averaged over passes, and images that leave the batch."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lit_robust import losses
from lit_robust.attacks import CWPGD, GAMAFW, GAMAPGD, PGD, CurriculumPGD, MultiTargetedPGD, Square, TargetedPGD
from lit_robust.attacks.base import input_gradient
from lit_robust.attacks.difficulty import ProbabilityGap
from lit_robust.attacks.guided import GuidedPGD
from lit_robust.attacks.passes import Passes, badness
from lit_robust.batch import Batch
from lit_robust.guards import checked, may_shrink, smaller_batches
from lit_robust.measures import accuracy
from lit_robust.measures.accuracy import surviving
from lit_robust.measures.correct import is_correct
from lit_robust.measures.default_attacks import default_test
from lit_robust.nets import digits_cnn
from tests.test_attacks import Counting, NoHostSync, axis_net, smooth_net
from tests.tiny import named
from tests.trained import TRAINED, held_out, trained

EPS = 0.15
KEEP_WORST = [
    PGD(EPS, steps=25, keep="worst"),
    PGD(EPS, steps=25, keep="worst", loss=losses.margin, momentum=0.9),
    PGD(1.0, steps=25, keep="worst", norm="l2"),
    PGD(EPS, steps=25, keep="worst", freeze_misclassified=True),
    CWPGD(EPS, steps=25, keep="worst"),
    TargetedPGD(EPS, steps=25, keep="worst"),
    MultiTargetedPGD(EPS, steps=15, targets=2, keep="worst"),
    GAMAPGD(EPS, steps=25, keep="worst"),
    GAMAPGD(EPS, steps=60, keep="worst", guide="clean", freeze_misclassified=True),
    GAMAFW(EPS, steps=25, keep="worst", guide="clean"),
    CurriculumPGD(EPS, steps=25, keep="worst", psi=ProbabilityGap(), lam=0.9),
]


def data(n=16):
    return torch.rand(n, 1, 4, 4), torch.randint(5, (n,))


def crafted(attack, net, x, y, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return attack(net, x, y)


class Peak(nn.Module):
    """Two logits of one pixel: the second leads most where the pixel is 0.55, and not at all."""

    def forward(self, x):
        return torch.stack([torch.zeros(len(x)), -(x.flatten(1).sum(1) - 0.55).abs() - 0.01], dim=1)


# The worst point.


def test_on_a_linear_net_the_worst_point_is_the_corner():
    v, x, y = torch.randn(1, 4, 4), torch.rand(16, 1, 4, 4), torch.arange(16) % 2
    corner = (x + 0.1 * (1 - 2 * y).view(-1, 1, 1, 1) * v.sign()).clamp(0, 1)
    x_adv = PGD(0.1, steps=10, keep="worst")(axis_net(v), x, y)
    torch.testing.assert_close(x_adv, corner, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("start", "steps", "last", "worst"),
    [
        (0.50, 1, 0.70, 0.50),  # the start
        (0.62, 3, 0.42, 0.62),
        (0.42, 3, 0.62, 0.62),  # the last point, which costs a forward of its own
        (0.42, 2, 0.42, 0.62),  # one between them
    ],
)
@pytest.mark.parametrize("y", [0, 1])
def test_where_a_run_swings_around_the_peak_the_worst_of_its_points_is_kept(start, steps, last, worst, y):
    x, attack = torch.full((3, 1, 1, 1), start), PGD(0.5, 0.2, steps=steps, init="zero", targeted=y == 1)
    y = torch.full((3,), y)  # with `targeted` the second class is to be reached
    torch.testing.assert_close(attack(Peak(), x, y), torch.full_like(x, last))
    torch.testing.assert_close(replace(attack, keep="worst")(Peak(), x, y), torch.full_like(x, worst))


def test_restarts_are_compared_by_their_margins():
    x, y = torch.full((64, 1, 1, 1), 0.3), torch.zeros(64, dtype=torch.int64)
    attack = PGD(0.3, steps=0, keep="worst")
    one, six = (crafted(replace(attack, restarts=n, loss=lambda z, y: -z[:, 1]), Peak(), x, y) for n in (1, 6))
    assert ((six - 0.55).abs() <= (one - 0.55).abs()).all()
    assert (six - 0.55).abs().mean() < 0.5 * (one - 0.55).abs().mean()


def test_misclassified_is_worse_than_any_margin_and_logits_that_are_not_finite_are_misclassified():
    nan, inf = torch.nan, torch.inf
    logits = torch.tensor([[1.0, 1.0], [1.0, 0.0], [nan, 0.0], [inf, 0.0], [0.0, 1.0]])
    broken, margin = badness(logits, torch.zeros(5, dtype=torch.int64), targeted=False)
    assert broken.tolist() == [False, False, True, True, True]
    assert margin.tolist() == [0, -1, -inf, -inf, 1]
    broken, margin = badness(logits, torch.tensor([0, 0, 0, 0, 0]), targeted=True)
    assert broken.tolist() == [True, True, False, False, False]
    assert margin[[0, 1, 4]].tolist() == [0, 1, -1]


class BreaksDown(nn.Module):
    """Sure of class 0 at the image, and NaN a little away from it."""

    def forward(self, x):
        pixel = x.flatten(1)
        return torch.cat([1 - pixel, pixel - 1], dim=1).masked_fill((pixel - 0.5).abs() > 0.04, torch.nan)


@pytest.mark.parametrize(
    "attack",
    [PGD(0.1, steps=0, restarts=25), PGD(0.1, keep="worst"), GAMAPGD(0.1), MultiTargetedPGD(0.1), Square(0.1)],
    ids=named,
)
def test_an_image_of_class_0_is_broken_where_its_logits_become_nan(attack):
    x, y = torch.full((8, 1, 1, 1), 0.5), torch.zeros(8, dtype=torch.int64)
    assert is_correct(BreaksDown(), x, y).all()
    with checked():  # an attack by itself refuses such a net if the first start is away from the image
        x_adv = crafted(attack, BreaksDown(), x, y)
    assert not is_correct(BreaksDown(), x_adv, y).any()


@pytest.mark.parametrize("attack", KEEP_WORST, ids=named)
@pytest.mark.parametrize("name", TRAINED)
def test_the_worst_point_is_at_least_as_strong_as_the_last_one_on_every_trained_net(name, attack):
    net, (x, y) = trained(name), held_out()
    x, y = x[:100], y[:100]
    worst, last = (crafted(one, net, x, y) for one in (attack, replace(attack, keep="last")))
    (breaks, margin), (breaks_last, margin_last) = (badness(net(x_adv), y, targeted=False) for x_adv in (worst, last))
    assert not (breaks_last & ~breaks).any()
    assert (margin >= margin_last - 1e-4).all()
    change = (worst - x).flatten(1)
    assert (change.norm(dim=1) if attack.norm == "l2" else change.abs().amax(1)).max() <= attack.eps + 1e-5
    assert worst.min() >= 0
    assert worst.max() <= 1


def test_a_start_outside_the_threat_set_is_not_kept():
    x, y = torch.zeros(8, 1, 4, 4), torch.zeros(8, dtype=torch.int64)
    for steps, freeze in ((0, False), (1, True), (3, True)):
        attack = PGD(0.1, steps=steps, init="gaussian", init_size=0.5, clip_init=False, freeze_misclassified=freeze)
        x_adv = replace(attack, keep="worst")(smooth_net(), x, y)
        assert x_adv.min() >= 0
        assert x_adv.max() <= 0.1 + 1e-6


# The last point and a single pass stay as they are, bit for bit.


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_last_point_of_single_passes_is_that_of_the_plain_loop_bit_for_bit(momentum):
    net, (x, y) = smooth_net(), data()
    attack = PGD(0.1, 0.03, steps=7, momentum=momentum)
    torch.manual_seed(0)
    x_adv, velocity = attack.start(net, x), torch.zeros(())
    for _ in range(7):
        x_adv.requires_grad_()
        (gradient,) = torch.autograd.grad(losses.ce(net(x_adv), y).sum(), x_adv)
        size = gradient.abs().sum(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        velocity = momentum * velocity + gradient / size if momentum else gradient
        x_adv = attack.threat.project(x_adv.detach() + 0.03 * velocity.sign(), x)
    assert torch.equal(crafted(attack, net, x, y), x_adv)
    assert torch.equal(crafted(replace(attack, keep="last", eot=1), net, x, y), x_adv)


# Cost.


@pytest.mark.parametrize(
    ("keep", "eot", "forwards"), [("last", 1, 7), ("worst", 1, 8), ("last", 3, 21), ("worst", 3, 24)]
)
def test_the_worst_point_costs_one_more_forward_and_eot_multiplies_all(keep, eot, forwards, monkeypatch):
    net, (x, y) = Counting(smooth_net()), data()
    backwards, grad = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **more: backwards.append(1) or grad(*args, **more))
    with checked(), NoHostSync():
        PGD(0.1, steps=7, keep=keep, eot=eot)(net, x, y)
    assert len(net.rows) == forwards
    assert len(backwards) == 7 * eot


# Expectation over transformation.


def dropping(net):
    """The net behind a dropout that is left on."""
    drop = nn.Dropout(0.3).train()
    return nn.Sequential(drop, net.eval())


def test_gradient_and_logits_are_the_means_of_those_of_the_passes():
    net, (x, y) = dropping(smooth_net()), data()
    torch.manual_seed(1)
    logits, gradients = [], []
    for _ in range(4):
        leaf = x.clone().requires_grad_()
        logits.append(net(leaf))
        gradients.append(input_gradient(losses.ce(logits[-1], y), leaf))
    torch.manual_seed(1)
    leaf = x.clone().requires_grad_()
    mean_logits, mean = Passes(net, eot=4).gradient(lambda x_adv, logits, k: losses.ce(logits, y), leaf, 0)
    torch.testing.assert_close(mean, sum(gradients) / 4)
    torch.testing.assert_close(mean_logits, sum(logits) / 4)
    assert not torch.allclose(mean, gradients[0], rtol=0.1)
    torch.manual_seed(1)
    torch.testing.assert_close(Passes(net, eot=4).forward(x), mean_logits)
    attack = PGD(0.5, 0.1, steps=1, norm="l2", init="zero", eot=4)
    torch.testing.assert_close(crafted(attack, net, x, y, seed=1), attack.step(net, x, x, mean, 0))


def test_eot_sees_through_a_dropout_that_is_left_on():
    (x, y), inner = held_out(), trained("pgd")
    x, y, net = x[:300], y[:300], dropping(inner)
    by_margin = {
        eot: losses.margin(torch.stack([net(x_adv) for _ in range(30)]).mean(0), y).mean()
        for eot in (1, 10)
        for x_adv in [crafted(PGD(EPS, steps=10, eot=eot), net, x, y)]
    }
    assert by_margin[10] > by_margin[1] + 0.1


@pytest.mark.parametrize("eot", [0, 1.5, True])
def test_numbers_of_passes_and_points_to_keep_are_checked(eot):
    with pytest.raises((TypeError, ValueError), match="eot="):
        PGD(eot=eot)
    with pytest.raises(ValueError, match="keep="):
        PGD(keep="best")


# Images that leave the batch.


@pytest.mark.parametrize("attack", KEEP_WORST, ids=named)
@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_images_that_leave_the_batch_change_nothing_for_the_others(name, attack):
    (x, y), net = held_out(), Counting(trained(name)).eval()
    x, y = x[:100], y[:100]
    whole = crafted(attack, net, x, y)
    assert set(net.rows) == {100}
    net.rows.clear()
    with smaller_batches():
        smaller = crafted(attack, net, x, y)
    assert 0 < min(net.rows) < 100
    left = net(whole).argmax(1) == y
    assert torch.equal(left, net(smaller).argmax(1) == y)
    assert left.any()
    torch.testing.assert_close(smaller[left], whole[left], atol=1e-5, rtol=0)


def test_a_run_ends_when_all_images_have_left():
    (x, y), net = held_out(), Counting(trained("natural")).eval()
    with smaller_batches():
        x_adv = PGD(0.6, steps=40, keep="worst")(net, x, y)
    assert len(net.rows) < 40
    assert not (net(x_adv).argmax(1) == y).any()


def compiled(net):
    net.compile(backend="eager")
    return net


REFUSED = {
    "the last point is kept": (lambda net: net, PGD(EPS, steps=25)),
    "a layer in train mode": (lambda net: nn.Sequential(nn.Dropout(0.1), net), PGD(EPS, steps=25, keep="worst")),
    "compiled in place": (lambda net: compiled(net), PGD(EPS, steps=25, keep="worst")),
    "compiled": (lambda net: torch.compile(net, backend="eager"), PGD(EPS, steps=25, keep="worst")),
    "a norm of the batch": (
        lambda net: net,
        GuidedPGD(EPS, steps=25, keep="worst", penalty=lambda z, clean: losses.nuclear_norm(z - clean), lam=1.0),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_images_stay_where_the_batch_or_its_shape_matters(case):
    (x, y), (wrap, attack), seen = held_out(), REFUSED[case], []
    inner = digits_cnn(width=8).eval()
    inner.load_state_dict(trained("fgsm").state_dict())
    inner.register_forward_pre_hook(lambda net, args: seen.append(len(args[0])))
    with smaller_batches():
        attack(wrap(inner), x[:50], y[:50])
    assert set(seen) == {50}


@pytest.mark.parametrize("captures", [False, True])
def test_whether_a_gpu_captures_a_graph_is_asked_without_the_driver(monkeypatch, captures):
    """It is asked in every step; the driver would take longer than a pass of a small net."""

    def driver():
        raise AssertionError("the driver was asked")

    net = digits_cnn(width=8).eval()
    monkeypatch.setattr(torch.cuda, "device_count", driver)
    with smaller_batches():
        assert may_shrink(net)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: captures)
        assert may_shrink(net) is not captures


def test_a_test_lets_images_leave_and_training_does_not():
    (x, y), net = held_out(), Counting(trained("fgsm")).eval()
    attack = PGD(EPS, steps=25, keep="worst")
    surviving(net, {"pgd": attack}, Batch(x, y, y, torch.ones(len(x))))
    assert min(net.rows) < len(x)
    net.rows.clear()
    attack(net, x, y)
    assert set(net.rows) == {len(x)}


# The test.


def test_an_image_that_is_wrong_without_an_attack_is_broken_in_every_row_although_the_attack_would_right_it():
    class Wrong(nn.Module):
        """The label 0 at every pixel but those of clean images, 0.5."""

        def forward(self, x):
            moved = (x.flatten(1) - 0.5).abs().sum(1)
            return torch.stack([moved - 1e-3, torch.zeros(len(x))], dim=1)

    x, y = torch.full((2, 1, 2, 2), 0.5), torch.zeros(2, dtype=torch.int64)
    found = surviving(Wrong(), {"pgd": PGD(0.1, steps=0)}, Batch(x, y, y, torch.ones(2)))
    assert accuracy.is_correct(Wrong(), PGD(0.1, steps=0)(Wrong(), x, y), y).all()
    assert not found["clean"].any()
    assert not found["pgd"].any()


def test_the_default_test_keeps_the_worst_point_under_three_losses():
    attacks = default_test(EPS)
    assert {name: (a.keep, a.loss, a.steps, a.eps) for name, a in attacks.items()} == {
        "pgd20": ("worst", losses.ce, 20, EPS),
        "pgd20_margin": ("worst", losses.margin, 20, EPS),
        "gama40": ("worst", losses.probability_margin, 40, EPS),
    }
    assert {a.norm for a in default_test(1.0, "l2").values()} == {"l2"}


@pytest.mark.parametrize("name", TRAINED)
def test_the_default_test_is_at_least_as_strong_as_the_papers_pgd_20(name):
    (x, y), net = held_out(), trained(name)
    attacks = {**default_test(EPS), "paper": PGD(EPS, EPS / 4, steps=20)}
    found = surviving(net, attacks, Batch(x, y, y, torch.ones(len(x))))
    assert not (found["pgd20"] & ~found["paper"]).any()  # they start at the same points
