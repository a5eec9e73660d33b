"""PGD that leaves each image alone soon after it has been misclassified."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_robust import require
from lit_robust.attacks.base import input_gradient
from lit_robust.attacks.pgd import PGD


@dataclass(frozen=True)
class FriendlyPGD(PGD):
    """Early-stopped PGD of Friendly AT (Zhang et al., ICML 2020, arXiv:2002.11242), algorithm 1.

        x' <- P( x' + step_size * steepest(grad L(f(x'), y)) + omega N(0, I) ),     until x' is misclassified and
                                                                                     has been at tau points before

    A sample stops for good, and the others go on in a smaller batch, as in the authors' code: that is what makes it
    cheaper than PGD, at one wait for the device a step. ``steps`` is the most that a sample takes, and its last point
    is not looked at again. The rows come back in their order, where the authors' code reorders the batch.

    With ``loss=losses.kl, compare_with="clean_logits"``, which TRADES sets, it is the attack of FAT for TRADES.

    Args:
        tau: At how many misclassified points a sample still takes a step.
        omega: The standard deviation of the noise of each step.

    Raises:
        ValueError: If ``tau`` or ``omega`` is negative or infinite, or something is asked for that early stopping does
            not go with: a momentum, a target, ``freeze_misclassified``.
    """

    tau: float = 0
    omega: float = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        require.number("tau", self.tau, least=0)
        require.number("omega", self.omega, least=0)
        for name in ("momentum", "targeted", "freeze_misclassified"):
            if getattr(self, name):
                raise ValueError(f"FriendlyPGD stops samples by a rule of its own: leave out {name}, or use PGD.")

    def run(self, net: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor | None = None) -> Tensor:
        """One run; PGD's own loop would give samples that have stopped a forward and a backward, too."""
        reference = y
        if self.compare_with == "clean_logits":
            with torch.no_grad():
                reference = net(x)
        x_adv = self.start(net, x) if x_adv is None else x_adv.clone()
        rows, left = torch.arange(len(x), device=x.device), x.new_full(y.shape, self.tau)
        for k in range(self.steps):
            here = x_adv[rows].requires_grad_()
            logits = net(here)
            gradient = input_gradient(self.loss(logits, reference[rows]), here)
            wrong = self.broken(logits, y[rows])
            on = (~wrong | (left >= 1)).nonzero().squeeze(1)
            if not len(on):
                break
            rows, left = rows[on], (left - wrong.to(left.dtype))[on]
            x_adv[rows] = self.step(net, x[rows], here.detach()[on], gradient[on], k)
        return x_adv if self.clip_init else self.threat.project(x_adv, x)

    def step(self, net: nn.Module, x: Tensor, x_adv: Tensor, direction: Tensor, k: int) -> Tensor:
        """Take a step with some noise."""
        return super().step(net, x, x_adv + self.omega * torch.randn_like(x_adv), direction, k)
