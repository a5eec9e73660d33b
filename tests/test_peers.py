"""Attacks beside independent implementations, at equal budgets on the same 600 held-out images and trained nets.

pyautoattack is an extra of this package. The other packages are not: their rows run where they are installed.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_robust.attacks import CWPGD, FGSM, PGD, Attack, MultiTargetedPGD, Square
from tests.trained import TRAINED, held_out, trained

EPS, STEP = 0.15, 0.15 / 4
#: ``(package, net, x, y) -> x_adv``.
Peer = Callable[[Any, nn.Module, Tensor, Tensor], Tensor]


def square(queries: int) -> Peer:
    return lambda auto, net, x, y: auto.SquareAttack(
        net, n_queries=queries, eps=EPS, seed=0, resc_schedule=False, device="cpu"
    ).perturb(x, y)


def targeted_apgd(auto: Any, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return auto.APGDAttack_targeted(net, n_iter=20, eps=EPS, n_target_classes=9, device="cpu").perturb(x, y)


def of_foolbox(attack: Callable[[Any], Any]) -> Peer:
    return lambda fb, net, x, y: attack(fb.attacks)(
        fb.PyTorchModel(net, bounds=(0, 1), device="cpu"), x, y, epsilons=EPS
    )[1]


def of_art(art: Any, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    estimator = pytest.importorskip("art.estimators.classification").PyTorchClassifier(
        net, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1), device_type="cpu"
    )
    attack = art.ProjectedGradientDescentPyTorch(
        estimator, eps=EPS, eps_step=STEP, max_iter=20, num_random_init=1, batch_size=len(x), verbose=False
    )
    return torch.tensor(attack.generate(x.numpy(), y=nn.functional.one_hot(y, 10).numpy()))


PEERS: dict[str, tuple[str, Peer, Attack]] = {
    "Square, 500": ("pyautoattack.autoattack", square(500), Square(EPS, queries=500)),
    "Square, 1000": ("pyautoattack.autoattack", square(1000), Square(EPS, queries=1000)),
    "MultiTargetedPGD and targeted APGD": (
        "pyautoattack.autoattack",
        targeted_apgd,
        MultiTargetedPGD(EPS, steps=20, keep="worst"),
    ),
    "FGSM, torchattacks": ("torchattacks", lambda ta, net, x, y: ta.FGSM(net, eps=EPS)(x, y), FGSM(EPS)),
    "PGD-20, torchattacks": (
        "torchattacks",
        lambda ta, net, x, y: ta.PGD(net, eps=EPS, alpha=STEP, steps=20)(x, y),
        PGD(EPS, STEP, steps=20),
    ),
    "FGSM, foolbox": ("foolbox", of_foolbox(lambda attacks: attacks.LinfFastGradientAttack()), FGSM(EPS)),
    "PGD-20, foolbox": (
        "foolbox",
        of_foolbox(lambda attacks: attacks.LinfPGD(abs_stepsize=STEP, steps=20)),
        PGD(EPS, STEP, steps=20),
    ),
    "PGD-20, ART": ("art.attacks.evasion", of_art, PGD(EPS, STEP, steps=20)),
    "PGD-100 that keeps a success, adv-lib": (
        "adv_lib.attacks",
        lambda adv, net, x, y: adv.pgd_linf(net, x, y, EPS, steps=100, absolute_step_size=STEP),
        PGD(EPS, STEP, steps=100, keep="worst"),
    ),
    "PGD-20 on the margin that keeps a success, adv-lib": (
        "adv_lib.attacks",
        lambda adv, net, x, y: adv.pgd_linf(net, x, y, EPS, steps=20, absolute_step_size=STEP, loss_function="dl"),
        CWPGD(EPS, STEP, steps=20, keep="worst"),
    ),
}


def withstood(net: nn.Module, x_adv: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return (net(x_adv.detach()).argmax(1) == y).double()


@pytest.mark.filterwarnings("ignore")  # the other packages'
@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("net", TRAINED)
def test_each_attack_is_within_a_point_of_an_independent_one_or_stronger(name, net):
    """The noise is 1.96 standard errors of the mean difference over the images, paired."""
    package, peer, mine = PEERS[name]
    theirs = pytest.importorskip(package, exc_type=ImportError)
    (x, y), victim = held_out(), trained(net)
    torch.manual_seed(0)
    reached = withstood(victim, peer(theirs, victim, x, y), y)
    torch.manual_seed(0)
    found = withstood(victim, mine(victim, x, y), y)
    differences = found - reached
    noise = 1.96 * differences.std().item() / len(y) ** 0.5
    assert found.mean() < withstood(victim, x, y).mean()
    assert differences.mean().item() <= 0.01 + noise
