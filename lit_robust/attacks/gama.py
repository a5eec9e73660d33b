"""GAMA: attacks on the margin of probabilities, guided at first by the distance from a reference."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lit_robust import losses, require
from lit_robust.attacks.passes import Objective
from lit_robust.attacks.pgd import PGD, Init, Reference
from lit_robust.losses import SampleLoss
from lit_robust.magnitudes import Magnitude

Guide = Literal["start", "clean"]

_DROPS = "give shares of the steps, such as (0.6, 0.85)"


@dataclass(frozen=True)
class GAMAPGD(PGD):
    """GAMA-PGD (Sriramanan et al., NeurIPS 2020, arXiv:2011.14969): 100 steps on the margin of probabilities.

        max_{|x' - x| <= eps}  max_{j != y} p_j(x') - p_y(x') + lam_k |p(x') - p(x_ref)|_2^2

    ``lam_k`` falls linearly from ``lam`` to 0 over the first steps. The start is a random corner of the ball; the first
    gradient is taken there even if it lies outside [0, 1]. All numbers are those of the authors' code
    (``GAMA_PGD.py``): eps 8/255, 100 steps, a first step of 16/255 that is divided by 10 at steps 60 and 85, and a
    weight of 50 that reaches 0 at step 25. Here the first step is 2 eps, and the three times scale with ``steps``. The
    code runs 5 restarts; the number behind published GAMA-100 rows is NOT VERIFIED.

    The paper takes the clean image as ``x_ref``. The code takes the start, where the second term and its gradient are 0
    in the first step; that is the default here. Differs from the code: p(x_ref) is computed once, not in every step.
    L2 is ours: the start is projected onto the ball, and steps follow the normalised gradient.

    It is made for robust nets. On a naturally trained net PGD on cross-entropy may find slightly more.

    Args:
        step_size: The length of the first step; 2 eps by default, also where a ramp changes ``eps``.
        lam: The first weight of the squared distance.
        relaxed: The share of the steps over which the weight falls to 0.
        drops: When the step is shortened, as shares of the steps.
        drop: The divisor of the step at each of these times.
        guide: The reference ``x_ref``: the ``start`` of the run, or the ``clean`` image, which costs a forward.

    ``eps``, ``steps``, ``norm``, ``restarts``, ``freeze_misclassified``, ``keep`` and ``eot`` are those of PGD, whose
    other arguments are fixed.

    Raises:
        ValueError: If an argument is out of range.
    """

    step_size: Magnitude | None = None
    steps: int = 100
    init: Init = field(default="rademacher", init=False)
    init_size: Magnitude | None = field(default=None, init=False)
    clip_init: bool = field(default=False, init=False)
    loss: SampleLoss = field(default=losses.probability_margin, init=False)
    compare_with: Reference = field(default="label", init=False)
    momentum: float = field(default=0.0, init=False)
    targeted: bool = field(default=False, init=False)
    lam: float = 50.0
    relaxed: float = 0.25
    drops: tuple[float, ...] = (0.6, 0.85)
    drop: float = 10.0
    guide: Guide = "start"

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss", losses.probability_margin)  # from the class it would be a bound method
        super().__post_init__()
        require.number("lam", self.lam, least=0)
        require.number("relaxed", self.relaxed, least=0, most=1, hint="it is a share of the steps")
        object.__setattr__(self, "drops", tuple(require.instance("drops", self.drops, (list, tuple), _DROPS)))
        if not self.drops:
            raise ValueError(f"drops=[] is empty: {_DROPS}.")
        for share in self.drops:
            require.number("drops", share, least=0, most=1, hint="they are shares of the steps")
        require.number("drop", self.drop, least=1)
        require.one_of("guide", self.guide, get_args(Guide))

    def start(self, net: nn.Module, x: Tensor) -> Tensor:
        """Draw a corner; in L2 a corner's direction, at the length ``eps``."""
        corner = super().start(net, x)
        return corner if self.norm == "linf" else self.threat.project(corner, x)

    def objective(self, net: nn.Module, x: Tensor, y: Tensor) -> Objective:
        """The margin, plus the weighted squared distance in the first steps."""
        reference = x.new_zeros(())
        if self.guide == "clean" and self.lam:
            with torch.no_grad():
                reference = net(x).float().softmax(dim=1)

        def objective(x_adv: Tensor, logits: Tensor, k: int) -> Tensor:
            nonlocal reference
            margin, weight = self.loss(logits, y), self.weight(k)
            if not weight:
                return margin
            p = logits.float().softmax(dim=1)
            if self.guide == "start" and k == 0:
                reference = p.detach()
            return margin + weight * (p - reference).square().sum(dim=1)

        return objective

    def weight(self, k: int) -> float:
        """The weight of the squared distance in step ``k``."""
        until = self.relaxed * self.steps
        return self.lam * (1 - k / until) if k < until else 0.0

    def shortened(self, k: int) -> float:
        """What the step is divided by in step ``k``."""
        return float(self.drop ** sum(k >= round(share * self.steps) for share in self.drops))

    @cached_property
    def step_length(self) -> float:
        """The length of the first step."""
        return 2 * self.eps if self.step_size is None else self.step_size

    def step(self, net: nn.Module, x: Tensor, x_adv: Tensor, direction: Tensor, k: int) -> Tensor:
        """Take a step whose length depends on ``k``."""
        size = self.step_length / self.shortened(k)
        return self.threat.project(x_adv + size * self.threat.steepest_step(direction), x)


@dataclass(frozen=True)
class GAMAFW(GAMAPGD):
    """GAMA-FW, the same paper's Frank-Wolfe steps, which its authors recommend for few steps, such as 10.

        x' <- P( (1 - gamma_k) x' + gamma_k (x + eps steepest(grad)) )

    Each step goes a share ``gamma_k`` of the way to the point of the ball where the linearised objective is largest.
    The objective, the start and the times are those of ``GAMAPGD``. ``gamma_k`` starts at 0.5 and is divided by 5 at
    steps 60 and 85 of 100, as in the authors' code (``GAMA_FW.py``). As there, a pixel without a gradient moves towards
    the clean image.

    Args:
        drop: The divisor of ``gamma`` at each of these times.
        gamma: The share of the way in the first step.

    The other arguments are those of ``GAMAPGD``, but for ``step_size``.

    Raises:
        ValueError: If an argument is out of range.
    """

    step_size: Magnitude | None = field(default=None, init=False)
    drop: float = 5.0
    gamma: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require.number("gamma", self.gamma, above=0, most=1)

    @cached_property
    def step_length(self) -> float:
        """The length of the first step from one end of the ball to the other."""
        return 2 * self.gamma * self.eps

    def step(self, net: nn.Module, x: Tensor, x_adv: Tensor, direction: Tensor, k: int) -> Tensor:
        """Go a share of the way, which depends on ``k``."""
        share, furthest = self.gamma / self.shortened(k), x + self.eps * self.threat.steepest_step(direction)
        return self.threat.project(x_adv + share * (furthest - x_adv), x)
