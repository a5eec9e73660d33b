"""FGSM training and its random starts, against their formulas."""

import pytest
import torch
import torch.nn.functional as F

from lit_robust.attacks import FGSM, PGD
from lit_robust.callbacks import AttributeRamp
from lit_robust.defenses import FGSMAT, NFGSM, PGDAT, RFGSMAT, FastAT, ZeroGrad
from lit_robust.schedules import Linear
from lit_robust.threats import Linf
from tests.formulas import Passes, assert_same_batch, gradient, in_float64, one_batch, smooth_net
from tests.methods import EPS, METHODS, ONE_STEP, build
from tests.tiny import TinyNet, images, loader, trainer

ALPHA = 0.04


def tramer(net, x, y):
    x0 = (x + ALPHA * torch.randn_like(x).sign()).clamp(0, 1)
    return (x0 + (EPS - ALPHA) * gradient(net, x0, y).sign()).clamp(0, 1)


def wong(net, x, y):
    delta = ((2 * torch.rand_like(x) - 1) * EPS + x).clamp(0, 1) - x
    delta = (delta + 1.25 * EPS * gradient(net, x + delta, y).sign()).clamp(-EPS, EPS)
    return (x + delta).clamp(0, 1)


def noisy(net, x, y):
    eta = ((2 * torch.rand_like(x) - 1) * 2 * EPS + x).clamp(0, 1) - x
    return (x + eta + EPS * gradient(net, x + eta, y).sign()).clamp(0, 1)


def zeroed(net, x, y):
    delta = ((2 * torch.rand_like(x) - 1) * EPS + x).clamp(0, 1) - x
    g = gradient(net, x + delta, y)
    small = torch.stack([row.abs() < row.abs().quantile(0.35) for row in g.flatten(1)]).view(g.shape)
    return (x + (delta + 2 * EPS * torch.where(small, 0, g).sign()).clamp(-EPS, EPS)).clamp(0, 1)


@pytest.mark.parametrize(
    ("method", "arguments", "formula"),
    [
        (FGSMAT, {}, lambda net, x, y: (x + EPS * gradient(net, x, y).sign()).clamp(0, 1)),
        (RFGSMAT, {"alpha": ALPHA}, tramer),
        (FastAT, {}, wong),
        (NFGSM, {}, noisy),
        (ZeroGrad, {}, zeroed),
    ],
)
def test_perturbation_and_loss_are_the_formulas(method, arguments, formula):
    batch, net = images(), TinyNet()
    exact = in_float64(net)
    x_adv, loss, _ = one_batch(build(method, net=net, attack=ONE_STEP, **arguments), batch)
    torch.manual_seed(3)
    expected = formula(exact, batch.x, batch.y)
    torch.testing.assert_close(x_adv, expected.float(), rtol=0, atol=1e-6)
    torch.testing.assert_close(loss, F.cross_entropy(exact(expected), batch.y, reduction="none").float())


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ((FGSMAT, {}), (PGDAT, {})),
        ((RFGSMAT, {"alpha": 0.0}), (FGSMAT, {})),
        ((FastAT, {"alpha": EPS, "delta_init": "zero"}), (FGSMAT, {})),
        ((FastAT, {"delta_init": "previous"}), (FastAT, {"delta_init": "zero"})),  # in the first batch
        ((FastAT, {}), (PGDAT, {"attack": PGD(eps=EPS, step_size=1.25 * EPS, steps=1)})),
        ((NFGSM, {"k": 0.0}), (FGSMAT, {})),
        ((ZeroGrad, {"q": 0.0}), (FastAT, {"alpha": 2 * EPS})),
    ],
)
def test_without_what_it_adds_a_method_is_the_simpler_one(mine, theirs):
    make = [build(method, net=TinyNet(), **({"attack": ONE_STEP} | arguments)) for method, arguments in (mine, theirs)]
    assert_same_batch(*make, images())


def test_a_start_from_the_previous_perturbation_is_the_authors_loop():
    exact = in_float64(TinyNet())
    defense = build(FastAT, net=TinyNet(), attack=ONE_STEP, delta_init="previous")
    delta = torch.zeros(12, 3, 8, 8, dtype=torch.float64)
    for seed, n in enumerate((12, 5, 12)):  # the batch in the middle is short
        batch = images(n, seed)
        g = gradient(exact, batch.x + delta[:n], batch.y)
        moved = (delta[:n] + 1.25 * EPS * g.sign()).clamp(-EPS, EPS)
        delta[:n] = (batch.x + moved).clamp(0, 1) - batch.x
        torch.testing.assert_close(defense.perturb(batch), (batch.x + delta[:n]).float(), rtol=0, atol=1e-6)
    torch.testing.assert_close(defense.memory.tensors["delta"], delta.float(), rtol=0, atol=1e-6)


