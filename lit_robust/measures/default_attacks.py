"""The attacks of a validation and a test for which none are given."""

from collections.abc import Mapping
from typing import Any, get_args

from lit_robust import losses
from lit_robust.attacks import GAMAPGD, LPA, PGD, Attack
from lit_robust.attacks.lpips_ball import PerceptualAttack
from lit_robust.threats import Norm


def default_test(eps: float, norm: Norm = "linf") -> dict[str, Attack]:
    """PGD-20 on cross-entropy and on the margin of logits, and GAMA-PGD-40, each keeping its run's worst point (ours).

    The last point of a run is not always its worst one, and neither loss is stronger on every net. On nets that overfit
    to a single step GAMA-PGD comes closer to AutoAttack than PGD does; the README's tables show how close. The papers'
    PGD-20 is ``PGD(eps, step_size, steps=20)``, which keeps the last point.
    """
    ce = PGD(eps=eps, step_size=eps / 4, steps=20, norm=norm, keep="worst")
    margin = PGD(eps=eps, step_size=eps / 4, steps=20, norm=norm, keep="worst", loss=losses.margin)
    return {"pgd20": ce, "pgd20_margin": margin, "gama40": GAMAPGD(eps=eps, steps=40, norm=norm, keep="worst")}


def default_validation(eps: float, norm: Norm = "linf") -> PGD:
    """7 steps of eps/7 from the clean image, as NuAT's and GAT's code selects for CIFAR-10."""
    return PGD(eps=eps, step_size=1 / 7 * eps, steps=7, norm=norm, init="zero")


def evaluation_of(attack: Attack) -> tuple[Attack, dict[str, Attack]]:
    """The attacks of a validation and of a test in the training attack's threat set.

    For a perceptual one these are LPA with 10 steps (ours), and with 40 as in the paper's evaluation.

    Raises:
        ValueError: If it is in no threat set that is known here.
    """
    if isinstance(attack, PerceptualAttack):
        eps, lpips_net = attack.eps, attack.lpips_net
        lpa = LPA(eps, steps=10, lpips_net=lpips_net), LPA(eps, steps=40, lpips_net=lpips_net)
        return lpa[0], {"lpa40": lpa[1]}
    threat = threat_of(attack)
    if threat is None:
        missing = "no eps" if getattr(attack, "eps", None) is None else "an eps in no L-p norm"
        raise ValueError(f"{type(attack).__name__} has {missing}: state val_attack and test_attacks yourself.")
    return default_validation(*threat), default_test(*threat)


def threat_of(attack: Any) -> tuple[float, Norm] | None:
    """The bound and the norm of an attack; None if it has no bound in an L-p norm."""
    eps: float | None = getattr(attack, "eps", None)
    norm: Any = getattr(attack, "norm", "linf")
    return (eps, norm) if eps is not None and norm in get_args(Norm) else None


def threat_of_test(attacks: Mapping[str, Attack]) -> tuple[float, Norm] | None:
    """The bound and the norm of a test's first attack that has a positive bound in an L-p norm; None if none has."""
    threats = (threat_of(attack) for attack in attacks.values() if getattr(attack, "eps", None))
    return next((threat for threat in threats if threat is not None), None)


def within(threat: tuple[float, Norm], attacks: Mapping[str, Attack]) -> list[str]:
    """The names of the attacks that stay in a threat set: in its norm, with at most its eps."""
    eps, norm = threat
    found = {name: threat_of(attack) for name, attack in attacks.items()}
    return [name for name, of in found.items() if of and of[1] == norm and of[0] <= eps]
