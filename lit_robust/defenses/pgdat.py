"""PGD adversarial training, which the papers also call AT, Madry, RAT or PGD."""

from typing import Any, Unpack

from torch import nn

from lit_robust.attacks import PGD, Attack
from lit_robust.batch import Batch
from lit_robust.guards import BNMode, network_mode
from lit_robust.training.arguments import BNForwards, TrainingArguments
from lit_robust.training.bn_forwards import check_bn_forwards, move_statistics
from lit_robust.training.defense import Defense


class PGDAT(Defense):
    """Adversarial training (Madry et al., ICLR 2018, arXiv:1706.06083), eq. 2.1; RAT in the DAT slides.

        min_theta  E  max_{|x' - x| <= eps}  CE(f(x'), y)

    The inner maximum is found by PGD; only the adversarial images enter the update. As in the code of Rice et al.
    (arXiv:2002.11569) and Wong et al. (arXiv:2001.03994), BatchNorm is in train mode during the attack, so every
    attack step moves its statistics; ``attack_bn_mode="eval"`` is the other convention (TRADES, NuAT).

    Differs from Rice et al.'s code, which AT-AWP's code extends: with PGD-10 it runs 13 forwards per batch, ours 11, as
    in Wong et al.'s code (``train_pgd.py``); ``bn_forwards="authors"`` adds the other two. They change no weight, only
    BatchNorm's running statistics, 13.4 % of which then come from clean images, in ours none (measured on small nets
    and CIFAR-10: 1.4 to 4.2 % apart after 8 batches, 0.2 to 0.7 % after 100).

    Args:
        attack_bn_mode: The net's mode during the attack.
        bn_forwards: ``needed`` runs the forwards of the attack and the update. ``authors`` adds two of Rice et al.'s
            code, for the same running statistics: on the adversarial images after the attack, where it compares
            restarts, and on the clean images after the step, where it measures their loss.

    Raises:
        ValueError: If ``bn_forwards="authors"`` and the attack runs in eval mode.
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        attack: Attack,
        *,
        attack_bn_mode: BNMode = "train",
        bn_forwards: BNForwards = "needed",
        **kwargs: Unpack[TrainingArguments],
    ) -> None:
        super().__init__(net, num_classes, attack, attack_bn_mode=attack_bn_mode, **kwargs)
        self.bn_forwards = check_bn_forwards(bn_forwards, attack_bn_mode, authors_mode="train")

    def perturb(self, batch: Batch) -> Any:
        """Find the adversarial images; PGD itself compares its restarts, if there are several."""
        x_adv, attack = super().perturb(batch), self.adversary()
        if self.bn_forwards == "authors" and not (isinstance(attack, PGD) and attack.restarts > 1):
            with network_mode(self.net, self.attack_bn_mode):
                move_statistics(self.net, x_adv)
        return x_adv

    def adversarial_step(self, batch: Batch) -> None:
        """One perturbation and one update, and with the authors' forwards one on the clean images."""
        super().adversarial_step(batch)
        if self.bn_forwards == "authors":
            move_statistics(self.net, batch.x)
