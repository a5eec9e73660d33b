"""Threat sets: the balls of radius ``eps`` around an image, intersected with the image box [0, 1].

The samples of a batch are independent. ``eps`` may also be a tensor of shape ``(N, 1, 1, 1)``, a radius per sample.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_robust.keywords import answer_keywords

Norm = Literal["linf", "l2"]


class Threat(ABC):
    """A set of allowed images around each clean image, and the geometry of gradient steps in it.

    Shape:
        x, x_adv, gradient and every result: ``(N, C, H, W)``, or any other number of dimensions after the
        first.
    """

    @abstractmethod
    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Move ``x_adv`` into the ball around ``x`` and into [0, 1]."""

    @abstractmethod
    def random_start(self, x: Tensor) -> Tensor:
        """Draw a point of the ball around ``x``; it may leave [0, 1] until it is projected."""

    @abstractmethod
    def steepest_step(self, gradient: Tensor) -> Tensor:
        """Return the step of length 1 in this norm that increases a linear function with this gradient most."""


@dataclass(frozen=True)
class Linf(Threat):
    """Every pixel changes by at most ``eps``."""

    eps: float | Tensor

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Clip to the ball and to [0, 1]; as both are boxes, the result is the nearest point of the set."""
        return x_adv.clamp(x - self.eps, x + self.eps).clamp(0, 1)

    def random_start(self, x: Tensor) -> Tensor:
        """Draw uniformly from the ball."""
        return x + (2 * torch.rand_like(x) - 1) * self.eps

    def steepest_step(self, gradient: Tensor) -> Tensor:
        """Take the sign; pixels with no gradient stay where they are."""
        return gradient.sign()


@dataclass(frozen=True)
class L2(Threat):
    """The change of an image has a Euclidean norm of at most ``eps``."""

    eps: float | Tensor

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Shorten the change to ``eps``, then clip to [0, 1], which can only shorten it further.

        The order is that of Wong et al.'s code. The result is in the set, but not always its nearest point.
        """
        change = x_adv - x
        share = (self.eps / _length(change).clamp_min(torch.finfo(x.dtype).tiny)).clamp(max=1)
        return (x + share * change).clamp(0, 1)

    def random_start(self, x: Tensor) -> Tensor:
        """Draw a uniform direction and a uniform length below ``eps``, like Wong et al.'s code.

        This is denser at the centre than a uniform distribution over the ball.
        """
        direction = torch.randn_like(x)
        length = torch.rand_like(_length(direction)) * self.eps
        return x + direction * (length / _length(direction))

    def steepest_step(self, gradient: Tensor) -> Tensor:
        """Divide by the norm plus 1e-10, as in Wong et al.'s code; a gradient of 0 or NaN gives no step."""
        return (gradient / (_length(gradient) + 1e-10)).nan_to_num(0, 0, 0)


def threat(norm: Norm, eps: float | Tensor) -> Threat:
    """Build the threat set of a norm given by name.

    Raises:
        ValueError: If there is no such norm.
    """
    if norm == "linf":
        return Linf(eps)
    if norm == "l2":
        return L2(eps)
    raise ValueError(f'norm="{norm}" is unknown: choose linf or l2.')


def _length(change: Tensor) -> Tensor:
    """The Euclidean norm of each sample, ``(N, 1, ..., 1)``, without a copy in any memory format."""
    length: Tensor = torch.linalg.vector_norm(change, dim=tuple(range(1, change.ndim)), keepdim=True)
    return length


answer_keywords([Linf, L2])
