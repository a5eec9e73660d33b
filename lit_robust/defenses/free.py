"""Free adversarial training: every backward pass serves the net and the perturbation."""

from typing import Literal, Unpack, get_args

from torch import Tensor, nn

from lit_robust import require
from lit_robust.attacks import Attack
from lit_robust.batch import Batch
from lit_robust.defenses.single_step import SingleStep
from lit_robust.threats import Linf
from lit_robust.training.arguments import DefenseArguments

ClipDelta = Literal["ball", "image"]


class FreeAT(SingleStep):
    """Free-m (Shafahi et al., NeurIPS 2019, arXiv:1904.12843), algorithm 1; ATF in the NuAT tables.

        delta = 0 once; it is kept from batch to batch and from epoch to epoch
        m times per batch: L = CE(f(clip(x + delta, 0, 1)), y), and one backward pass for both gradients
                           theta <- SGD(grad_theta L)
                           delta <- clip( delta + eps sign grad_delta L, -eps, eps )

    Both gradients are taken at the old theta and delta, so the order of the two updates does not matter. The attack's
    forward pass is the update's, with BatchNorm in train mode, so ``attack_bn_mode`` has no effect, and a batch costs m
    natural steps. A batch takes m optimizer steps: ``max_steps`` and ``train/updates`` count them all, and a
    ``Schedule`` advances with each replay, as the rate in Wong et al.'s code does; a torch scheduler that counts steps
    counts batches.

    Differs from the authors' code: it divides the epochs by m to train at equal cost; our ``max_epochs`` counts epochs
    of data.

    Args:
        m: The number of replays of each batch.
        clip_delta: ``ball``, as in the authors' code, clips delta to eps only and the image to [0, 1] in the forward
            pass, so pixels that are clipped there have no gradient and their delta does not change. ``image``, as in
            Wong et al.'s code (arXiv:2001.03994), clips delta to the image box too. In theirs a batch's first forward
            sees images outside the box, because delta was clipped to the previous images; ours clips delta to the new
            ones first.

    Raises:
        ValueError: If ``m`` is below 1, ``clip_delta`` is unknown, or there is a ``weight_perturbation``.
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        attack: Attack,
        *,
        m: int = 8,
        clip_delta: ClipDelta = "ball",
        **kwargs: Unpack[DefenseArguments],
    ) -> None:
        super().__init__(net, num_classes, attack, **kwargs)
        require.integer("m", m, least=1)
        require.one_of("clip_delta", clip_delta, get_args(ClipDelta))
        if self.weight_perturbation is not None:
            raise ValueError(
                "FreeAT cannot perturb weights, for each of its gradients serves weights and images at once: set "
                "weight_perturbation=None, or train PGDAT with it."
            )
        self.m = m
        self.clip_delta = clip_delta

    def perturb(self, batch: Batch) -> Tensor:
        """The images with the remembered perturbation."""
        return (batch.x + self.recall(batch.x)).clamp(0, 1)

    def perturb_all(self, batch: Batch) -> Tensor:
        """Attack the images with ``attack``: a coreset is not chosen at what other images have left."""
        x_adv: Tensor = super().perturb(batch)
        return x_adv

    def adversarial_step(self, batch: Batch) -> None:
        """Replay the batch m times."""
        for replay in range(self.m):
            self.rate.set(self.time + replay / (self.m * self.trainer.num_training_batches))
            self.replay(batch)

    def replay(self, batch: Batch) -> None:
        """Update the net and the perturbation by one backward pass."""
        x, delta, eps = batch.x, self.recall(batch.x), self.attack.eps
        x_adv = self.perturb(batch).requires_grad_()
        self.optimize(batch, lambda: self.loss(batch, x_adv))
        assert x_adv.grad is not None
        step = eps * x_adv.grad.sign()  # torch's sign of NaN is 0: a gradient that overflows in float16 moves nothing
        x_adv = x_adv.detach()
        if self.clip_delta == "image":
            self.remember(Linf(eps).project(x_adv + step, x) - x)
        else:
            self.remember((delta + step * (x_adv == x + delta)).clamp(-eps, eps))
