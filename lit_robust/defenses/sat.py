"""Curricula of difficulty, from easier to harder adversaries: P-SAT, H-SAT and Dynamic AT."""

from typing import Literal, Unpack

from torch import Tensor, nn

from lit_robust import require
from lit_robust.attacks import FGSM, PGD, Attack, CurriculumFGSM, CurriculumPGD
from lit_robust.attacks.base import arguments_of, made_once
from lit_robust.attacks.difficulty import FOSC, Difficulty, LastLayerSharpness, ProbabilityGap, Sharpness
from lit_robust.attacks.pgd import check_pgd
from lit_robust.batch import Batch
from lit_robust.training.arguments import DefenseArguments
from lit_robust.training.defense import Defense


@made_once
def bounded(attack: PGD, psi: Difficulty, lam: float) -> CurriculumPGD:
    """A PGD under a bound on difficulty."""
    return CurriculumPGD(**arguments_of(attack), psi=psi, lam=lam)


@made_once
def bounded_step(eps: float, lam: float) -> CurriculumFGSM:
    """P-SAT's single step."""
    return CurriculumFGSM(eps, lam=lam)


class _Bounded(Defense):
    """The base of the methods here: PGD with a bound on difficulty, which a ramp may move between batches."""

    def check_numbers(self) -> None:
        """Refuse what the bounded attack refuses."""
        super().check_numbers()
        self.adversary()

    def bounded_pgd(self, psi: Difficulty, lam: float) -> CurriculumPGD:
        """The method's PGD under a bound."""
        return bounded(check_pgd(self, self.attack, "bounds PGD by a rule of its own", exactly=True), psi, lam)


class PSAT(_Bounded):
    """P-SAT (Sitawarin et al., AISec 2021, arXiv:2003.09347; ATES in its first versions), on softmax gaps.

        min_theta  E  max_{|x' - x| <= eps}  CE(f(x'), y)   subject to   max_{j != y} p_j(x') - p_y(x') <= lam

    PGD stops each sample once its gap has passed ``lam``: with 0 at its first misclassified point, with 1 never, which
    is plain adversarial training. ``lam`` is a plain number, which grows in the authors' code: on CIFAR-10
    ``AttributeRamp("lam", PerEpoch(Linear(0, 0.4, 29, 69)))``, on MNIST ``Staircase([0, 30, 45, 60], [0, 1/3, 2/3,
    1])``. These are the defaults of their repository; the values behind each table are not published.

    As in the authors' code (chawins/adv-exp): BatchNorm is in eval mode during the attack, and the last step may
    overshoot ``lam``. Evaluation attacks have no bound. A batch costs as much as with PGD.

    Args:
        attack: A PGD, or an FGSM for the code's single-step form, see ``CurriculumFGSM``.
        lam: The paper's lambda, in [-1, 1]; the default is the code's last value for CIFAR-10.

    Raises:
        TypeError: If ``attack`` is neither a plain PGD nor an FGSM.
        ValueError: If ``lam`` is out of range, also by a ramp, or the FGSM's norm is L2.
    """

    attack: PGD | FGSM

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        attack: Attack,
        *,
        lam: float = 0.4,
        **kwargs: Unpack[DefenseArguments],
    ) -> None:
        super().__init__(net, num_classes, attack, **kwargs)
        self.lam = lam
        if isinstance(self.attack, FGSM) and self.attack.norm != "linf":
            raise ValueError('the single-step form of PSAT is one in L-infinity: give FGSM(norm="linf"), or a PGD.')
        self.check_numbers()

    def adversary(self) -> Attack:
        """PGD, or the single step."""
        require.number("lam", self.lam, least=-1, most=1)
        if isinstance(self.attack, FGSM):
            return bounded_step(self.attack.eps, self.lam)
        return self.bounded_pgd(ProbabilityGap(), self.lam)


