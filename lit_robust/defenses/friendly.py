"""Friendly adversarial training: on the least adversarial of the images that are misclassified."""

from typing import Unpack

from torch import nn

from lit_robust.attacks import PGD, Attack, FriendlyPGD
from lit_robust.attacks.base import arguments_of, made_once
from lit_robust.attacks.pgd import check_pgd
from lit_robust.training.arguments import DefenseArguments
from lit_robust.training.defense import Defense


@made_once
def early_stopped(attack: PGD, tau: float, omega: float) -> FriendlyPGD:
    """The attack with FAT's stopping rule."""
    return FriendlyPGD(**arguments_of(attack), tau=tau, omega=omega)


class FriendlyAT(Defense):
    """FAT (Zhang et al., ICML 2020, arXiv:2002.11242).

        min_theta  E  CE(f(x'), y),     x' the first point of PGD where f is wrong and was at tau points before,
                                           the last one if there is none

    ``attack`` is turned into a ``FriendlyPGD``, which takes at most its ``steps``. As in the authors' code: BatchNorm
    is in eval mode during the attack. Their ``tau`` is 0, then 1 from epoch 50 of 120 on and 2 from epoch 90 on,
    counted from 0: ``AttributeRamp("tau", Staircase([0, 50, 90], [0, 1, 2]))``.

    FAT for TRADES is ``TRADES(attack=FriendlyPGD(...))``; ramp ``attack.tau`` there. Its authors' code clips the start
    to [0, 1], which ``TRADES`` does not, sets omega to 0, and tau to 0, 1, 2 and 3 from epochs 0, 30, 50 and 70 of 85
    on.

    Args:
        attack: A PGD.
        tau: The number of misclassified points at which a sample still takes a step.
        omega: The standard deviation of the noise of each step.

    Raises:
        TypeError: If ``attack`` is not a plain PGD.
        ValueError: If ``tau`` or ``omega`` is negative.
    """

    attack: PGD

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        attack: Attack,
        *,
        tau: float = 0,
        omega: float = 0.001,
        **kwargs: Unpack[DefenseArguments],
    ) -> None:
        super().__init__(net, num_classes, attack, **kwargs)
        check_pgd(self, self.attack, "stops PGD early", exactly=True)
        self.tau = tau
        self.omega = omega
        self.check_numbers()

    def check_numbers(self) -> None:
        """Refuse what the early-stopped PGD refuses."""
        self.adversary()

    def adversary(self) -> FriendlyPGD:
        """The early-stopped PGD."""
        return early_stopped(self.attack, self.tau, self.omega)
