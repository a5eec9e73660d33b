"""GradAlign: FGSM training that aligns the gradients around each image."""

from typing import Unpack

import torch
from torch import Tensor, nn

from lit_robust.attacks import Attack
from lit_robust.batch import Batch
from lit_robust.defenses.single_step import SingleStep
from lit_robust.measures.masking import ce_and_gradient, gradient_cosine
from lit_robust.ranks import per_weight, sum_over_ranks, weighted_sum
from lit_robust.threats import Linf
from lit_robust.training.arguments import DefenseArguments


class GradAlign(SingleStep):
    """GradAlign (Andriushchenko and Flammarion, NeurIPS 2020, arXiv:2007.02617), on FGSM.

        min_theta  E[ CE(f(x'), y) + lam (1 - cos(grad CE(f(x), y), grad CE(f(x + eta), y))) ],   eta ~ U(-eps, eps)

    As in the authors' code: BatchNorm is in train mode during the attack, and its statistics move by x, x' and x + eta;
    ``x'`` is FGSM from the clean image, which is what their launch scripts run (their alpha of 1.25 eps is clipped to
    eps, which makes no difference from a start at 0); the clean gradient is the attack's and has no graph; ``x + eta``
    may leave [0, 1]; samples whose gradient vanishes are left out of the mean cosine, which is logged as
    ``train/cosine``. Differs from the authors' code: its clean gradient passes through a clip to [0, 1], which halves
    it in pixels of exactly 0 or 1. On CIFAR-10 this changes the loss by 3.5e-5 and its gradient by 9e-4, on MNIST,
    where 82 % of the pixels are 0 or 1, the gradient by 0.16.

    A compiled graph has no second derivative, so with ``compile`` the gradient at ``x + eta`` is computed by the
    uncompiled net. On a CPU second derivatives of convolutions take longer with ``channels_last``; leave it off.

    Args:
        lam: Weight of the alignment. The scripts for CIFAR-10 use 0.02 * 10 ** (255 eps / 8): 0.2 at 8/255, 2.0 at
            16/255.

    Raises:
        ValueError: If ``lam`` is negative.
    """

    not_negative = ("lam",)
    counted = ("acc/robust", "cosine")

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        attack: Attack,
        *,
        lam: float = 0.2,
        **kwargs: Unpack[DefenseArguments],
    ) -> None:
        super().__init__(net, num_classes, attack, **kwargs)
        self.lam = lam
        self.check_numbers()

    def perturb(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """FGSM's images, and the gradient at the clean ones."""
        gradient, _ = self.gradient_at(batch.x, batch.y)
        eps = self.attack.eps
        return Linf(eps).project(batch.x + eps * gradient.sign(), batch.x), gradient

    def loss(self, batch: Batch, x_adv: tuple[Tensor, Tensor]) -> Tensor:
        """Cross-entropy on FGSM's images, and the misalignment."""
        images, gradient = x_adv
        return super().loss(batch, images) + self.lam * self.misalignment(batch, gradient)

    def misalignment(self, batch: Batch, gradient: Tensor) -> Tensor:
        """``(N,)`` numbers whose weighted mean over all ranks is 1 - the mean cosine of the samples that have one."""
        beside = Linf(self.attack.eps).random_start(batch.x)
        _, other = ce_and_gradient(self.net, beside, batch.y, create_graph=True)
        cosine = gradient_cosine(gradient, other)
        self.seen["cosine"] = cosine
        exists = ~cosine.isnan()
        counted, total = sum_over_ranks(weighted_sum(exists, batch.weight))
        share = per_weight(counted, total).clamp_min(torch.finfo(counted.dtype).tiny)
        misaligned: Tensor = torch.where(exists, 1 - cosine, 0.0) / share
        return misaligned