def test_a_perturbation_is_carried_to_larger_batches_and_forgotten_with_the_image_size():
    defense = build(FastAT, attack=ONE_STEP, delta_init="previous")
    x = torch.rand(4, 3, 8, 8)
    defense.remember(torch.full((2, 3, 8, 8), 0.05))
    assert defense.recall(x).flatten(1).amax(dim=1).tolist() == pytest.approx([0.05, 0.05, 0, 0])
    assert not defense.recall(torch.rand(2, 3, 16, 16)).any()
    defense.remember(torch.zeros(1, 3, 16, 16))
    assert defense.memory.tensors["delta"].shape == (1, 3, 16, 16)


def test_a_lower_eps_applies_to_a_carried_perturbation_too():
    defense = build(FastAT, attack=ONE_STEP, delta_init="previous")
    defense.remember(torch.full((2, 3, 8, 8), EPS))
    defense.attack = FGSM(eps=EPS / 2)
    assert defense.recall(torch.rand(2, 3, 8, 8)).max().item() == pytest.approx(EPS / 2)


def test_while_a_ramp_holds_eps_below_alpha_the_random_step_of_rfgsm_is_eps(tmp_path):
    moved = []

    class Spy(RFGSMAT):
        def perturb(self, batch):
            x_adv = super().perturb(batch)
            moved.append((x_adv - batch.x).abs().max().item())
            return x_adv

    ramp = AttributeRamp("attack.eps", Linear(0, EPS, 0, 4))
    defense = build(Spy, attack=ONE_STEP, alpha=EPS / 2)
    trainer(tmp_path, max_epochs=5, callbacks=[ramp]).fit(defense, loader(images(8)))
    assert moved == pytest.approx([0, EPS / 4, EPS / 2, 3 * EPS / 4, EPS])


@pytest.mark.parametrize("k", [0.0, 0.5, 2.0])
def test_nfgsm_reaches_k_plus_one_eps_and_no_further(k):
    batch = images()
    change = (build(NFGSM, attack=ONE_STEP, k=k).perturb(batch) - batch.x).abs()
    assert (k + 0.9) * EPS < change.max() <= (k + 1) * EPS + 1e-6


@pytest.mark.parametrize("method", [RFGSMAT, FastAT, NFGSM, ZeroGrad])
def test_a_schedule_of_eps_changes_the_step_that_follows_it(method):
    batch, defense = images(), build(method, attack=ONE_STEP)
    defense.attack = FGSM(eps=0.0)
    assert defense.perturb(batch).equal(batch.x)


def test_zerograd_leaves_its_share_of_the_pixels_at_their_start():
    batch, defense = images(), build(ZeroGrad, net=smooth_net(), attack=ONE_STEP, q=0.5)
    torch.manual_seed(0)
    start = Linf(EPS).project(Linf(EPS).random_start(batch.x), batch.x)
    torch.manual_seed(0)
    waits = (defense.perturb(batch) == start).float().mean()
    assert 0.5 <= waits < 0.55  # and those that their step could not move, in a corner of the box


#: Passes over a batch, forwards and backwards; the second gradient of GradAlign goes through its logits twice.
COSTS = {
    "Natural": (1, 1),
    "PGDAT": (3, 3),  # of two steps
    "FGSMAT": (2, 2),
    "RFGSMAT": (2, 2),
    "FastAT": (2, 2),
    "FastAT from the previous delta": (2, 2),
    "NFGSM": (2, 2),
    "FreeAT": (2, 2),  # a replay costs 1
    "FreeAT in the image box": (2, 2),
    "GradAlign": (3, 4),
    "RMGM": (4, 4),
    "SATR1": (1 + 3 / 8 + 9 / 8, 1 + 3 / 8 + 9 / 8),
    "SATR3": (3, 3),
    "ELLEA": (5, 5),
    "ZeroGrad": (2, 2),
    "AAER": (2, 2),
    "AAER on NFGSM": (2, 2),
}


@pytest.mark.parametrize("name", COSTS)
def test_a_batch_costs_what_the_cost_model_says(name, tmp_path):
    defense = build(METHODS[name].cls, **METHODS[name].arguments)
    passes = Passes(defense.net)
    trainer(tmp_path, max_epochs=1).fit(defense, loader(images(16), batch_size=8))
    checked = 2  # images of the first batch, once a run
    assert ((passes.forward - checked) / 16, passes.backward / 16) == COSTS[name]


@pytest.mark.parametrize(
    ("method", "arguments", "error", "named"),
    [
        (FGSMAT, {"attack": PGD(eps=0.1)}, TypeError, "FGSMAT .*attack=.* PGD"),
        (FastAT, {"attack": FGSM(eps=1, norm="l2")}, ValueError, "FastAT .*norm="),
        (FastAT, {"delta_init": "uniform"}, ValueError, "delta_init="),
        (FastAT, {"alpha": 10}, ValueError, "alpha="),
        (RFGSMAT, {"alpha": 2 * EPS}, ValueError, "alpha=0.2 .*eps=0.1"),
        (NFGSM, {"k": -1}, ValueError, "k="),
        (ZeroGrad, {"q": 1.0}, ValueError, "q="),
    ],
)
def test_arguments_that_make_no_sense_are_refused(method, arguments, error, named):
    with pytest.raises(error, match=f"^{named}"):
        build(method, **({"attack": ONE_STEP} | arguments))
