"""Perceptual adversarial training."""

from typing import Unpack

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lit_robust import require
from lit_robust.attacks import Attack
from lit_robust.attacks.passes import like_images
from lit_robust.batch import Batch
from lit_robust.measures.default_attacks import threat_of
from lit_robust.training.arguments import DefenseArguments
from lit_robust.training.defense import Defense


class PerceptualAT(Defense):
    """Perceptual adversarial training, PAT (Laidlaw et al., ICLR 2021, arXiv:2006.12655).

        min_theta  E  max_{|phi(x') - phi(x)|_2 <= eps}  CE(f(x'), y)

    The attack is ``FastLPA(eps=0.5, steps=10)``, whose distance is the trained net's (self-bounded) or AlexNet's.
    Without val_attack and test_attacks, ``LPA`` evaluates. Training takes any other attack, too, as in the
    authors' script.

    As in the authors' code (``adv_train.py`` and its README): images that are misclassified without an attack are
    trained on as they are, gradients are clipped by value, and BatchNorm is in eval mode during the attack. Their
    attack is not projected onto the ball: ``FastLPA(projection="none")``. Differs from the authors' code:
    misclassified images are attacked too and the result is discarded, because selecting them would synchronise with
    the device.

    Args:
        attack: ``FastLPA``, see above.
        only_attack_correct: Whether images that are misclassified stay as they are; it costs a forward.
        largest_gradient: Each number of the gradient is clipped to this absolute value, before ``gradient_clip_val``
            clips the norm; None for no clipping.

    Raises:
        ValueError: If ``largest_gradient`` is not above 0.
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        attack: Attack,
        *,
        only_attack_correct: bool = True,
        largest_gradient: float | None = 1.0,
        **kwargs: Unpack[DefenseArguments],
    ) -> None:
        super().__init__(net, num_classes, attack, **kwargs)
        require.flags(only_attack_correct=only_attack_correct)
        if largest_gradient is not None:
            require.number("largest_gradient", largest_gradient, above=0, hint="null means no clipping")
        self.only_attack_correct, self.largest_gradient = only_attack_correct, largest_gradient

    def setup(self, stage: str) -> None:
        """Say so, if what trains is not perceptual."""
        super().setup(stage)
        if stage == "fit" and (threat := threat_of(self.attack)):
            rank_zero_info(
                f"attack={type(self.attack).__name__} is bounded in {threat[1]}, so this training is not perceptual: "
                "give FastLPA, unless that is meant."
            )

    def perturb(self, batch: Batch) -> Tensor:
        """Attack the images that the net classifies correctly."""
        x_adv: Tensor = super().perturb(batch)
        if not self.only_attack_correct:
            return x_adv
        with self.attacked(batch.x) as net, torch.no_grad():
            correct = net(batch.x).argmax(dim=1) == batch.y
        return torch.where(like_images(correct, x_adv), x_adv, batch.x)

    def limit_gradients(self) -> None:
        """Clip the gradient by value, then its norm."""
        if self.largest_gradient is not None:
            nn.utils.clip_grad_value_(self.net.parameters(), self.largest_gradient)
        super().limit_gradients()
