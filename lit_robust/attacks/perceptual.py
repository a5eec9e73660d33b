"""Perceptual attacks, bounded by the distance LPIPS: Fast-LPA, LPA and PPGD."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from lit_robust import require
from lit_robust.attacks.base import NoGraphError, input_gradient
from lit_robust.attacks.lpips import LogitsAndFeatures, distance
from lit_robust.attacks.lpips_ball import PerceptualAttack, Projection
from lit_robust.attacks.passes import like_images
from lit_robust.logits import predicts

#: PPGD takes no step where the margin's gradient is shorter, as in the authors' code.
FLAT = 1e-4
#: Lower bound of PPGD's denominators.
TINY = 1e-12


@dataclass(frozen=True)
class FastLPA(PerceptualAttack):
    """Fast Lagrangian perceptual attack, the training attack of PAT (algorithm 2 of the paper).

        loss_k(x') = margin(f(x'), y) - lam_k relu( |phi(x') - phi(x)| - eps ),     lam_k = lam 0.1^(1 - k/K)
        x' <- clip( x' + s_k g / r ),   g = grad loss_k / |grad loss_k|,   r = |phi(x' + h g) - phi(x')| / h

    So a step has the length ``s_k = step 0.1^(k/K)`` in the distance. K is 20, in training 10; the start is
    ``x + N(0, 0.01^2)``. A step costs a pass and a forward.

    Differs from the authors' code: ``r`` is a forward difference (theirs backward) divided by ``h`` (theirs always by
    0.1, the default of ``h``), and the result is projected unless ``projection="none"``, by default by bisection
    (11 forwards; ours).

    Args:
        step_size: The length of the first step; eps by default.
        projection: See ``PerceptualAttack``.
        lam: The weight of the distance that the last step approaches.
        h: The length of the difference that measures ``r``, in pixels.

    The other arguments are those of ``PerceptualAttack``.
    """

    projection: Projection = "bisection"
    lam: float = 10.0
    h: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require.number("lam", self.lam, least=0)
        require.number("h", self.h, above=0)

    def search(self, nets: LogitsAndFeatures, x: Tensor, y: Tensor, origin: Tensor, shrinks: bool) -> Tensor:
        """Take the steps."""
        x_adv = self.start(x)
        for k in range(self.steps):
            weight = self.lam * 0.1 ** (1 - k / self.steps)
            x_adv, _, _ = lagrangian_step(self, nets, y, origin, x_adv, weight, self.decayed(k), self.h)
        return x_adv


@dataclass(frozen=True)
class LPA(PerceptualAttack):
    """Lagrangian perceptual attack, which the paper evaluates with (algorithm 1, with 40 steps and eps 0.5).

    Runs ``FastLPA``'s steps several times, each run from the end of the one before. The weight of the distance is a
    number for each image: 0.01 in the first run, then ten times as much wherever a run ends outside the ball. An image
    that is misclassified inside the ball stays where it is. The margin is clipped at 1. A step costs a pass and a
    forward, so it takes up to ``runs * steps`` of them; in an evaluation finished images leave the batch after a run.

    Differs from the authors' code: theirs takes one more step once an image is misclassified inside the ball, and adds
    1e-8, not ``FastLPA``'s 1e-4, to the change that a step's length is divided by.

    Args:
        step_size: The length of the first step of a run; eps by default.
        runs: The number of runs.
        h: The length of the difference that measures a step, in pixels.

    The other arguments are those of ``PerceptualAttack``.
    """

    runs: int = 5
    h: float = 0.1

    kappa: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require.integer("runs", self.runs, least=1)
        require.number("h", self.h, above=0)

    def search(self, nets: LogitsAndFeatures, x: Tensor, y: Tensor, origin: Tensor, shrinks: bool) -> Tensor:
        """Take the steps of all runs."""
        x_adv, weight = self.start(x), x.new_full((len(x),), 0.01)
        rows, live = torch.arange(len(x), device=x.device), torch.ones_like(y, dtype=torch.bool)
        for _ in range(self.runs):
            if shrinks:
                rows = rows[live]
                if not len(rows):
                    break
            now, before, live = x_adv[rows], origin[rows], torch.ones_like(rows, dtype=torch.bool)
            outside = torch.zeros_like(live)
            for k in range(self.steps):
                found, logits, how_far = lagrangian_step(
                    self, nets, y[rows], before, now, weight[rows], self.decayed(k), self.h
                )
                outside = how_far > self.eps
                live = predicts(logits, y[rows]) | outside
                now = torch.where(like_images(live, x), found, now.detach())
            x_adv = x_adv.detach().index_copy(0, rows, now)
            weight = weight.index_copy(0, rows, torch.where(outside, 10 * weight[rows], weight[rows]))
        return x_adv


def lagrangian_step(
    attack: PerceptualAttack,
    nets: LogitsAndFeatures,
    y: Tensor,
    origin: Tensor,
    x_adv: Tensor,
    weight: float | Tensor,
    length: float,
    h: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step on the margin minus the weighted excess of the distance, of a given length in the distance.

    Returns:
        The next points, the logits and the distances ``(N,)`` at the old ones.
    """
    x_adv.requires_grad_()
    logits, features = nets.both(x_adv)
    if not logits.requires_grad:
        raise NoGraphError
    how_far = distance(features, origin)
    loss = attack.margin(logits, y) - weight * torch.relu(how_far - attack.eps)
    gradient = input_gradient(loss, x_adv)
    with torch.no_grad():
        size = torch.linalg.vector_norm(gradient, dim=(1, 2, 3), keepdim=True)
        direction = (gradient / (size + 1e-8)).nan_to_num(0, 0, 0)
        change = distance(nets.features(x_adv + h * direction), features) / h
        x_next = (x_adv + like_images(length / (change + 1e-4), x_adv) * direction).clamp(0, 1)
    return x_next, logits.detach(), how_far.detach()


