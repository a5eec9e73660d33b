"""PGD under a bound on difficulty, its metrics, and the curvatures behind two of them."""

from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from lit_robust.attacks import PGD, CurriculumFGSM, CurriculumPGD, FriendlyPGD, difficulty
from lit_robust.attacks.difficulty import (
    FOSC,
    AdversarialLoss,
    Distance,
    LastLayerSharpness,
    PowerIteration,
    ProbabilityGap,
    Steps,
)
from lit_robust.attacks.hessian import curvatures, last_layer_eigenvalue, sharpest_direction, softmax_eigenvalue
from lit_robust.callbacks import AttributeRamp
from lit_robust.defenses import PGDAT
from lit_robust.guards import checked
from lit_robust.schedules import Linear
from lit_robust.threats import Linf
from tests.formulas import Passes, in_float64
from tests.methods import build
from tests.test_attacks import NoHostSync
from tests.tiny import TinyNet, images, loader, trainer

METRICS = [
    ProbabilityGap(),
    AdversarialLoss(),
    Distance(),
    Steps(),
    FOSC(),
    FOSC(origin="start"),
    LastLayerSharpness(),
    LastLayerSharpness(feature_norm=True),
    PowerIteration(iterations=1),
]
every_metric = pytest.mark.parametrize("psi", METRICS, ids=repr)
#: Small steps, so that samples pass a bound one after the other.
ATTACK = {"eps": 0.15, "step_size": 0.02, "steps": 8}


class Smooth(nn.Module):
    """Smooth, with the two parts from which the last layer's Hessian is read."""

    def __init__(self, hidden=6, pixels=192, classes=4):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(pixels, hidden), nn.Softplus())
        self.head = nn.Linear(hidden, classes)

    def features(self, x):
        return self.body(x)

    def forward(self, x):
        return self.head(self.features(x))


def trained(net, x, y, steps):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval()


