"""Rules that detect catastrophic overfitting: what they measure of a net, and which change they report."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor, nn

from lit_robust import losses, require
from lit_robust.attacks import Attack
from lit_robust.attacks.base import check_attack
from lit_robust.callbacks.overfitting_bound import Bound
from lit_robust.guards import crafting
from lit_robust.magnitudes import Magnitude
from lit_robust.measures import masking

#: The means of an epoch by name.
Means = Mapping[str, float]


class OverfittingRule(ABC):
    """What is measured on a batch, and which change from one epoch to the next is overfitting.

    A subclass is a frozen dataclass. A field that is None follows the training, whose module must have ``attack.eps``.
    """

    #: The numbers from 0 to 1, such as a difference of accuracies, and those of at least 0.
    shares: ClassVar[tuple[str, ...]] = ()
    not_negative: ClassVar[tuple[str, ...]] = ()
    #: Whether epochs that were measured at different eps (of a ramp) may be compared.
    across_eps: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for one in fields(self):  # type: ignore[arg-type]  # only subclasses are dataclasses
            value = getattr(self, one.name)
            if one.type == Attack | None and value is not None:
                check_attack(one.name, value)
            elif one.type is float:
                least = 0 if one.name in (*self.shares, *self.not_negative) else -math.inf
                require.number(one.name, value, least=least, most=1 if one.name in self.shares else math.inf)
            elif one.type is int:
                require.integer(one.name, value, least=0)

    @abstractmethod
    def measure(self, net: nn.Module, x: Tensor, y: Tensor, bound: Bound) -> dict[str, Tensor]:
        """Return each sample's numbers ``(N,)`` by name; NaN is left out of the mean.

        Args:
            net: The net, in train mode.
            x: Images ``(N, C, H, W)`` in [0, 1].
            y: Their labels ``(N,)``.
            bound: The training's; its eps is NaN if the module has none and no field of the rule is None.
        """

    @abstractmethod
    def overfits(self, earlier: Sequence[Means], current: Means) -> bool:
        """Whether the net overfits, by an epoch's means and those of all earlier epochs (one or more), oldest first."""


@dataclass(frozen=True)
class PGDDrop(OverfittingRule):
    """The accuracy under PGD falls by more than ``threshold``: the early stop of Fast AT's code.

    Args:
        attack: By default the code's PGD-5 at the training's eps, in steps of a quarter of it.
        threshold: A difference of accuracies; the default is the code's, 20 percentage points.
    """

    shares = ("threshold",)
    attack: Attack | None = None
    threshold: float = 0.2

    def measure(self, net: nn.Module, x: Tensor, y: Tensor, bound: Bound) -> dict[str, Tensor]:
        """Attack the batch."""
        return {"acc/pgd": _correct(net, self.attack or bound.pgd5(), x, y)}

    def overfits(self, earlier: Sequence[Means], current: Means) -> bool:
        """Compare the accuracies."""
        return current["acc/pgd"] - earlier[-1]["acc/pgd"] < -self.threshold


@dataclass(frozen=True)
class FGSMGap(OverfittingRule):
    """The signature of catastrophic overfitting: the net withstands a single step, but not PGD.

    The accuracy under the single step exceeds that under PGD by more than ``margin``, and did not in the epoch before.
    So a net is reported once, when the gap opens, even if it never withstood PGD, and also while a ramp moves eps.

    Args:
        single_step: The attack that the net overfits to; by default FGSM at the training's eps.
        attack: The stronger one; by default PGD-5 at the training's eps, in steps of a quarter of it.
        margin: Our choice; none is published.
    """

    across_eps = True
    shares = ("margin",)
    single_step: Attack | None = None
    attack: Attack | None = None
    margin: float = 0.3

    def measure(self, net: nn.Module, x: Tensor, y: Tensor, bound: Bound) -> dict[str, Tensor]:
        """Attack the batch twice."""
        attacks = {"acc/fgsm": self.single_step or bound.fgsm(), "acc/pgd": self.attack or bound.pgd5()}
        return {name: _correct(net, attack, x, y) for name, attack in attacks.items()}

    def overfits(self, earlier: Sequence[Means], current: Means) -> bool:
        """Compare the gaps."""
        before, now = (values["acc/fgsm"] - values["acc/pgd"] for values in (earlier[-1], current))
        return before <= self.margin < now


@dataclass(frozen=True)
class CrossEntropySplit(OverfittingRule):
    """Clean images become easier in one epoch while adversarial ones become harder: a net that masks gradients.

        CE(f(x), y) falls by more than ``change`` of itself, and CE(f(x'), y) rises by as much,     x' by ``attack``

    Ours, after what is known of NuAT-H (NeurIPS 2021): it watches the clean cross-entropy for an abnormal fall, and its
    trigger is not published. The rise distinguishes this fall from the one after a drop of the learning rate.

    Args:
        attack: By default PGD-5 at the training's eps, in steps of a quarter of it.
        change: The share; 0.15 is the fall that ``CleanLossDrop`` of NuAT-H calls abnormal in half an epoch.
    """

    shares = ("change",)
    attack: Attack | None = None
    change: float = 0.15

    def measure(self, net: nn.Module, x: Tensor, y: Tensor, bound: Bound) -> dict[str, Tensor]:
        """Compute both cross-entropies."""
        x_adv = (self.attack or bound.pgd5())(net, x, y)
        with torch.no_grad():
            return {"ce/clean": losses.ce(net(x), y), "ce/adversarial": losses.ce(net(x_adv), y)}

    def overfits(self, earlier: Sequence[Means], current: Means) -> bool:
        """Compare their changes."""
        falls = current["ce/clean"] < (1 - self.change) * earlier[-1]["ce/clean"]
        return falls and current["ce/adversarial"] > (1 + self.change) * earlier[-1]["ce/adversarial"]


