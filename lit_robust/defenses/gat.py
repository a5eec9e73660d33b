"""Guided adversarial training, whose attack and loss NuAT takes over with another penalty."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_robust import losses
from lit_robust.attacks import PGD
from lit_robust.attacks.base import input_gradient
from lit_robust.batch import Batch
from lit_robust.defenses.single_step import SingleStep
from lit_robust.guards import crafting, network_mode
from lit_robust.magnitudes import Magnitude
from lit_robust.require import check_choice, pixel_magnitude


class GAT(SingleStep):
    """GAT (Sriramanan et al., NeurIPS 2020, arXiv:2011.14969): the change of the probabilities guides a single step.

        min_theta  E  CE(f(x), y) + lam |p(x') - p(x)|^2,      p = softmax f,   |.|^2 a sum over classes
        x' = P( x0 + eps sign grad[ CE(f(x0), y) + alt lam |p(x0) - p(x)|^2 ] ),     x0 = clip(x +- alpha)

    The cross-entropy of the update is of clean images alone. ``lam`` is a plain number: the code's rises by a factor of
    4 after epoch 85 (CIFAR-10), which ``AttributeRamp("lam", Staircase([0, 86], [10, 40]))`` does.

    Where this follows the authors' code against the paper: ``alt`` is the parity of the batch in its epoch, so that
    every other attack is unguided (the code for MNIST guides all: ``attack_alternate=False``); the attack's clean
    logits come from a forward in train mode, which moves BatchNorm's statistics a third time in a batch (in the code
    for ImageNet-100 in eval mode: ``reference_bn_mode="eval"``); and in the update adversarial images come first.
    Different from it: the attack leaves out the gradient through the clean logits, which never reaches ``x0``.

    Args:
        *args: The arguments of ``Defense``; ``attack`` is an FGSM, of which eps is used.
        lam: The paper's lambda. The code's start at 10 (CIFAR-10), 15 (MNIST) and 20 (ImageNet-100).
        alpha: The random step; eps/2 by default, the code's 4/255 for CIFAR-10. For MNIST it is eps there.
        attack_alternate: Whether the attack is guided in every other batch only.
        reference_bn_mode: The net's mode for the clean logits that guide the attack.
        **kwargs: The arguments of ``Defense``.

    Raises:
        ValueError: If ``lam`` is negative, ``alpha`` is above 1, or there is no such mode.
    """

    not_negative = ("lam",)

    def __init__(
        self,
        *args: Any,
        lam: float = 10.0,
        alpha: Magnitude | None = None,
        attack_alternate: bool = True,
        attack_bn_mode: Literal["eval", "train"] = "eval",
        reference_bn_mode: Literal["eval", "train"] = "train",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, attack_bn_mode=attack_bn_mode, **kwargs)
        check_choice(reference_bn_mode, "reference_bn_mode", ("eval", "train"))
        self.lam = lam
        self.check_numbers()
        self.alpha = alpha and pixel_magnitude(alpha, "alpha", "linf")
        self.attack_alternate = attack_alternate
        self.reference_bn_mode = reference_bn_mode

    def one_step(self) -> PGD:
        """The random start, and the step of eps."""
        eps = self.attack.eps
        alpha = eps / 2 if self.alpha is None else self.alpha
        return PGD(eps, step_size=eps, steps=1, init="rademacher", init_size=alpha)

    def penalty(self, logits: Tensor, clean_logits: Tensor, weight: Tensor | None = None) -> Tensor:
        """What ``lam`` multiplies, in the attack and in the update, for each sample."""
        return (logits.float().softmax(dim=1) - clean_logits.float().softmax(dim=1)).square().sum(dim=1)

    def steps(self) -> list[tuple[nn.Module, float]]:
        """The steps of this batch's attack: the net that each is a gradient of, and how strongly it is guided."""
        unguided = self.attack_alternate and self.batch_idx % 2 == 0
        return [(self.net, 0.0 if unguided else self.lam)]

    def perturb(self, batch: Batch) -> Tensor:
        """Climb from a random start; samples' weights play no part."""
        attack, steps = self.one_step(), self.steps()
        with crafting(batch.x, batch.y) as (x, y):
            # In train mode it moves BatchNorm's statistics, so it is run where nothing is guided, too.
            if self.reference_bn_mode == "train" or any(lam for _, lam in steps):
                with network_mode(self.net, self.reference_bn_mode), torch.no_grad():
                    clean_logits = steps[0][0](x)
            x_adv = attack.start(x)
            with network_mode(self.net, self.attack_bn_mode):
                for k, (net, lam) in enumerate(steps):
                    logits = net(x_adv.requires_grad_())
                    objective = losses.ce(logits, y)
                    if lam:
                        objective = objective + lam * self.penalty(logits, clean_logits)
                    x_adv = attack.step(x, x_adv, input_gradient(objective, x_adv), k).detach()
        return x_adv

    def loss(self, batch: Batch, x_adv: Tensor) -> Tensor:
        """Cross-entropy on clean images, and the penalty."""
        logits = self.observe("robust", self.net(x_adv), batch)
        clean_logits = self.observe("clean", self.net(batch.x), batch)
        clean = losses.ce(clean_logits, batch.y)
        self.tally.add("ce/clean", clean, batch.weight)
        return clean + self.lam * self.penalty(logits, clean_logits, batch.weight)
