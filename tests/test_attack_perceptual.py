"""LPIPS in closed form, and the attacks that it bounds: their ball, their steps, their strength."""

import math
from dataclasses import replace
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_robust.attacks import BPDA, LPA, PPGD, FastLPA
from lit_robust.attacks import lpips as lpips_file
from lit_robust.attacks.lpips import AlexNetStages, flat_features, lpips
from lit_robust.guards import smaller_batches
from lit_robust.losses import margin
from lit_robust.nets import resnet18, torchvision_net, vgg16
from tests.formulas import Passes
from tests.tiny import TinyNet, images, named
from tests.trained import held_out, trained

ATTACKS = [
    FastLPA(0.3, steps=4),
    FastLPA(0.3, steps=4, projection="newton"),
    LPA(0.3, steps=4, runs=3),
    LPA(0.3, steps=4, runs=3, projection="bisection"),
    PPGD(0.3, steps=3),
    PPGD(0.3, steps=3, projection="bisection"),
]


def accuracy(net, x, y) -> float:
    with torch.no_grad():
        return (net(x).argmax(1) == y).float().mean().item()


class Circle(nn.Module):
    """Features on a circle: two channels (cos t, sin t) of t, the only pixel; class 0 is t above its limit."""

    def activations(self, x: Tensor) -> list[Tensor]:
        return [torch.cat([x.cos(), x.sin()], dim=1)]

    def forward(self, x: Tensor) -> Tensor:
        t = x.flatten(1)
        return torch.cat([5 * t, 5 * t.new_full(t.shape, 0.99)], dim=1)


# The distance.


def test_the_distance_of_an_image_from_itself_is_0_and_has_the_gradient_0():
    net, x = TinyNet().eval(), images(4).x.requires_grad_()
    rows = lpips(net, x, x.detach())
    assert torch.equal(rows, torch.zeros(4))
    assert torch.equal(torch.autograd.grad(rows.sum(), x)[0], torch.zeros_like(x))


@pytest.mark.parametrize("layers", [1, 3])
def test_orthogonal_channels_are_sqrt_2_apart_per_layer_and_opposite_ones_2(layers):
    a = torch.zeros(2, 3, 5, 7)
    a[:, 0] = 4.0
    orthogonal = torch.roll(a, 1, dims=1) / 100  # the length of an activation does not count
    rows = [flat_features([one] * layers) for one in (a, orthogonal, -a)]
    for other, expected in ((rows[1], math.sqrt(2 * layers)), (rows[2], 2 * math.sqrt(layers))):
        torch.testing.assert_close((rows[0] - other).norm(dim=1), torch.full((2,), expected))


def test_the_distance_is_the_formula_in_float64():
    net, (x, other) = resnet18(width=4).eval(), torch.rand(2, 3, 3, 32, 32)
    squares = torch.zeros(3, dtype=torch.float64)
    for a, b in zip(net.activations(x), net.activations(other), strict=True):
        a, b = (part.double() / (part.double().square().sum(dim=1, keepdim=True) + 1e-40).sqrt() for part in (a, b))
        squares += (a - b).square().sum(dim=(1, 2, 3)) / (a.shape[2] * a.shape[3])
    torch.testing.assert_close(lpips(net, x, other).double(), squares.sqrt(), rtol=1e-4, atol=0)


def test_a_pixel_without_activations_has_a_finite_gradient():
    a = torch.zeros(1, 3, 2, 2, requires_grad=True)
    other = torch.zeros(1, 3, 2, 2)
    other[:, :, 0] = 1
    (flat_features([a]) - flat_features([other])).norm().backward()
    assert a.grad.isfinite().all()