@cache
def fitted():
    """A net that classifies most of ``images()`` correctly, with different confidence."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return trained(Smooth(hidden=16), images(48).x, images(48).y, steps=20)


def batch_of(n=24):
    """Images that the net has not seen, mixed more and more with the next class: easy and hard ones."""
    batch, share = images(n, seed=1), torch.linspace(0.2, 0.5, n).view(-1, 1, 1, 1)
    return batch._replace(x=(1 - share) * batch.x + share * batch.x.roll(1, dims=0))


def run(attack, net=None, batch=None, seed=3):
    net, batch = net or deepcopy(fitted()), batch or batch_of()
    torch.manual_seed(seed)
    return attack(net, batch.x, batch.y)


def trajectory(attack, batch, seed=3):
    """The points at which a run has taken a gradient, and its last one, ``(steps + 1, N, ...)``."""
    net, seen = deepcopy(fitted()), []

    def look(net, args):
        if args[0].requires_grad:
            seen.append(args[0].detach().clone())

    net.register_forward_pre_hook(look)
    last = run(attack, net, batch, seed)
    return torch.stack([*seen, last])


def gap(net, x, y):
    p = net(x).softmax(dim=1)
    right = p[torch.arange(len(y)), y]
    return p.scatter(1, y.unsqueeze(1), -1).amax(dim=1) - right


# The bound.


@every_metric
@pytest.mark.parametrize(
    "arguments",
    [ATTACK, ATTACK | {"norm": "l2", "eps": 1.5, "step_size": 0.3}, ATTACK | {"momentum": 0.9, "restarts": 2}],
    ids=["linf", "l2", "momentum and restarts"],
)
def test_with_lambda_at_1_it_is_pgd_bit_for_bit(psi, arguments):
    assert torch.equal(run(CurriculumPGD(**arguments, psi=psi, lam=1.0)), run(PGD(**arguments)))


@pytest.mark.parametrize("psi", [psi for psi in METRICS if not isinstance(psi, FOSC)], ids=repr)
def test_with_lambda_at_minus_1_no_sample_moves(psi):
    start = run(PGD(**ATTACK | {"steps": 0}))
    assert torch.equal(run(CurriculumPGD(**ATTACK, psi=psi, lam=-1.0)), start)
    assert (run(PGD(**ATTACK)) != start).flatten(1).any(dim=1).all()


class Saturated(nn.Module):
    """So certain of class 0 where the first pixel is bright that its softmax is 1 to the last bit."""

    def forward(self, x):
        z = (x.flatten(1).sum(dim=1) - 90).unsqueeze(1) * torch.tensor([[0.01, -0.01, 0.02, 0.0]])
        return z + 50 * (x[:, 0, 0, 0] > 0.5).unsqueeze(1) * torch.tensor([[1.0, 0, 0, 0]])


def test_with_lambda_at_minus_1_only_samples_with_a_saturated_softmax_move():
    x = images(8).x.clone()
    x[:, 0, 0, 0] = torch.tensor([1.0, 0.0] * 4)
    batch = images(8)._replace(x=x, y=torch.zeros(8, dtype=torch.int64))
    x_adv = run(CurriculumPGD(**ATTACK, init="zero", psi=ProbabilityGap(), lam=-1.0), Saturated(), batch)
    assert (x_adv != x).flatten(1).any(dim=1).tolist() == [True, False] * 4


def distance(net, x, y, x_adv):
    return (x_adv - x).flatten(1).abs().amax(dim=1) / ATTACK["eps"]


def input_gradient(net, y, x_adv):
    leaf = x_adv.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(net(leaf), y, reduction="sum"), leaf)[0]


def minus_fosc(net, x, y, x_adv):
    g = input_gradient(net, y, x_adv)
    return ((x_adv - x) * g).flatten(1).sum(dim=1) - ATTACK["eps"] * g.flatten(1).abs().sum(dim=1)


def two_lambda(net, x, y, x_adv):
    p = net(x_adv).softmax(dim=1)
    return 2 * torch.linalg.eigvalsh(torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1))[:, -1]


#: The metrics by their formulas, at bounds that some samples pass and some do not.
FORMULAS = {
    ProbabilityGap(): (lambda net, x, y, x_adv: gap(net, x_adv, y), -0.1),
    AdversarialLoss(): (lambda net, x, y, x_adv: 1 - net(x_adv).softmax(dim=1)[torch.arange(len(y)), y], 0.6),
    Distance(): (distance, 0.4),
    FOSC(): (minus_fosc, -3.0),
    LastLayerSharpness(): (two_lambda, 0.8),
}


@pytest.mark.parametrize("psi", FORMULAS, ids=repr)
def test_psi_was_at_most_lambda_before_every_step_that_a_sample_took_and_above_it_where_it_stayed(psi):
    formula, lam = FORMULAS[psi]
    batch, net = batch_of(48), in_float64(fitted())
    init = "zero" if isinstance(psi, Distance) else "uniform"
    points = trajectory(CurriculumPGD(**ATTACK, init=init, psi=psi, lam=lam), batch)
    moved = (points[1:] != points[:-1]).flatten(2).any(dim=2)
    difficulty = torch.stack([formula(net, batch.x.double(), batch.y, point.double()) for point in points])
    unsure = (difficulty[:-1] - lam).abs() < 1e-5
    assert torch.equal(moved | unsure, (difficulty[:-1] <= lam) | unsure)
    assert 0.05 < moved.float().mean() < 0.95
    assert (difficulty[-1] > lam).any()  # the last step may overshoot


@every_metric
def test_a_sample_that_has_stopped_stays(psi):
    lam = FORMULAS[psi][1] if psi in FORMULAS else -3.0 if isinstance(psi, FOSC) else 0.5
    init = "zero" if isinstance(psi, Distance) else "uniform"
    points = trajectory(CurriculumPGD(**ATTACK, init=init, psi=psi, lam=lam), batch_of(48))
    moved = (points[1:] != points[:-1]).flatten(2).any(dim=2).int()
    first = 1 if psi == FOSC(origin="start") else 0  # whose first step is free
    assert (moved[first + 1 :] <= moved[first:-1]).all()
    assert moved.float().mean() < 1


def test_on_a_linear_net_each_sample_takes_the_steps_that_its_gap_allows():
    """Two classes: the gap is tanh(m / 2) of the margin m, which a step raises by its size times the l1 norm."""
    net, n, lam, size = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), 64, 0.3, 0.01
    x, y = 0.4 + 0.2 * torch.rand(n, 3, 8, 8), torch.arange(n) % 2
    w, bias = net[1].weight.data.diff(dim=0).double(), net[1].bias.data.diff().double()
    sign = (1 - 2 * y).double()
    margin = sign * (x.flatten(1).double() @ w.T + bias).squeeze(1)
    taken = torch.zeros(n, dtype=torch.int64)
    for _ in range(12):
        taken += torch.tanh((margin + taken * size * w.abs().sum()) / 2) <= lam
    attack = CurriculumPGD(0.4, step_size=size, steps=12, init="zero", psi=ProbabilityGap(), lam=lam)
    expected = x + taken.view(-1, 1, 1, 1) * size * (sign.view(-1, 1) * w.sign()).view_as(x).float()
    torch.testing.assert_close(attack(net, x, y), expected)
    assert taken.unique().numel() > 3


def test_with_frozen_misclassified_both_rules_hold():
    batch, net = batch_of(48), in_float64(fitted())
    attack = CurriculumPGD(**ATTACK, psi=AdversarialLoss(), lam=0.55, freeze_misclassified=True)
    points = trajectory(attack, batch)
    moved = (points[1:] != points[:-1]).flatten(2).any(dim=2)
    for point, moves in zip(points, moved, strict=False):
        p = net(point.double()).softmax(dim=1)
        wrong, loss = p.argmax(dim=1) != batch.y, 1 - p[torch.arange(48), batch.y]
        assert torch.equal(moves, ~wrong & (loss <= 0.55))


def test_at_lambda_0_the_gap_stops_a_sample_where_friendly_pgd_does():
    mine = run(CurriculumPGD(**ATTACK, psi=ProbabilityGap(), lam=0.0))
    assert torch.equal(mine, run(FriendlyPGD(**ATTACK, tau=0, omega=0)))


@pytest.mark.parametrize("j", [0, 1, 3, 8])
def test_the_bound_of_j_of_k_steps_takes_j_steps(j):
    short = run(PGD(**ATTACK | {"steps": j}))
    assert torch.equal(run(CurriculumPGD(**ATTACK, psi=Steps(), lam=j / 8)), short)


def test_dynamic_at_as_its_authors_run_it_steps_once_and_then_measures_from_the_start():
    batch, net = batch_of(48), in_float64(fitted())
    points = trajectory(CurriculumPGD(**ATTACK, psi=FOSC(origin="start"), lam=-4.0), batch)
    moved = (points[1:] != points[:-1]).flatten(2).any(dim=2)
    assert moved[0].all()
    for point, moves in zip(points[1:], moved[1:], strict=False):
        difficulty = minus_fosc(net, points[0].double(), batch.y, point.double())
        assert torch.equal(moves, difficulty <= -4.0)
    assert 0.05 < moved[1:].float().mean() < 0.95


# Cost.


@pytest.mark.parametrize("psi", [psi for psi in METRICS if not isinstance(psi, PowerIteration)], ids=repr)
def test_only_the_metric_with_the_features_norm_costs_a_forward(psi):
    net = deepcopy(fitted())
    body = Passes(net.body)
    run(CurriculumPGD(**ATTACK, psi=psi, lam=0.5), net)
    features = psi == LastLayerSharpness(feature_norm=True)
    assert body.forward == (16 if features else 8) * 24
    assert body.backward == 8 * 24


@every_metric
def test_the_host_never_waits(psi):
    batch, net = batch_of(8), deepcopy(fitted())
    run(CurriculumPGD(**ATTACK | {"steps": 1}, psi=psi, lam=0.5), net, batch)  # what torch loads the first time
    with checked(), NoHostSync():
        run(CurriculumPGD(**ATTACK, psi=psi, lam=0.5), net, batch)


@every_metric
def test_the_net_does_not_change_and_inference_mode_works(psi):
    net, batch = TinyNet().train(), images(8)
    net.requires_grad_(True).body[2].eval()
    state, flags = deepcopy(net.state_dict()), [module.training for module in net.modules()]
    attack = CurriculumPGD(**ATTACK, psi=psi, lam=0.5)
    with torch.inference_mode():
        frozen = attack(net.eval(), batch.x.clone(), batch.y.clone())
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())
    assert torch.equal(Linf(0.15 + 1e-6).project(frozen, batch.x), frozen)
    net.train().body[2].eval()
    attack(net, batch.x, batch.y)
    assert [module.training for module in net.modules()] == flags
    forwards = 16 if psi == LastLayerSharpness(feature_norm=True) else 8
    assert int(net.body[1].num_batches_tracked) == forwards  # PowerIteration's are in eval mode


def test_second_derivatives_of_frozen_weights_under_autocast_are_those_of_float32():
    batch, net = batch_of(8), deepcopy(fitted())
    expected = curvatures(net, batch.x, batch.y, sharpest_direction(net, batch.x, batch.y, 1))
    net.requires_grad_(False)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        found = curvatures(net, batch.x, batch.y, sharpest_direction(net, batch.x, batch.y, 1))
    torch.testing.assert_close(found, expected)


# FOSC.


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fosc_is_the_first_order_gain_of_the_best_point_of_the_ball(norm):
    attack, x = PGD(0.1, norm=norm), torch.rand(5, 1, 2, 2)
    delta, g = 0.05 * torch.rand_like(x), torch.randn_like(x)
    measure = FOSC().begin(attack, nn.Identity(), x, torch.zeros(5, dtype=torch.int64))
    found = -measure(x + delta, torch.zeros(5, 2), g)
    if norm == "linf":
        corners = 0.1 * (2.0 * torch.cartesian_prod(*[torch.arange(2)] * 4) - 1)
    else:
        corners = torch.randn(400_000, 4)
        corners = 0.1 * corners / corners.norm(dim=1, keepdim=True)
    gains = ((corners.unsqueeze(0) - delta.view(5, 1, 4)) * g.view(5, 1, 4)).sum(dim=2).amax(dim=1)
    torch.testing.assert_close(found, gains, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fosc_is_0_at_a_constrained_stationary_point_and_positive_elsewhere(norm):
    """The gradients of two logits that are linear have one direction: where it leaves the ball is stationary."""
    net, x, y = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), 0.4 + 0.2 * torch.rand(6, 3, 8, 8), torch.arange(6) % 2
    eps = {"linf": 0.1, "l2": 0.5}[norm]
    attack = PGD(eps, eps / 4, steps=8, norm=norm, init="zero")

    def share(x_adv):
        """FOSC over what it is at the image."""
        slope = input_gradient(net, y, x_adv)
        length = slope.flatten(1).norm(p=1 if norm == "linf" else 2, dim=1)
        return -FOSC().begin(attack, net, x, y)(x_adv, net(x_adv), slope) / (eps * length)

    torch.testing.assert_close(share(x), torch.ones(6))
    torch.testing.assert_close(share(attack(net, x, y)), torch.zeros(6), rtol=0, atol=1e-4)
    torch.testing.assert_close(share(replace(attack, steps=2)(net, x, y)), torch.full((6,), 0.5))
    assert (share(replace(attack, steps=0, init="uniform")(net, x, y)) > 0.5).all()


def test_at_c_0_rounding_stops_no_sample():
    """The corner's FOSC is a difference of two equal sums, and may come out below 0."""
    x = torch.rand(200, 3, 8, 8)
    g = torch.randn_like(x)
    x_adv = x + 0.031 * g.sign()
    measure = FOSC().begin(PGD(0.031), nn.Identity(), x, torch.zeros(200, dtype=torch.int64))
    assert (measure(x_adv, torch.zeros(200, 2), g) <= -0.0).all()
    plain = 0.031 * g.abs().flatten(1).sum(dim=1) - ((x_adv - x) * g).flatten(1).sum(dim=1)
    assert (plain < 0).any()


