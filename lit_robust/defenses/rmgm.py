"""R-MGM, which is SAT-R2, and its siblings SAT-R1 and SAT-R3: regularisers against gradient masking."""

from typing import Unpack

import torch
from torch import Tensor, nn

from lit_robust import losses, require
from lit_robust.attacks import PGD, Attack
from lit_robust.attacks.base import made_once
from lit_robust.batch import Batch
from lit_robust.defenses.single_step import SingleStep
from lit_robust.guards import BNMode
from lit_robust.magnitudes import Magnitude
from lit_robust.ranks import sum_over_ranks
from lit_robust.training.arguments import DefenseArguments, TrainingArguments

#: The random step, and SAT-R3's small step, in the authors' scripts for CIFAR-10.
ALPHA = Magnitude("2/255")


@made_once
def ifgsm(eps: float, steps: int) -> PGD:
    """I-FGSM: steps of eps/steps from the clean image."""
    return PGD(eps, step_size=eps / steps, steps=steps, init="zero")


class SATR(SingleStep):
    """The base of all three: BatchNorm is in eval mode during the attack, and the loss forwards a pair at once.

    Raises:
        ValueError: If a weight is negative.
    """

    not_negative: tuple[str, ...] = ("lam",)

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        attack: Attack,
        *,
        lam: float,
        attack_bn_mode: BNMode = "eval",
        **kwargs: Unpack[TrainingArguments],
    ) -> None:
        super().__init__(net, num_classes, attack, attack_bn_mode=attack_bn_mode, **kwargs)
        self.lam = lam
        self.check_numbers()

    def logits_of(self, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The logits of both adversaries, from one forward; the first ones count as ``robust``."""
        first, second = self.net(torch.cat(pair)).split([len(images) for images in pair])
        self.seen["robust"] = first
        return first.float(), second.float()


class RMGM(SATR):
    """R-MGM (Vivek and Babu, CVPRW 2019, doi 10.1109/CVPRW.2019.00014), SAT-R2 in arXiv:2002.00614.

        x1 = clip( x + eps sign grad CE(f(x), y), 0, 1 )
        x2 = clip( x0 + eps sign grad CE(f(x0), y), 0, 1 ),     x0 = x + alpha sign N(0, I)
        min_theta  E[ CE(f(x1), y) + lam |f(x1) - f(x2)|^2 ]

    f returns logits, which are compared. As in the authors' code (SAT-Rx, ``reg_utils.py``): BatchNorm is in eval mode
    during the attack, and the update's only forward is on both adversaries; ``x0`` is not clipped, and ``x2`` is
    clipped to [0, 1] only, so it may be ``eps + alpha`` away from ``x``.

    Args:
        lam: Weight of the regulariser: 25 for CIFAR-10 (WideResNet-28-10), 5 for MNIST.
        alpha: The random step: 2/255 for CIFAR-10, 0.01 for MNIST.
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        attack: Attack,
        *,
        lam: float = 25.0,
        alpha: Magnitude = ALPHA,
        **kwargs: Unpack[DefenseArguments],
    ) -> None:
        super().__init__(net, num_classes, attack, lam=lam, **kwargs)
        self.alpha = require.pixels("alpha", alpha)

    def perturb(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """FGSM's images and R-FGSM's, by one pass over both."""
        noise = self.alpha * torch.randn_like(batch.x).sign()
        start = torch.cat([batch.x, batch.x + noise])
        gradient, _ = self.gradient_at(start, torch.cat([batch.y, batch.y]))
        x1, x2 = (start + self.attack.eps * gradient.sign()).clamp(0, 1).chunk(2)
        return x1, x2

    def loss(self, batch: Batch, x_adv: tuple[Tensor, Tensor]) -> Tensor:
        """Cross-entropy on FGSM's images, and the squared distance of the logits."""
        z1, z2 = self.logits_of(x_adv)
        return losses.ce(z1, batch.y) + self.lam * (z1 - z2).square().sum(dim=1)


def last_of(batch: Batch) -> Tensor:
    """The index of the last sample that is not padding, ``(1,)``; the host does not wait for the device."""
    places = torch.arange(len(batch.weight), device=batch.weight.device)
    return (places * (batch.weight > 0)).argmax(dim=0, keepdim=True)


class SATR1(SATR):
    """SAT-R1 (Vivek and Babu, arXiv:2002.00614): an iterative attack on one sample per batch.

        min_theta  E[ CE(f(x1), y) ] + lam |f(x1_B) - f(x2_B)|^2

    ``x1`` is FGSM, ``x2_B`` is I-FGSM (``steps`` steps of eps/steps) on the batch's last sample only, as in the
    authors' code, in which BatchNorm is in eval mode during the attack, and the update's only forward is on all of
    them. Under DDP every rank has a last sample, and the term is their mean.

    Args:
        lam: Weight of the regulariser: 0.2 for CIFAR-10 and MNIST.
        steps: Steps of I-FGSM: 3 for CIFAR-10, 10 for MNIST.
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        attack: Attack,
        *,
        lam: float = 0.2,
        steps: int = 3,
        **kwargs: Unpack[DefenseArguments],
    ) -> None:
        super().__init__(net, num_classes, attack, lam=lam, **kwargs)
        require.integer("steps", steps, least=1)
        self.steps = steps

    def perturb(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """FGSM's images, and I-FGSM's image of the last sample."""
        iterative = ifgsm(self.attack.eps, self.steps)
        with self.attacked(batch.x) as net:
            last = last_of(batch)
            return self.attack(net, batch.x, batch.y), iterative(net, batch.x[last], batch.y[last])

    def loss(self, batch: Batch, x_adv: tuple[Tensor, Tensor]) -> Tensor:
        """Cross-entropy on FGSM's images, to which each sample adds the last one's distance."""
        z1, z2 = self.logits_of(x_adv)
        return losses.ce(z1, batch.y) + self.lam * (z1[last_of(batch)] - z2).square().sum()


class SATR3(SATR):
    """SAT-R3 (Vivek and Babu, arXiv:2002.00614): a small step must not raise the loss more than a large one.

        x0 = clip( x + alpha sign N(0, I), 0, 1 ),     x(e) = clip( x0 + e sign grad CE(f(x0), y), 0, 1 )
        min_theta  L(eps) + lam max( L(eps_low) - tau L(eps), 0 ),     L(e) = E[ CE(f(x(e)), y) ]

    As in the authors' code: BatchNorm is in eval mode during the attack, and the update's only forward is on both
    adversaries; the maximum is of the batch's means, and ``x(eps)`` may be ``eps + alpha`` away from ``x``.

    Args:
        lam: Weight of the regulariser: 1 for CIFAR-10 and MNIST.
        tau: The tau above: 0.6 for CIFAR-10, 0.4 for MNIST.
        eps_low: The small step, 2/255 for CIFAR-10.
        alpha: The random step, 2/255 for CIFAR-10.
    """

    not_negative = ("lam", "tau")

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        attack: Attack,
        *,
        lam: float = 1.0,
        tau: float = 0.6,
        eps_low: Magnitude = ALPHA,
        alpha: Magnitude = ALPHA,
        **kwargs: Unpack[DefenseArguments],
    ) -> None:
        super().__init__(net, num_classes, attack, lam=lam, **kwargs)
        self.tau = tau
        self.check_numbers()
        self.eps_low = require.pixels("eps_low", eps_low)
        self.alpha = require.pixels("alpha", alpha)

    def perturb(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The large step and the small one along the same gradient."""
        start = (batch.x + self.alpha * torch.randn_like(batch.x).sign()).clamp(0, 1)
        direction = self.gradient_at(start, batch.y)[0].sign()
        large, small = ((start + size * direction).clamp(0, 1) for size in (self.attack.eps, self.eps_low))
        return large, small

    def loss(self, batch: Batch, x_adv: tuple[Tensor, Tensor]) -> Tensor:
        """Cross-entropy after the large step, and the excess of the small step's where its mean is positive."""
        z_large, z_small = self.logits_of(x_adv)
        large = losses.ce(z_large, batch.y)
        excess = losses.ce(z_small, batch.y) - self.tau * large
        return large + self.lam * excess * (sum_over_ranks((excess * batch.weight).sum()) > 0)
