"""Customized adversarial training: every image has a bound and a soft label of its own."""

from dataclasses import fields
from typing import Literal, Unpack, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_robust import losses, require
from lit_robust.attacks import PGD, Attack
from lit_robust.attacks.base import input_gradient
from lit_robust.attacks.pgd import check_pgd
from lit_robust.batch import Batch
from lit_robust.guards import crafting, network_mode
from lit_robust.magnitudes import Magnitude
from lit_robust.threats import threat
from lit_robust.training.arguments import DefenseArguments
from lit_robust.training.per_image import PerImage

Revert = Literal["failed", "succeeded"]
Noise = Literal["dirichlet", "uniform"]

#: What it uses of its attack.
USED = ("eps", "step_size", "steps", "norm", "init", "init_size", "clip_init")
#: The bound of the authors' code, to which its other numbers belong.
CODE_EPS = 0.035


class CustomizedAT(PerImage):
    """CAT (Cheng et al., 2020, arXiv:2002.06789): eps by image, and a label as uncertain as that eps is large.

        eps_i <- min(eps_i + eta, eps),  from 0, whenever the image is seen
        q_i = (1 - c eps_i) onehot(y_i) + c eps_i Dirichlet(1, ..., 1)
        x' = argmax_{|x' - x| <= eps_i}  CE(f(x'), q_i) - w eps_i max(z_y - max_{j != y} z_j + kappa, 0),     z = f(x')
        eps_i <- eps_i - eta  where the attack failed; then q_i is drawn anew
        min_theta  E[ CE(f(x'), q_i) + w eps_i max(max_{j != y} z_j - z_y + kappa, 0) ]

    This is the authors' code (version 2), at ``PGD(eps=0.035, step_size=0.007, steps=10, init="zero")``: of ``attack``
    eps, step, steps, norm and start are used. BatchNorm is in eval mode while it runs, and one more forward tells where
    it failed. The code takes eta back there, so eps grows on the images that the net loses; the opposite, which lets it
    grow where the net withstands, is ``revert="succeeded"``. Which one the authors mean is not known.

    ``train/eps`` is the mean of the eps. Left out is the code's version 1, which sets eps_i to the distance of what was
    found.

    Args:
        attack: A PGD.
        eta: The growth. This, ``smoothing`` and ``margin_weight`` are by default the code's 0.0025, 10 and 128 at
            eps = 0.035, in proportion at another, which is that of the start: give the last one of a ramp.
        smoothing: The paper's c; with 0 labels stay hard.
        margin_weight: The w above. The code sums this term over its batches of 128 and averages the cross-entropy,
            which makes 128; with 0 there is no such term.
        kappa: How far the margin term reaches.
        revert: Where eta is taken back: where the attack failed, or where it succeeded.
        noise: What a label is mixed with: ``dirichlet``, or its mean, ``uniform`` (in the code, too).

    Raises:
        TypeError: If ``attack`` is no plain PGD.
        ValueError: If ``attack`` has options that are not used, an argument is out of range, or as in ``PerImage``.
    """

    attack: PGD
    not_negative = ("smoothing", "margin_weight", "kappa")

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
        unused = [field.name for field in fields(PGD) if field.name not in USED]
        lost = [name for name in unused if getattr(self.attack, name) != getattr(PGD, name)]
        if lost:
            raise ValueError(
                f"CustomizedAT has an objective and runs of its own: leave out {', '.join(lost)} of attack."
            )
        require.one_of("revert", revert, get_args(Revert))
        require.one_of("noise", noise, get_args(Noise))
        eps = require.number("attack.eps", self.attack.eps, above=0, hint="it is how far each image's eps may grow")
        scale = eps / CODE_EPS
        self.eta = 0.0025 * scale if eta is None else require.pixels("eta", eta, self.attack.norm)
        self.smoothing = 10 / scale if smoothing is None else smoothing
        self.margin_weight = 128 / scale if margin_weight is None else margin_weight
        self.kappa = kappa
        self.revert = revert
        self.noise = noise
        require.number("eta", self.eta, above=0, most=eps, hint="it may not exceed attack.eps")
        self.check_numbers()

    def check_numbers(self) -> None:
        """Refuse labels that would be negative, at the start as well as where a ramp of eps leads."""
        super().check_numbers()
        if self.smoothing * self.attack.eps > 1 + 1e-9:
            raise ValueError(
                f"smoothing={self.smoothing:g} times attack.eps={self.attack.eps:g} is a share of the label: "
                f"choose a smoothing from 0 to {1 / self.attack.eps:.4g}."
            )

    def perturb(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Let eps grow, attack within it, and take eta back; the adversary, the soft labels and the eps to train on."""
        grown = (self.recall(batch) + self.eta).clamp(max=self.attack.eps)
        x_adv, fooled = self.search(batch, grown)
        eps = torch.where(fooled == (self.revert == "succeeded"), (grown - self.eta).clamp_min(0), grown)
        self.remember(batch, eps)
        return x_adv, self.labels(batch.y, eps), eps

    def search(self, batch: Batch, eps: Tensor) -> tuple[Tensor, Tensor]:
        """PGD in the ball of each image, and whom it has fooled."""
        ball = threat(self.attack.norm, eps.view(-1, *[1] * (batch.x.ndim - 1)))
        labels = self.labels(batch.y, eps)
        with network_mode(self.net, self.attack_bn_mode), crafting(batch.x, batch.y) as (x, y):
            x_adv = ball.project(self.attack.start(self.net, x), x)
            for _ in range(self.attack.steps):
                logits = self.net(x_adv.requires_grad_())
                safe = (self.kappa - losses.margin(logits, y)).clamp_min(0)
                objective = losses.ce(logits, labels) - self.margin_weight * eps * safe
                step = self.attack.step_size * ball.steepest_step(input_gradient(objective, x_adv))
                x_adv = ball.project(x_adv.detach() + step, x)
            with torch.no_grad():
                return x_adv, self.net(x_adv).argmax(dim=1) != y

    def labels(self, y: Tensor, eps: Tensor) -> Tensor:
        """Soft labels ``(N, num_classes)``."""
        truth = F.one_hot(y, self.num_classes).float()
        noise = torch.ones_like(truth)
        if self.noise == "dirichlet":
            noise = noise.exponential_()  # what torch.distributions draws too, but it waits for the device to check it
        share = (self.smoothing * eps).unsqueeze(1)
        return (1 - share) * truth + share * noise / noise.sum(dim=1, keepdim=True)

    def loss(self, batch: Batch, x_adv: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Cross-entropy with the soft labels, and the margin term."""
        images, labels, eps = x_adv
        logits = self.net(images)
        self.seen |= {"robust": logits, "eps": eps}
        unsafe = (self.kappa + losses.margin(logits, batch.y)).clamp_min(0)
        return losses.ce(logits, labels) + self.margin_weight * eps * unsafe
