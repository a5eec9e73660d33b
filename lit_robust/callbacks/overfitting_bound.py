"""The bound at which a rule measures overfitting, and the attacks at it."""

from typing import NamedTuple, Self, get_args

from lit_robust import require
from lit_robust.attacks import FGSM, PGD
from lit_robust.threats import Norm, Threat, threat


class _Bound(NamedTuple):
    eps: float
    norm: Norm


class Bound(_Bound):
    """The bound of the training's attack at a measurement.

    Args:
        eps: The radius; NaN if the training has none.
        norm: Of the radius.

    Raises:
        ValueError: If ``eps`` is negative or not a number, or the norm is unknown.
    """

    __slots__ = ()

    def __new__(cls, eps: float, norm: Norm = "linf") -> Self:
        """Check both."""
        if eps == eps:  # not NaN
            require.number("eps", eps, least=0, hint="it is the radius around an image")
        require.one_of("norm", norm, get_args(Norm))
        return super().__new__(cls, eps, norm)

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
