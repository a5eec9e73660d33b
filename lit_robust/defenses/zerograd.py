"""ZeroGrad: FGSM training that ignores the smallest gradients."""

import math
from dataclasses import dataclass
from typing import Unpack

from torch import Tensor, nn

from lit_robust import require
from lit_robust.attacks import PGD, Attack
from lit_robust.attacks.base import made_once, within_box
from lit_robust.defenses.single_step import SingleStep
from lit_robust.training.arguments import DefenseArguments


@dataclass(frozen=True)
class ZeroGradStep(PGD):
    """PGD whose steps do not move the pixels with the smallest gradients.

    Args:
        q: Entries below the sample's quantile ``q`` of absolute values do not move.
    """

    q: float = 0.35

    def step(self, net: nn.Module, x: Tensor, x_adv: Tensor, direction: Tensor, k: int) -> Tensor:
        """Zero the small entries first."""
        size = direction.abs().flatten(1)
        # The same entries lie below the interpolated quantile, which torch computes for few pixels only.
        rank = math.ceil(self.q * (size.shape[1] - 1)) + 1
        threshold = size.kthvalue(rank, dim=1).values.view(-1, *[1] * (x.ndim - 1))
        return super().step(net, x, x_adv, direction * (direction.abs() >= threshold), k)


@made_once
def zerograd_step(eps: float, q: float) -> ZeroGradStep:
    """One step of 2 eps."""
    return ZeroGradStep(eps, step_size=within_box(2 * eps), steps=1, q=q)


class ZeroGrad(SingleStep):
    """ZeroGrad (Golgooni et al., 2021, arXiv:2103.15476).

        delta ~ U(-eps, eps),  x + delta clipped to [0, 1]
        g = grad CE(f(x + delta), y), and in each sample 0 wherever |g| is below its quantile q
        min_theta  E  CE(f(x'), y),     x' = x + clip( delta + 2 eps sign g, -eps, eps ),  clipped to [0, 1]

    Same as the authors' code (rohban-lab/catastrophic_overfitting, ``quantile_fgsm``): BatchNorm is in train mode
    during the attack.

    Args:
        q: The quantile: 0.35 for CIFAR-10, 0.45 for CIFAR-100, 0.7 for SVHN; 0 is Fast AT with alpha = 2 eps.

    Raises:
        ValueError: If ``q`` is not in [0, 1).
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        attack: Attack,
        *,
        q: float = 0.35,
        **kwargs: Unpack[DefenseArguments],
    ) -> None:
        super().__init__(net, num_classes, attack, **kwargs)
        self.q = require.number("q", q, least=0, below=1, hint="it is the share of the gradient that is ignored")

    def adversary(self) -> ZeroGradStep:
        """A step of twice eps, so that it ends on the ball's surface wherever it starts."""
        return zerograd_step(self.attack.eps, self.q)