# Sharpness.


LOGITS = {
    "any": lambda: torch.randn(64, 10),
    "sure": lambda: 8 * torch.randn(64, 10),
    "two classes": lambda: torch.randn(64, 2),
    "a hundred": lambda: 3 * torch.randn(64, 100),
    "uniform": lambda: torch.zeros(2, 10),
    "a tie": lambda: torch.tensor([[1.0, 1.0, 0.0], [3.0, 3.0, -50.0]]),
    "saturated": lambda: torch.tensor([[200.0, 0.0, 0.0], [0.0, 100.0, -100.0]]),
}


@pytest.mark.parametrize("logits", LOGITS.values(), ids=LOGITS)
def test_the_eigenvalue_of_the_softmax_is_that_of_the_matrix(logits):
    logits = logits()
    p = logits.double().softmax(dim=1)
    exact = torch.linalg.eigvalsh(torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1))[:, -1]
    torch.testing.assert_close(softmax_eigenvalue(logits).double(), exact, rtol=0, atol=3e-7)


def test_two_classes_are_sharpest_where_they_tie():
    p = torch.tensor([0.5, 0.9, 0.2])
    found = softmax_eigenvalue(torch.stack([p, 1 - p], dim=1).log())
    torch.testing.assert_close(found, 2 * p * (1 - p))