@dataclass(frozen=True)
class _WithinBound(OverfittingRule):
    """A rule that looks around an image: within ``eps`` in L-infinity, or the training's bound in its norm."""

    eps: Magnitude | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eps is not None:
            object.__setattr__(self, "eps", require.pixels("eps", self.eps))

    def within(self, bound: Bound) -> Bound:
        """The rule's bound, given the training's."""
        return bound if self.eps is None else Bound(self.eps)


@dataclass(frozen=True)
class GradientCosineDrop(_WithinBound):
    """The loss stops being linear around the images: GradAlign's measure (NeurIPS 2020, arXiv:2007.02617).

        cos( grad CE(f(x), y), grad CE(f(x + eta), y) ),     eta ~ U(-eps, eps)

    Samples whose gradient is 0 at one of the points are left out, as in the authors' code. Which fall counts is our
    choice; GradAlign only logs the cosine.

    Args:
        eps: The radius in L-infinity; by default the training's, in its norm.
        factor: Fires when the cosine falls below this share of the previous epoch's.
        floor: Never fires if the previous cosine was below this, because its changes are noise then.
    """

    shares = ("factor",)
    factor: float = 0.5
    floor: float = 0.1

    def measure(self, net: nn.Module, x: Tensor, y: Tensor, bound: Bound) -> dict[str, Tensor]:
        """Compare the gradients at an image and next to it."""
        with crafting(x, y) as (x, y):
            points = x, self.within(bound).ball.random_start(x)
            at_image, beside = (masking.ce_and_gradient(net, point, y)[1] for point in points)
        return {"gradient_cosine": masking.gradient_cosine(at_image, beside)}

    def overfits(self, earlier: Sequence[Means], current: Means) -> bool:
        """Compare the cosines."""
        previous = earlier[-1]["gradient_cosine"]
        return previous >= self.floor and current["gradient_cosine"] < self.factor * previous


@dataclass(frozen=True)
class AbnormalRise(_WithinBound):
    """More samples are abnormal than before: a step lowers their loss (AAER, NeurIPS 2023, arXiv:2404.08154).

        CE(f(x + eta), y) > CE(f(x'), y),     x' the step of 1.25 eps from x + eta, eta ~ U(-eps, eps), of Fast AT

    The paper shows that their number jumps when a net overfits. Counting their share, and the size of the jump, are our
    choices. A healthy net has almost none at any eps, so the rule also judges while a ramp moves eps.

    Args:
        eps: The radius in L-infinity; by default the training's, in its norm.
        rise: Fires when the share of abnormal samples rises by more than this from one epoch to the next.
    """

    across_eps = True
    shares = ("rise",)
    rise: float = 0.1

    def measure(self, net: nn.Module, x: Tensor, y: Tensor, bound: Bound) -> dict[str, Tensor]:
        """Take the step, and compare the loss before and after it."""
        bound = self.within(bound)
        with crafting(x, y) as (x, y):
            start = bound.ball.project(bound.ball.random_start(x), x)
            before, gradient = masking.ce_and_gradient(net, start, y)
        with torch.no_grad():
            x_adv = bound.ball.project(start + 1.25 * bound.eps * bound.ball.steepest_step(gradient), x)
            return {"abnormal": masking.abnormal(before, losses.ce(net(x_adv), y)).float()}

    def overfits(self, earlier: Sequence[Means], current: Means) -> bool:
        """Compare the shares."""
        return current["abnormal"] - earlier[-1]["abnormal"] > self.rise


@dataclass(frozen=True)
class LinearityErrorSpike(_WithinBound):
    """The linearity error is far above that of earlier epochs: ELLE-A's rule (ICLR 2024, arXiv:2401.11618).

        R > mean + sigmas std     of all R before,     R the mean of ``measures.masking.linearity_error``

    Differs from ELLE-A: it judges every batch, ours every epoch on more images. A short history's deviation is rough.

    Args:
        eps: The radius in L-infinity; by default the training's, in its norm.
        sigmas: ELLE-A's 2.
        history: The least number of earlier epochs; ELLE-A's 3 are batches.
    """

    not_negative = ("sigmas",)
    sigmas: float = 2.0
    history: int = 3

    def measure(self, net: nn.Module, x: Tensor, y: Tensor, bound: Bound) -> dict[str, Tensor]:
        """Compute the loss at two random points and between them."""
        with torch.no_grad():
            return {"linearity_error": masking.linearity_error(net, x, y, self.within(bound).ball)}

    def overfits(self, earlier: Sequence[Means], current: Means) -> bool:
        """Compare with the history."""
        errors = torch.tensor([means["linearity_error"] for means in earlier], dtype=torch.float64)
        usual = errors.mean() + self.sigmas * errors.std(correction=0)
        return len(errors) >= self.history and current["linearity_error"] > float(usual)


def _correct(net: nn.Module, attack: Attack, x: Tensor, y: Tensor) -> Tensor:
    x_adv = attack(net, x, y)
    with torch.no_grad():
        return torch.eq(net(x_adv).argmax(dim=1), y).float()
