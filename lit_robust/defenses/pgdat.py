"""PGD adversarial training, which the papers also call AT, Madry, RAT or PGD."""

from typing import Literal, Unpack

from torch import nn

from lit_robust.attacks import Attack
from lit_robust.training.arguments import TrainingArguments
from lit_robust.training.defense import Defense


class PGDAT(Defense):
    """Adversarial training (Madry et al., ICLR 2018, arXiv:1706.06083), eq. 2.1; RAT in the DAT slides.

        min_theta  E  max_{|x' - x| <= eps}  CE(f(x'), y)

    The inner maximum is found by PGD; only the adversarial images enter the update. As in the code of Rice et al.
    (arXiv:2002.11569) and Wong et al. (arXiv:2001.03994), BatchNorm is in train mode during the attack, so every
    attack step moves its statistics; ``attack_bn_mode="eval"`` is the other convention (TRADES, NuAT).
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        attack: Attack,
        *,
        attack_bn_mode: Literal["eval", "train"] = "train",
        **kwargs: Unpack[TrainingArguments],
    ) -> None:
        super().__init__(net, num_classes, attack, attack_bn_mode=attack_bn_mode, **kwargs)
