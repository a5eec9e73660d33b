"""PGD that also drives the logits away from those of the clean images: the inner maximisation of GAT and NuAT."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from lit_robust.attacks.passes import Objective
from lit_robust.attacks.pgd import PGD
from lit_robust.guards import BNMode, network_mode
from lit_robust.nets.folded import refill, unfolded

#: ``(logits, clean_logits)``, both ``(N, C)``, to one number per sample or one for the batch.
Penalty = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class GuidedPGD(PGD):
    """PGD on a loss plus ``lam`` times a penalty on the change of the logits.

        max_{|x' - x| <= eps}  sum_i L(f(x'_i), y_i) + lam penalty(f(x'), f(x))

    With ``lam=0`` the clean logits are not needed. With ``reference_bn_mode="train"`` they are computed all the same,
    because their forward updates BatchNorm's statistics, and the authors of GAT and NuAT compute them in every batch.

    Args:
        penalty: The penalty; one that returns a single number for the batch is added to each sample's loss.
        lam: The penalty's weight.
        guided_steps: How many of the first steps are guided; None for all.
        reference_bn_mode: The net's mode for the clean logits; None leaves it as it is.
    """

    couples_images: ClassVar[bool] = True
    penalty: Penalty = field(kw_only=True)
    lam: float = field(kw_only=True)
    guided_steps: int | None = field(default=None, kw_only=True)
    reference_bn_mode: BNMode | None = field(default=None, kw_only=True)

    def objective(self, net: nn.Module, x: Tensor, y: Tensor) -> Objective:
        """The loss, plus the weighted penalty in the guided steps."""
        guided = self.steps if self.guided_steps is None else self.guided_steps
        if self.lam or self.reference_bn_mode == "train":
            original = unfolded(net)
            mode = network_mode(original, self.reference_bn_mode) if self.reference_bn_mode else nullcontext()
            with mode, torch.no_grad():
                clean_logits: Tensor = (original if original.training else net)(x)
            if self.reference_bn_mode == "train":
                refill(net)

        def objective(x_adv: Tensor, logits: Tensor, k: int) -> Tensor:
            loss = self.loss(logits, y)
            return loss + self.lam * self.penalty(logits, clean_logits) if self.lam and k < guided else loss

        return objective
