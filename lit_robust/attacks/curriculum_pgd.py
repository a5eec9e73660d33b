"""PGD under a bound on difficulty: the inner maximisation of SAT, and its single-step form."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lit_robust import losses, require
from lit_robust.attacks.base import EPS, Attack, input_gradient
from lit_robust.attacks.difficulty import Difficulty
from lit_robust.attacks.pgd import PGD, Movers
from lit_robust.guards import crafting
from lit_robust.magnitudes import Magnitude
from lit_robust.threats import Linf


@dataclass(frozen=True)
class CurriculumPGD(PGD):
    """SAT's inner maximisation (Sitawarin et al., AISec 2021, arXiv:2003.09347): PGD under a bound on difficulty.

        max_{|x' - x| <= eps}  L(f(x'), y)   subject to   psi(x') <= lam

    Each step moves the samples whose ``psi`` is at most ``lam`` before the step. So the last step may overshoot, as in
    the authors' code, and in eval mode a stopped sample never moves again, because neither its image nor the net
    changes. Stopped samples save no computation, because the others go on. With ``lam`` at the metric's maximum (1 for
    most) it is PGD.

    With ``AttributeRamp("attack.lam", ...)`` any method that takes a PGD can train with it.

    Args:
        psi: The metric, see ``lit_robust.attacks.difficulty``.
        lam: The bound, the paper's lambda.

    Raises:
        TypeError: If ``psi`` is not a Difficulty.
        ValueError: If ``lam`` is not a number, or the attack is targeted, which the metrics do not support.
    """

    psi: Difficulty = field(kw_only=True)
    lam: float = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        require.instance("psi", self.psi, Difficulty, "give one of lit_robust.attacks.difficulty")
        require.number("lam", self.lam, finite=False)
        if self.targeted:
            raise ValueError("a curriculum measures how difficult the true label is: set targeted=False, or use PGD.")

    def movers(self, net: nn.Module, x: Tensor, y: Tensor) -> Movers:
        """Select the samples that are easy enough and, with ``freeze_misclassified``, still classified correctly."""
        measure, unbroken = self.psi.begin(self, net, x, y), super().movers(net, x, y)

        def easy_enough(x_adv: Tensor, logits: Tensor, gradient: Tensor) -> Tensor:
            easy = measure(x_adv, logits, gradient) <= self.lam
            return easy if unbroken is None else easy & unbroken(x_adv, logits, gradient)

        return easy_enough


@dataclass(frozen=True)
class CurriculumFGSM(Attack):
    """P-SAT's single step (the authors' code; not in the slides), with the length at which a linear psi is ``lam``.

        x0 = clip(x + U(-eps, eps)),     psi = max_{j != y} p_j - p_y at x0
        x' = P( x0 + a sign grad psi ),     a = clip( relu(lam - psi) / (|grad psi|_1 + 1e-9), 0, bound )

    As in that code, the longest step and the radius of P's ball are the ``bound`` of 1.25 eps, so ``x'`` may be that
    far from ``x``.

    Args:
        eps: The start's radius, in units of [0, 1].
        lam: The value that psi should reach, at most 1.

    Raises:
        ValueError: If ``eps`` is above 1, or ``lam`` is out of range.
    """

    eps: Magnitude = EPS
    lam: float = field(kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", require.pixels("eps", self.eps))
        require.number("lam", self.lam, most=1, hint="psi is a difference of probabilities")

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Draw the start and take the step."""
        bound, ball = 1.25 * self.eps, Linf(self.eps)
        with crafting(x, y) as (x, y):
            x_adv = ball.project(ball.random_start(x), x).requires_grad_()
            psi = losses.probability_margin(net(x_adv), y)
            gradient = input_gradient(psi, x_adv)
            with torch.no_grad():
                slope = gradient.abs().sum(dim=tuple(range(1, x.ndim)), keepdim=True)
                length = (self.lam - psi).relu().view_as(slope) / (slope + 1e-9)
                return Linf(bound).project(x_adv + length.clamp(max=bound) * gradient.sign(), x)
