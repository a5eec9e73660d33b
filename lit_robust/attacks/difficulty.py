"""Metrics of an image's difficulty, which ``CurriculumPGD`` keeps below a growing bound."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lit_robust import losses, require
from lit_robust.attacks.hessian import (
    Weights,
    curvatures,
    last_layer_eigenvalue,
    sharpest_direction,
    softmax_eigenvalue,
)
from lit_robust.attacks.pgd import PGD
from lit_robust.keywords import answer_keywords
from lit_robust.nets.folded import unfolded
from lit_robust.threats import Norm

#: ``(x_adv, logits of x_adv, gradient of the objective) -> (N,)``, the difficulty of a run's current points.
Measure = Callable[[Tensor, Tensor, Tensor], Tensor]


class Difficulty(ABC):
    """The metric psi of a curriculum: one number per sample, larger where the image is more difficult.

    A subclass is a frozen dataclass, a value that YAML can name. Most metrics are in [0, 1], so that no sample exceeds
    the bound 1, and only read what the attack computes anyway.
    """

    @abstractmethod
    def begin(self, attack: PGD, net: nn.Module, x: Tensor, y: Tensor) -> Measure:
        """Begin a run of an attack; the function returned is called before each step and may keep state for the run."""

    def check(self, net: nn.Module) -> None:  # noqa: B027  # most metrics read nothing but logits
        """Refuse a net that cannot be measured.

        Raises:
            TypeError: If it lacks what the metric reads.
        """


@dataclass(frozen=True)
class ProbabilityGap(Difficulty):
    """P-SAT's metric (arXiv:2003.09347): ``max_{j != y} p_j - p_y`` in [-1, 1], above 0 where the net is wrong."""

    def begin(self, attack: PGD, net: nn.Module, x: Tensor, y: Tensor) -> Measure:
        """Read the logits."""
        return lambda x_adv, logits, gradient: losses.probability_margin(logits, y)


@dataclass(frozen=True)
class AdversarialLoss(Difficulty):
    """The cross-entropy, brought into [0, 1] as ``1 - exp(-CE) = 1 - p_y`` (our form of it)."""

    def begin(self, attack: PGD, net: nn.Module, x: Tensor, y: Tensor) -> Measure:
        """Read the logits."""
        return lambda x_adv, logits, gradient: -torch.expm1(-losses.ce(logits, y))


@dataclass(frozen=True)
class Distance(Difficulty):
    """How far the point is from the image, ``|x' - x| / eps`` in [0, 1], in the attack's norm.

    A uniform start is already at nearly 1, so start at the image (``init="zero"``). For a curriculum of ``eps`` itself,
    use ``AttributeRamp("attack.eps", ...)`` with any method.
    """

    def begin(self, attack: PGD, net: nn.Module, x: Tensor, y: Tensor) -> Measure:
        """Measure the change of the image."""
        eps = max(attack.eps, torch.finfo(x.dtype).tiny)
        # Only rounding makes it exceed 1, and that must not stop a sample at the bound 1.
        return lambda x_adv, logits, gradient: (_length(x_adv - x, attack.norm) / eps).clamp(max=1)


@dataclass(frozen=True)
class Steps(Difficulty):
    """The fraction of steps taken after the next one; with the bound j/K, each sample takes j of K steps."""

    def begin(self, attack: PGD, net: nn.Module, x: Tensor, y: Tensor) -> Measure:
        """Count the steps."""
        taken = itertools.count(1)
        return lambda x_adv, logits, gradient: x.new_full((len(x),), next(taken) / attack.steps)


@dataclass(frozen=True)
class FOSC(Difficulty):
    """Minus the first-order stationary condition of Dynamic AT (Wang et al., ICML 2019), so that the bound is minus c.

        FOSC(x') = max_{|z - x| <= eps} <z - x', grad L(f(x'), y)> = eps |grad|_dual - <x' - x, grad>

    It is 0 where no point of the ball is better to first order, and positive elsewhere; it ignores the image box. The
    dual norm of L-infinity is l1, that of L2 is L2. ``L`` is what the attack maximises.

    Args:
        origin: What ``x`` is: the ``image``, or as in Wang et al.'s code the random ``start``, with which FOSC may be
            negative. That code first tests it after a step, so the first step is always taken.

    Raises:
        ValueError: If there is no such origin.
    """

    origin: Literal["image", "start"] = "image"

    def __post_init__(self) -> None:
        require.one_of("origin", self.origin, ("image", "start"))

    def begin(self, attack: PGD, net: nn.Module, x: Tensor, y: Tensor) -> Measure:
        """Read the gradient."""
        if self.origin == "image":
            # Only rounding makes it negative, and that must not stop a sample at c = 0.
            return lambda x_adv, logits, gradient: -fosc(x_adv - x, gradient, attack.eps, attack.norm).clamp_min(0)
        start: list[Tensor] = []

        def measure(x_adv: Tensor, logits: Tensor, gradient: Tensor) -> Tensor:
            if start:
                return -fosc(x_adv - start[0], gradient, attack.eps, attack.norm)
            start.append(x_adv.detach())
            return x.new_full((len(x),), -torch.inf)

        return measure


