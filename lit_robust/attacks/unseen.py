"""Attacks that norm-bounded training has not seen: the flow of StAdv, the recolouring of ReColorAdv, and JPEG's."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_robust import losses, require
from lit_robust.attacks import cieluv, jpeg_blocks
from lit_robust.attacks.parameter_attack import ParameterAttack, SignSteps, SmoothAttack
from lit_robust.magnitudes import Magnitude

_GRID = "give the nodes along L*, u* and v*, such as (16, 32, 32)"

#: The bounds of the CIFAR-10 tables.
FLOW, COLOUR, QUANTUM = Magnitude("0.05"), Magnitude("0.06"), Magnitude("0.25")
#: Of a colour that is converted to sRGB and back.
_ROUNDING = 1e-4


@dataclass(frozen=True)
class StAdv(SmoothAttack):
    """Spatially transformed images (Xiao et al., ICLR 2018, arXiv:1801.02612), bounded as by Laidlaw et al.

        max_{|u| <= eps}  margin(f(x o (id + u)), y) - smoothness / eps  smoothness_loss(u)

    The flow ``u`` moves the point at which each pixel reads the image, bilinearly, by at most ``eps`` along each axis.
    In the paper the flow has no bound and is found by L-BFGS; the bound, Adam and all numbers are those of the code of
    perceptual adversarial training (arXiv:2006.12655, ``attacks.py``), 200 steps on ImageNet-100.

    Differs from that code: pixels beyond the border repeat the border's, theirs are black; the kept point is the worst
    one seen, theirs the parameters after the step with the largest objective.

    Args:
        eps: The bound in ``grid_sample``'s coordinates, where the image spans [-1, 1]: 0.05 is 0.8 of 32 pixels.
        steps: See ``SmoothAttack``.
        lr: See ``SmoothAttack``.
        smoothness: See ``SmoothAttack``.

    Raises:
        ValueError: If an argument is out of range.
    """

    eps: Magnitude = FLOW
    steps: int = 100
    lr: float = 0.01
    smoothness: float = 0.0025

    #: What bounds the attack; not one of ``threats``.
    norm: ClassVar[str] = "flow"

    def __post_init__(self) -> None:
        super().__post_init__()
        require.number("eps", self.eps, most=2, hint="the image spans [-1, 1]")

    def start(self, x: Tensor) -> Tensor:
        """Zero flow, ``(N, 2, H, W)``; channel 0 points right, channel 1 down."""
        return x.new_zeros(len(x), 2, *x.shape[2:])

    def transform(self, x: Tensor, parameters: Tensor) -> Tensor:
        """Read the images along the flow."""
        height, width = x.shape[2:]
        across = (2 * torch.arange(width, device=x.device) + 1) / width - 1  # the centres of pixels
        down = (2 * torch.arange(height, device=x.device) + 1) / height - 1
        points = torch.stack(torch.meshgrid(across, down, indexing="xy"), dim=-1) + parameters.permute(0, 2, 3, 1)
        return F.grid_sample(x, points, padding_mode="border", align_corners=False).clamp(0, 1)


@dataclass(frozen=True)
class ReColor(SmoothAttack):
    """ReColorAdv (Laidlaw and Feizi, NeurIPS 2019, arXiv:1906.00001): all pixels of one colour change alike.

        max_{|g| <= eps}  margin(f(RGB(c + g(c))), y) - smoothness / eps  smoothness_loss(g),       c = LUV(x)

    The change ``g`` of a colour is interpolated between the nodes of a grid in CIELUV, whose axes are scaled to [0, 1]
    (L* / 100, (u* + 100) / 200, (v* + 100) / 200), where each of its three numbers is at most ``eps``. All numbers are
    those of the code of perceptual adversarial training (arXiv:2006.12655, ``attacks.py``), 200 steps on ImageNet-100.

    Differs from that code: theirs projects the grid's nodes into sRGB's gamut in each step, ours clips the pixels (see
    ``cieluv.to_rgb``), and moves a saturated colour, which clipping can take up to twice the bound away, only as far as
    the bound; the conversion has its exact inverse; the kept point is the worst one seen, see ``StAdv``.

    Args:
        eps: The bound, in CIELUV scaled to [0, 1].
        steps: See ``SmoothAttack``.
        lr: See ``SmoothAttack``.
        smoothness: See ``SmoothAttack``.
        grid: The nodes along L*, u* and v*.

    Raises:
        ValueError: If an argument is out of range; when called, if the images do not have three channels.
    """

    eps: Magnitude = COLOUR
    steps: int = 100
    lr: float = 0.001
    smoothness: float = 0.0036
    grid: tuple[int, int, int] = (16, 32, 32)

    norm: ClassVar[str] = "colour"
    needs_colour: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require.number("eps", self.eps, most=1, hint="the axes of CIELUV are scaled to [0, 1]")
        object.__setattr__(self, "grid", tuple(require.instance("grid", self.grid, (list, tuple), _GRID)))
        if len(self.grid) != 3:
            raise ValueError(f"grid={list(self.grid)} has {len(self.grid)} numbers: {_GRID}.")
        for nodes in self.grid:
            require.integer("grid", nodes, least=2, hint="the nodes along each axis")

    def start(self, x: Tensor) -> Tensor:
        """No change at any node, ``(N, 3, *grid)``."""
        return x.new_zeros(len(x), 3, *self.grid)

    def transform(self, x: Tensor, parameters: Tensor) -> Tensor:
        """Change the colours; those that sRGB's gamut would move beyond the bound go a part of the way."""
        colours = cieluv.from_rgb(x)
        # grid_sample reads the last axis first, and the ends of each axis are at -1 and 1.
        points = (2 * colours - 1).flip(1).permute(0, 2, 3, 1).unsqueeze(1)
        change = F.grid_sample(parameters, points, padding_mode="border", align_corners=True).squeeze(2)
        changed = cieluv.to_rgb(colours + change).clamp(0, 1)
        return x.lerp(changed, self._share_within(x, colours, changed)).clamp(0, 1)

    @torch.no_grad()
    def _share_within(self, x: Tensor, colours: Tensor, changed: Tensor) -> Tensor:
        """How much of the way from x to its changed colour stays in the bound, by bisection, ``(N, 1, H, W)``."""
        share, low, high = torch.ones_like(x[:, :1]), torch.zeros_like(x[:, :1]), torch.ones_like(x[:, :1])
        for _ in range(6):
            moved = (cieluv.from_rgb(x.lerp(changed, share)) - colours).abs().amax(dim=1, keepdim=True)
            within = moved <= self.eps + _ROUNDING
            low, high = torch.where(within, share, low), torch.where(within, high, share)
            share = (low + high) / 2
        return low


