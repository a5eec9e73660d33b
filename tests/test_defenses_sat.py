"""P-SAT, H-SAT and Dynamic AT."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F

from lit_robust.attacks import FGSM, GAMAPGD, PGD, CurriculumFGSM, CurriculumPGD
from lit_robust.attacks.difficulty import FOSC, LastLayerSharpness, PowerIteration, ProbabilityGap
from lit_robust.callbacks import AttributeRamp
from lit_robust.data import DigitsDataModule
from lit_robust.defenses import HSAT, PGDAT, PSAT, DynamicAT
from lit_robust.nets import digits_cnn
from lit_robust.schedules import Linear, PerEpoch, Staircase
from tests.formulas import Passes, assert_same_batch, in_float64, one_batch, smooth_net
from tests.methods import EPS, ONE_STEP, build
from tests.test_attack_curriculum import batch_of, fitted
from tests.tiny import images, loader, trainer

ATTACK = PGD(eps=EPS, step_size=0.025, steps=5)
methods = pytest.mark.parametrize("method", [PSAT, HSAT, DynamicAT])


def gap(p, y):
    right = p[torch.arange(len(y)), y]
    return p.scatter(1, y.unsqueeze(1), -1).amax(dim=1) - right


def probability_gap(z, y, delta, g):
    return gap(z.softmax(dim=1), y)


def sharpness(z, y, delta, g):
    p = z.softmax(dim=1)
    return 2 * torch.linalg.eigvalsh(torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1))[:, -1]


def minus_fosc(z, y, delta, g):
    return (delta * g).flatten(1).sum(dim=1) - EPS * g.abs().flatten(1).sum(dim=1)


def bounded_pgd(net, batch, psi, lam):
    """The loop in float64, and where its signs or its decisions are in doubt."""
    torch.manual_seed(3)
    start = (batch.x + (2 * torch.rand_like(batch.x) - 1) * EPS).clamp(0, 1)
    x, x_adv, y = batch.x.double(), start.double(), batch.y
    unsure, stopped = torch.zeros_like(x, dtype=torch.bool), torch.zeros(len(x), dtype=torch.bool)
    for _ in range(ATTACK.steps):
        x_adv = x_adv.detach().requires_grad_()
        z = net(x_adv)
        (g,) = torch.autograd.grad(F.cross_entropy(z, y, reduction="sum"), x_adv)
        unsure |= g.abs() < 1e-4 * g.abs().amax(dim=(1, 2, 3), keepdim=True)
        moves = psi(z.detach(), y, x_adv.detach() - x, g) <= lam
        stopped |= ~moves
        x_next = (x_adv + ATTACK.step_size * g.sign()).clamp(x - EPS, x + EPS).clamp(0, 1)
        x_adv = torch.where(moves.view(-1, 1, 1, 1), x_next, x_adv)
    return x_adv.detach(), unsure, stopped


@pytest.mark.parametrize(
    ("method", "arguments", "psi", "lam"),
    [
        (PSAT, {"lam": 0.1}, probability_gap, 0.1),
        (HSAT, {"lam": 0.7}, sharpness, 0.7),
        (DynamicAT, {"c": 0.5}, minus_fosc, -0.5),
    ],
)
def test_perturbation_loss_and_gradient_are_the_formulas_in_float64(method, arguments, psi, lam):
    batch, net = batch_of(48), deepcopy(fitted())
    exact = in_float64(net)
    x_adv, values, gradients = one_batch(build(method, net=net, attack=ATTACK, **arguments), batch)
    expected, unsure, stopped = bounded_pgd(exact, batch, psi, lam)
    assert 0.1 < stopped.float().mean() < 0.9
    assert unsure.float().mean() < 0.01
    torch.testing.assert_close(x_adv[~unsure], expected.float()[~unsure], rtol=0, atol=1e-6)
    loss = F.cross_entropy(exact(x_adv.double()), batch.y, reduction="none")
    torch.testing.assert_close(values.double(), loss, rtol=1e-5, atol=1e-6)
    loss.mean().backward()
    for name, parameter in exact.named_parameters():
        torch.testing.assert_close(gradients[name].double(), parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        (PSAT, {"lam": 1.0}),
        (HSAT, {"lam": 1.0}),
        (HSAT, {"lam": 1.0, "psi": LastLayerSharpness(feature_norm=True)}),
        (HSAT, {"lam": 1.0, "psi": PowerIteration()}),
        (DynamicAT, {"c": 0.0}),
    ],
)
def test_at_the_end_of_its_ramp_a_method_is_pgd_training(method, arguments):
    batch = images()
    plain = build(PGDAT, attack=ATTACK, attack_bn_mode="eval")
    mine = build(method, attack=ATTACK, **arguments)
    assert_same_batch(mine, plain, batch)
    assert torch.equal(one_batch(mine, batch)[0], one_batch(plain, batch)[0])


def test_the_presets_are_the_general_attack_with_a_metric_each_at_this_moments_numbers():
    pgd = {"eps": EPS, "step_size": 0.025, "steps": 5}
    assert build(PSAT, attack=ATTACK, lam=0.2).adversary() == CurriculumPGD(**pgd, psi=ProbabilityGap(), lam=0.2)
    assert build(HSAT, attack=ATTACK, lam=0.2).adversary() == CurriculumPGD(**pgd, psi=LastLayerSharpness(), lam=0.2)
    assert build(DynamicAT, attack=ATTACK, c=0.2).adversary() == CurriculumPGD(**pgd, psi=FOSC(), lam=-0.2)
    assert build(PSAT, attack=ONE_STEP, lam=0.2).adversary() == CurriculumFGSM(EPS, lam=0.2)
    later = build(PSAT, attack=ATTACK)
    later.lam, later.attack = 0.7, PGD(0.05)
    assert later.adversary() == CurriculumPGD(0.05, psi=ProbabilityGap(), lam=0.7)


@methods
def test_a_batch_costs_what_pgds_does_and_the_attack_leaves_batchnorm_alone(method, tmp_path):
    def passes(defense):
        body = Passes(defense.net.body)
        trainer(tmp_path, max_epochs=1, limit_train_batches=1).fit(defense, loader(images(8)))
        return body.forward, body.backward, int(defense.net.body[1].num_batches_tracked)

    assert passes(build(method, attack=ATTACK)) == passes(build(PGDAT, attack=ATTACK, attack_bn_mode="eval"))


@pytest.mark.parametrize(
    ("method", "attribute", "schedule", "at"),
    [
        (PSAT, "lam", PerEpoch(Linear(0, 0.4, 29, 69)), {29: 0, 30: 0.01, 49.5: 0.2, 69: 0.4, 99: 0.4}),
        (PSAT, "lam", Staircase([0, 30, 45, 60], [0, 1 / 3, 2 / 3, 1]), {29: 0, 30: 1 / 3, 59: 2 / 3, 60: 1}),
        (DynamicAT, "c", PerEpoch(Linear(0.5, 0, 0, 80)), {0: 0.5, 1: 0.49375, 79: 0.00625, 80: 0, 99: 0}),
        (DynamicAT, "c", PerEpoch(Linear(0.5, 0, 0, 30)), {0: 0.5, 15: 0.25, 30: 0, 69: 0}),
    ],
)
def test_the_ramps_of_the_authors_code_drive_the_bound(method, attribute, schedule, at, tmp_path):
    for epoch, value in at.items():
        assert schedule(epoch) == pytest.approx(value)
    defense = build(method, **{attribute: 0.9})
    trainer(tmp_path, max_epochs=2, callbacks=[AttributeRamp(attribute, schedule)]).fit(defense, loader(images(8)))
    assert getattr(defense, attribute) == pytest.approx(schedule(1))


@pytest.mark.parametrize(
    ("method", "attribute", "schedule", "named"),
    [
        (PSAT, "lam", Linear(0, 1.5, 0, 3), "lam=1.25 at epoch 2.5: lam=1.25"),
        (HSAT, "lam", Linear(-1, 1, 0, 3), "lam=-1 at epoch 0: lam=-1.0"),
        (DynamicAT, "c", Linear(1, -1, 0, 3), "c=-0.3333 at epoch 2: c=-0.3333"),
    ],
)
def test_a_bound_that_a_ramp_would_lead_out_of_range_is_refused_before_the_training(
    method, attribute, schedule, named, tmp_path
):
    run = trainer(tmp_path, max_epochs=3, callbacks=[AttributeRamp(attribute, schedule)])
    with pytest.raises(ValueError, match=f"^AttributeRamp .*{named}"):
        run.fit(build(method), loader(images(8)))
    assert run.global_step == 0


def test_weighted_by_its_own_value_a_sample_counts_so_from_the_second_epoch_on(tmp_path):
    seen = []

    class Spy(DynamicAT):
        def loss(self, batch, x_adv):
            values = super().loss(batch, x_adv)
            plain = F.cross_entropy(self.net(x_adv), batch.y, reduction="none").detach()
            seen.append((values.detach(), plain))
            return values

    defense = build(Spy, net=smooth_net(), origin="start", weight_by_loss=True)
    trainer(tmp_path, max_epochs=2).fit(defense, loader(images(8)))
    (first, plain), (second, later) = seen
    torch.testing.assert_close(first, plain)
    torch.testing.assert_close(second, later.square())


def test_the_weight_of_a_loss_has_no_gradient():
    batch, net = images(8), smooth_net()
    defense = build(DynamicAT, net=net, weight_by_loss=True)
    defense.__class__ = type("Late", (DynamicAT,), {"current_epoch": 1})
    values = defense.loss(batch, batch.x)
    values.sum().backward()
    exact = in_float64(net)
    loss = F.cross_entropy(exact(batch.x.double()), batch.y, reduction="none")
    (loss.detach() * loss).sum().backward()
    for mine, its in zip(net.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(mine.grad.double(), its.grad, rtol=1e-4, atol=1e-6)


@methods
def test_evaluation_attacks_without_a_bound(method):
    defense = build(method, attack=ATTACK)
    assert {type(attack) for attack in (*defense.val_attacks.values(), *defense.test_attacks.values())} == {
        PGD,
        GAMAPGD,
    }


class Headless(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = smooth_net()

    def forward(self, x):
        return self.net(x)


def test_sharpness_of_the_logits_needs_no_features_and_of_the_features_does():
    build(HSAT, net=Headless())
    build(HSAT, net=Headless(), psi=PowerIteration())
    with pytest.raises(TypeError, match=r"^LastLayerSharpness.* Headless .*feature_norm="):
        build(HSAT, net=Headless(), psi=LastLayerSharpness(feature_norm=True))


@pytest.mark.parametrize(
    ("method", "arguments", "error", "named"),
    [
        (PSAT, {"attack": CurriculumPGD(psi=FOSC(), lam=0.0)}, TypeError, "PSAT .*attack=.* CurriculumPGD"),
        (HSAT, {"attack": ONE_STEP}, TypeError, "HSAT .*attack=.* FGSM"),
        (DynamicAT, {"attack": ONE_STEP}, TypeError, "DynamicAT .*attack=.* FGSM"),
        (PSAT, {"attack": FGSM(0.5, norm="l2")}, ValueError, ".*PSAT .*norm="),
        (PSAT, {"lam": float("nan")}, ValueError, "lam="),
        (PSAT, {"lam": 40}, ValueError, "lam="),
        (PSAT, {"attack": ONE_STEP, "lam": -3.0}, ValueError, "lam="),
        (PSAT, {"lam": "0.4"}, ValueError, "lam="),
        (HSAT, {"lam": -0.5}, ValueError, "lam="),
        (DynamicAT, {"c": -2.0}, ValueError, "c="),
        (HSAT, {"psi": "power"}, TypeError, "psi="),
        (DynamicAT, {"origin": "zero"}, ValueError, "origin="),
    ],
)
def test_arguments_that_make_no_sense_are_refused(method, arguments, error, named):
    with pytest.raises(error, match=f"^{named}"):
        build(method, **arguments)


def test_hsat_learns_to_withstand_pgd_on_digits(tmp_path):
    """Natural training ends at 0.06 here; PGD training at 0.10, as a trivial classifier."""
    torch.manual_seed(0)
    data = DigitsDataModule(batch_size=32, train_size=640, val_size=300)
    defense = HSAT(
        digits_cnn(width=8),
        data.num_classes,
        PGD(eps=0.15, step_size=0.06, steps=3),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    )
    ramp = AttributeRamp("lam", Linear(0, 1, 0, 6))
    fitting = trainer(tmp_path, max_epochs=8, callbacks=[ramp], check_val_every_n_epoch=8)
    fitting.fit(defense, data)
    assert fitting.callback_metrics["val/acc/robust"] > 0.4
