"""FGSM training, and its variants with a random start: R-FGSM, Fast and N-FGSM."""

from typing import Literal, Unpack, get_args

from torch import Tensor, nn

from lit_robust import require
from lit_robust.attacks import PGD, RFGSM, Attack
from lit_robust.attacks.base import made_once, within_box
from lit_robust.batch import Batch
from lit_robust.defenses.single_step import SingleStep
from lit_robust.magnitudes import Magnitude
from lit_robust.training.arguments import DefenseArguments

DeltaInit = Literal["random", "zero", "previous"]


@made_once
def tramer_step(eps: float, alpha: float | None) -> RFGSM:
    """R-FGSM in Tramer's form."""
    return RFGSM(eps, alpha, variant="tramer")


@made_once
def fast_step(eps: float, alpha: float, init: Literal["uniform", "zero"] = "uniform") -> PGD:
    """A step of alpha from a random start in the ball, projected onto it."""
    return PGD(eps, step_size=within_box(alpha), steps=1, init=init)


@made_once
def nfgsm_step(eps: float, k: float) -> PGD:
    """A step of eps from noise of k eps; the ball is large enough that only the image box clips."""
    return PGD(within_box((k + 1) * eps), step_size=eps, steps=1, init_size=within_box(k * eps))


class FGSMAT(SingleStep):
    """FGSM adversarial training (Goodfellow et al., ICLR 2015, arXiv:1412.6572), on adversarial images alone.

        min_theta  E  CE(f(x'), y),     x' = clip( x + eps sign grad CE(f(x), y), 0, 1 )

    The paper mixes this loss with the clean one; the rows called FGSM-AT in the NuAT and GAT tables do not, nor does
    this. BatchNorm is in train mode during the attack, as in ``FastAT``; its mode behind those rows is not published.
    At 8/255 on CIFAR-10 it overfits catastrophically (0 % under PGD in the NuAT slides): it is a baseline.
    """


class RFGSMAT(SingleStep):
    """R-FGSM adversarial training (Tramer et al., ICLR 2018, arXiv:1705.07204), on adversarial images alone.

        x0 = clip( x + alpha sign N(0, I), 0, 1 ),     x' = clip( x0 + (eps - alpha) sign grad CE(f(x0), y), 0, 1 )

    Args:
        alpha: The random step; eps/2 by default. This default, the use of Tramer's form and BatchNorm's train mode
            during the attack are ours: the setting behind the rows called R-FGSM-AT in the NuAT and GAT tables is not
            published. While a ramp holds eps below alpha, the random step is eps and the gradient step is 0.

    Raises:
        ValueError: If ``alpha`` is above the attack's eps.
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        attack: Attack,
        *,
        alpha: Magnitude | None = None,
        **kwargs: Unpack[DefenseArguments],
    ) -> None:
        super().__init__(net, num_classes, attack, **kwargs)
        self.alpha = None if alpha is None else require.pixels("alpha", alpha)
        RFGSM(self.attack.eps, self.alpha, variant="tramer")  # refuses an alpha above eps

    def adversary(self) -> RFGSM:
        """Tramer's attack; its gradient step is 0 while a ramp holds eps below alpha."""
        eps = self.attack.eps
        return tramer_step(eps, None if self.alpha is None else min(self.alpha, eps))


class FastAT(SingleStep):
    """Fast adversarial training, also FBF or FGSM-RS (Wong et al., ICLR 2020, arXiv:2001.03994), algorithm 3.

        delta ~ U(-eps, eps),  x + delta clipped to [0, 1]
        delta <- clip( delta + alpha sign grad CE(f(x + delta), y), -eps, eps ),  x + delta clipped to [0, 1]
        min_theta  E  CE(f(x + delta), y)

    As in the authors' code: BatchNorm is in train mode during the attack; ``delta_init="previous"`` starts from the
    previous batch's perturbation (0 at first), which is clipped to the new images' box only after the step; rows that a
    short batch lacks are kept for the next batch. Their cyclic learning rate comes with a cyclic momentum, see
    ``schedules.CyclicMomentum``. Differs from the authors' code: it works on normalised images, and until it was mended
    in 2020 each channel's start was drawn up to the first channel's eps; here, as in the paper, eps is the same for all
    channels.

    Args:
        alpha: The step; the paper's 1.25 eps by default. At 2 eps the nets of the Free-vs-Fast report overfit
            catastrophically.
        delta_init: Where the step starts, named as in the authors' code.
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        attack: Attack,
        *,
        alpha: Magnitude | None = None,
        delta_init: DeltaInit = "random",
        **kwargs: Unpack[DefenseArguments],
    ) -> None:
        super().__init__(net, num_classes, attack, **kwargs)
        require.one_of("delta_init", delta_init, get_args(DeltaInit))
        self.alpha = None if alpha is None else require.pixels("alpha", alpha)
        self.delta_init = delta_init

    def adversary(self) -> PGD:
        """The step and its start; ``perturb`` adds a start from the previous perturbation."""
        eps = self.attack.eps
        alpha = 1.25 * eps if self.alpha is None else self.alpha
        return fast_step(eps, alpha, init="uniform" if self.delta_init == "random" else "zero")

    def perturb(self, batch: Batch) -> Tensor:
        """Take the step, from the previous perturbation if ``delta_init`` says so."""
        if self.delta_init != "previous":
            x_adv: Tensor = super().perturb(batch)
            return x_adv
        start = batch.x + self.recall(batch.x)
        gradient, _ = self.gradient_at(start, batch.y)
        x_adv = self.adversary().step(self.net, batch.x, start, gradient, 0)
        self.remember(x_adv - batch.x)
        return x_adv


class NFGSM(SingleStep):
    """N-FGSM (de Jorge et al., NeurIPS 2022, arXiv:2202.01181): more noise, and no projection.

        eta ~ U(-k eps, k eps),  x + eta clipped to [0, 1]
        min_theta  E  CE(f(x'), y),     x' = clip( x + eta + eps sign grad CE(f(x + eta), y), 0, 1 )

    So ``x'`` is up to ``(k + 1) eps`` away from ``x``, by design. Same as the authors' code: BatchNorm is in train mode
    during the attack. Their code also warms eps up over 5 epochs on SVHN:
    ``AttributeRamp("attack.eps", Linear(0, 8/255, 0, 5))``.

    Args:
        k: The noise in units of eps: 2; 3 for SVHN at 12/255 and 4 for a WideResNet at 16/255 in the authors' scripts.

    Raises:
        ValueError: If ``k`` is negative.
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        attack: Attack,
        *,
        k: float = 2.0,
        **kwargs: Unpack[DefenseArguments],
    ) -> None:
        super().__init__(net, num_classes, attack, **kwargs)
        self.k = require.number("k", k, least=0, hint="it is the noise in units of eps")

    def adversary(self) -> PGD:
        """The noise and the step."""
        return nfgsm_step(self.attack.eps, self.k)
