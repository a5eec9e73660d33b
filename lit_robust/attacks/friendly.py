"""PGD that stops each image soon after it is misclassified."""

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

    A stopped sample stays stopped, and the others go on in a smaller batch, as in the authors' code. That makes it
    cheaper than PGD, at the cost of one synchronisation with the device per step. A sample takes at most ``steps``
    steps, and its last point is not evaluated. Rows keep their order, whereas the authors' code reorders the batch.

    With ``loss=losses.kl, compare_with="clean_logits"``, which TRADES sets, it is the attack of FAT for TRADES.

    Args:
        tau: The number of misclassified points from which a sample still takes a step.
        omega: The standard deviation of the noise of each step.

    Raises:
        ValueError: If ``tau`` or ``omega`` is negative or infinite, or if ``momentum``, ``targeted``,
            ``freeze_misclassified``, ``keep`` or ``eot`` is set, with which early stopping does not work.
    """

    tau: float = 0
    omega: float = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        require.number("tau", self.tau, least=0)
        require.number("omega", self.omega, least=0)
        for name in ("momentum", "targeted", "freeze_misclassified", "keep", "eot"):
            if getattr(self, name) != getattr(PGD, name):
                raise ValueError(f"FriendlyPGD stops samples by a rule of its own: leave out {name}, or use PGD.")

    def run(self, net: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor | None = None) -> Tensor:
        """One run; PGD's own loop would also compute a forward and a backward for stopped samples."""
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
        """Add the noise and take a step."""
        return super().step(net, x, x_adv + self.omega * torch.randn_like(x_adv), direction, k)
