"""MART: adversarial training plus TRADES' divergence where the net is unsure."""

from typing import Unpack

from torch import Tensor, nn

from lit_robust import losses
from lit_robust.attacks import PGD, Attack
from lit_robust.batch import Batch
from lit_robust.defenses.trades import TRADES, near_start
from lit_robust.training.arguments import DefenseArguments


class MART(TRADES):
    """MART (Wang et al., ICLR 2020, OpenReview rklOg6EFwS): misclassified images weigh more.

        min_theta  E[ BCE(f(x'), y) + beta KL(p(x) || p(x')) (1 - p_y(x)) ],      p = softmax f
        BCE(f(x'), y) = -log p_y(x') - log( 1.0001 - max_{j != y} p_j(x') )

    ``x'`` maximises the cross-entropy, by PGD from TRADES' start. As in the authors' code: BatchNorm is in eval mode
    during the attack, the update sees ``x`` before ``x'``, and its gradient goes through all three factors, including
    the weight ``1 - p_y(x)``. Differs from the authors' code: it adds 1e-12 to probabilities inside logarithms, so one
    that underflows adds at most 28, and 1e-7 to the weight; our logarithms of probabilities are exact.

    Args:
        attack: A PGD.
        beta: Weight of the KL; in the authors' scripts 5 for ResNet-18, 6 for WRN-34-10.
    """

    counted = ("acc/robust", "acc/clean")

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        attack: Attack,
        *,
        beta: float = 5.0,
        **kwargs: Unpack[DefenseArguments],
    ) -> None:
        super().__init__(net, num_classes, attack, beta=beta, bn_forwards="needed", **kwargs)

    def adversary(self) -> PGD:
        """PGD on the cross-entropy, from TRADES' start."""
        return near_start(self.attack, losses.ce, "label")

    def loss(self, batch: Batch, x_adv: Tensor) -> Tensor:
        """Boosted cross-entropy on adversarial images, and the weighted divergence."""
        clean_logits, logits = self.net(batch.x), self.net(x_adv)
        self.seen |= {"clean": clean_logits, "robust": logits}
        unsure = -losses.ce(clean_logits, batch.y).neg().expm1()  # 1 - p_y
        return losses.bce(logits, batch.y) + self.beta * unsure * losses.kl(logits, clean_logits)
