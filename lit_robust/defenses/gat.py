"""Guided adversarial training; NuAT uses its attack and loss with another penalty."""

from typing import Unpack

from torch import Tensor, nn

from lit_robust import losses, require
from lit_robust.attacks import PGD, Attack
from lit_robust.attacks.base import made_once
from lit_robust.attacks.guided import GuidedPGD, Penalty
from lit_robust.batch import Batch
from lit_robust.defenses.single_step import SingleStep
from lit_robust.guards import BNMode
from lit_robust.magnitudes import Magnitude
from lit_robust.training.arguments import TrainingArguments


class GATArguments(TrainingArguments, total=False):
    """What NuAT passes on to GAT."""

    alpha: Magnitude | None
    attack_alternate: bool
    attack_bn_mode: BNMode
    reference_bn_mode: BNMode


def squared_distance(logits: Tensor, clean_logits: Tensor, weight: Tensor | None = None) -> Tensor:
    """The squared distance between the probabilities of each sample, ``(N,)``; weights have no effect."""
    return (logits.float().softmax(dim=1) - clean_logits.float().softmax(dim=1)).square().sum(dim=1)


@made_once
def guided_steps(
    eps: float, alpha: float, steps: int, penalty: Penalty, lam: float, reference_bn_mode: BNMode
) -> GuidedPGD:
    """Steps of eps from plus or minus alpha in each pixel; the first step is guided."""
    return GuidedPGD(
        eps,
        step_size=eps,
        steps=steps,
        init="rademacher",
        init_size=alpha,
        penalty=penalty,
        lam=lam,
        guided_steps=1,
        reference_bn_mode=reference_bn_mode,
    )


class GAT(SingleStep):
    """GAT (Sriramanan et al., NeurIPS 2020, arXiv:2011.14969): the change of the probabilities guides a single step.

        min_theta  E  CE(f(x), y) + lam |p(x') - p(x)|^2,      p = softmax f,   |.|^2 a sum over classes
        x' = P( x0 + eps sign grad[ CE(f(x0), y) + alt lam |p(x0) - p(x)|^2 ] ),     x0 = clip(x +- alpha)

    The update's cross-entropy is on clean images only. ``lam`` is a plain number; the authors' code multiplies it by 4
    after epoch 85 (CIFAR-10): ``AttributeRamp("lam", Staircase([0, 86], [10, 40]))``.

    As in the authors' code, against the paper: ``alt`` is the parity of the batch in its epoch, so every other attack
    is unguided (the code for MNIST guides all: ``attack_alternate=False``); the attack's clean logits come from a
    forward in train mode, which moves BatchNorm's statistics a third time per batch (in the code for ImageNet-100 in
    eval mode: ``reference_bn_mode="eval"``); adversarial images come first in the update. Differs from the authors'
    code: the attack leaves out the gradient through the clean logits, which never reaches ``x0``. The selections of a
    coreset see the attack of an epoch's first batch, which is unguided with ``attack_alternate``.

    Args:
        attack: An FGSM; only its eps is used.
        lam: The paper's lambda; it starts at 10 (CIFAR-10), 15 (MNIST) and 20 (ImageNet-100) in the authors' code.
        alpha: The random step; by default eps/2, the code's 4/255 for CIFAR-10. The code for MNIST uses eps.
        attack_alternate: Whether the attack is guided in every other batch only.
        reference_bn_mode: The net's mode for the clean logits that guide the attack.

    Raises:
        ValueError: If ``lam`` is negative, ``alpha`` is above 1, or ``reference_bn_mode`` is unknown.
    """

    not_negative = ("lam",)
    counted: tuple[str, ...] = ("acc/robust", "acc/clean", "ce/clean")

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        attack: Attack,
        *,
        lam: float = 10.0,
        alpha: Magnitude | None = None,
        attack_alternate: bool = True,
        attack_bn_mode: BNMode = "eval",
        reference_bn_mode: BNMode = "train",
        **kwargs: Unpack[TrainingArguments],
    ) -> None:
        super().__init__(net, num_classes, attack, attack_bn_mode=attack_bn_mode, **kwargs)
        require.one_of("reference_bn_mode", reference_bn_mode, ("eval", "train"))
        self.lam = lam
        self.check_numbers()
        self.alpha = None if alpha is None else require.pixels("alpha", alpha)
        require.flags(attack_alternate=attack_alternate)
        self.attack_alternate = attack_alternate
        self.reference_bn_mode = reference_bn_mode

    #: What ``lam`` multiplies, in the attack and in the update.
    penalty = staticmethod(squared_distance)

    def adversary(self) -> PGD:
        """The random start and the step of eps; every other batch is unguided."""
        unguided = self.attack_alternate and self.batch_idx % 2 == 0
        return self.climb(lam=0.0 if unguided else self.lam)

    def climb(self, lam: float, steps: int = 1, reference_bn_mode: BNMode | None = None) -> GuidedPGD:
        """Steps of eps; the first one is guided."""
        eps = self.attack.eps
        alpha = eps / 2 if self.alpha is None else self.alpha
        return guided_steps(eps, alpha, steps, self.penalty, lam, reference_bn_mode or self.reference_bn_mode)

    def loss(self, batch: Batch, x_adv: Tensor) -> Tensor:
        """Cross-entropy on clean images, and the penalty."""
        clean, penalty = self.terms(batch, x_adv)
        return clean + self.lam * penalty

    def terms(self, batch: Batch, x_adv: Tensor) -> tuple[Tensor, Tensor]:
        """The cross-entropy of each clean image, and the penalty."""
        logits, clean_logits = self.net(x_adv), self.net(batch.x)
        clean = losses.ce(clean_logits, batch.y)
        self.seen |= {"robust": logits, "clean": clean_logits, "ce/clean": clean}
        return clean, self.penalty(logits, clean_logits, batch.weight)