class HSAT(_Bounded):
    """H-SAT (Sitawarin et al., AISec 2021, arXiv:2003.09347): P-SAT with the sharpness of the loss as difficulty.

        min_theta  E  max_{|x' - x| <= eps}  CE(f(x'), y)   subject to   psi_H(x') <= lam

    ``psi_H`` stands for the largest eigenvalue of the Hessian of the loss in the weights. The paper's approximations of
    it and its values of ``lam`` are not published, so these are ours: ``LastLayerSharpness``, in closed form from the
    logits, and ``PowerIteration``, which makes an attack about five times as expensive. Both are in [0, 1]. Ramp
    ``lam`` from 0, where no sample moves, to 1, which is plain adversarial training. (At 0.5 the closed form stops no
    sample of a net that is still unsure of all of them.) As in P-SAT, BatchNorm is in eval mode during the attack.

    Args:
        attack: A PGD.
        lam: The paper's lambda, in [0, 1].
        psi: The approximation; ``LastLayerSharpness()`` by default.

    Raises:
        TypeError: If ``attack`` is not a plain PGD, or ``psi`` cannot measure the net.
        ValueError: If ``lam`` is out of range, also by a ramp.
    """

    attack: PGD

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        attack: Attack,
        *,
        lam: float = 0.5,
        psi: Sharpness | None = None,
        **kwargs: Unpack[DefenseArguments],
    ) -> None:
        super().__init__(net, num_classes, attack, **kwargs)
        self.lam = lam
        self.psi = LastLayerSharpness() if psi is None else psi
        require.instance("psi", self.psi, Sharpness, "give LastLayerSharpness() or PowerIteration(), or train PSAT")
        self.check_numbers()
        self.psi.check(self.net)

    def adversary(self) -> CurriculumPGD:
        """PGD bounded by the sharpness."""
        require.number("lam", self.lam, least=0, most=1)
        return self.bounded_pgd(self.psi, self.lam)


class DynamicAT(_Bounded):
    """Dynamic adversarial training (Wang et al., ICML 2019): PGD that has to converge better and better.

        min_theta  E  CE(f(x'), y),     x' by PGD steps as long as FOSC(x') >= c
        FOSC(x') = eps |grad CE|_1 - <x' - x, grad CE>,     0 where PGD has converged

    ``c`` is a plain number; ramp it to 0, where this is plain adversarial training: ``AttributeRamp("c",
    PerEpoch(Linear(0.5, 0, 0, 80)))``. The ramp ends at epoch 80 of 100 in P-SAT's code for CIFAR-10, at 30 of 70 in
    its code for MNIST and at 100 of 120 in the authors' own.

    As in P-SAT's code (arXiv:2003.09347), where Dynamic AT is a baseline: x is the clean image, each step is tested,
    BatchNorm is in eval mode during the attack, and a sample at exactly ``c`` moves (in the authors' code it stops).
    For the authors' code (YisenWang/dynamic_adv_training), set ``origin="start", weight_by_loss=True``. Differs from
    the authors' code: it computes the weights in a separate forward in inference mode; ours come from the update's
    forward.

    Args:
        attack: A PGD.
        c: The paper's threshold; the default is the first value in both codes.
        origin: What FOSC measures from, see ``attacks.difficulty.FOSC``.
        weight_by_loss: Whether each sample's loss is weighted by its own value, from the second epoch on.

    Raises:
        TypeError: If ``attack`` is not a plain PGD.
        ValueError: If ``c`` is negative, also by a ramp, or ``origin`` is unknown.
    """

    attack: PGD

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        attack: Attack,
        *,
        c: float = 0.5,
        origin: Literal["image", "start"] = "image",
        weight_by_loss: bool = False,
        **kwargs: Unpack[DefenseArguments],
    ) -> None:
        super().__init__(net, num_classes, attack, **kwargs)
        self.c = c
        self.fosc = FOSC(origin)
        require.flags(weight_by_loss=weight_by_loss)
        self.weight_by_loss = weight_by_loss
        self.check_numbers()

    def adversary(self) -> CurriculumPGD:
        """PGD bounded by how well it has converged."""
        require.number("c", self.c, least=0, finite=False)
        return self.bounded_pgd(self.fosc, -self.c)

    def loss(self, batch: Batch, x_adv: Tensor) -> Tensor:
        """Cross-entropy on adversarial images, times its own value if ``weight_by_loss``."""
        values = super().loss(batch, x_adv)
        return values * values.detach() if self.weight_by_loss and self.current_epoch > 0 else values
