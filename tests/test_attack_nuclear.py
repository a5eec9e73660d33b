"""The attacks on a norm of a batch's logit differences."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lit_robust.attacks import PGD, FrobeniusNorm, NuclearNorm
from lit_robust.losses import ce
from lit_robust.threats import Linf
from tests.tiny import TinyNet, images

both = pytest.mark.parametrize("attack", [NuclearNorm, FrobeniusNorm])


def polar(difference: torch.Tensor) -> torch.Tensor:
    u, _, vh = torch.linalg.svd(difference, full_matrices=False)
    return u @ vh


#: The gradients of the norms, in closed form.
SLOPES = {NuclearNorm: polar, FrobeniusNorm: lambda difference: difference / difference.square().sum().sqrt()}


def rademacher(x: torch.Tensor, size: float, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return (x + size * torch.randn_like(x).sign()).clamp(0, 1).double()


def climbed(attack, net, batch, seed):
    """The attack's last point by the formula, in float64, and where the gradient is too small for a certain sign."""
    net, x, y = net.double(), batch.x.double(), batch.y
    eps, size = attack.eps, attack.eps if attack.step_size is None else attack.step_size
    x_adv = rademacher(batch.x, eps / 2 if attack.init_size is None else attack.init_size, seed)
    clean, unsure = net(x).detach(), torch.zeros_like(batch.x, dtype=torch.bool)
    for _ in range(attack.steps):
        x_adv.requires_grad_()
        logits = net(x_adv)
        slope = attack.lam * SLOPES[type(attack)](logits.detach() - clean)
        if attack.loss is not None:
            slope = slope + logits.detach().softmax(dim=1) - nn.functional.one_hot(y, logits.shape[1])
        (gradient,) = torch.autograd.grad(logits, x_adv, slope)
        unsure |= gradient.abs() < 1e-5 * gradient.abs().max()
        x_adv = (x_adv.detach() + size * gradient.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    return x_adv, unsure


@both
@pytest.mark.parametrize("loss", [ce, None], ids=["with CE", "alone"])
@pytest.mark.parametrize(("steps", "step_size"), [(1, None), (3, 0.03)])
def test_steps_follow_the_closed_gradient_of_cross_entropy_and_norm(attack, loss, steps, step_size):
    batch = images(8)
    attack = attack(eps=0.1, steps=steps, step_size=step_size, loss=loss, lam=2.0)
    torch.manual_seed(3)
    found = attack(TinyNet().eval(), batch.x, batch.y)
    expected, unsure = climbed(attack, TinyNet().eval(), batch, seed=3)
    assert unsure.float().mean() < 0.02
    torch.testing.assert_close(found[~unsure], expected.float()[~unsure])


@both
def test_adversaries_are_in_the_threat_set(attack):
    batch = images(12)
    for steps in (0, 1, 5):
        x_adv = attack(eps="8/255", steps=steps)(TinyNet().eval(), batch.x, batch.y)
        assert torch.equal(Linf(8 / 255 + 1e-6).project(x_adv, batch.x), x_adv)


def test_by_default_one_step_of_eps_starts_at_half_of_it():
    seen = []
    net = TinyNet().eval()
    net.register_forward_pre_hook(lambda net, args: seen.append(args[0].detach()))
    batch = images(8)
    x = batch.x * 0.5 + 0.25  # no pixel is clipped
    x_adv = NuclearNorm(eps="8/255")(net, x, batch.y)
    assert len(seen) == 2  # the clean images, the start
    assert torch.equal(seen[0], x)
    torch.testing.assert_close((seen[1] - x).abs(), torch.full_like(x, 4 / 255))
    assert (x_adv - x).abs().max().item() == pytest.approx(8 / 255, rel=1e-4)


def test_the_two_norms_start_at_the_same_point_and_then_differ():
    batch, points = images(8), {}
    for attack in (NuclearNorm, FrobeniusNorm):
        for steps in (0, 1):
            torch.manual_seed(1)
            points[attack, steps] = attack(eps=0.1, steps=steps, loss=None)(TinyNet().eval(), batch.x, batch.y)
    assert torch.equal(points[NuclearNorm, 0], points[FrobeniusNorm, 0])
    assert not torch.equal(points[NuclearNorm, 1], points[FrobeniusNorm, 1])


@both
def test_more_steps_raise_the_norm(attack):
    batch, net = images(16), TinyNet().eval()
    norms = []
    for steps in (1, 8):
        torch.manual_seed(0)
        x_adv = attack(eps=0.1, step_size=0.025, steps=steps, loss=None)(net, batch.x, batch.y)
        norms.append(attack(eps=0.1).norm_of(net(x_adv) - net(batch.x)).item())
    assert norms[1] > 1.2 * norms[0]


@both
def test_a_vanishing_norm_leaves_pgd(attack):
    batch, net = images(8), TinyNet().eval()
    found = []
    for other in (attack(eps=0.1, lam=1e-12), PGD(0.1, 0.1, 1, init="rademacher", init_size=0.05)):
        torch.manual_seed(5)
        found.append(other(net, batch.x, batch.y))
    assert (found[0] != found[1]).float().mean() < 0.01


@both
def test_attacks_leave_no_gradient_and_work_in_inference_mode(attack):
    batch, net = images(8), TinyNet().eval()
    with torch.inference_mode():
        attack()(net, batch.x.clone(), batch.y.clone())
    assert all(parameter.grad is None for parameter in net.parameters())


@both
def test_a_schedule_can_replace_eps_and_the_steps_follow(attack):
    small = replace(attack(eps="8/255"), eps=0.01)
    batch = images(8)
    x = batch.x * 0.5 + 0.25
    assert (small(TinyNet().eval(), x, batch.y) - x).abs().max().item() == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize(("name", "value"), [("eps", 8), ("step_size", 2), ("init_size", 4), ("steps", -1), ("lam", 0)])
def test_arguments_that_make_no_sense_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name}="):
        NuclearNorm(**{name: value})
