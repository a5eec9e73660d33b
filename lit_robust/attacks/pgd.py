"""Projected gradient descent: the loop, and the methods that other iterative attacks override."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from lit_robust import losses, require
from lit_robust.attacks.base import EPS, Attack, step_length
from lit_robust.attacks.passes import Objective, Passes, WorstPoint, badness, like_images, misclassified
from lit_robust.guards import crafting, may_shrink
from lit_robust.losses import SampleLoss
from lit_robust.magnitudes import Magnitude
from lit_robust.threats import Norm, Threat, threat

Init = Literal["uniform", "zero", "gaussian", "rademacher"]
Reference = Literal["label", "clean_logits"]
Keep = Literal["last", "worst"]
#: Losses of labels; given logits, they would take them for soft labels, or fail only when the attack runs.
OF_LABELS = (losses.ce, losses.margin, losses.probability_margin, losses.dlr)

#: ``(x_adv, logits of x_adv, gradient) -> (N,)`` bool, which samples take the step.
Movers = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class PGD(Attack):
    """Projected gradient descent (Madry et al., ICLR 2018, arXiv:1706.06083), in L-infinity or L2.

        x' <- P( x' + step_size * steepest(grad L(f(x'), y)) ),     P onto the eps-ball around x and [0, 1]

    With one restart and without ``freeze_misclassified`` it costs exactly ``steps * eot`` forward and backward passes
    (plus a forward for ``clean_logits`` and ``eot`` forwards for ``keep="worst"``), and no synchronisation with the
    device. In an evaluation with ``keep="worst"``, misclassified images leave the batch every 10 steps, see
    ``guards.smaller_batches``; the same images end up broken.

    With restarts, each sample keeps its best final point: a misclassified one beats a correctly classified one, then
    the larger loss wins. Wong et al.'s code keeps the larger cross-entropy, so with another loss it can replace a
    misclassified point by a correctly classified one. With ``freeze_misclassified``, later restarts run only on the
    samples that are still unbroken; the same samples end up broken.

    Args:
        eps: The bound, in units of [0, 1]; ``"8/255"`` is accepted.
        step_size: The length of a step, in the norm; by default ``2.5 eps / steps``, at most ``eps``, also where a
            ramp or ``dataclasses.replace`` changes them.
        steps: The number of steps; 0 returns the start.
        norm: The norm of the ball and of the step.
        init: Where a run starts: ``uniform`` in the ball (L2: ``threats.L2.random_start``), ``zero`` at the
            image, ``gaussian`` at the image plus normal noise, ``rademacher`` at plus or minus ``init_size`` in
            each pixel.
        init_size: The radius, standard deviation or magnitude of the start; by default 0.001 for
            ``gaussian``, as TRADES and MART start, and ``eps`` otherwise.
        clip_init: Whether to project the start onto the threat set. Without it the first gradient may be taken
            outside [0, 1], as in NuAT's and GAT's evaluation; later points are always projected.
        loss: The loss to maximise: a function of ``lit_robust.losses``, or your own, with one number per sample.
        compare_with: What the loss's second argument is: the labels, or the logits of the clean images (for
            ``kl``), computed once without a gradient.
        momentum: Decay of the sum of l1-normalised gradients that replaces the gradient (MI-FGSM, Dong et al.,
            CVPR 2018, arXiv:1710.06081, eq. 6); 0 is plain PGD.
        targeted: Whether ``y`` are the classes to reach; the loss is then minimised.
        restarts: The number of runs.
        freeze_misclassified: Whether each step moves only the samples that are still classified correctly; a run
            then ends when there are none, as in the evaluations of Wong et al.'s code.
        keep: Which point of a run is returned for each image: the ``last`` one, or the ``worst`` one seen, start and
            last included: a misclassified one first, then the one with the largest margin ``losses.margin``. Restarts
            are compared in the same way.
        eot: The number of passes that each gradient is averaged over, for nets that draw random numbers: expectation
            over transformation (Athalye et al., ICML 2018, arXiv:1802.00420, section 4.2).

    Raises:
        TypeError: If ``loss`` is not a function.
        ValueError: If an argument is out of range (in L-infinity magnitudes are at most 1), or two contradict each
            other.
    """

    eps: Magnitude = EPS
    step_size: Magnitude | None = None
    steps: int = 10
    norm: Norm = "linf"
    init: Init = "uniform"
    init_size: Magnitude | None = None
    clip_init: bool = True
    loss: SampleLoss = losses.ce
    compare_with: Reference = "label"
    momentum: float = 0.0
    targeted: bool = False
    restarts: int = 1
    freeze_misclassified: bool = False
    keep: Keep = "last"
    eot: int = 1
    #: Whether the objective of an image depends on the other images, which then cannot leave the batch.
    couples_images: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require.one_of("norm", self.norm, get_args(Norm))
        require.one_of("init", self.init, get_args(Init))
        require.one_of("compare_with", self.compare_with, get_args(Reference))
        require.one_of("keep", self.keep, get_args(Keep))
        for name in ("eps", "step_size", "init_size"):
            if (value := getattr(self, name)) is not None or name == "eps":
                object.__setattr__(self, name, require.pixels(name, value, self.norm))
        require.integer("steps", self.steps, least=0)
        require.flags(**{one.name: getattr(self, one.name) for one in fields(self) if one.type is bool})
        require.integer("restarts", self.restarts, least=1)
        require.integer("eot", self.eot, least=1)
        require.function("loss", self.loss, "give one such as lit_robust.losses.ce")
        require.number("momentum", self.momentum, least=0)
        if self.loss is losses.kl and self.compare_with == "label":
            raise ValueError('loss=kl compares with the clean images\' logits: set compare_with="clean_logits".')
        if self.loss in OF_LABELS and self.compare_with == "clean_logits":
            raise ValueError(
                f'loss={self.loss.__name__} needs labels: set compare_with="label" (clean_logits is for kl).'
            )
        if self.loss is losses.kl and self.init == "zero":
            raise ValueError(
                'init="zero" starts where kl has no gradient, and never moves: choose "gaussian" or "uniform".'
            )
        if self.targeted and self.compare_with == "clean_logits":
            raise ValueError('compare_with="clean_logits" has no target to reach: set targeted=False.')

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Search the threat set around each image."""
        with crafting(x, y) as (x, y):
            return self.run(net, x, y) if self.restarts == 1 else self.best_run(net, x, y)

    def run(self, net: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor | None = None) -> Tensor:
        """One run, from ``x_adv``, such as the end of an earlier one, or from a new start; inside ``crafting``."""
        objective, movers = self.objective(net, x, y), self.movers(net, x, y)
        x_adv, velocity = self.start(net, x) if x_adv is None else x_adv, x.new_zeros(())
        passes, worst = Passes(net, self.eot), None
        if self.keep == "worst":
            shrinks = not self.couples_images and may_shrink(net)
            worst = WorstPoint(passes, self.threat.project(x_adv, x), y, self.targeted, shrinks)
        for k in range(self.steps):
            if worst and not worst.goes_on(k):
                return worst.x_adv
            x_adv.requires_grad_()
            logits, gradient = passes.gradient(objective, x_adv, k)
            if worst and (k or self.clip_init):  # a start that is not projected may lie outside the set
                worst.see(x_adv, logits)
            with torch.no_grad():
                velocity = self.momentum * velocity + _l1_normalised(gradient) if self.momentum else gradient
                x_next = self.step(net, x, x_adv, velocity, k)
                if movers is not None:
                    moves = movers(x_adv, logits, gradient)
                    if self.freeze_misclassified and not moves.any():
                        break
                    stay = self.threat.project(x_adv, x) if worst and not k else x_adv
                    x_next = torch.where(like_images(moves, x), x_next, stay)
                x_adv = x_next
        # A sample may have stayed at a start that was not projected.
        x_adv = x_adv.detach() if self.clip_init else self.threat.project(x_adv.detach(), x)
        return worst.or_at(x_adv) if worst else x_adv

    # What other iterative attacks override. A function returned here may keep state for one run.

    @cached_property
    def threat(self) -> Threat:
        """The threat set."""
        return threat(self.norm, self.eps)

    @cached_property
    def step_length(self) -> float:
        """The length of a step."""
        return step_length(self.eps, self.step_size, self.steps)

    def start(self, net: nn.Module, x: Tensor) -> Tensor:
        """Draw the first point of a run, as a new tensor."""
        size = self.init_size
        if size is None:
            size = 0.001 if self.init == "gaussian" else self.eps
        if self.init == "zero":
            x_adv = x.clone()
        elif self.init == "uniform":
            x_adv = threat(self.norm, size).random_start(x)
        elif self.init == "gaussian":
            x_adv = x + size * torch.randn_like(x)
        else:
            x_adv = x + size * torch.randn_like(x).sign()
        return self.threat.project(x_adv, x) if self.clip_init else x_adv

    def objective(self, net: nn.Module, x: Tensor, y: Tensor) -> Objective:
        """Return what a run maximises; called before the start is drawn, and once more to compare runs."""
        sign, reference = (-1 if self.targeted else 1), y
        if self.compare_with == "clean_logits":
            with torch.no_grad():
                reference = net(x)
        return lambda x_adv, logits, k: sign * self.loss(logits, reference)

    def movers(self, net: nn.Module, x: Tensor, y: Tensor) -> Movers | None:
        """Return what selects the samples that take a step; None if all samples take all steps."""
        if not self.freeze_misclassified:
            return None
        return lambda x_adv, logits, gradient: ~self.broken(logits, y)

    def step(self, net: nn.Module, x: Tensor, x_adv: Tensor, direction: Tensor, k: int) -> Tensor:
        """Take a step along a gradient, and project onto the threat set."""
        threat = self.threat
        return threat.project(x_adv + self.step_length * threat.steepest_step(direction), x)

    def broken(self, logits: Tensor, y: Tensor) -> Tensor:
        """Tell for which samples the attack has succeeded, ``(N,)`` bool."""
        return misclassified(logits, y, self.targeted)

    # Several runs.

    def best_run(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Keep the best of several runs, sample by sample."""
        best = self.run(net, x, y)
        broken, loss = self._judge(net, x, y, best)
        rows = torch.arange(len(x), device=x.device)
        for _ in range(self.restarts - 1):
            if self.freeze_misclassified:
                rows = (~broken).nonzero().squeeze(1)
                if not len(rows):
                    break
            x_adv = self.run(net, x[rows], y[rows])
            breaks, higher = self._judge(net, x[rows], y[rows], x_adv)
            better = (breaks & ~broken[rows]) | ((breaks == broken[rows]) & (higher > loss[rows]))
            won = rows[better]
            best[won], broken[won], loss[won] = x_adv[better], breaks[better], higher[better]
        return best

    @torch.no_grad()
    def _judge(self, net: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> tuple[Tensor, Tensor]:
        """Which final points are successful, and by how much: their losses, or margins with ``keep="worst"``."""
        if self.keep == "worst":
            return badness(Passes(net, self.eot).forward(x_adv), y, self.targeted)
        logits = net(x_adv)
        return self.broken(logits, y), self.objective(net, x, y)(x_adv, logits, self.steps)


def check_pgd(owner: object, attack: Attack, does: str, exactly: bool = False) -> PGD:
    """Return the attack of a method that builds its own PGD from it, if it is a PGD whose arguments may be replaced.

    Args:
        owner: The method; the message names its class.
        attack: The attack that the method was given.
        does: What the method does with PGD, for the message.
        exactly: Whether to refuse subclasses, too, because their rules would be lost.

    Raises:
        TypeError: If the attack is not a PGD, or fixes arguments of PGD, as GAMAPGD does.
    """
    if isinstance(attack, PGD) and (type(attack) is PGD or not exactly) and all(one.init for one in fields(attack)):
        return attack
    name, given = type(owner).__name__, type(attack).__name__
    raise TypeError(f"{name} {does}: set attack=PGD(eps=..., step_size=..., steps=...), not {given}.")


def _l1_normalised(gradient: Tensor) -> Tensor:
    size = gradient.abs().sum(dim=tuple(range(1, gradient.ndim)), keepdim=True)
    return gradient / size.clamp_min(torch.finfo(gradient.dtype).tiny)
