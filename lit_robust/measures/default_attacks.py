"""The attacks of a validation and a test for which none are given."""

from lit_robust import losses
from lit_robust.attacks import PGD, Attack
from lit_robust.threats import Norm


def default_test(eps: float, norm: Norm = "linf") -> dict[str, Attack]:
    """PGD-20 on cross-entropy and on the margin of logits, each keeping the worst point of its run (ours).

    The last point of a run is not always its worst one, and neither loss is stronger on every net. The papers' PGD-20
    is ``PGD(eps, step_size, steps=20)``, which keeps the last point.
    """
    ce = PGD(eps=eps, step_size=eps / 4, steps=20, norm=norm, keep="worst")
    margin = PGD(eps=eps, step_size=eps / 4, steps=20, norm=norm, keep="worst", loss=losses.margin)
    return {"pgd20": ce, "pgd20_margin": margin}


def default_validation(eps: float, norm: Norm = "linf") -> PGD:
    """7 steps of eps/7 from the clean image, as NuAT's and GAT's code selects for CIFAR-10."""
    return PGD(eps=eps, step_size=1 / 7 * eps, steps=7, norm=norm, init="zero")


def threat_of(attack: Attack) -> tuple[float, Norm]:
    """The bound and the norm of the training attack.

    Raises:
        ValueError: If it has no eps.
    """
    eps: float | None = getattr(attack, "eps", None)
    if eps is None:
        raise ValueError(f"{type(attack).__name__} has no eps: state val_attack and test_attacks yourself.")
    return eps, getattr(attack, "norm", "linf")
