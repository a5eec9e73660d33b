"""The base of the methods whose attack is a single gradient step."""

from typing import Unpack

import torch
from torch import Tensor, nn

from lit_robust import losses
from lit_robust.attacks import FGSM, Attack
from lit_robust.attacks.base import input_gradient
from lit_robust.guards import BNMode, crafting
from lit_robust.training.arguments import TrainingArguments
from lit_robust.training.defense import Defense


class SingleStep(Defense):
    """Adversarial training with one gradient step in L-infinity, which each method starts and bounds in its own way.

    ``attack`` is an ``FGSM`` for all of them, so one attack fragment serves the whole family: its ``eps`` is the
    paper's, and what else a paper varies (alpha, k, m, ...) is an argument of the method. BatchNorm is in train
    mode during the attack, as in the code of Wong et al. (arXiv:2001.03994) and the methods built on it.

    Raises:
        TypeError: If ``attack`` is not an ``FGSM``.
        ValueError: If its norm is L2.
    """

    attack: FGSM

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        attack: Attack,
        *,
        attack_bn_mode: BNMode = "train",
        **kwargs: Unpack[TrainingArguments],
    ) -> None:
        super().__init__(net, num_classes, attack, attack_bn_mode=attack_bn_mode, **kwargs)
        name = type(self).__name__
        if not isinstance(self.attack, FGSM):
            raise TypeError(
                f"{name} takes its single step itself and needs only the bound: set attack=FGSM(eps=...), "
                f"not {type(self.attack).__name__}."
            )
        if self.attack.norm != "linf":
            raise ValueError(f'{name} is a method for L-infinity: give FGSM(norm="linf"), or train PGDAT on this one.')
        self.memory.declare(kinds={"delta": (torch.float32, (None, None, None, None))})

    def gradient_at(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient of the cross-entropy with respect to images, and the logits, both without a graph."""
        with self.attacked(x) as net, crafting(x, y) as (x, y):
            logits = net(x.requires_grad_())
            return input_gradient(losses.ce(logits, y), x), logits.detach()

    # A perturbation that outlives its batch: Free's, and Fast's with delta_init="previous".

    def recall(self, x: Tensor) -> Tensor:
        """The perturbation that earlier batches left in the rows of this one, 0 where there is none.

        It is clipped to ``eps``, which a schedule may have lowered since.
        """
        delta = self.memory.tensors.get("delta")
        if delta is None or delta.shape[1:] != x.shape[1:]:
            return torch.zeros_like(x)
        delta = delta[: len(x)].to(x.device).clamp(-self.attack.eps, self.attack.eps)
        return torch.cat([delta, torch.zeros_like(x[len(delta) :])])

    def remember(self, delta: Tensor) -> None:
        """Keep a perturbation for the next batch; rows that a short batch lacks do not change."""
        before = self.memory.tensors.get("delta", delta)
        kept = before[len(delta) :].to(delta.device) if before.shape[1:] == delta.shape[1:] else delta[:0]
        self.memory.tensors["delta"] = torch.cat([delta, kept])