@dataclass(frozen=True)
class PPGD(PerceptualAttack):
    """Perceptual projected gradient descent (section 4 and appendix A of Laidlaw et al., arXiv:2006.12655).

        x' <- project( x' + s v / |J v| ),      v = (J^T J)^-1 g,      g = grad margin(f(x'), y),   J = d phi / d x'

    Each step maximises the linearised margin under the linearised distance: a few iterations of conjugate gradients
    solve ``J^T J v = g``. ``J v`` is a difference quotient, ``J^T u`` a backward pass. The margin is clipped at 1, the
    start is ``x + N(0, 0.01^2)``, and each step is projected. A step costs about ``cg_steps`` + 2 passes and as many
    forwards, and its projection.

    Differs from the authors' code: the finite difference has length ``h`` in pixels, theirs ``h`` times the vector's
    norm, which is the gradient's; conjugate gradients always run ``cg_steps`` iterations.

    Args:
        step_size: The length of a step in the distance; 2 eps / steps by default.
        steps: The number of steps; 5 by default, 40 in the paper's evaluation.
        cg_steps: The iterations of conjugate gradients.
        h: The length of the difference, in pixels.

    The other arguments are those of ``PerceptualAttack``.
    """

    steps: int = 5
    cg_steps: int = 5
    h: float = 1e-3

    kappa: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require.integer("cg_steps", self.cg_steps, least=1)
        require.number("h", self.h, above=0)

    @cached_property
    def step_length(self) -> float:
        """The length of a step."""
        return 2 * self.eps / max(self.steps, 1) if self.step_size is None else self.step_size

    def search(self, nets: LogitsAndFeatures, x: Tensor, y: Tensor, origin: Tensor, shrinks: bool) -> Tensor:
        """Take the steps."""
        x_adv = self.start(x)
        for _ in range(self.steps):
            x_adv = self.project(nets, x, origin, self.step(nets, y, x_adv), shrinks)
        return x_adv

    def step(self, nets: LogitsAndFeatures, y: Tensor, x_adv: Tensor) -> Tensor:
        """Move by the linearised optimum."""
        x_adv.requires_grad_()
        logits, features = nets.both(x_adv)
        if not logits.requires_grad:
            raise NoGraphError
        margin, here = self.margin(logits, y), features.detach()
        (slope,) = torch.autograd.grad(margin.sum(), x_adv, retain_graph=True)

        def along(v: Tensor) -> Tensor:
            """The change of the features along ``v``, ``J v``."""
            size = torch.linalg.vector_norm(v, dim=(1, 2, 3), keepdim=True).clamp_min(TINY)
            with torch.no_grad():
                change = nets.features(x_adv + self.h * v / size) - here
            product: Tensor = change * size.flatten(1) / self.h
            return product

        def hessian_product(v: Tensor) -> Tensor:
            """``J^T J v``; ``J^T J`` is the Hessian of half the squared distance at 0."""
            product: Tensor = torch.autograd.grad((features * along(v)).sum(), x_adv, retain_graph=True)[0]
            return product

        v, residual = torch.zeros_like(slope), slope
        direction, squared = residual, _dot(residual, residual)
        for _ in range(self.cg_steps):
            product = hessian_product(direction)
            length = squared / _dot(direction, product).clamp_min(TINY)
            v, residual = v + length * direction, residual - length * product
            before, squared = squared, _dot(residual, residual)
            direction = residual + squared / before.clamp_min(TINY) * direction
        change = distance(along(v), torch.zeros_like(here)).clamp_min(TINY)
        moves = _dot(slope, slope) >= FLAT**2
        step = torch.where(moves, like_images(self.step_length / change, v) * v, 0).nan_to_num(0, 0, 0)
        return (x_adv.detach() + step).clamp(0, 1)


def _dot(v: Tensor, w: Tensor) -> Tensor:
    return (v * w).sum(dim=(1, 2, 3), keepdim=True)
