"""MART: TRADES' divergence, where the net is unsure, on top of adversarial training."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from lit_robust import losses
from lit_robust.attacks import PGD
from lit_robust.batch import Batch
from lit_robust.defenses.trades import TRADES


class MART(TRADES):
    """MART (Wang et al., ICLR 2020, OpenReview rklOg6EFwS): images that are misclassified anyway weigh more.

        min_theta  E[ BCE(f(x'), y) + beta KL(p(x) || p(x')) (1 - p_y(x)) ],      p = softmax f
        BCE(f(x'), y) = -log p_y(x') - log( 1.0001 - max_{j != y} p_j(x') )

    ``x'`` maximises the cross-entropy, by PGD from TRADES' start. As in the authors' code, BatchNorm is in eval mode
    while the attack runs, the update sees ``x`` before ``x'``, and its gradient goes through all three factors, the
    weight ``1 - p_y(x)`` too. Different from it: it adds 1e-12 to probabilities inside logarithms, so that one which
    underflows adds at most 28, and 1e-7 to the weight; here logarithms of probabilities are exact.

    Args:
        *args: The arguments of ``Defense``; ``attack`` is a PGD.
        beta: Weight of the KL; in the authors' scripts 5 for ResNet-18, 6 for WRN-34-10.
        **kwargs: The arguments of ``Defense``.
    """

    def __init__(self, *args: Any, beta: float = 5.0, **kwargs: Any) -> None:
        super().__init__(*args, beta=beta, **kwargs)

    def inner(self) -> PGD:
        """TRADES' start, and the cross-entropy."""
        return replace(super().inner(), loss=losses.ce, compare_with="label")

    def loss(self, batch: Batch, x_adv: Tensor) -> Tensor:
        """Boosted cross-entropy on the adversary, and the weighted divergence."""
        clean_logits = self.observe("clean", self.net(batch.x), batch)
        logits = self.observe("robust", self.net(x_adv), batch)
        unsure = -losses.ce(clean_logits, batch.y).neg().expm1()  # 1 - p_y
        return losses.bce(logits, batch.y) + self.beta * unsure * losses.kl(logits, clean_logits)
