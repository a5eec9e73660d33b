"""The base of attacks that search the parameters of a transformation of images, and the steps they take."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lit_robust import losses, require
from lit_robust.attacks.base import Attack, NoGraphError, input_gradient
from lit_robust.attacks.passes import SHRINK_EVERY, Passes, WorstPoint
from lit_robust.guards import crafting, may_shrink
from lit_robust.magnitudes import Magnitude


@dataclass(frozen=True)
class ParameterAttack(Attack):
    """An attack that searches parameters of a transformation of images, each at most ``eps`` from 0.

    Returns for each image a misclassified point if it saw one, else the point of largest margin.
    """

    eps: Magnitude
    steps: int

    #: Whether images need three channels.
    needs_colour: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", require.pixels("eps", self.eps, "l2"))
        require.integer("steps", self.steps, least=0)

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Search the transformations of each image."""
        if self.needs_colour and x.ndim == 4 and x.shape[1] != 3:
            raise ValueError(
                f"{type(self).__name__} moves colours, but the images have {x.shape[1]} channels instead of 3: leave "
                "it out of this test or use StAdv, which works on them."
            )
        if not len(x):
            return x.clone()
        with crafting(x, y) as (x, y):
            parameters = self.search(net, x, y)
            with torch.no_grad():
                return self.exactly(x, parameters)

    def search(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Find the worst parameters, ``(N, ...)``; inside ``crafting``."""
        parameters = self.start(x.to(torch.promote_types(x.dtype, torch.float32)))
        stepper = self.stepper()
        worst = WorstPoint(Passes(net, 1), parameters, y, targeted=False, shrinks=False)
        found, rows, shrinks = parameters.clone(), torch.arange(len(x), device=x.device), may_shrink(net)
        for k in range(self.steps):
            if shrinks and k and k % SHRINK_EVERY == 0 and worst.broken.any():
                found[rows] = worst.x_adv
                left = (~worst.broken).nonzero().squeeze(1)
                if not len(left):
                    return found
                rows, x, y, parameters = rows[left], x[left], y[left], parameters[left]
                stepper.narrow(left)
                worst.narrow(left)
            parameters.requires_grad_()
            logits = net(self.exactly(x, parameters))
            if not logits.requires_grad:
                raise NoGraphError
            worst.see(parameters, logits)
            gradient = input_gradient(self.objective(logits, y, parameters), parameters)
            step = stepper(gradient.nan_to_num(0, 0, 0))
            parameters = (parameters.detach() + step).clamp(-self.eps, self.eps)
        with torch.no_grad():
            worst.see(parameters, net(self.exactly(x, parameters)))
        found[rows] = worst.x_adv
        return found

    def exactly(self, x: Tensor, parameters: Tensor) -> Tensor:
        """Transform the images in float32 or float64, also if the net runs in another precision."""
        with torch.autocast(x.device.type, enabled=False):
            return self.transform(x.to(parameters.dtype), parameters).to(x.dtype)

    @abstractmethod
    def start(self, x: Tensor) -> Tensor:
        """The first parameters, ``(N, ...)``."""

    @abstractmethod
    def transform(self, x: Tensor, parameters: Tensor) -> Tensor:
        """Transform the images; where the parameters are 0 they stay, to rounding; always in [0, 1]."""

    @abstractmethod
    def objective(self, logits: Tensor, y: Tensor, parameters: Tensor) -> Tensor:
        """The objective to maximise, ``(N,)``."""

    @abstractmethod
    def stepper(self) -> "SignSteps":
        """Computes the steps of a run from its gradients."""


class SignSteps:
    """Signed steps of a fixed length."""

    def __init__(self, length: float) -> None:
        self.length = length

    def __call__(self, gradient: Tensor) -> Tensor:
        """The step of a gradient."""
        return self.length * gradient.sign()

    def narrow(self, rows: Tensor) -> None:
        """Keep only these images."""


class Adam(SignSteps):
    """The steps of Adam (Kingma and Ba, arXiv:1412.6980), upwards."""

    def __init__(self, length: float) -> None:
        super().__init__(length)
        self.k, self.mean, self.square = 0, torch.empty(0), torch.empty(0)

    def __call__(self, gradient: Tensor) -> Tensor:
        """The step of a gradient."""
        self.k += 1
        if self.k == 1:
            self.mean, self.square = torch.zeros_like(gradient), torch.zeros_like(gradient)
        self.mean.lerp_(gradient, 0.1)
        self.square.lerp_(gradient.square(), 0.001)
        root = (self.square / (1 - 0.999**self.k)).sqrt_().add_(1e-8)
        return root.reciprocal_().mul_(self.mean).mul_(self.length / (1 - 0.9**self.k))

    def narrow(self, rows: Tensor) -> None:
        """Keep only these images."""
        self.mean, self.square = self.mean[rows], self.square[rows]


@dataclass(frozen=True)
class SmoothAttack(ParameterAttack):
    """A field of parameters, found by Adam on the margin minus the field's weighted smoothness loss.

    Args:
        eps: The bound.
        steps: The number of Adam's steps.
        lr: Adam's learning rate.
        smoothness: Weight of the smoothness loss, which is divided by eps.
    """

    lr: float
    smoothness: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require.number("lr", self.lr, above=0)
        require.number("smoothness", self.smoothness, least=0)

    def stepper(self) -> Adam:
        """Adam."""
        return Adam(self.lr)

    def objective(self, logits: Tensor, y: Tensor, parameters: Tensor) -> Tensor:
        """The margin minus the weighted smoothness loss."""
        return losses.margin(logits, y) - self.smoothness / max(self.eps, 1e-12) * smoothness_loss(parameters)


def smoothness_loss(field: Tensor) -> Tensor:
    """The differences of a field's vectors from all their neighbours, summed, ``(N,)``; each pair counts twice.

    StAdv's flow loss (Xiao et al., arXiv:1801.02612, eq. 4) and ReColorAdv's smoothness, as in their common code. As
    there, the root is of the squared length plus 1e-10.

    Args:
        field: ``(N, C, ...)``, a vector of C numbers at each point of a grid.
    """
    total = field.new_zeros(len(field))
    for axis in range(2, field.ndim):
        squares = field.diff(dim=axis).square().sum(dim=1) + 1e-10
        total = total + 2 * squares.sqrt().flatten(1).sum(dim=1)
    return total
