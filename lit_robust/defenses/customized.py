"""Customized adversarial training: every image has its own bound and its own soft label."""

from dataclasses import fields
from typing import Literal, Unpack, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_robust import losses, require
from lit_robust.attacks import PGD, Attack
from lit_robust.attacks.base import input_gradient
from lit_robust.attacks.passes import like_images
from lit_robust.attacks.pgd import check_pgd
from lit_robust.batch import Batch
from lit_robust.guards import crafting
from lit_robust.magnitudes import Magnitude
from lit_robust.threats import threat
from lit_robust.training.arguments import DefenseArguments
from lit_robust.training.per_image import PerImage

Revert = Literal["failed", "succeeded"]
Noise = Literal["dirichlet", "uniform"]

#: The arguments of the attack that are used.
USED = ("eps", "step_size", "steps", "norm", "init", "init_size", "clip_init")


class CustomizedAT(PerImage):
    """CAT (Cheng et al., 2020, arXiv:2002.06789): an eps for each image, and a label that is softer the larger eps is.

        eps_i <- min(eps_i + eta, eps),  from 0, whenever the image is seen
        q_i = (1 - c eps_i) onehot(y_i) + c eps_i Dirichlet(1, ..., 1)
        x' = argmax_{|x' - x| <= eps_i}  CE(f(x'), q_i) - w eps_i max(z_y - max_{j != y} z_j + kappa, 0),     z = f(x')
        eps_i <- eps_i - eta  where the attack failed; then q_i is drawn again
        min_theta  E[ CE(f(x'), q_i) + w eps_i max(max_{j != y} z_j - z_y + kappa, 0) ]

    As in the authors' code (version 2), which uses ``PGD(eps=0.035, step_size=0.007, steps=10, init="zero")``:
    BatchNorm is in eval mode during the attack, and one more forward tells where it failed. The code takes eta back
    there, so eps grows on images that the attack breaks; ``revert="succeeded"`` does the opposite, so eps grows where
    the net withstands. Which one the authors mean is not known. Differs from the authors' code: its version 1, which
    sets eps_i to the distance of the image that was found, is left out.

    Of ``attack``, eps, step size, steps, norm and start are used. ``train/eps`` is the mean of eps_i.

    Args:
        attack: A PGD.
        eta: The growth of eps_i. By default ``eta``, ``smoothing`` and ``margin_weight`` are the code's 0.0025, 10 and
            128 at eps = 0.035, scaled with ``attack.eps`` at construction (``eta`` in proportion, the others
            inversely); under a ramp, construct with its final eps.
        smoothing: The paper's c; 0 keeps labels hard.
        margin_weight: The w above; 0 drops the term. The code sums this term over its batches of 128 and averages the
            cross-entropy, hence 128.
        kappa: The margin up to which the margin term acts.
        revert: Where eta is taken back: where the attack ``failed`` or where it ``succeeded``.
        noise: What a label is mixed with: ``dirichlet``, or its mean, ``uniform`` (both are in the code).

    Raises:
        TypeError: If ``attack`` is not a plain PGD.
        ValueError: If ``attack`` has options that are not used, an argument is out of range, or as in ``PerImage``.
    """

    attack: PGD
    not_negative = ("smoothing", "margin_weight", "kappa")
    counted = ("acc/robust", "eps")

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        attack: Attack,
        *,
        eta: Magnitude | None = None,
        smoothing: float | None = None,
        margin_weight: float | None = None,
        kappa: float = 10.0,
        revert: Revert = "failed",
        noise: Noise = "dirichlet",
        **kwargs: Unpack[DefenseArguments],
    ) -> None:
        super().__init__(net, num_classes, attack, **kwargs)
        check_pgd(self, self.attack, "takes PGD's steps in a ball for each image", exactly=True)
        check_used(self.attack)
        require.one_of("revert", revert, get_args(Revert))
        require.one_of("noise", noise, get_args(Noise))
        eps = require.number("attack.eps", self.attack.eps, above=0, hint="it is how far each image's eps may grow")
        default = scaled(eps)
        self.eta = default["eta"] if eta is None else require.pixels("eta", eta, self.attack.norm)
        self.smoothing = default["smoothing"] if smoothing is None else smoothing
        self.margin_weight = default["margin_weight"] if margin_weight is None else margin_weight
        self.kappa = kappa
        self.revert = revert
        self.noise = noise
        require.number("eta", self.eta, above=0, most=eps, hint="it may not exceed attack.eps")
        self.check_numbers()

    def check_numbers(self) -> None:
        """Refuse labels that would be negative, also at the values of a ramp of eps."""
        super().check_numbers()
        if self.smoothing * self.attack.eps > 1 + 1e-9:
            raise ValueError(
                f"smoothing={self.smoothing:g} times attack.eps={self.attack.eps:g} is a share of the label, but "
                f"above 1: choose a smoothing from 0 to {1 / self.attack.eps:.4g}."
            )

    def perturb(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Grow eps, attack within it, and take eta back; returns adversarial images, soft labels and eps."""
        grown = (self.recall(batch) + self.eta).clamp(max=self.attack.eps)
        x_adv, broken = self.search(batch, grown)
        eps = torch.where(broken == (self.revert == "succeeded"), (grown - self.eta).clamp_min(0), grown)
        self.remember(batch, eps)
        return x_adv, self.labels(batch.y, eps), eps

    def search(self, batch: Batch, eps: Tensor) -> tuple[Tensor, Tensor]:
        """PGD in the ball of each image, and which images are misclassified by it.

        A loop of its own, because PGD has one ball for all images.
        """
        ball = threat(self.attack.norm, like_images(eps, batch.x))
        labels = self.labels(batch.y, eps)
        with self.attacked(batch.x) as net, crafting(batch.x, batch.y) as (x, y):
            x_adv = ball.project(self.attack.start(net, x), x)
            for _ in range(self.attack.steps):
                logits = net(x_adv.requires_grad_())
                safe = (self.kappa - losses.margin(logits, y)).clamp_min(0)
                objective = losses.ce(logits, labels) - self.margin_weight * eps * safe
                step = self.attack.step_length * ball.steepest_step(input_gradient(objective, x_adv))
                x_adv = ball.project(x_adv.detach() + step, x)
            with torch.no_grad():
                return x_adv, net(x_adv).argmax(dim=1) != y

    def labels(self, y: Tensor, eps: Tensor) -> Tensor:
        """Soft labels ``(N, num_classes)``."""
        truth = F.one_hot(y, self.num_classes).float()
        noise = torch.ones_like(truth)
        if self.noise == "dirichlet":
            noise = noise.exponential_()  # as torch.distributions does, but that waits for the device to check it
        share = (self.smoothing * eps).unsqueeze(1)
        return (1 - share) * truth + share * noise / noise.sum(dim=1, keepdim=True)

    def loss(self, batch: Batch, x_adv: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Cross-entropy with the soft labels, and the margin term."""
        images, labels, eps = x_adv
        logits = self.net(images)
        self.seen |= {"robust": logits, "eps": eps}
        unsafe = (self.kappa + losses.margin(logits, batch.y)).clamp_min(0)
        return losses.ce(logits, labels) + self.margin_weight * eps * unsafe


def scaled(eps: float) -> dict[str, float]:
    """The numbers of the authors' code, which belong to its eps of 0.035, at another eps."""
    scale = eps / 0.035
    return {"eta": 0.0025 * scale, "smoothing": 10 / scale, "margin_weight": 128 / scale}


def check_used(attack: PGD) -> None:
    """Refuse options of the attack that would be ignored.

    Raises:
        ValueError: If there is one.
    """
    given = [option.name for option in fields(PGD) if getattr(attack, option.name) != option.default]
    if lost := [name for name in given if name not in USED]:
        raise ValueError(f"CustomizedAT has an objective and runs of its own: leave out {', '.join(lost)} of attack.")
