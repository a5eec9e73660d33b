"""Attacks beside independent implementations, at equal budgets on the same 600 held-out images and trained nets.

pyautoattack is an extra of this package. The other packages are not: their rows run where they are installed.

==================  =====================================================  ==========================================
without a row       why                                                    compared instead with
==================  =====================================================  ==========================================
GAMAPGD, GAMAFW     in no package                                          the authors' loop: test_attack_gama
LPA, PPGD, FastLPA  in no package                                          a float64 loop and an exact worst case:
                                                                           test_attack_perceptual
StAdv, ReColor      in no package (ART's SpatialTransformation rotates     closed forms of the transformations:
                    and shifts, adv-lib's perc_al has no bound)            test_attack_unseen
JPEG                advex-uar's runs on CUDA only                          SciPy's cosines and the worst case of a
                                                                           linear net: test_attack_unseen
NuclearNorm,        in no package                                          the gradient in closed form:
FrobeniusNorm                                                              test_attack_nuclear
CurriculumPGD,      in no package: attacks of a training                   loops: test_attack_curriculum,
FriendlyPGD                                                                test_defenses_curriculum
AutoAttack          runs pyautoattack itself                               its package, by bits: test_autoattack
==================  =====================================================  ==========================================
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lit_robust import losses
from lit_robust.attacks import BPDA, CWPGD, FGSM, PGD, RFGSM, MultiTargetedPGD, Square, TargetedPGD
from tests.masked import BitDepth, DropoutOn, RandomResize, masked
from tests.trained import TRAINED, held_out, trained

EPS, STEP = 0.15, 0.15 / 4
#: An L2 bound that breaks about as many images, and a step.
EPS_L2, STEP_L2 = 0.6, 0.15
#: ``(package, net, x, y) -> x_adv``.
Peer = Callable[[Any, nn.Module, Tensor, Tensor], Tensor]


class Row(NamedTuple):
    """A package, its attack, ours, and the net that both attack."""

    package: str
    peer: Peer
    mine: Callable[[nn.Module, Tensor, Tensor], Tensor]
    victim: Callable[[str], nn.Module] = trained


def square(queries: int) -> Peer:
    return lambda auto, net, x, y: auto.SquareAttack(
        net, n_queries=queries, eps=EPS, seed=0, resc_schedule=False, device="cpu"
    ).perturb(x, y)


def targeted_apgd(auto: Any, net: nn.Module, x: Tensor, y: Tensor, targets: int = 9) -> Tensor:
    return auto.APGDAttack_targeted(net, n_iter=20, eps=EPS, n_target_classes=targets, device="cpu").perturb(x, y)


def of_foolbox(attack: Callable[[Any], Any], eps: float = EPS) -> Peer:
    return lambda fb, net, x, y: attack(fb.attacks)(
        fb.PyTorchModel(net, bounds=(0, 1), device="cpu"), x, y, epsilons=eps
    )[1]


def of_art(norm: float | str = "inf", defence: Callable[[Any], Any] | None = None, runs: int = 1) -> Peer:
    """PGD of ART; with a defence in front of the net, whose gradient ART takes for the identity's, it is BPDA."""

    def attack(art: Any, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        estimator = pytest.importorskip("art.estimators.classification").PyTorchClassifier(
            net.get_submodule("net") if defence else net, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1),
            preprocessing_defences=defence(defences()) if defence else None, device_type="cpu",
        )  # fmt: skip
        eps, step = (EPS, STEP) if norm == "inf" else (EPS_L2, STEP_L2)
        np.random.seed(0)  # noqa: NPY002  # ART draws its starts there
        found = art.ProjectedGradientDescent(
            estimator, norm, eps, step, max_iter=20, num_random_init=runs, batch_size=len(x), verbose=False
        ).generate(x.numpy(), y=nn.functional.one_hot(y, 10).numpy())
        return torch.tensor(found)

    return attack


def defences() -> Any:
    return pytest.importorskip("art.defences.preprocessor")


