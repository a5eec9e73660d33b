"""GAMA-PGD and GAMA-FW against their authors' formulas, in float64 and on trained nets."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from lit_robust import losses
from lit_robust.attacks import GAMAFW, GAMAPGD, PGD
from lit_robust.defenses import TRADES, CurriculumAT
from tests.formulas import smooth_net
from tests.methods import build
from tests.test_attacks import Counting, axis_net
from tests.tiny import images, named
from tests.trained import TRAINED, held_out, trained

both = pytest.mark.parametrize("attack", [GAMAPGD, GAMAFW])
NORMS = [("linf", 0.1), ("l2", 0.5)]


# As the authors' scripts have it: the reference is computed anew in every step, and the weight is counted down.


def margin_of_probabilities(q, y):
    correct = q.gather(1, y[:, None])[:, 0]
    return (q - 1000 * F.one_hot(y, q.shape[1])).amax(1) + 0 * correct - correct


def ascent(gradient, norm):
    if norm == "linf":
        return gradient.sign()
    return gradient / gradient.square().sum((1, 2, 3), keepdim=True).sqrt()


def into_the_set(x_adv, x, eps, norm):
    if norm == "linf":
        return (x_adv.clamp(0, 1) - x).clamp(-eps, eps) + x
    length = (x_adv - x).square().sum((1, 2, 3), keepdim=True).sqrt()
    return (x + (x_adv - x) * (eps / length).clamp(max=1)).clamp(0, 1)


def by_the_authors(kind, net, x, y, start, *, eps, steps, norm="linf", guide="start", step_size=None):
    """Their loop with the times in proportion to the steps; returns the points after each step."""
    size, gamma, weight, until = step_size or 2 * eps, 0.5, 50.0, steps // 4
    reference, x_adv, points = start if guide == "start" else x, start, []
    for step in range(steps):
        if step in (steps * 60 // 100, steps * 85 // 100):
            size, gamma = size / 10, gamma / 5
        x_adv = x_adv.detach().requires_grad_()
        q = net(x_adv).softmax(1)
        cost = margin_of_probabilities(q, y)
        if step <= until:
            p = net(reference).softmax(1).detach()
            cost = cost + weight * (q - p).square().sum(1)
            weight -= 50.0 / until
        direction = ascent(torch.autograd.grad(cost.sum(), x_adv)[0], norm)
        with torch.no_grad():
            if kind is GAMAPGD:
                moved = x_adv + size * direction
            else:
                moved = x + (1 - gamma) * (x_adv - x) + gamma * eps * direction
            x_adv = into_the_set(moved, x, eps, norm)
        points.append(x_adv)
    return points


@both
@pytest.mark.parametrize("guide", ["start", "clean"])
@pytest.mark.parametrize(("norm", "eps"), NORMS)
def test_every_step_is_the_authors(attack, guide, norm, eps):
    net, batch, seen = smooth_net(), images(12), []
    net.register_forward_pre_hook(lambda net, args: seen.append(args[0].detach()))
    found = attack(eps, steps=20, norm=norm, guide=guide)(net, batch.x, batch.y)
    starts = [*seen[guide == "clean" :], found]
    assert len(starts) == 21
    net, x = smooth_net().double(), batch.x.double()
    points = by_the_authors(attack, net, x, batch.y, starts[0].double(), eps=eps, steps=20, norm=norm, guide=guide)
    for mine, theirs in zip(starts[1:], points, strict=True):
        torch.testing.assert_close(mine, theirs.float(), atol=2e-5, rtol=0)


# Closed forms.


@both
@pytest.mark.parametrize(("norm", "eps"), NORMS)
def test_the_worst_case_of_a_linear_net_is_reached(attack, norm, eps):
    v = torch.randn(1, 4, 4)
    x, y = 0.45 + 0.1 * torch.rand(16, 1, 4, 4), torch.arange(16) % 2
    sign = (1 - 2 * y).view(-1, 1, 1, 1)
    x_adv = attack(eps, norm=norm)(axis_net(v), x, y)
    expected = x + eps * sign * (v.sign() if norm == "linf" else v / v.norm())
    torch.testing.assert_close(x_adv, expected, atol=1e-5, rtol=0)


def test_a_frank_wolfe_step_goes_half_of_the_way_to_the_corner():
    v, x, y = torch.randn(1, 4, 4), torch.full((4, 1, 4, 4), 0.5), torch.zeros(4, dtype=torch.int64)
    x_adv = GAMAFW(0.1, steps=2, lam=0, drops=[0.5]).run(axis_net(v), x, y, x.clone())
    reached = 0.5 + 0.5 * (1 - 0.5) / 5  # half of the way, then a tenth of the rest
    torch.testing.assert_close(x_adv, x + 0.1 * reached * v.sign())


@both
def test_a_run_starts_in_a_corner_of_the_ball_outside_the_box_too(attack):
    x, seen = torch.cat([torch.zeros(8, 3, 8, 8), torch.rand(8, 3, 8, 8)]), []
    net = smooth_net()
    net.register_forward_pre_hook(lambda net, args: seen.append(args[0].detach()))
    attack(0.1, steps=1)(net, x, torch.zeros(16, dtype=torch.int64))
    torch.testing.assert_close((seen[0] - x).abs(), torch.full_like(x, 0.1))
    assert (seen[0] < -0.05).any()
    start = attack(0.1, steps=0)(net, x, torch.zeros(16, dtype=torch.int64))
    assert start.min() >= 0
    in_l2 = attack(0.5, norm="l2").start(net, torch.full_like(x, 0.5))
    torch.testing.assert_close((in_l2 - 0.5).flatten(1).norm(dim=1), torch.full((16,), 0.5))


# The schedule.


def test_the_weight_and_the_step_follow_the_published_schedule():
    attack, weight, size = GAMAPGD("8/255"), 50.0, 16 / 255
    for step in range(100):
        size = size / 10 if step in (60, 85) else size
        assert attack.weight(step) == pytest.approx(max(weight, 0))
        assert attack.step_length / attack.shortened(step) == pytest.approx(size)
        weight -= 2
    assert [GAMAFW().gamma / GAMAFW().shortened(step) for step in (59, 60, 85)] == pytest.approx([0.5, 0.1, 0.02])


def test_the_schedule_keeps_its_shape_in_fewer_steps_and_the_step_follows_eps():
    attack = GAMAPGD(0.1, steps=20)
    assert [attack.weight(step) for step in (0, 1, 5, 20)] == pytest.approx([50, 40, 0, 0])
    assert [attack.shortened(step) for step in (11, 12, 16, 17)] == [1, 10, 10, 100]
    assert replace(attack, eps=0.02).step_length == pytest.approx(0.04)
    assert replace(attack, eps=0.02, step_size=0.03).step_length == 0.03
    assert replace(GAMAFW(), eps=0.02).step_length == pytest.approx(0.02)


def test_the_first_objective_is_the_margin_alone_and_later_ones_add_the_squared_distance():
    batch, net = images(8), smooth_net()
    objective = GAMAPGD(0.1, lam=7, relaxed=0.5, steps=4).objective(net, batch.x, batch.y)
    first, second = torch.randn(8, 4), torch.randn(8, 4)
    margins = [losses.probability_margin(logits, batch.y) for logits in (first, second)]
    distance = (first.softmax(1) - second.softmax(1)).square().sum(1)
    torch.testing.assert_close(objective(batch.x, first, 0), margins[0])
    torch.testing.assert_close(objective(batch.x, second, 1), margins[1] + 3.5 * distance)
    torch.testing.assert_close(objective(batch.x, second, 2), margins[1])


@both
@pytest.mark.parametrize(("arguments", "extra"), [({}, 0), ({"guide": "clean"}, 1), ({"guide": "clean", "lam": 0}, 0)])
def test_a_step_is_one_forward_and_one_backward(attack, arguments, extra, monkeypatch):
    net, batch = Counting(smooth_net()), images(8)
    backwards, grad = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **more: backwards.append(1) or grad(*args, **more))
    attack(0.1, steps=9, **arguments)(net, batch.x, batch.y)
    assert (len(net.rows), len(backwards)) == (9 + extra, 9)


@both
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_few_steps_and_restarts_stay_in_the_set(attack, steps):
    net, batch = smooth_net(), images(12)
    x_adv = attack(0.1, steps=steps, restarts=2)(net, batch.x, batch.y)
    assert (x_adv - batch.x).abs().max() <= 0.1 + 1e-6


@both
def test_it_runs_in_bfloat16_and_guides_in_float32(attack):
    net, batch = smooth_net(), images(12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x_adv = attack(0.1, steps=20)(net, batch.x, batch.y)
    assert x_adv.dtype == torch.float32
    assert losses.margin(net(x_adv), batch.y).mean() > losses.margin(net(batch.x), batch.y).mean()


# On trained nets: 600 images, L-infinity 0.15.

EPS = 0.15


def withstood(net, attack):
    x, y = held_out()
    torch.manual_seed(1)
    return (net(attack(net, x, y)).argmax(1) == y).double()


def accuracy(net, attack):
    return withstood(net, attack).mean().item()


@pytest.mark.parametrize("keep", ["last", "worst"])
@pytest.mark.parametrize("name", TRAINED)
def test_gama_is_at_least_as_strong_as_pgd_100(name, keep):
    """Within the noise on a naturally trained net, where cross-entropy finds a little more.

    The noise is 1.96 standard errors of the mean difference over the 600 images, paired.
    """
    net = trained(name)
    more = withstood(net, GAMAPGD(EPS, keep=keep)) - withstood(net, PGD(EPS, steps=100, keep=keep))
    noise = 1.96 * more.std().item() / len(more) ** 0.5
    assert more.mean().item() <= (noise if name == "natural" else 0.0)


def test_frank_wolfe_in_10_steps_is_as_strong_as_pgd_in_10():
    assert accuracy(trained("pgd"), GAMAFW(EPS, steps=10)) <= accuracy(trained("pgd"), PGD(EPS, steps=10)) + 0.01


@both
def test_it_finds_what_the_authors_loop_finds(attack):
    def authors(net, x, y):
        start = x + EPS * (2 * torch.rand_like(x) - 1).sign()
        return by_the_authors(attack, net, x, y, start, eps=EPS, steps=100)[-1]

    assert accuracy(trained("pgd"), attack(EPS)) <= accuracy(trained("pgd"), authors) + 0.01


# Arguments.


@both
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eps", 8),
        ("steps", -1),
        ("lam", -1),
        ("relaxed", 25),
        ("drops", (60, 85)),
        ("drop", 0.1),
        ("guide", "noise"),
        ("norm", "l1"),
    ],
    ids=named,
)
def test_arguments_that_make_no_sense_are_refused(attack, name, value):
    with pytest.raises(ValueError, match=f"^{name}="):
        attack(**{name: value})


def test_what_the_attack_fixes_cannot_be_given():
    for name in ("loss", "init", "momentum", "targeted"):
        with pytest.raises(TypeError, match=name):
            GAMAPGD(**{name: 1})
    with pytest.raises(TypeError, match="step_size"):
        GAMAFW(step_size=0.1)
    with pytest.raises(ValueError, match=r"^gamma="):
        GAMAFW(gamma=0)
    with pytest.raises(ValueError, match=r"^step_size="):
        GAMAPGD(step_size=16)


@pytest.mark.parametrize("method", [TRADES, CurriculumAT])
def test_a_method_with_an_objective_or_steps_of_its_own_refuses_it(method):
    with pytest.raises(TypeError, match=rf"{method.__name__} .*attack=PGD\(.*not GAMAPGD"):
        build(method, attack=GAMAPGD(0.1))


def test_attacks_are_values():
    assert GAMAPGD() == GAMAPGD()
    assert GAMAPGD() != GAMAPGD(lam=1)
    assert len({GAMAPGD(), GAMAPGD(), GAMAFW()}) == 2
    assert isinstance(GAMAPGD().loss, type(losses.margin))  # a function, not a method