class Sharpness(Difficulty):
    """H-SAT's metric (arXiv:2003.09347): the largest eigenvalue of the Hessian of the cross-entropy in the weights.

    It is too expensive to compute, and the paper's approximations are not published: both subclasses are ours. It also
    has no natural scale. A value divided by the batch's median only ranks the images of one batch on one rank: with the
    bound 0.5, half of the images move for any net, and which ones depends on the rest of the batch.
    """


@dataclass(frozen=True)
class LastLayerSharpness(Sharpness):
    """The largest eigenvalue of the Hessian in the last layer's weights, in closed form; see ``last_layer_eigenvalue``.

    Without the features' norm it is ``2 lambda_max(diag p - p p^T)`` in [0, 1], a function of the logits alone: 0 where
    the net is certain (right or wrong), and 1 where two classes share all probability.

    Args:
        feature_norm: Whether to include the features' norm: ``c / (c + m)``, where ``c`` is the eigenvalue and ``m``
            the batch's median of it at the start of the run. It costs a forward (no backward) per step.

    Raises:
        TypeError: If ``feature_norm`` is set and the net has no ``features`` or no linear ``head``.
    """

    feature_norm: bool = False

    def __post_init__(self) -> None:
        require.flags(feature_norm=self.feature_norm)

    def check(self, net: nn.Module) -> None:
        """Refuse a net without features if they are needed."""
        if self.feature_norm and not (hasattr(net, "features") and isinstance(getattr(net, "head", None), nn.Linear)):
            raise TypeError(
                f"LastLayerSharpness(feature_norm=True) reads net.features(x) and the Linear net.head, which "
                f"{type(net).__name__} lacks: set feature_norm=False, or take a net of lit_robust.nets."
            )

    def begin(self, attack: PGD, net: nn.Module, x: Tensor, y: Tensor) -> Measure:
        """Read the logits, and the features if they are needed."""
        if not self.feature_norm:
            return lambda x_adv, logits, gradient: 2 * softmax_eigenvalue(logits)
        self.check(net)
        share, bias = _share_of_start(), getattr(net.head, "bias", None) is not None
        features: Callable[[Tensor], Tensor] = getattr(net, "features")  # noqa: B009  # nn.Module does not declare it
        return lambda x_adv, logits, gradient: share(last_layer_eigenvalue(logits, features(x_adv), bias))


@dataclass(frozen=True)
class PowerIteration(Sharpness):
    """The curvature of each sample's loss along the direction of the weights in which the batch's loss is sharpest.

        v = top eigenvector of H(X0) by power iteration,     H(X') = 1/N sum_i H_i(x'_i),  H_i = Hessian of CE_i
        psi_i = c_i / (c_i + m),     c_i = max(v^T H_i(x'_i) v, 0),     m = median of |v^T H_i v| at the start X0

    Once the iteration has converged, the mean of ``v^T H_i v`` at the start is the batch's largest eigenvalue; each
    ``v^T H_i v`` is a lower bound of its own sample's. An eigenvector per sample would take a copy of the weights per
    sample. ``v`` is computed once per run, by Hessian-vector products that cost about 10 forwards each; the curvatures
    cost about 10 forwards per step (on a CPU, where a step of PGD costs 2 or 3). Both use float32 and eval mode.

    Args:
        iterations: The number of Hessian-vector products, starting from the gradient of the batch's loss. If the
            eigenvalue of largest magnitude is negative, as early in training, they find that one, and most psi are 0.

    Raises:
        ValueError: If ``iterations`` is not an integer, at least 0.
    """

    iterations: int = 2

    def __post_init__(self) -> None:
        require.integer("iterations", self.iterations, least=0)

    def begin(self, attack: PGD, net: nn.Module, x: Tensor, y: Tensor) -> Measure:
        """Find the direction at the start, and measure along it."""
        net = unfolded(net)  # folded weights are others
        share, direction = _share_of_start(), Weights()

        def measure(x_adv: Tensor, logits: Tensor, gradient: Tensor) -> Tensor:
            if not direction:
                direction.update(sharpest_direction(net, x_adv, y, self.iterations))
            return share(curvatures(net, x_adv, y, direction))

        return measure


def fosc(delta: Tensor, gradient: Tensor, eps: float, norm: Norm) -> Tensor:
    """The first-order stationary condition ``eps |gradient|_dual - <delta, gradient>`` of each sample, ``(N,)``."""
    axes = tuple(range(1, delta.ndim))
    dual: Tensor = torch.linalg.vector_norm(gradient, ord=1 if norm == "linf" else 2, dim=axes)
    return eps * dual - (delta * gradient).sum(dim=axes)


def _share_of_start() -> Callable[[Tensor], Tensor]:
    """``c / (c + m)`` in [0, 1], where m is the median magnitude in the first call; a negative c counts as 0."""
    median: list[Tensor] = []

    def share(values: Tensor) -> Tensor:
        if not median:
            median.append(values.abs().median().clamp_min(torch.finfo(values.dtype).tiny))
        values = values.clamp_min(0)
        return values / (values + median[0])

    return share


def _length(delta: Tensor, norm: Norm) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(
        delta, ord=torch.inf if norm == "linf" else 2, dim=tuple(range(1, delta.ndim))
    )
    return length


answer_keywords([ProbabilityGap, AdversarialLoss, Distance, Steps, FOSC, LastLayerSharpness, PowerIteration])
