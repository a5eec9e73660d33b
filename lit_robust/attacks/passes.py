"""An attack's passes through a net, and the worst point that it has seen on the way."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lit_robust import losses
from lit_robust.attacks.base import input_gradient
from lit_robust.logits import predicts

#: After how many steps an evaluation leaves out the images that are misclassified by then.
SHRINK_EVERY = 10
#: ``(x_adv, logits of x_adv, index of the step) -> (N,)``, the function to maximise.
Objective = Callable[[Tensor, Tensor, int], Tensor]


class Passes:
    """The passes of one run: each is averaged over ``eot`` repetitions, for nets that draw random numbers.

    Images can be left out of further passes. Their logits then stay as they were and their gradient is 0, so objectives
    and ``movers`` still get all images, in their order.
    """

    def __init__(self, net: nn.Module, eot: int) -> None:
        self.net, self.eot = net, eot
        self.logits = torch.empty(0)
        self.rows: Tensor | None = None

    def narrow(self, rows: Tensor) -> None:
        """Take only these images through the net from now on; ``rows`` are indices ``(K,)``."""
        self.rows = rows if len(rows) < len(self.logits) else None

    def gradient(self, objective: Objective, x_adv: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The mean logits and the mean gradient of step ``k``, ``(N, C)`` and the shape of ``x_adv``."""
        logits = self._forward(x_adv)
        gradient, total = input_gradient(objective(x_adv, logits, k), x_adv), logits.detach()
        for _ in range(self.eot - 1):
            logits = self._forward(x_adv)
            gradient = gradient + input_gradient(objective(x_adv, logits, k), x_adv)
            total = total + logits.detach()
        self.logits = total
        if self.eot > 1:
            self.logits, gradient = total / self.eot, gradient / self.eot
        return self.logits, gradient

    @torch.no_grad()
    def forward(self, x_adv: Tensor) -> Tensor:
        """The mean logits, without a gradient."""
        total = sum((self._forward(x_adv) for _ in range(self.eot - 1)), start=self._forward(x_adv))
        return total / self.eot if self.eot > 1 else total

    def _forward(self, x_adv: Tensor) -> Tensor:
        if self.rows is None:
            logits: Tensor = self.net(x_adv)
            return logits
        return self.logits.index_copy(0, self.rows, self.net(x_adv[self.rows]))


class WorstPoint:
    """The worst point of each image among those seen: a misclassified one first, then the largest margin.

    Args:
        passes: The passes of the run.
        x_adv: The points ``(N, ...)`` to keep until others are seen.
        y: The labels ``(N,)``, or with ``targeted`` the classes to reach.
        targeted: Whether ``y`` are classes to reach.
        shrinks: Whether misclassified images leave the batch; this waits for the device every 10 steps.
    """

    def __init__(self, passes: Passes, x_adv: Tensor, y: Tensor, targeted: bool, shrinks: bool) -> None:
        self.passes, self.x_adv, self.y = passes, x_adv.detach(), y
        self.targeted, self.shrinks = targeted, shrinks
        self.broken = torch.zeros_like(y, dtype=torch.bool)
        self.margin = torch.full_like(y, -torch.inf, dtype=torch.float32)

    def goes_on(self, k: int) -> bool:
        """Leave out the misclassified images before step ``k``, if it is time; False if none remain."""
        if not (self.shrinks and k and k % SHRINK_EVERY == 0):
            return True
        rows = (~self.broken).nonzero().squeeze(1)
        self.passes.narrow(rows)
        return len(rows) > 0

    def narrow(self, rows: Tensor) -> None:
        """Keep only these images; ``rows`` are indices ``(K,)``."""
        self.x_adv, self.y = self.x_adv[rows], self.y[rows]
        self.broken, self.margin = self.broken[rows], self.margin[rows]

    @torch.no_grad()
    def see(self, x_adv: Tensor, logits: Tensor) -> None:
        """Keep the points ``(N, ...)`` that are worse than those seen before, without waiting for the device.

        The logits of images that have left the batch are those of a point that was seen before, so their kept points
        stay.
        """
        broken, margin = badness(logits, self.y, self.targeted)
        better = (broken & ~self.broken) | ((broken == self.broken) & (margin > self.margin))
        self.x_adv = torch.where(like_images(better, x_adv), x_adv.detach(), self.x_adv)
        self.broken, self.margin = self.broken | broken, torch.where(better, margin, self.margin)

    def or_at(self, x_adv: Tensor) -> Tensor:
        """The worst point, after a look at the last one ``(N, ...)``, which costs a forward."""
        self.see(x_adv, self.passes.forward(x_adv))
        return self.x_adv


def like_images(per_sample: Tensor, x: Tensor) -> Tensor:
    """Shape ``(N,)`` so that it broadcasts over ``(N, C, H, W)``."""
    return per_sample.view(-1, *[1] * (x.ndim - 1))


def misclassified(logits: Tensor, y: Tensor, targeted: bool) -> Tensor:
    """Which images are misclassified, ``(N,)`` bool; logits that are not finite are, as in an evaluation.

    Args:
        logits: ``(N, C)``.
        y: The labels ``(N,)``.
        targeted: Whether ``y`` are classes to reach: reached ones then count.
    """
    hit = predicts(logits, y)
    return hit if targeted else ~hit


def badness(logits: Tensor, y: Tensor, targeted: bool) -> tuple[Tensor, Tensor]:
    """Which images are ``misclassified``, and the margins by which they are, both ``(N,)``.

    With ``targeted`` the margins change their sign; a margin of NaN becomes -inf.
    """
    margin = -losses.margin(logits, y) if targeted else losses.margin(logits, y)
    return misclassified(logits, y, targeted), margin.nan_to_num(-torch.inf, torch.inf, -torch.inf)
