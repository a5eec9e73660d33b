"""ZeroGrad: FGSM training that ignores the smallest gradients."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lit_robust.attacks import PGD
from lit_robust.defenses.single_step import SingleStep


@dataclass(frozen=True)
class ZeroGradStep(PGD):
    """PGD whose steps leave the pixels with the smallest gradients where they are.

    Args:
        q: Entries below the sample's quantile ``q`` of absolute values do not move.
    """

    q: float = 0.35

    def step(self, x: Tensor, x_adv: Tensor, direction: Tensor, k: int) -> Tensor:
        """Zero the small entries first."""
        size = direction.abs().flatten(1)
        # What lies below this value lies below the interpolated quantile, which torch computes for few pixels only.
        rank = math.ceil(self.q * (size.shape[1] - 1)) + 1
        threshold = size.kthvalue(rank, dim=1).values.view(-1, *[1] * (x.ndim - 1))
        return super().step(x, x_adv, direction * (direction.abs() >= threshold), k)


class ZeroGrad(SingleStep):
    """ZeroGrad (Golgooni et al., 2021, arXiv:2103.15476).

        delta ~ U(-eps, eps),  x + delta clipped to [0, 1]
        g = grad CE(f(x + delta), y), and in each sample 0 wherever |g| is below its quantile q
        min_theta  E  CE(f(x'), y),     x' = x + clip( delta + 2 eps sign g, -eps, eps ),  clipped to [0, 1]

    Equal to the authors' code (rohban-lab/catastrophic_overfitting, ``quantile_fgsm``).

    Args:
        q: 0.35 for CIFAR-10, 0.45 for CIFAR-100, 0.7 for SVHN; with 0 it is Fast AT with alpha = 2 eps.

    Raises:
        ValueError: If ``q`` is no share.
    """

    def __init__(self, *args: Any, q: float = 0.35, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not 0 <= q < 1:
            raise ValueError(f"q={q} is the share of the gradient that is ignored: choose 0 <= q < 1.")
        self.q = q

    def one_step(self) -> ZeroGradStep:
        """A step of twice eps, so that it ends on the ball's surface wherever it starts."""
        eps = self.attack.eps
        return ZeroGradStep(eps, step_size=min(2 * eps, 1.0), steps=1, q=self.q)
