"""The bound at which a rule measures overfitting, and the attacks at it."""

from typing import NamedTuple

from lit_robust.attacks import FGSM, PGD
from lit_robust.threats import Norm, Threat, threat


class Bound(NamedTuple):
    """The bound of the training's attack at a measurement."""

    eps: float
    norm: Norm = "linf"

    @property
    def ball(self) -> Threat:
        """The threat set of this bound."""
        return threat(self.norm, self.eps)

    def fgsm(self) -> FGSM:
        """One step to the bound."""
        return FGSM(self.eps, self.norm)

    def pgd5(self) -> PGD:
        """The attack of Fast AT's early stop: steps of 2/255 at 8/255."""
        return PGD(self.eps, step_size=self.eps / 4, steps=5, norm=self.norm)
