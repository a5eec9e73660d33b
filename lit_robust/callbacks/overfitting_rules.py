"""What tells catastrophic overfitting: numbers of a net and the change in them that gives it away."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from lit_robust import losses, require
from lit_robust.attacks import FGSM, PGD, Attack
from lit_robust.guards import crafting
from lit_robust.magnitudes import Magnitude
from lit_robust.measures import masking
from lit_robust.threats import Norm, Threat, threat

#: The means of an epoch by name.
Means = Mapping[str, float]


class Bound(NamedTuple):
    """How far the training's attack may go at the moment of a measurement."""

    eps: float
    norm: Norm = "linf"

    @property
    def ball(self) -> Threat:
        """The images within it."""
        return threat(self.norm, self.eps)

    def fgsm(self) -> FGSM:
        """One step to the bound."""
        return FGSM(self.eps, self.norm)

    def pgd5(self) -> PGD:
        """The attack by which Fast AT's code stops early: 2/255 a step at 8/255."""
        return PGD(self.eps, step_size=self.eps / 4, steps=5, norm=self.norm)


class OverfittingRule(ABC):
    """What is measured on a batch, and what change from one epoch to the next is called overfitting.

    A subclass is a frozen dataclass. A field that is None follows the training, whose module must have ``attack.eps``.
    """

    #: Whether epochs that were measured at different eps (of a ramp) may be compared.
    across_eps: ClassVar[bool] = False

    @abstractmethod
    def measure(self, net: nn.Module, x: Tensor, y: Tensor, bound: Bound) -> dict[str, Tensor]:
        """Give each sample's numbers ``(N,)`` by name; samples that are NaN are left out of the mean.

        Args:
            net: The net, in train mode.
            x: Images ``(N, C, H, W)`` in [0, 1].
            y: Their labels ``(N,)``.
            bound: The training's; its eps is NaN if the module has none and no field of the rule is None.
        """

    @abstractmethod
    def overfits(self, earlier: Sequence[Means], current: Means) -> bool:
        """Judge an epoch's means by those of all epochs before, at least one, the oldest first."""


@dataclass(frozen=True)
class PGDDrop(OverfittingRule):
    """The accuracy under PGD falls by more than ``threshold``, as Fast AT's code stops early.

    Args:
        attack: By default the code's PGD-5 at the training's eps, in steps of a quarter of it.
        threshold: The code's 0.2 is 20 points of accuracy.
    """

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
    """The signature of catastrophic overfitting: the net withstands a single step, and not PGD.

    The accuracy under the single step exceeds that under PGD by more than ``margin``, and did not in the epoch before.
    So a net is reported once, when the gap opens, even if it never withstood PGD, and while a ramp moves eps, too.

    Args:
        single_step: The attack that the net learns to deceive; by default FGSM at the training's eps.
        attack: The stronger one; by default PGD-5 at the training's eps, in steps of a quarter of it.
        margin: Our choice; there is no published one.
    """

    across_eps = True

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
    trigger is not published. That the other one rises tells the fall from a division of the learning rate.

    Args:
        attack: By default PGD-5 at the training's eps, in steps of a quarter of it.
        change: The share; 0.15 is the fall that ``CleanLossDrop`` of NuAT-H calls abnormal in half an epoch.
    """

    attack: Attack | None = None
    change: float = 0.15

    def measure(self, net: nn.Module, x: Tensor, y: Tensor, bound: Bound) -> dict[str, Tensor]:
        """Take both cross-entropies."""
        x_adv = (self.attack or bound.pgd5())(net, x, y)
        with torch.no_grad():
            return {"ce/clean": losses.ce(net(x), y), "ce/adversarial": losses.ce(net(x_adv), y)}

    def overfits(self, earlier: Sequence[Means], current: Means) -> bool:
        """Compare their changes."""
        falls = current["ce/clean"] < (1 - self.change) * earlier[-1]["ce/clean"]
        return falls and current["ce/adversarial"] > (1 + self.change) * earlier[-1]["ce/adversarial"]


@dataclass(frozen=True)
class _WithinBound(OverfittingRule):
    """A rule that looks around an image: within ``eps`` in L-infinity, by default the training's bound in its norm."""

    eps: Magnitude | None = None

    def __post_init__(self) -> None:
        if self.eps is not None:
            object.__setattr__(self, "eps", require.pixels("eps", self.eps))

    def within(self, bound: Bound) -> Bound:
        """How far it looks, at a moment of the training."""
        return bound if self.eps is None else Bound(self.eps)


@dataclass(frozen=True)
class GradientCosineDrop(_WithinBound):
    """The loss stops being linear around the images: GradAlign's measure (NeurIPS 2020, arXiv:2007.02617).

        cos( grad CE(f(x), y), grad CE(f(x + eta), y) ),     eta ~ U(-eps, eps)

    Samples with no gradient at either point are left out, as in the authors' code. Which fall counts is our choice;
    GradAlign only logs the cosine.

    Args:
        eps: The radius in L-infinity; by default the training's, in its norm.
        factor: The cosine falls below this share of the previous epoch's.
        floor: A previous cosine below it has nothing to lose: its changes are noise.
    """

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
    """More samples than before are abnormal, AAER's word (NeurIPS 2023, arXiv:2404.08154): a step makes them easier.

        CE(f(x + eta), y) > CE(f(x'), y),     x' the step of 1.25 eps from x + eta, eta ~ U(-eps, eps), of Fast AT

    The paper shows that their number leaps when a net overfits. We count their share and choose the leap. As a healthy
    net has next to none at any eps, it is looked for while a ramp moves eps, too.

    Args:
        eps: The radius in L-infinity; by default the training's, in its norm.
        rise: The share of the samples by which there are more than in the epoch before.
    """

    across_eps = True

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
    """The loss is further from linear than it ever used to be: ELLE-A's rule (ICLR 2024, arXiv:2401.11618).

        R > mean + sigmas std     of all R before,     R the mean of ``measures.masking.linearity_error``

    Different: ELLE-A judges every batch, we every epoch, on more images. A short history's deviation is a rough one.

    Args:
        eps: The radius in L-infinity; by default the training's, in its norm.
        sigmas: ELLE-A's 2.
        history: How many epochs there must have been; ELLE-A's 3 are batches.
    """

    sigmas: float = 2.0
    history: int = 3

    def measure(self, net: nn.Module, x: Tensor, y: Tensor, bound: Bound) -> dict[str, Tensor]:
        """Take the loss at two random points and between them."""
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
