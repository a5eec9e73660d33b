"""Attacks of one gradient step; each is a PGD with particular arguments."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from torch import Tensor, nn

from lit_robust import require
from lit_robust.attacks.base import EPS, Attack, within_box
from lit_robust.attacks.pgd import PGD
from lit_robust.magnitudes import Magnitude
from lit_robust.threats import Norm

Variant = Literal["tramer", "wong", "rmgm"]


@dataclass(frozen=True)
class FGSM(Attack):
    """Fast gradient sign method (Goodfellow et al., ICLR 2015, arXiv:1412.6572), and its counterpart in L2.

        x' = clip( x + eps * sign grad CE(f(x), y), 0, 1 )

    Args:
        eps: The bound and the step, in units of [0, 1].
        norm: The norm of the ball; with ``l2`` the step follows the gradient itself, not its sign.

    Raises:
        ValueError: If ``eps`` is above 1 in L-infinity, or there is no such norm.
    """

    eps: Magnitude = EPS
    norm: Norm = "linf"

    def __post_init__(self) -> None:
        require.one_of("norm", self.norm, get_args(Norm))
        object.__setattr__(self, "eps", require.pixels("eps", self.eps, self.norm))

    @cached_property
    def pgd(self) -> PGD:
        """The same attack as one step of PGD."""
        return PGD(self.eps, step_size=self.eps, steps=1, norm=self.norm, init="zero")

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Take the step."""
        return self.pgd(net, x, y)


@dataclass(frozen=True)
class RFGSM(Attack):
    """A random start and one gradient step, in the three forms that papers call R-FGSM.

    ========  ===========================  =========  ======================  ==========================
    variant   start                        step       bound of the result     source
    ========  ===========================  =========  ======================  ==========================
    tramer    clip(x + alpha sign N(0,1))  eps-alpha  eps                     arXiv:1705.07204
    wong      clip(x + U(-eps, eps))       alpha      eps                     FGSM-RS, arXiv:2001.03994
    rmgm      x + alpha sign N(0,1)        eps        eps + alpha, by design  R-MGM, CVPRW 2019 (SAT-R2)
    ========  ===========================  =========  ======================  ==========================

    All results are clipped to [0, 1]; wong and rmgm are as in their authors' code.

    Args:
        eps: The bound, in units of [0, 1].
        alpha: The paper's alpha; by default eps/2 (tramer), 1.25 eps (wong) or 2/255 (rmgm, its value for
            CIFAR-10).
        variant: A row of the table.

    Raises:
        ValueError: If a magnitude is above 1, tramer's alpha is above eps, or there is no such variant.
    """

    eps: Magnitude = EPS
    alpha: Magnitude | None = None
    variant: Variant = "tramer"

    def __post_init__(self) -> None:
        require.one_of("variant", self.variant, get_args(Variant))
        object.__setattr__(self, "eps", require.pixels("eps", self.eps))
        if self.alpha is not None:
            object.__setattr__(self, "alpha", require.pixels("alpha", self.alpha))
        if self.variant == "tramer" and self.alpha is not None and self.alpha > self.eps:
            raise ValueError(f"alpha={self.alpha} is above eps={self.eps} and leaves no step: choose a smaller one.")

    @cached_property
    def pgd(self) -> PGD:
        """The same attack as one step of PGD."""
        if self.variant == "wong":
            alpha = 1.25 * self.eps if self.alpha is None else self.alpha
            return PGD(self.eps, step_size=within_box(alpha), steps=1)
        if self.variant == "tramer":
            alpha = self.eps / 2 if self.alpha is None else self.alpha
            return PGD(self.eps, step_size=self.eps - alpha, steps=1, init="rademacher", init_size=alpha)
        alpha = 2 / 255 if self.alpha is None else self.alpha
        bound = within_box(self.eps + alpha)
        return PGD(bound, step_size=self.eps, steps=1, init="rademacher", init_size=alpha, clip_init=False)

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Draw the start and take the step."""
        return self.pgd(net, x, y)
