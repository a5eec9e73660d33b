"""PGD adversarial training, which the papers also call AT, Madry, RAT or PGD."""

from typing import Any, Literal

from lit_robust.training.defense import Defense


class PGDAT(Defense):
    """Adversarial training (Madry et al., ICLR 2018, arXiv:1706.06083), eq. 2.1; RAT in the DAT slides.

        min_theta  E  max_{|x' - x| <= eps}  CE(f(x'), y)

    The inner maximum is found by PGD; only the adversarial images enter the update. As in the code of Rice et al.
    (arXiv:2002.11569) and Wong et al. (arXiv:2001.03994), BatchNorm is in train mode while the attack runs, so every
    attack step moves its statistics; ``attack_bn_mode="eval"`` is the other convention (TRADES, NuAT).
    """

    def __init__(self, *args: Any, attack_bn_mode: Literal["eval", "train"] = "train", **kwargs: Any) -> None:
        super().__init__(*args, attack_bn_mode=attack_bn_mode, **kwargs)
