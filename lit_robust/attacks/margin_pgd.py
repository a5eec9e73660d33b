"""PGD on margins of logits: towards the best other class, a chosen one, or several in turn."""

from dataclasses import dataclass, field, fields
from functools import cached_property

import torch
from torch import Tensor, nn

from lit_robust import losses, require
from lit_robust.attacks.passes import Objective, Passes, WorstPoint
from lit_robust.attacks.pgd import PGD, Reference
from lit_robust.losses import SampleLoss, TargetLoss


@dataclass(frozen=True)
class _MarginPGD(PGD):
    """PGD whose objective is made of the margin, so that its loss cannot be chosen."""

    loss: SampleLoss = field(default=losses.margin, init=False)
    compare_with: Reference = field(default="label", init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss", losses.margin)  # from the class it would be a bound method
        super().__post_init__()


@dataclass(frozen=True)
class CWPGD(_MarginPGD):
    """PGD on the margin of Carlini and Wagner (arXiv:1608.04644, f6): the "CW attack" of PGD's tables.

        max_{|x' - x| <= eps}  min( max_{j != y} z_j(x') - z_y(x'), kappa )

    An image whose margin has reached ``kappa`` stays where it is. Madry et al. (arXiv:1706.06083) evaluate with kappa
    50, the default. Differs from their code (``mnist_challenge``), which takes 0 for the label's logit in the maximum
    and so has no gradient towards another class where all other logits are negative. With ``targeted``, ``y`` is the
    class to reach, as in Carlini and Wagner's paper. Without a bound it is ``PGD(loss=losses.margin)``.

    Args:
        kappa: The largest margin that is aimed at, in units of logits; None for no bound.

    The other arguments are those of PGD, whose ``loss`` and ``compare_with`` are fixed.

    Raises:
        ValueError: If an argument is out of range.
    """

    kappa: float | None = 50.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kappa is not None:
            require.number("kappa", self.kappa, least=0, hint="from 0 on an image is misclassified; None for no bound")

    def objective(self, net: nn.Module, x: Tensor, y: Tensor) -> Objective:
        """The bounded margin."""
        margin, kappa = super().objective(net, x, y), self.kappa
        return margin if kappa is None else lambda x_adv, logits, k: margin(x_adv, logits, k).clamp(max=kappa)


@dataclass(frozen=True)
class TargetedPGD(_MarginPGD):
    """PGD towards the wrong class that is the n-th most likely one for the clean image.

        max_{|x' - x| <= eps}  z_t(x') - z_y(x'),        t the class of the n-th largest logit of x, without y

    Any misclassification counts as a success. ``y`` are the true labels, so it can be one of a test's attacks; for
    targets that the caller gives there is ``PGD(targeted=True)``.

    The least likely class with ``towards=losses.ce_targeted`` is the iterative attack of Kurakin et al.
    (arXiv:1607.02533), from a random start. The difference of logits is the loss of Gowal et al. (arXiv:1910.09338),
    and ``losses.dlr_targeted`` is that of AutoAttack (arXiv:2003.01690).

    Args:
        target_rank: Which wrong class: 1 is the most likely one, -1 the least likely one.
        towards: The loss to maximise: a function of logits, labels and targets, with one number per sample.

    The other arguments are those of PGD, whose ``loss``, ``compare_with`` and ``targeted`` are fixed.

    Raises:
        TypeError: If ``towards`` is not a function.
        ValueError: If an argument is out of range; when called, if the net has fewer wrong classes than
            ``target_rank`` names.
    """

    targeted: bool = field(default=False, init=False)
    target_rank: int = 1
    towards: TargetLoss = losses.margin_targeted

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_rank != -1:
            require.integer("target_rank", self.target_rank, least=1, hint="-1 is the least likely class")
        _check_towards(self.towards)

    def objective(self, net: nn.Module, x: Tensor, y: Tensor) -> Objective:
        """The loss towards the class that the clean logits rank there."""
        with torch.no_grad():
            target = self.target(net(x), y)
        return lambda x_adv, logits, k: self.towards(logits, y, target)

    def target(self, clean_logits: Tensor, y: Tensor) -> Tensor:
        """The targets ``(N,)``, from the logits of the clean images."""
        wrong = clean_logits.shape[1] - 1
        if self.target_rank > wrong:
            raise ValueError(
                f"target_rank={self.target_rank} is out of range: the net has {wrong} wrong classes, so give at most "
                f"{wrong}, or -1 for the least likely one."
            )
        ranked = clean_logits.scatter(1, y.unsqueeze(1), -torch.inf).argsort(dim=1, descending=True)
        return ranked[:, self.target_rank - 1 if self.target_rank > 0 else wrong - 1]


@dataclass(frozen=True)
class MultiTargetedPGD(_MarginPGD):
    """MultiTargeted (Gowal et al., arXiv:1910.09338): a run towards each of the most likely wrong classes.

        max_{t in T} max_{|x' - x| <= eps}  z_t(x') - z_y(x')

    Each image keeps a misclassified final point if there is any, and the one with the largest margin. It costs
    ``targets`` runs of ``TargetedPGD``, each with a forward for the clean images and one for the final points, and no
    synchronisation with the device. ``restarts`` repeats all runs.

    The steps are those of PGD, and the number of targets is AutoAttack's (ours; the paper's optimiser and its order of
    restarts and targets are NOT VERIFIED).

    Args:
        targets: How many classes are targets, by the logits of the clean image; at most all wrong ones.
        towards: The loss of a run, see ``TargetedPGD``.

    The other arguments are those of PGD, whose ``loss``, ``compare_with`` and ``targeted`` are fixed.

    Raises:
        TypeError: If ``towards`` is not a function.
        ValueError: If an argument is out of range.
    """

    targeted: bool = field(default=False, init=False)
    targets: int = 9
    towards: TargetLoss = losses.margin_targeted

    def __post_init__(self) -> None:
        super().__post_init__()
        require.integer("targets", self.targets, least=1)
        _check_towards(self.towards)

    @cached_property
    def aims(self) -> tuple[TargetedPGD, ...]:
        """The attack on each target."""
        names = {one.name for one in fields(TargetedPGD) if one.init} - {"target_rank"}
        shared = {name: getattr(self, name) for name in names}
        return tuple(TargetedPGD(**shared, target_rank=rank) for rank in range(1, self.targets + 1))

    def run(self, net: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor | None = None) -> Tensor:
        """A run for each target, and the best of their final points."""
        start, passes = x_adv, Passes(net, self.eot)
        worst = WorstPoint(passes, x, y, targeted=False, shrinks=False)
        for aim in self.aims:
            x_adv = aim.run(net, x, y, start)
            worst.see(x_adv, logits := passes.forward(x_adv))
            if aim.target_rank == logits.shape[1] - 1:
                break
        return worst.x_adv


def _check_towards(towards: object) -> None:
    require.function("towards", towards, "give one such as lit_robust.losses.margin_targeted")
