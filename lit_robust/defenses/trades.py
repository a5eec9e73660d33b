"""TRADES: a clean loss, and the largest divergence of the prediction from the clean one."""

from dataclasses import replace
from typing import Unpack

from torch import Tensor, nn

from lit_robust import losses
from lit_robust.attacks import PGD, Attack, FriendlyPGD
from lit_robust.attacks.base import made_once
from lit_robust.attacks.pgd import Reference, check_pgd
from lit_robust.batch import Batch
from lit_robust.losses import SampleLoss
from lit_robust.training.arguments import BNForwards, DefenseArguments
from lit_robust.training.bn_forwards import check_bn_forwards
from lit_robust.training.defense import Defense


@made_once
def near_start(attack: PGD, loss: SampleLoss, compare_with: Reference) -> PGD:
    """The attack with another objective, from TRADES' start."""
    near = replace(attack, init="gaussian", init_size=0.001, clip_init=False)
    return replace(near, loss=loss, compare_with=compare_with)


class TRADES(Defense):
    """TRADES (Zhang et al., ICML 2019, arXiv:1901.08573).

        min_theta  E[ CE(f(x), y) + beta max_{|x' - x| <= eps} KL(p(x) || p(x')) ],      p = softmax f

    PGD maximises the KL divergence from the start ``x + 0.001 N(0, I)``, which is not clipped before the first step: at
    ``x`` itself the gradient is 0. This objective and this start replace those of ``attack``, a PGD (or a variant such
    as ``FriendlyPGD``). The gradient of the update goes through both distributions. ``PGD(norm="l2")`` makes it TRADES
    in L2, where the authors' step is 2 eps / steps.

    As in the authors' code: BatchNorm is in eval mode during the attack and in train mode in the update, and the KL is
    a sum over classes and a mean over the batch. Differs from the authors' code: its update computes f(x) a second
    time, see ``bn_forwards``; its attack computes f(x) in every step, ours once; in L2 it clips to [0, 1] before the
    projection onto the ball, ours after, and in ours a sample without a gradient takes no step.

    With ``bn_forwards="needed"`` BatchNorm's running statistics move by x' and x, and 52.6 % of them come from clean
    images (at BatchNorm's momentum of 0.1); in TRADES' code they move by x, x' and x (66.8 %), in TRADES-AWP's by x', x
    and x (70.1 %). The attack reads them, so from the second batch on it finds other images: 13 to 44 % of the pixels
    differed on small nets and CIFAR-10.

    Args:
        attack: A PGD, see above.
        beta: Weight of the KL, the paper's 1/lambda: 6 for CIFAR-10, 1 for MNIST in the authors' scripts.
        bn_forwards: ``needed`` runs one forward on x' and one on x. ``authors`` runs those of the authors' code, in
            their order: TRADES-AWP's if there is a ``weight_perturbation``, FAT for TRADES' (x and x') if the attack is
            a ``FriendlyPGD``, else TRADES'.

    Raises:
        TypeError: If ``attack`` is not a PGD.
        ValueError: If ``beta`` is negative, or ``bn_forwards="authors"`` and the attack runs in train mode.
    """

    attack: PGD
    not_negative = ("beta",)
    counted: tuple[str, ...] = ("acc/robust", "acc/clean", "kl")

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        attack: Attack,
        *,
        beta: float = 6.0,
        bn_forwards: BNForwards = "needed",
        **kwargs: Unpack[DefenseArguments],
    ) -> None:
        super().__init__(net, num_classes, attack, **kwargs)
        check_pgd(self, self.attack, "gives PGD its own start and objective")
        self.beta = beta
        self.bn_forwards = check_bn_forwards(bn_forwards, self.attack_bn_mode, authors_mode="eval")
        self.check_numbers()

    def adversary(self) -> PGD:
        """PGD on the divergence."""
        return near_start(self.attack, losses.kl, "clean_logits")

    def loss(self, batch: Batch, x_adv: Tensor) -> Tensor:
        """Cross-entropy on clean images, and the divergence."""
        logits, reference, clean_logits = self.forwards(batch.x, x_adv)
        divergence = losses.kl(logits, reference)
        self.seen |= {"robust": logits, "clean": clean_logits, "kl": divergence}
        return losses.ce(clean_logits, batch.y) + self.beta * divergence

    def forwards(self, x: Tensor, x_adv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The logits of adversarial images, and those of clean ones for the divergence and for the cross-entropy."""
        net = self.net
        if self.bn_forwards == "needed":
            logits, clean = net(x_adv), net(x)
            return logits, clean, clean
        if self.weight_perturbation is not None:  # TRADES-AWP
            return net(x_adv), net(x), net(x)
        clean, logits = net(x), net(x_adv)
        reference = clean if isinstance(self.attack, FriendlyPGD) else net(x)
        return logits, reference, clean
