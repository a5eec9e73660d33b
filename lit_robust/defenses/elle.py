"""ELLE-A: single-step training that regularises the loss to be linear, but only when it stops being so."""

from typing import Unpack

import torch
from torch import Tensor, nn

from lit_robust.attacks import Attack
from lit_robust.batch import Batch
from lit_robust.defenses.fast import NFGSM
from lit_robust.measures.masking import linearity_error
from lit_robust.ranks import per_weight, sum_over_ranks, weighted_sum
from lit_robust.threats import Linf
from lit_robust.training.arguments import BNForwards, DefenseArguments
from lit_robust.training.bn_forwards import check_bn_forwards, move_statistics
from lit_robust.training.memory import of_any_rank


class ELLEA(NFGSM):
    """ELLE-A (Abad Rocamora et al., ICLR 2024, arXiv:2401.11618).

        x_a, x_b = x + U(-eps, eps) each,  t ~ U(0, 1),  x_c = (1 - t) x_a + t x_b
        R = E[ (CE(f(x_c), y) - (1 - t) CE(f(x_a), y) - t CE(f(x_b), y))^2 ]
        min_theta  E[ CE(f(x'), y) ] + lam R

    The running weight ``lam`` starts at 0. After each batch it becomes ``lam_max`` if R lies more than two standard
    deviations above the mean of all earlier R (at least three), and 0.99 lam otherwise. ``train/lam`` and
    ``train/linearity_error`` are the means of lam and R. R is the mean over all ranks. ``x'`` is FGSM by default, and
    N-FGSM with ``k=2``, the authors' second base.

    As in the authors' code: BatchNorm is in train mode during the attack; the triplet is not clipped to [0, 1], and
    goes through the net in one forward. Differs from the authors' code: it clips neither the noise nor ``x'`` to [0,
    1], ours clips both; it calls ``optimizer.step()`` twice per gradient, which we take for a slip, the second
    time at the next batch's learning rate, because its scheduler steps in between.

    With ``bn_forwards="needed"`` BatchNorm's running statistics move by the attack's start, the triplet and ``x'``, and
    30 % of them come from clean images (FGSM starts there). In the authors' code they move by the start, ``x'``, the
    triplet and the clean images (50 %); on small nets and CIFAR-10 they were 5 to 67 % apart after 8 batches and about
    1 % after 100.

    Args:
        lam_max: The weight when it is switched on; 4000 in all of the authors' scripts.
        k: N-FGSM's noise in units of eps.
        bn_forwards: ``needed`` runs the forwards of attack and loss. ``authors`` runs those of the authors' code in
            their order, for the same running statistics: one more on the clean images, whose accuracy it measures.

    Raises:
        ValueError: If ``lam_max`` or ``k`` is negative, or ``bn_forwards="authors"`` and the attack runs in eval mode.
    """

    not_negative = ("lam_max",)
    counted = ("acc/robust", "linearity_error", "lam")

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        attack: Attack,
        *,
        lam_max: float = 4000.0,
        k: float = 0.0,
        bn_forwards: BNForwards = "needed",
        **kwargs: Unpack[DefenseArguments],
    ) -> None:
        super().__init__(net, num_classes, attack, k=k, **kwargs)
        self.bn_forwards = check_bn_forwards(bn_forwards, self.attack_bn_mode, authors_mode="train")
        self.lam_max = lam_max
        self.memory.declare(of_any_rank, kinds={"elle": (torch.float32, (4,)), "elle_error": (torch.float32, ())})
        self.check_numbers()

    def perturb(self, batch: Batch) -> Tensor:
        """Choose lam by the earlier batches, and attack."""
        history = self.memory.tensors.get("elle", batch.x.new_zeros(4))
        if "elle_error" in self.memory.tensors:
            history = adapted(history, self.memory.tensors.pop("elle_error"), self.lam_max)
        self.memory.tensors["elle"] = history
        x_adv: Tensor = super().perturb(batch)
        return x_adv

    def loss(self, batch: Batch, x_adv: Tensor) -> Tensor:
        """Cross-entropy on adversarial images, and the squared error of linear interpolation."""
        if self.bn_forwards == "authors":
            ce, error = super().loss(batch, x_adv), self.error(batch)
            move_statistics(self.net, batch.x)  # their clean accuracy
        else:
            error, ce = self.error(batch), super().loss(batch, x_adv)
        lam = self.memory.tensors["elle"][0]
        total, weight = sum_over_ranks(weighted_sum(error, batch.weight))
        self.memory.tensors["elle_error"] = per_weight(total, weight)
        self.seen |= {"linearity_error": error, "lam": lam.expand_as(error)}
        return ce + lam * error

    def error(self, batch: Batch) -> Tensor:
        """The squared error of linear interpolation, ``(N,)``."""
        return linearity_error(self.net, batch.x, batch.y, Linf(self.attack.eps))


def adapted(history: Tensor, error: Tensor, lam_max: float) -> Tensor:
    """The next ``(lam, n, mean, sum of squared deviations)``; the last three describe all R so far.

    Computed on the device: the host never waits.
    """
    lam, n, mean, deviations = history
    high = (n > 2) & (error > mean + 2 * (deviations / n.clamp_min(1)).sqrt())
    change = error - mean
    mean = mean + change / (n + 1)
    return torch.stack([torch.where(high, lam_max, 0.99 * lam), n + 1, mean, deviations + change * (error - mean)])