@pytest.mark.parametrize("bias", [True, False])
def test_the_last_layers_eigenvalue_is_autograds(bias):
    net, batch = Smooth(hidden=5), batch_of(6)
    net.head = nn.Linear(5, 4, bias=bias)
    h = net.features(batch.x).detach()
    found = last_layer_eigenvalue(net.head(h), h, bias)
    for i in range(6):
        h_i, exact = h[i : i + 1].double(), dict(net.double().head.named_parameters())
        shapes = {name: value.shape for name, value in exact.items()}

        def loss(flat, h_i=h_i, shapes=shapes, i=i):
            parts = flat.split([shape.numel() for shape in shapes.values()])
            named = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
            return F.cross_entropy(functional_call(net.head, named, h_i), batch.y[i : i + 1])

        flat = torch.cat([value.detach().flatten() for value in exact.values()])
        top = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))[-1]
        assert found[i].item() == pytest.approx(top.item(), rel=1e-5)


@cache
def tiny_and_dense():
    """A net of 47 weights, and each sample's Hessian in all of them by autograd in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        x, y = 3 * torch.rand(8, 6), torch.arange(8) % 3
        net = trained(Smooth(hidden=4, pixels=6, classes=3), x, y, steps=20)
    exact = in_float64(net)
    shapes = {name: value.shape for name, value in exact.named_parameters()}

    def loss(flat, i):
        parts = flat.split([shape.numel() for shape in shapes.values()])
        named = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return F.cross_entropy(functional_call(exact, named, x[i : i + 1].double()), y[i : i + 1])

    flat = torch.cat([value.detach().flatten() for value in exact.parameters()])
    hessians = [torch.autograd.functional.hessian(lambda flat, i=i: loss(flat, i), flat) for i in range(8)]
    return net, x, y, torch.stack(hessians)


def flat(direction):
    return torch.cat([part.flatten() for part in direction.values()]).double()


def test_the_power_iteration_finds_the_dense_hessians_top_eigenvector_and_eigenvalue():
    net, x, y, hessians = tiny_and_dense()
    values, vectors = torch.linalg.eigh(hessians.mean(dim=0))
    assert values[-1] > 1.5 * values[:-1].abs().max()  # 25 iterations are enough
    direction = sharpest_direction(net, x, y, 25)
    assert (flat(direction) @ vectors[:, -1]).abs().item() == pytest.approx(1, abs=1e-5)
    assert curvatures(net, x, y, direction).mean().item() == pytest.approx(values[-1].item(), rel=1e-5)


def test_the_curvature_of_a_single_sample_is_its_eigenvalue():
    net, x, y, hessians = tiny_and_dense()
    for i in range(3):
        direction = sharpest_direction(net, x[i : i + 1], y[i : i + 1], 25)
        found = curvatures(net, x[i : i + 1], y[i : i + 1], direction).item()
        assert found == pytest.approx(torch.linalg.eigvalsh(hessians[i])[-1].item(), rel=1e-4)


def test_curvatures_along_any_direction_are_those_of_each_samples_dense_hessian():
    net, x, y, hessians = tiny_and_dense()
    direction = {name: torch.randn_like(value) for name, value in net.named_parameters()}
    v = flat(direction)
    torch.testing.assert_close(curvatures(net, x, y, direction).double(), hessians @ v @ v, rtol=1e-4, atol=1e-4)


def test_without_iterations_the_direction_is_the_gradients():
    net, x, y, _ = tiny_and_dense()
    gradient = torch.autograd.grad(F.cross_entropy(net(x), y), list(net.parameters()))
    gradient = torch.cat([part.flatten() for part in gradient]).double()
    torch.testing.assert_close(flat(sharpest_direction(net, x, y, 0)), gradient / gradient.norm())


def test_power_iteration_keeps_the_direction_and_the_median_of_the_start():
    net, x, y, hessians = tiny_and_dense()
    measure = PowerIteration(iterations=25).begin(PGD(), net, x, y)
    v = torch.linalg.eigh(hessians.mean(dim=0)).eigenvectors[:, -1]
    c = (hessians @ v @ v).float()
    m = c.abs().median()
    expected = c.clamp_min(0) / (c.clamp_min(0) + m)
    torch.testing.assert_close(measure(x, net(x), x), expected, rtol=1e-4, atol=1e-5)
    moved = x + 0.3
    later = curvatures(net, moved, y, sharpest_direction(net, x, y, 25)).clamp_min(0)
    torch.testing.assert_close(measure(moved, net(moved), moved), later / (later + m), rtol=1e-4, atol=1e-5)


def test_mostly_negative_curvatures_do_not_make_the_others_more_difficult(monkeypatch):
    found = torch.tensor([-4.0, -2.0, -3.0, 1.0, 0.0])
    monkeypatch.setattr(difficulty, "sharpest_direction", lambda *args: {"weight": torch.ones(1)})
    monkeypatch.setattr(difficulty, "curvatures", lambda *args: found)
    measure = PowerIteration().begin(PGD(), nn.Identity(), found, found)
    torch.testing.assert_close(measure(found, found, found), torch.tensor([0.0, 0.0, 0.0, 1 / 3, 0.0]))  # the median: 2


def test_with_the_features_the_eigenvalue_is_measured_against_the_median_at_the_start():
    net, x, y, _ = tiny_and_dense()
    measure = LastLayerSharpness(feature_norm=True).begin(PGD(), net, x, y)
    first, later = (last_layer_eigenvalue(net(at), net.features(at)) for at in (x, x + 0.5))
    torch.testing.assert_close(measure(x, net(x), x), first / (first + first.median()))
    torch.testing.assert_close(measure(x + 0.5, net(x + 0.5), x), later / (later + first.median()))


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))

    def forward(self, x):
        return x.flatten(1)[:, :4] + 0 * self.weight


@pytest.mark.parametrize("psi", [PowerIteration(), FOSC()], ids=repr)
def test_a_loss_without_any_slope_or_curvature_is_not_difficult(psi):
    batch = batch_of(4)
    found = psi.begin(PGD(), Flat(), batch.x, batch.y)(batch.x, Flat()(batch.x), torch.zeros_like(batch.x))
    assert found.tolist() == [0.0] * 4


# The single step.


@pytest.mark.parametrize("lam", [-2.0, 0.0, 0.4])
def test_the_single_step_follows_psi_as_far_as_lambda_in_float64(lam):
    batch, net, eps = batch_of(), in_float64(fitted()), 0.02
    found = run(CurriculumFGSM(eps, lam=lam))
    torch.manual_seed(3)
    x, start = batch.x.double(), (batch.x + (2 * torch.rand_like(batch.x) - 1) * eps).clamp(0, 1).double()
    start.requires_grad_()
    psi = gap(net, start, batch.y)
    (g,) = torch.autograd.grad(psi.sum(), start)
    length = ((lam - psi).clamp_min(0) / (g.abs().flatten(1).sum(dim=1) + 1e-9)).clamp(max=1.25 * eps)
    expected = start + length.view(-1, 1, 1, 1) * g.sign()
    expected = expected.clamp(x - 1.25 * eps, x + 1.25 * eps).clamp(0, 1)
    sure = g.abs() > 1e-2 * g.abs().amax(dim=(1, 2, 3), keepdim=True)
    assert sure.float().mean() > 0.98
    torch.testing.assert_close(found.double()[sure], expected[sure], rtol=0, atol=1e-6)
    shares = (length / (1.25 * eps)).detach()
    assert {-2.0: shares.max() == 0, 0.0: (shares > 0).any() & (shares < 1).any(), 0.4: (shares == 1).any()}[lam]


# Misuse.


@pytest.mark.parametrize(
    ("make", "error", "named"),
    [
        (lambda: CurriculumPGD(psi=ProbabilityGap, lam=0.0), TypeError, "psi=.*ProbabilityGap"),
        (lambda: CurriculumPGD(psi=Steps(), lam=float("nan")), ValueError, "lam="),
        (lambda: CurriculumPGD(psi=Steps(), lam=1, targeted=True), ValueError, ".*targeted="),
        (lambda: CurriculumFGSM(8, lam=0.0), ValueError, "eps="),
        (lambda: CurriculumPGD(psi=Steps(), lam="1"), ValueError, "lam="),
        (lambda: CurriculumFGSM(lam=float("nan")), ValueError, "lam="),
        (lambda: FOSC(origin="zero"), ValueError, "origin="),
        (lambda: PowerIteration(iterations=1.5), ValueError, "iterations="),
    ],
)
def test_arguments_that_make_no_sense_are_refused(make, error, named):
    with pytest.raises(error, match=f"^{named}"):
        make()


def test_the_features_of_a_net_that_has_none_are_refused():
    batch = batch_of(4)
    attack = CurriculumPGD(**ATTACK, psi=LastLayerSharpness(feature_norm=True), lam=0.5)
    with pytest.raises(TypeError, match=r"^LastLayerSharpness.* Flat .*feature_norm="):
        attack(Flat(), batch.x, batch.y)


# Composition.


def test_a_ramp_drives_lambda_in_any_method_that_takes_pgd(tmp_path):
    seen = []

    class Spy(PGDAT):
        def perturb(self, batch):
            seen.append(self.attack.lam)
            return super().perturb(batch)

    ramp = AttributeRamp("attack.lam", Linear(0, 1, 0, 1))
    spy = build(Spy, attack=CurriculumPGD(**ATTACK, psi=ProbabilityGap(), lam=0.0))
    trainer(tmp_path, max_epochs=1, callbacks=[ramp]).fit(spy, loader(images(32)))
    assert seen == [0, 0.25, 0.5, 0.75]
