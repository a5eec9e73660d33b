"""Guided adversarial training."""

import pytest
import torch
from torch import nn

from lit_robust import losses
from lit_robust.attacks import FGSM, PGD
from lit_robust.attacks.guided import GuidedPGD
from lit_robust.callbacks import AttributeRamp
from lit_robust.defenses import GAT, NuAT
from lit_robust.schedules import Staircase
from tests.formulas import forwards
from tests.methods import EPS, ONE_STEP, build
from tests.tiny import TinyNet, images, loader, trainer


def start(x: torch.Tensor, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return (x + EPS / 2 * torch.randn_like(x).sign()).clamp(0, 1).double()


def perturbed(defense, batch, seed=3, batch_idx=1):
    defense.train()
    defense.batch_idx = batch_idx
    torch.manual_seed(seed)
    return defense.perturb(batch)


def after_a_training_forward(batch) -> nn.Module:
    """The tiny net in float64 and eval mode, its BatchNorm moved by the clean images."""
    net = TinyNet().double().train()
    net(batch.x.double())
    return net.eval()


def by_the_formula(batch, lam, reference):
    """GAT's step in float64, its gradient in the logits written out; and where the gradient's sign is in doubt."""
    x, y = batch.x.double(), batch.y
    net = after_a_training_forward(batch) if reference == "train" else TinyNet().double().eval()
    q = TinyNet().double().train(reference == "train")(x).detach().softmax(dim=1)
    x0 = start(batch.x, seed=3).requires_grad_()
    logits = net(x0)
    p = logits.detach().softmax(dim=1)
    by_p = 2 * lam * (p - q)  # of the squared distance; the softmax's Jacobian follows
    by_logits = p - nn.functional.one_hot(y, 4) + p * (by_p - (p * by_p).sum(dim=1, keepdim=True))
    (gradient,) = torch.autograd.grad(logits, x0, by_logits)
    x_adv = (x0.detach() + EPS * gradient.sign()).clamp(x - EPS, x + EPS).clamp(0, 1)
    return x_adv.float(), gradient.abs() < 1e-5 * gradient.abs().max()


@pytest.mark.parametrize("reference", ["train", "eval"])
@pytest.mark.parametrize("lam", [0.0, 10.0])
def test_the_perturbation_is_the_formulas_in_float64(lam, reference):
    batch = images(8)
    found = perturbed(build(GAT, attack=ONE_STEP, lam=lam, reference_bn_mode=reference), batch)
    expected, unsure = by_the_formula(batch, lam, reference)
    assert unsure.float().mean() < 0.02
    torch.testing.assert_close(found[~unsure], expected[~unsure])


def test_the_loss_is_the_formulas_in_float64():
    batch, x_adv = images(8), images(8, seed=1).x
    net = TinyNet().double().train()
    p_adv, p = net(x_adv.double()).softmax(dim=1), net(batch.x.double()).softmax(dim=1)
    expected = -p[torch.arange(8), batch.y].log() + 10 * (p_adv - p).pow(2).sum(dim=1)
    found = build(GAT, attack=ONE_STEP, lam=10.0).train().loss(batch, x_adv)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", [GAT, NuAT])
def test_with_lambda_0_loss_and_gradient_are_those_of_clean_cross_entropy(method):
    batch = images(8)
    defense, net = build(method, attack=ONE_STEP, lam=0.0).train(), TinyNet().train()
    values = defense.loss(batch, perturbed(defense, batch))
    expected = losses.ce(net(batch.x), batch.y)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-6)
    values.mean().backward()
    expected.mean().backward()
    for mine, its in zip(defense.net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, its.grad, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", [GAT, NuAT])
def test_every_other_attack_is_guided_and_the_count_starts_anew_in_each_epoch(method, tmp_path):
    seen = []

    class Spy(method):
        def adversary(self):
            seen.append(super().adversary().lam)
            return super().adversary()

    trainer(tmp_path, max_epochs=2).fit(build(Spy, attack=ONE_STEP, lam=2.0), loader(images()))
    # 3 batches per epoch: an odd number, so a count over the whole training would differ
    assert seen == [0, 2, 0, 0, 2, 0]
    always = build(method, attack=ONE_STEP, lam=2.0, attack_alternate=False).adversary()
    assert (always.steps, always.lam) == (1, 2.0)


def test_an_unguided_attack_is_one_step_on_the_cross_entropy():
    batch = images(8)
    found = perturbed(build(GAT, attack=ONE_STEP, lam=10.0), batch, batch_idx=0)
    torch.manual_seed(3)
    expected = PGD(EPS, EPS, 1, init="rademacher", init_size=EPS / 2)(
        after_a_training_forward(batch).float(), batch.x, batch.y
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("reference", "guided", "clean", "updates"),
    [
        ("train", True, [("train", False)], 3),
        ("train", False, [("train", False)], 3),  # for BatchNorm, as in the authors' code
        ("eval", True, [("eval", False)], 2),
        ("eval", False, [], 2),
    ],
)
def test_a_batch_costs_a_clean_forward_one_attack_pass_and_two_training_passes(
    reference, guided, clean, updates, tmp_path
):
    defense = build(GAT, attack=ONE_STEP, reference_bn_mode=reference, attack_alternate=not guided)
    assert forwards(defense, tmp_path) == [*clean, ("eval", True), ("train", True), ("train", True)]
    assert int(defense.net.body[1].num_batches_tracked) == updates


def test_adversarial_images_enter_the_update_before_clean_ones():
    batch, x_adv, seen = images(8), images(8, seed=1).x, []
    defense = build(GAT, attack=ONE_STEP).train()
    defense.net.register_forward_pre_hook(lambda net, args: seen.append(args[0]))
    defense.loss(batch, x_adv)
    assert [torch.equal(seen[0], x_adv), torch.equal(seen[1], batch.x)] == [True, True]


def test_a_ramp_drives_lambda(tmp_path):
    seen = []

    class Spy(GAT):
        def loss(self, batch, x_adv):
            seen.append(self.lam)
            return super().loss(batch, x_adv)

    ramp = AttributeRamp("lam", Staircase([0, 2], [10, 40]))
    trainer(tmp_path, max_epochs=3, callbacks=[ramp]).fit(build(Spy, attack=ONE_STEP), loader(images(16)))
    assert seen == [10, 10, 10, 10, 40, 40]


def test_alpha_is_the_random_step_and_half_of_eps_by_default_which_a_ramp_may_change():
    assert build(GAT, attack=ONE_STEP).adversary().init_size == EPS / 2
    assert build(GAT, attack=ONE_STEP, alpha="8/255").adversary().init_size == 8 / 255
    defense = build(GAT, attack=ONE_STEP)
    defense.attack = FGSM(0.04)
    guided = {"penalty": GAT.penalty, "lam": 0.0, "guided_steps": 1, "reference_bn_mode": "train"}
    assert defense.adversary() == GuidedPGD(0.04, 0.04, 1, init="rademacher", init_size=0.02, **guided)


@pytest.mark.parametrize(("name", "value"), [("lam", -1.0), ("reference_bn_mode", "both"), ("alpha", 4)])
def test_arguments_that_make_no_sense_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name}="):
        build(GAT, attack=ONE_STEP, **{name: value})
