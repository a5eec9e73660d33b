"""Friendly adversarial training: on the least adversarial of the images that fool the net."""

from typing import Any

from torch import Tensor

from lit_robust.attacks import PGD, FriendlyPGD
from lit_robust.batch import Batch
from lit_robust.guards import network_mode
from lit_robust.training.defense import Defense


class FriendlyAT(Defense):
    """FAT (Zhang et al., ICML 2020, arXiv:2002.11242).

        min_theta  E  CE(f(x'), y),     x' the first point of PGD where f is wrong and was at tau points before,
                                           the last one if there is none

    ``attack`` is a PGD that may take up to ``steps``; ``FriendlyPGD`` is what becomes of it. As in the authors' code
    BatchNorm is in eval mode while it runs. Their ``tau`` is 0, then 1 from epoch 50 of 120 on and 2 from epoch 90 on,
    counted from 0: ``AttributeRamp("tau", Staircase([0, 50, 90], [0, 1, 2]))``.

    FAT for TRADES is ``TRADES(attack=FriendlyPGD(...))``, whose ramp drives ``attack.tau``.

    Args:
        *args: The arguments of ``Defense``; ``attack`` is a PGD.
        tau: At how many misclassified points a sample still takes a step.
        omega: The standard deviation of the noise of each step.
        **kwargs: The arguments of ``Defense``.

    Raises:
        TypeError: If ``attack`` is no plain PGD.
        ValueError: If ``tau`` or ``omega`` is negative.
    """

    attack: PGD

    def __init__(self, *args: Any, tau: float = 0, omega: float = 0.001, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if type(self.attack) is not PGD:
            raise TypeError(
                f"FriendlyAT stops PGD early: set attack=PGD(eps=..., step_size=..., steps=...), "
                f"not {type(self.attack).__name__}."
            )
        self.tau = tau
        self.omega = omega
        self.check_numbers()

    def check_numbers(self) -> None:
        """Refuse what the early-stopped PGD refuses."""
        self.inner()

    def inner(self) -> FriendlyPGD:
        """The early-stopped PGD, at this moment's ``eps`` and ``tau``."""
        return FriendlyPGD(**vars(self.attack), tau=self.tau, omega=self.omega)

    def perturb(self, batch: Batch) -> Tensor:
        """Stop each sample in time."""
        with network_mode(self.net, self.attack_bn_mode):
            return self.inner()(self.net, batch.x, batch.y)
