"""The base of perceptual attacks: the ball of the distance LPIPS, and the projection onto it."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from lit_robust import losses, require
from lit_robust.attacks.base import Attack, input_gradient
from lit_robust.attacks.lpips import LogitsAndFeatures, LPIPSNet, alexnet, distance, watched
from lit_robust.attacks.passes import like_images
from lit_robust.guards import crafting, may_shrink
from lit_robust.magnitudes import Magnitude

#: The bound of the CIFAR-10 tables.
BOUND = Magnitude("0.5")
Projection = Literal["newton", "bisection", "none"]

#: Newton's steps, and how much farther than needed they go, as in the authors' code.
NEWTON_STEPS, OVERSHOOT = 10, 0.1
#: Halvings of the segment to the clean image; 10 in the authors' code, too.
HALVINGS = 10


@dataclass(frozen=True)
class PerceptualAttack(Attack):
    """What the three attacks of Laidlaw et al. (ICLR 2021, arXiv:2006.12655) share.

        max  min(z_best other(x') - z_y(x'), kappa)     subject to  |phi(x') - phi(x)|_2 <= eps

    ``phi`` are normalised activations, see ``lpips.flat_features``, of the attacked net itself (self-bounded, the
    default) or of another net. Numbers are those of the authors' code (``perceptual_attacks.py``).

    The result is in the ball: points outside are moved by ``projection``. ``newton`` takes up to 10 steps along the
    gradient of the distance, each a bit too far, and bisects the segment to the clean image where they did not suffice;
    ``bisection`` halves the segment 10 times and takes the last point inside. Differs from the authors' code: points
    inside stay as they are, only images that are still outside are bisected, and bisection never ends outside.

    Args:
        eps: The bound of the distance; 0.5 for CIFAR-10, 0.25 for ImageNet-100 in the authors' training.
        step_size: The length of a step in this distance.
        steps: The number of steps.
        lpips_net: The net that measures the distance: ``self``, the attacked one; ``alexnet``, torchvision's with
            weights of ImageNet, which are downloaded once; in Python also a net of your own, with ``stages`` or
            ``activations``. It must be in eval mode.
        projection: How points outside the ball are moved into it; ``none`` leaves them, as the authors' Fast-LPA.

    Raises:
        OSError: When called, if the weights of AlexNet cannot be had.
        ValueError: If an argument is out of range; when called, if a net's activations are not known.
    """

    eps: Magnitude = BOUND
    step_size: Magnitude | None = None
    steps: int = 20
    lpips_net: LPIPSNet = "self"
    projection: Projection = "newton"

    #: The distance that bounds the attack; not one of ``threats``.
    norm: ClassVar[str] = "lpips"
    #: Margins are clipped here.
    kappa: ClassVar[float] = math.inf

    def __post_init__(self) -> None:
        for name in ("eps", "step_size"):
            if (value := getattr(self, name)) is not None or name == "eps":
                object.__setattr__(self, name, require.pixels(name, value, "l2"))
        require.integer("steps", self.steps, least=0)
        if not isinstance(self.lpips_net, nn.Module):
            require.one_of("lpips_net", self.lpips_net, ("self", "alexnet"))
        require.one_of("projection", self.projection, get_args(Projection))

    def check_installed(self) -> None:
        """Fail at once if the weights of AlexNet cannot be had."""
        if self.lpips_net == "alexnet":
            alexnet(torch.device("cpu"))

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Search the ball around each image."""
        if not len(x):
            return x.clone()
        with crafting(x, y) as (x, y), watched(net, self.lpips_net) as nets:
            with torch.no_grad():
                origin = nets.features(x)
            shrinks = may_shrink(net)
            return self.project(nets, x, origin, self.search(nets, x, y, origin, shrinks), shrinks)

    @abstractmethod
    def search(self, nets: LogitsAndFeatures, x: Tensor, y: Tensor, origin: Tensor, shrinks: bool) -> Tensor:
        """Return the points that are then projected.

        Args:
            nets: The attacked net and the distance's.
            x: The clean images ``(N, C, H, W)``.
            y: Their labels ``(N,)``.
            origin: Their features ``(N, D)``.
            shrinks: Whether finished images may leave the batch, which synchronises with the device.
        """

    @cached_property
    def step_length(self) -> float:
        """The length of the first step."""
        return self.eps if self.step_size is None else self.step_size

    def decayed(self, k: int) -> float:
        """The length of step ``k``, which falls towards a tenth of the first one."""
        return float(self.step_length * 0.1 ** (k / self.steps))

    def start(self, x: Tensor) -> Tensor:
        """Add slight noise, because at ``x`` the distance has no gradient; not clipped, as in the authors' code."""
        return x + 0.01 * torch.randn_like(x)

    def margin(self, logits: Tensor, y: Tensor) -> Tensor:
        """The margin ``(N,)``, clipped at ``kappa``."""
        return losses.margin(logits, y).clamp(max=self.kappa)

    def project(
        self, nets: LogitsAndFeatures, x: Tensor, origin: Tensor, x_adv: Tensor, shrinks: bool = False
    ) -> Tensor:
        """Move the points that are outside into the ball."""
        near = x_adv = x_adv.detach().clamp(0, 1)
        if self.projection == "none":
            return x_adv
        for _ in range(NEWTON_STEPS if self.projection == "newton" else 0):
            near.requires_grad_()
            how_far = distance(nets.features(near), origin)
            excess = (how_far.detach() - self.eps).clamp_min(0)
            if shrinks and not excess.any():
                return near.detach()
            gradient = input_gradient(how_far, near)
            with torch.no_grad():
                length = torch.where(excess > 0, (excess + OVERSHOOT) * (1 + OVERSHOOT), 0)
                squared = gradient.square().sum(dim=(1, 2, 3))
                share = like_images(length / squared.clamp_min(torch.finfo(x.dtype).tiny), x)
                near = torch.where(like_images(excess > 0, x), (near - share * gradient).clamp(0, 1), near)
        return self.bisect(nets, x, origin, near.detach(), x_adv)

    @torch.no_grad()
    def bisect(self, nets: LogitsAndFeatures, x: Tensor, origin: Tensor, near: Tensor, far: Tensor) -> Tensor:
        """Where ``near`` is outside, halve the segment from ``x`` to ``far``, and take the last point inside."""
        outside = ~(distance(nets.features(near), origin) <= self.eps)  # also where it is NaN
        inside = torch.zeros_like(like_images(outside, x), dtype=x.dtype)
        for halving in range(HALVINGS):
            middle = inside + 0.5 ** (halving + 1)
            is_inside = distance(nets.features(x + middle * (far - x)), origin) <= self.eps
            inside = torch.where(like_images(is_inside, x), middle, inside)
        return torch.where(like_images(outside, x), x + inside * (far - x).nan_to_num(0, 0, 0), near)