@dataclass(frozen=True)
class JPEG(ParameterAttack):
    """The JPEG attack of Kang et al. (arXiv:1908.08016), in L-infinity: a change of JPEG's quantised coefficients.

        max_{|c| <= eps}  CE(f(clip(x + decode(c), 0, 1)), y)

    ``c`` are coefficients of 8 x 8 blocks of the luminance, and of the chrominance at half the resolution, in steps of
    JPEG's standard quantisation tables (quality 50). It starts uniformly in the box and takes signed steps of
    ``eps / sqrt(steps)``, as in the code of perceptual adversarial training (arXiv:2006.12655, ``attacks.py``): eps
    0.25 on CIFAR-10, 0.125 with 200 steps on ImageNet-100.

    Differs from the authors' code (``advex_uar``): theirs also removes the image's own fine chrominance, ours returns
    the image unchanged at eps 0; sizes need not be multiples of 16, as the blocks are cropped; the kept point is the
    worst one seen, theirs the last.

    Args:
        eps: The bound, in steps of quantisation.
        steps: The number of steps.
        step_size: The length of a step; eps / sqrt(steps) by default.

    Raises:
        ValueError: If an argument is out of range; when called, if the images do not have three channels.
    """

    eps: Magnitude = QUANTUM
    steps: int = 100
    step_size: Magnitude | None = None

    norm: ClassVar[str] = "jpeg"
    needs_colour: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step_size is not None:
            object.__setattr__(self, "step_size", require.pixels("step_size", self.step_size, "l2"))

    @cached_property
    def step_length(self) -> float:
        """The length of a step."""
        return self.eps / max(self.steps, 1) ** 0.5 if self.step_size is None else self.step_size

    def objective(self, logits: Tensor, y: Tensor, parameters: Tensor) -> Tensor:
        """Cross-entropy."""
        return losses.ce(logits, y)

    def stepper(self) -> SignSteps:
        """Signed steps."""
        return SignSteps(self.step_length)

    def start(self, x: Tensor) -> Tensor:
        """Uniform coefficients, ``(N, 6 h w, 8, 8)`` for h x w squares of 16 pixels."""
        squares = -(-x.shape[2] // 16) * -(-x.shape[3] // 16)
        return self.eps * (2 * torch.rand(len(x), 6 * squares, 8, 8, device=x.device, dtype=x.dtype) - 1)

    def transform(self, x: Tensor, parameters: Tensor) -> Tensor:
        """Add what the coefficients decode to."""
        return (x + jpeg_blocks.decoded(parameters, x.shape[2], x.shape[3])).clamp(0, 1)
