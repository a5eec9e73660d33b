"""The attacks of a test for which none are given."""

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