def test_the_distance_is_the_same_in_a_wrapper_and_by_the_method():
    class Wrapped(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.inner = net

        def forward(self, x):
            return self.inner(x)

    class ByMethod(Wrapped):
        def __init__(self, net):
            super().__init__(nn.Identity())
            object.__setattr__(self, "net", net)

        def activations(self, x):
            return self.net.activations(x)

    net, (x, other) = resnet18(width=4).eval(), torch.rand(2, 2, 3, 32, 32)
    expected = lpips(net, x, other)
    assert (expected > 0).all()
    assert torch.equal(lpips(Wrapped(net), x, other), expected)
    assert torch.equal(lpips(ByMethod(net), x, other), expected)


def test_a_net_whose_activations_are_not_known_is_refused():
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    for bad in (net, torchvision_net("mobilenet_v2")):
        with pytest.raises(ValueError, match="activations"):
            FastLPA()(bad, torch.rand(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64))


def test_the_stages_of_vgg_are_those_before_its_poolings():
    net = vgg16(width=4).eval()
    sizes = [a.shape[2] for a in net.activations(torch.rand(1, 3, 32, 32))]
    assert sizes == [32, 16, 8, 4, 2]
    assert all(isinstance(net.get_submodule(name), nn.ReLU) for name in net.stages)


# AlexNet.


def test_alexnet_gives_what_leaves_its_five_relus():
    net = AlexNetStages(pretrained=False)
    found = net.activations(torch.rand(2, 3, 64, 64))
    assert [a.shape[1] for a in found] == [64, 192, 384, 256, 256]
    assert all((a >= 0).all() for a in found)
    assert not net.training
    with pytest.raises(ValueError, match=r'^lpips_net="alexnet" .*30 x 40'):
        net.activations(torch.rand(1, 3, 30, 40))


@pytest.mark.parametrize("attack", [FastLPA, LPA, PPGD])
def test_an_external_net_bounds_the_attack(attack):
    torch.manual_seed(1)
    outer, net = AlexNetStages(pretrained=False), resnet18(width=4).eval()
    x, y = torch.rand(3, 3, 32, 32), torch.tensor([0, 1, 2])
    x_adv = attack(0.02, steps=2, lpips_net=outer)(net, x, y)
    found = torch.linalg.vector_norm(
        flat_features(outer.activations(x_adv)) - flat_features(outer.activations(x)), dim=1
    )
    assert (found > 0).all()
    assert (found <= 0.02 + 1e-5).all()
    assert all(parameter.grad is None for parameter in [*net.parameters(), *outer.parameters()])


def test_alexnet_by_its_name_is_the_pretrained_one(monkeypatch):
    built = []
    monkeypatch.setattr(lpips_file, "alexnet", lambda device: built.append(device) or AlexNetStages(pretrained=False))
    x, y = torch.rand(2, 3, 32, 32), torch.tensor([0, 1])
    FastLPA(steps=1, lpips_net="alexnet")(resnet18(width=4).eval(), x, y)
    assert built == [torch.device("cpu")]


def test_weights_that_cannot_be_had_are_one_sentence(monkeypatch):
    def fail(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    attack = LPA(lpips_net="alexnet")
    with pytest.raises(OSError, match=r'^lpips_net="alexnet": .*no network.*lpips_net="self"'):
        attack.check_installed()


# The ball.


@pytest.mark.parametrize("attack", ATTACKS, ids=named)
@pytest.mark.parametrize("name", ["natural", "pgd"])
def test_points_stay_in_the_ball_and_in_the_box_on_trained_nets(attack, name):
    net, (x, y) = trained(name), (part[:100] for part in held_out())
    before = x.clone()
    for eps in (0.05, 0.3, 1.0):
        x_adv = replace(attack, eps=eps)(net, x, y)
        assert (lpips(net, x, x_adv) <= eps + 1e-5).all()
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1
        assert accuracy(net, x_adv, y) < accuracy(net, x, y)
    assert torch.equal(x, before)


def test_without_a_projection_the_authors_fast_attack_leaves_the_ball():
    net, (x, y) = trained("natural"), (part[:50] for part in held_out())
    x_adv = FastLPA(0.1, projection="none")(net, x, y)
    assert (lpips(net, x, x_adv) > 0.2).float().mean() > 0.5


@pytest.mark.parametrize("projection", ["newton", "bisection"])
def test_a_projection_moves_what_is_outside_and_nothing_else(projection):
    net, (x, _) = trained("pgd"), (part[:60] for part in held_out())
    far = (x + 0.3 * torch.randn_like(x)).clamp(0, 1)
    distances = lpips(net, x, far).detach()
    eps = distances.median().item()
    attack = FastLPA(eps, projection=projection)
    with lpips_file.watched(net, "self") as nets:
        near = attack.project(nets, x, nets.features(x).detach(), far)
    assert torch.equal(near[distances <= eps], far[distances <= eps])
    found = lpips(net, x, near).detach()
    assert (found <= eps + 1e-5).all()
    assert (found[distances > eps] > 0.5 * eps).all()  # and not farther than needed


def test_bisection_ends_close_to_the_sphere():
    net, (x, y) = trained("pgd"), (part[:60] for part in held_out())
    x_adv = FastLPA(0.3)(net, x, y)
    assert (lpips(net, x, x_adv) > 0.28).float().mean() > 0.9


def test_no_steps_no_eps_and_no_images():
    net, (x, y) = trained("pgd"), (part[:10] for part in held_out())
    for attack in (FastLPA, LPA, PPGD):
        near = attack(0.5, steps=0)(net, x, y)
        assert near.min() >= 0
        assert 0 < (near - x).abs().max() < 0.06  # the start
        assert (lpips(net, x, attack(0, steps=2)(net, x, y)) <= 1e-5).all()
        assert attack(0.5)(net, x[:0], y[:0]).shape == (0, 1, 8, 8)


# The steps.


def fast_by_hand(net, x, y, start, eps, steps, lam, h):
    """Algorithm 2 in float64."""
    features = lambda z: flat_features64(net.activations(z))  # noqa: E731  # as in a formula
    origin, z = features(x).detach(), start
    for k in range(steps):
        z = z.detach().requires_grad_()
        here = features(z)
        excess = ((here - origin).square().sum(dim=1).sqrt() - eps).clamp_min(0)
        logits = net(z)
        others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
        loss = others - logits.gather(1, y[:, None])[:, 0] - lam * 0.1 ** (1 - k / steps) * excess
        g = torch.autograd.grad(loss.sum(), z)[0]
        g = g / (g.square().sum(dim=(1, 2, 3), keepdim=True).sqrt() + 1e-8)
        r = (features(z + h * g) - here).square().sum(dim=1).sqrt() / h
        z = (z + (eps * 0.1 ** (k / steps) / (r + 1e-4))[:, None, None, None] * g).clamp(0, 1)
    return z.detach()


def flat_features64(activations):
    rows = []
    for a in activations:
        a = a / (a.square().sum(dim=1, keepdim=True) + 1e-30).sqrt() / (a.shape[2] * a.shape[3]) ** 0.5
        rows.append(a.flatten(1))
    return torch.cat(rows, dim=1)


class Smooth(nn.Module):
    """A net without kinks, whose float32 and float64 runs stay together."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv, self.head = nn.Conv2d(3, 5, 3), nn.Linear(5 * 36, 4)
        self.act = nn.Softplus()

    stages = ("act",)

    def activations(self, x):
        return [self.act(self.conv(x))]

    def forward(self, x):
        return self.head(self.act(self.conv(x)).flatten(1))


@pytest.mark.parametrize("steps", [1, 2, 6])
def test_fast_lpa_equals_a_float64_loop(steps):
    net, batch = Smooth(), images(6)
    torch.manual_seed(7)
    start = batch.x + 0.01 * torch.randn_like(batch.x)
    torch.manual_seed(7)
    x_adv = FastLPA(0.05, steps=steps, projection="none", h=0.07, lam=3.0)(net, batch.x, batch.y)
    expected = fast_by_hand(net.double(), batch.x.double(), batch.y, start.double(), 0.05, steps, 3.0, 0.07)
    torch.testing.assert_close(x_adv.double(), expected, rtol=0, atol=1e-4)
    assert (x_adv - batch.x).abs().max() > 0.02


def conjugate_gradients(matrix, target, iterations):
    """Approximately solve ``matrix @ v = target`` (Hestenes and Stiefel)."""
    v, residual = torch.zeros_like(target), target
    direction = residual
    for _ in range(iterations):
        length = (residual @ residual) / (direction @ matrix @ direction)
        v, after = v + length * direction, residual - length * matrix @ direction
        direction, residual = after + (after @ after) / (residual @ residual) * direction, after
    return v


@pytest.mark.parametrize("iterations", [1, 3, 6])
def test_a_step_of_ppgd_is_conjugate_gradients_on_the_whole_jacobian(iterations):
    """Not steepest descent, from which it differs from the second iteration on."""
    net, x, y = Smooth(), 0.3 + 0.4 * images(3).x, images(3).y
    torch.manual_seed(7)
    start = x + 0.01 * torch.randn_like(x)
    torch.manual_seed(7)
    step_size = 0.01
    x_adv = PPGD(1.0, step_size, steps=1, cg_steps=iterations, projection="none")(net, x, y)
    net.double()
    shaped = lambda v: v.view(1, 3, 8, 8)  # noqa: E731  # as in a formula
    features = lambda v: flat_features64(net.activations(shaped(v)))[0]  # noqa: E731  # as in a formula
    for i in range(3):
        z = start[i].double().flatten().requires_grad_()
        logits = net(shaped(z))[0]
        others = logits[torch.arange(4) != y[i]].amax()
        slope = torch.autograd.grad((others - logits[y[i]]).clamp(max=1), z)[0]
        jacobian = torch.autograd.functional.jacobian(features, z.detach())
        v = conjugate_gradients(jacobian.T @ jacobian, slope, iterations)
        expected = step_size * v / (jacobian @ v).norm()
        found = (x_adv[i] - start[i]).double().flatten()
        assert F.cosine_similarity(found, expected, dim=0) > 0.999
        assert found.norm() == pytest.approx(expected.norm().item(), rel=0.02)


@pytest.mark.parametrize(
    "attack",
    [FastLPA(0.3, steps=40), LPA(0.3, projection="bisection"), PPGD(0.3, steps=20, projection="bisection")],
    ids=named,
)
def test_the_worst_case_on_a_circle_is_an_arc_of_chord_eps(attack):
    x, y = torch.linspace(0.1, 0.6, 5).view(-1, 1, 1, 1), torch.ones(5, dtype=torch.int64)
    reached = x + 2 * math.asin(0.3 / 2)
    assert (margin(Circle()(reached), y) < 0).all()  # so LPA never stops early
    torch.testing.assert_close(attack(Circle(), x, y), reached, rtol=0, atol=0.03)


def test_the_weight_of_lpa_grows_until_an_image_is_in_the_ball():
    x, y = torch.linspace(0.1, 0.4, 5).view(-1, 1, 1, 1), torch.ones(5, dtype=torch.int64)
    far = [lpips(Circle(), x, LPA(0.3, runs=runs, projection="none")(Circle(), x, y)) for runs in (1, 5)]
    assert (far[0] > 0.5).all()
    assert (far[1] < 0.3 + 0.05).all()


def test_lpa_leaves_an_image_where_it_is_misclassified_inside_the_ball():
    net, (x, y) = trained("pgd"), (part[:100] for part in held_out())
    wrong = (y + 1) % 10
    torch.manual_seed(0)
    start = (x + 0.01 * torch.randn_like(x)).clamp(0, 1)
    torch.manual_seed(0)
    x_adv = LPA(0.5, steps=3, runs=2)(net, x, wrong)  # the true labels are wrong for most
    done = (net(start).argmax(1) != wrong) & (lpips(net, x, start) <= 0.5)
    assert done.sum() > 50
    torch.testing.assert_close(x_adv[done], start[done])


def test_lpa_breaks_more_than_the_fast_attack_and_more_with_more_runs():
    net, (x, y) = trained("pgd"), (part[:150] for part in held_out())
    left = [accuracy(net, attack(net, x, y), y) for attack in (FastLPA(0.3), LPA(0.3, runs=1), LPA(0.3))]
    assert left[2] < left[0] < accuracy(net, x, y)
    assert left[2] < left[1]


def test_images_that_leave_the_batch_change_nothing_for_the_others():
    net, (x, y) = trained("natural"), (part[:100] for part in held_out())
    counted = Passes(net)
    found, seen = [], []
    for shrinks in (False, True):
        counted.forward = 0
        torch.manual_seed(2)
        if shrinks:
            with smaller_batches():
                found.append(LPA(0.3, steps=5)(net, x, y))
        else:
            found.append(LPA(0.3, steps=5)(net, x, y))
        seen.append(counted.forward)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-4)
    assert seen[1] < 0.8 * seen[0]


@pytest.mark.parametrize(
    ("attack", "forward", "backward"),
    [
        (FastLPA(steps=7, projection="none"), 1 + 14, 7),
        (FastLPA(steps=7), 1 + 14 + 11, 7),
        (LPA(steps=3, runs=2, projection="bisection"), 1 + 12 + 11, 6),
    ],
    ids=named,
)
def test_a_step_is_a_pass_and_a_forward(attack, forward, backward):
    net, batch = TinyNet().eval(), images(8)
    counted = Passes(net)
    attack(net, batch.x, batch.y)
    assert (counted.forward, counted.backward) == (8 * forward, 8 * backward)


# The surroundings.


@pytest.mark.parametrize("attack", ATTACKS, ids=named)
def test_under_bfloat16_the_bound_holds_to_its_precision(attack):
    net, (x, y) = trained("pgd"), (part[:50] for part in held_out())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x_adv = attack(net, x, y)
    assert x_adv.dtype == torch.float32
    assert (lpips(net, x, x_adv) <= 0.3 + 0.02).all()
    assert accuracy(net, x_adv, y) < accuracy(net, x, y)


@pytest.mark.parametrize("attack", ATTACKS, ids=named)
def test_the_memory_format_stays(attack):
    net, batch = TinyNet().to(memory_format=torch.channels_last), images(8)
    x_adv = attack(net, batch.x.contiguous(memory_format=torch.channels_last), batch.y)
    assert x_adv.is_contiguous(memory_format=torch.channels_last)


def test_a_compiled_net_gives_its_activations():
    plain, batch = TinyNet().eval(), images(8)
    torch.manual_seed(0)
    expected = FastLPA(steps=3)(plain, batch.x, batch.y)
    net = TinyNet().eval()
    net.compile(backend="eager")
    net(batch.x)  # the graph is there before the attack
    torch.manual_seed(0)
    assert torch.equal(FastLPA(steps=3)(net, batch.x, batch.y), expected)


def test_it_works_through_bpda():
    net, batch = TinyNet().eval(), images(8)
    x_adv = BPDA(FastLPA(0.3, steps=3), torch.round)(net, batch.x, batch.y)
    assert (lpips(net, batch.x.round(), x_adv.round()) <= 0.3 + 1e-5).all()


def test_it_is_a_value():
    assert FastLPA("1/2") == FastLPA(0.5)
    assert FastLPA() != FastLPA(lam=1)
    assert len({LPA(), LPA(), PPGD()}) == 2
    assert LPA(0.4).step_length == 0.4
    assert PPGD(0.5, steps=10).step_length == 0.1
