"""AAER: single-step training that penalises samples whose loss the attack step lowers."""

from typing import Literal, Unpack, get_args

import torch
from torch import Tensor, nn

from lit_robust import losses, require
from lit_robust.attacks import PGD, Attack
from lit_robust.batch import Batch
from lit_robust.defenses.fast import fast_step, nfgsm_step
from lit_robust.defenses.single_step import SingleStep
from lit_robust.measures.masking import abnormal
from lit_robust.ranks import per_weight, sum_over_ranks
from lit_robust.training.arguments import DefenseArguments

Base = Literal["fast", "nfgsm"]


class AAER(SingleStep):
    """AAER (Lin et al., NeurIPS 2023, arXiv:2404.08154), on Fast AT (RS-AAER) or N-FGSM (N-AAER).

        z0, CE0 at the random start, without a gradient;  z1, CE1 at the adversarial image
        AB = {i: CE0_i > CE1_i},  the abnormal samples;   V_S = mean_{i in S} |z0_i - z1_i|^2
        min_theta  mean CE1 + lam1 |AB|/N ( lam2 mean_AB(CE0 - CE1) + lam3 max(V_AB - V_rest, 0) )

    If no sample is abnormal, or all are, the regulariser is 0. Means are over all ranks. ``train/abnormal`` is |AB|/N.

    As in the authors' code: BatchNorm is in train mode during the attack, whose only forward gives z0; V_rest is a
    constant, and so is CE1 in the lam2 term, which therefore changes the reported loss but no weight;
    ``detach_ce=False`` gives the term a gradient.

    Args:
        base: ``fast`` starts at U(-eps, eps), steps 1.25 eps and projects, as Fast AT does; ``nfgsm`` starts at
            U(-2 eps, 2 eps), steps eps and does not project, as N-FGSM does.
        lam1: Weight of the regulariser; 1 in the authors' code.
        lam2: Weight of the cross-entropy term: 2.5 for RS-AAER at 8/255 on CIFAR-10, 1.5 for N-AAER.
        lam3: Weight of the variation term: 1.5 for RS-AAER at 8/255 on CIFAR-10, 0.15 for N-AAER.
        detach_ce: Whether CE1 in the lam2 term is a constant, as in the authors' code.

    Raises:
        ValueError: If a weight is negative, or ``base`` is unknown.
    """

    not_negative = ("lam1", "lam2", "lam3")
    counted = ("acc/robust", "abnormal")

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        attack: Attack,
        *,
        base: Base = "fast",
        lam1: float = 1.0,
        lam2: float = 2.5,
        lam3: float = 1.5,
        detach_ce: bool = True,
        **kwargs: Unpack[DefenseArguments],
    ) -> None:
        super().__init__(net, num_classes, attack, **kwargs)
        require.one_of("base", base, get_args(Base))
        self.base = base
        self.lam1, self.lam2, self.lam3 = lam1, lam2, lam3
        self.check_numbers()
        require.flags(detach_ce=detach_ce)
        self.detach_ce = detach_ce

    def adversary(self) -> PGD:
        """The base's step."""
        eps = self.attack.eps
        return fast_step(eps, 1.25 * eps) if self.base == "fast" else nfgsm_step(eps, 2.0)

    def perturb(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The adversarial images, and the logits at their start."""
        attack = self.adversary()
        start = attack.start(self.net, batch.x)
        gradient, z0 = self.gradient_at(start, batch.y)
        return attack.step(self.net, batch.x, start, gradient, 0), z0

    def loss(self, batch: Batch, x_adv: tuple[Tensor, Tensor]) -> Tensor:
        """Cross-entropy on adversarial images, plus the regulariser on abnormal ones."""
        images, z0 = x_adv
        z1: Tensor = self.net(images).float()
        ce0, ce1 = losses.ce(z0, batch.y), losses.ce(z1, batch.y)
        easier = abnormal(ce0, ce1)
        variation = (z0.float() - z1).square().sum(dim=1)
        v_abnormal, v_rest, both = mean_variations(variation.detach(), easier, batch.weight)
        self.seen |= {"robust": z1, "abnormal": easier.float()}
        drop = ce0 - (ce1.detach() if self.detach_ce else ce1)
        excess = (variation - v_rest) * (v_abnormal > v_rest)
        return ce1 + self.lam1 * both * easier * (self.lam2 * drop + self.lam3 * excess)


def mean_variations(variation: Tensor, abnormal: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mean over the abnormal samples of all ranks, the mean over the others, and whether both exist."""
    groups = torch.stack([weight * abnormal, weight * ~abnormal]).to(variation.dtype)
    sums = sum_over_ranks(torch.stack([groups @ variation, groups.sum(dim=1)]))
    v_abnormal, v_rest = per_weight(*sums)
    return v_abnormal, v_rest, (sums[1] > 0).all()
