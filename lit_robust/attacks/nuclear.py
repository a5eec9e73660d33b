"""Attacks that drive a batch's logits away from the clean ones, measured by a norm of the matrix of differences."""

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from lit_robust import losses, require
from lit_robust.attacks.base import EPS, Attack
from lit_robust.attacks.guided import GuidedPGD
from lit_robust.losses import SampleLoss
from lit_robust.magnitudes import Magnitude


@dataclass(frozen=True)
class _MatrixNorm(Attack):
    eps: Magnitude = EPS
    step_size: Magnitude | None = None
    steps: int = 1
    init_size: Magnitude | None = None
    loss: SampleLoss | None = losses.ce
    lam: float = 4.0

    def __post_init__(self) -> None:
        for name in ("eps", "step_size", "init_size"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, require.pixels(name, getattr(self, name)))
        require.integer("steps", self.steps, least=0)
        require.number("lam", self.lam, above=0, hint="without the norm this is a PGD")
        if self.loss is not None:
            require.function("loss", self.loss, "give one such as lit_robust.losses.ce, or None for the norm alone")

    @property
    def step_length(self) -> float:
        """The length of a step."""
        return self.pgd.step_length

    @abstractmethod
    def norm_of(self, difference: Tensor) -> Tensor:
        """Measure the differences ``(N, C)`` by one number."""

    @cached_property
    def pgd(self) -> GuidedPGD:
        """The same attack as a PGD guided by the norm."""
        return GuidedPGD(
            self.eps,
            step_size=self.step_size,
            steps=self.steps,
            init="rademacher",
            init_size=self.eps / 2 if self.init_size is None else self.init_size,
            loss=_no_loss if self.loss is None else self.loss,
            penalty=self._penalty,
            lam=self.lam,
        )

    def _penalty(self, logits: Tensor, clean_logits: Tensor) -> Tensor:
        return self.norm_of(logits.float() - clean_logits.float()) / len(logits)

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Run the guided PGD."""
        return self.pgd(net, x, y)


def _no_loss(logits: Tensor, y: Tensor) -> Tensor:
    return torch.zeros(len(logits), device=logits.device)


@dataclass(frozen=True)
class NuclearNorm(_MatrixNorm):
    """The attack of NuAT (Sriramanan et al., NeurIPS 2021): a nuclear norm couples the images of a batch.

        max_{|x' - x| <= eps}  sum_i CE(f(x'_i), y_i) + lam |f(x') - f(x)|_*,     (N, C) logits

    By default one step of eps from a start at plus or minus eps/2 in each pixel, as NuAT trains. The norm rewards
    logits that change in many directions, so its errors are spread over more classes than those of the Frobenius norm.

    Differences from the paper's formula: as in the authors' code, the whole norm is added to the sum of the
    cross-entropies, not to their mean; a factor common to both does not change a sign step. The result of an image
    depends on its batch.

    Args:
        eps: The bound in L-infinity, in units of [0, 1].
        step_size: The length of a step; by default ``2.5 eps / steps``, at most ``eps``: a single step is one of
            ``eps``, and 10 steps are of 2/255 at 8/255. NuAT's slides do not say how many steps they compare the norms
            with.
        steps: The number of steps.
        init_size: The magnitude of the Rademacher start; by default ``eps/2``, the code's 4/255 for CIFAR-10.
        loss: The per-sample loss that is maximised along with the norm; None for the norm alone.
        lam: The norm's weight. The code's lambda grows from 0 to between 4 and 4.5 during training.

    Raises:
        TypeError: If ``loss`` is not a function.
        ValueError: If a magnitude is above 1, or ``lam`` is not above 0.
    """

    def norm_of(self, difference: Tensor) -> Tensor:
        """The sum of singular values."""
        return losses.nuclear_norm(difference)


@dataclass(frozen=True)
class FrobeniusNorm(_MatrixNorm):
    """The attack that NuAT's slides compare ``NuclearNorm`` with: the same with a Frobenius norm.

        max_{|x' - x| <= eps}  sum_i CE(f(x'_i), y_i) + lam |f(x') - f(x)|_F

    As |A|_F <= |A|_* <= sqrt(rank A) |A|_F, the two differ most at full rank. With the same random state both start at
    the same point. Arguments and errors are those of ``NuclearNorm``.
    """

    def norm_of(self, difference: Tensor) -> Tensor:
        """The root of the sum of squares."""
        return losses.frobenius_norm(difference)