class Jpeg(nn.Module):
    """ART's JPEG in front of a net."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(jpeg(defences())(x.detach().numpy())[0])


def jpeg(art: Any) -> Any:
    return art.JpegCompression(clip_values=(0, 1), quality=50, channels_first=True)


def smooth(x: Tensor) -> Tensor:
    """An increasing function whose steps are those of ``BitDepth``, but round."""
    return x - torch.sin(14 * torch.pi * x) / (28 * torch.pi)


def squeezed(substitute: bool) -> Callable[[Any], Any]:
    """ART's bit depth, whose gradient is the identity's or that of ``smooth``."""

    def defence(art: Any) -> Any:
        class Squeezed(art.FeatureSqueezing):
            def __call__(self, x, y=None):
                return super().__call__(x)[0].astype(np.float32), y  # ART returns float64

            def estimate_gradient(self, x, grad):
                return grad * (1 - np.cos(14 * np.pi * x) / 2) if substitute else super().estimate_gradient(x, grad)

        return Squeezed(clip_values=(0, 1), bit_depth=3)

    return defence


def least_likely(ta: Any, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    attack = ta.PGD(net, eps=EPS, alpha=STEP, steps=20)
    attack.set_mode_targeted_least_likely(kth_min=1, quiet=True)
    return attack(x, y)


def next_class(fb: Any, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    attack = fb.attacks.LinfPGD(abs_stepsize=STEP, steps=20)
    towards = fb.criteria.TargetedMisclassification((y + 1) % 10)
    return attack(fb.PyTorchModel(net, bounds=(0, 1), device="cpu"), x, towards, epsilons=EPS)[1]


def on_the_natural_net(ta: Any, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return ta.PGD(trained("natural"), eps=EPS, alpha=STEP, steps=20)(x, y)


def eot(ta: Any, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return ta.EOTPGD(net, eps=EPS, alpha=STEP, steps=20, eot_iter=10)(x, y)


PEERS: dict[str, Row] = {
    "Square, 500": Row("pyautoattack.autoattack", square(500), Square(EPS, queries=500)),
    "Square, 1000": Row("pyautoattack.autoattack", square(1000), Square(EPS, queries=1000)),
    "MultiTargetedPGD and targeted APGD": Row(
        "pyautoattack.autoattack",
        targeted_apgd,
        MultiTargetedPGD(EPS, steps=20, keep="worst"),
    ),
    "FGSM, torchattacks": Row("torchattacks", lambda ta, net, x, y: ta.FGSM(net, eps=EPS)(x, y), FGSM(EPS)),
    "PGD-20, torchattacks": Row(
        "torchattacks",
        lambda ta, net, x, y: ta.PGD(net, eps=EPS, alpha=STEP, steps=20)(x, y),
        PGD(EPS, STEP, steps=20),
    ),
    "FGSM, foolbox": Row("foolbox", of_foolbox(lambda attacks: attacks.LinfFastGradientAttack()), FGSM(EPS)),
    "PGD-20, foolbox": Row(
        "foolbox",
        of_foolbox(lambda attacks: attacks.LinfPGD(abs_stepsize=STEP, steps=20)),
        PGD(EPS, STEP, steps=20),
    ),
    "PGD-20, ART": Row("art.attacks.evasion", of_art(), PGD(EPS, STEP, steps=20)),
    "PGD-100 that keeps a success, adv-lib": Row(
        "adv_lib.attacks",
        lambda adv, net, x, y: adv.pgd_linf(net, x, y, EPS, steps=100, absolute_step_size=STEP),
        PGD(EPS, STEP, steps=100, keep="worst"),
    ),
    "PGD-20 on the margin that keeps a success, adv-lib": Row(
        "adv_lib.attacks",
        lambda adv, net, x, y: adv.pgd_linf(net, x, y, EPS, steps=20, absolute_step_size=STEP, loss_function="dl"),
        CWPGD(EPS, STEP, steps=20, keep="worst"),
    ),
    "PGD-20 in 3 runs, ART": Row("art.attacks.evasion", of_art(runs=3), PGD(EPS, STEP, steps=20, restarts=3)),
    "L2 PGD-20, torchattacks": Row(
        "torchattacks",
        lambda ta, net, x, y: ta.PGDL2(net, eps=EPS_L2, alpha=STEP_L2, steps=20)(x, y),
        PGD(EPS_L2, STEP_L2, steps=20, norm="l2"),
    ),
    "L2 PGD-20, foolbox": Row(
        "foolbox",
        of_foolbox(lambda attacks: attacks.L2PGD(abs_stepsize=STEP_L2, steps=20), EPS_L2),
        PGD(EPS_L2, STEP_L2, steps=20, norm="l2"),
    ),
    "L2 PGD-20, ART": Row("art.attacks.evasion", of_art(norm=2), PGD(EPS_L2, STEP_L2, steps=20, norm="l2")),
    "MI-FGSM, torchattacks": Row(
        "torchattacks",
        lambda ta, net, x, y: ta.MIFGSM(net, eps=EPS, alpha=STEP, steps=20, decay=0.9)(x, y),
        PGD(EPS, STEP, steps=20, init="zero", momentum=0.9),
    ),
    "the attack of TRADES, torchattacks": Row(
        "torchattacks",
        lambda ta, net, x, y: ta.TPGD(net, eps=EPS, alpha=STEP, steps=20)(x, y),
        PGD(EPS, STEP, steps=20, init="gaussian", loss=losses.kl, compare_with="clean_logits"),
    ),
    "RFGSM and FFGSM, torchattacks": Row(
        "torchattacks",
        lambda ta, net, x, y: ta.FFGSM(net, eps=EPS, alpha=1.25 * EPS)(x, y),
        RFGSM(EPS, variant="wong"),
    ),
    "towards the least likely class, torchattacks": Row(
        "torchattacks",
        least_likely,
        TargetedPGD(EPS, STEP, steps=20, target_rank=-1, towards=losses.ce_targeted),
    ),
    "towards the most likely class and targeted APGD": Row(
        "pyautoattack.autoattack",
        lambda auto, net, x, y: targeted_apgd(auto, net, x, y, targets=1),
        TargetedPGD(EPS, steps=20, keep="worst"),
    ),
    "towards a given class, foolbox": Row(
        "foolbox",
        next_class,
        lambda net, x, y: PGD(EPS, STEP, steps=20, targeted=True)(net, x, (y + 1) % 10),
    ),
    "PGD-20 transferred from the natural net, torchattacks": Row(
        "torchattacks", on_the_natural_net, lambda net, x, y: PGD(EPS, STEP, steps=20)(trained("natural"), x, y)
    ),
    "EOT of 10 through dropout, torchattacks": Row(
        "torchattacks", eot, PGD(EPS, STEP, steps=20, eot=10), lambda name: trained(name, DropoutOn)
    ),
    "EOT of 10 through a random size, torchattacks": Row(
        "torchattacks", eot, PGD(EPS, STEP, steps=20, eot=10), lambda name: trained(name, RandomResize)
    ),
    "BPDA of bit depth, ART": Row(
        "art.attacks.evasion",
        of_art(defence=squeezed(substitute=False)),
        BPDA(PGD(EPS, STEP, steps=20), "mask"),
        lambda name: trained(name, BitDepth),
    ),
    "BPDA of JPEG, ART": Row(
        "art.attacks.evasion",
        of_art(defence=jpeg),
        BPDA(PGD(EPS, STEP, steps=20), "mask"),
        lambda name: masked(Jpeg(), trained(name)).eval(),
    ),
    "BPDA of bit depth with a substitute, ART": Row(
        "art.attacks.evasion",
        of_art(defence=squeezed(substitute=True)),
        BPDA(PGD(EPS, STEP, steps=20), "mask", smooth),
        lambda name: trained(name, BitDepth),
    ),
}


def withstood(net: nn.Module, x_adv: Tensor, y: Tensor, forwards: int = 1) -> Tensor:
    """How often each image is classified correctly, ``(N,)``."""
    with torch.no_grad():
        return sum((net(x_adv.detach()).argmax(1) == y).double() for _ in range(forwards)) / forwards


@pytest.mark.filterwarnings("ignore")  # the other packages'
@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("net", TRAINED)
def test_each_attack_is_within_a_point_of_an_independent_one_or_stronger(name, net):
    """The noise is 1.96 standard errors of the mean difference over the images, paired.

    A net that draws random numbers judges each image 50 times.
    """
    package, peer, mine, victim_of = PEERS[name]
    theirs = pytest.importorskip(package, exc_type=ImportError)
    (x, y), victim = held_out(), victim_of(net)
    forwards = 50 if "EOT" in name else 1
    torch.manual_seed(0)
    reached = withstood(victim, peer(theirs, victim, x, y), y, forwards)
    torch.manual_seed(0)
    found = withstood(victim, mine(victim, x, y), y, forwards)
    differences = found - reached
    noise = 1.96 * differences.std().item() / len(y) ** 0.5
    assert found.mean() < withstood(victim, x, y, forwards).mean()
    assert differences.mean().item() <= 0.01 + noise
