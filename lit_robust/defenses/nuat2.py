"""NuAT2: nuclear-norm adversarial training with two attack steps."""

from typing import Any, Unpack

from torch import nn

from lit_robust import require
from lit_robust.attacks import PGD, Attack
from lit_robust.batch import Batch
from lit_robust.compilation import compile_in_place
from lit_robust.defenses.nuat import NuAT
from lit_robust.guards import BNMode, crafting
from lit_robust.magnitudes import Magnitude
from lit_robust.torch_internals import is_compiled
from lit_robust.training.arguments import DefenseArguments


class NuAT2(NuAT):
    """NuAT2 (Sriramanan et al., NeurIPS 2021, OpenReview kuK2VARZGnI): two attack steps, the first one guided.

        x1 = P( x0 + eps sign grad[ sum CE(g(x0), y) + lam |g(X0) - g(X)|_* ] ),     g = f, or its average omega
        x2 = P( x1 + eps sign grad  sum CE(f(x1), y) ),                              the update is NuAT's

    |.|_* is the nuclear norm, as in ``NuAT``. NuAT2-WA has two averages: the first step attacks the fast one, from the
    second epoch on, and the slow one is reported. ``EMAWeights(decay=0.9998, extra={"fast": 0.99})`` keeps both; set
    ``attack_average="fast"``.

    As in the authors' code: both steps have size eps; guided and unguided steps alternate within a batch, not from
    batch to batch; the attack's clean logits come from a forward in eval mode, so BatchNorm's statistics move twice per
    batch. The two decays are in the code only; the slides have one symbol for both.

    Args:
        lam: The paper's lambda; the default is the code's maximum.
        attack_average: The average that the first step attacks, by its name in ``EMAWeights(extra=...)``.
        reference_bn_mode: See ``GAT``.

    Raises:
        TypeError: If ``attack_average`` is not a name; or if ``two_step`` or ``attack_alternate`` is given, which are
            fixed here.
        ValueError: If no ``EMAWeights`` keeps ``attack_average``.
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        attack: Attack,
        *,
        lam: float = 4.0,
        attack_average: str | None = None,
        alpha: Magnitude | None = None,
        reference_bn_mode: BNMode = "eval",
        **kwargs: Unpack[DefenseArguments],
    ) -> None:
        if not kwargs.keys().isdisjoint(("two_step", "attack_alternate")):
            raise TypeError(
                "NuAT2 guides the first of two steps in each batch: leave out two_step and attack_alternate."
            )
        super().__init__(
            net,
            num_classes,
            attack,
            lam=lam,
            alpha=alpha,
            attack_alternate=False,
            reference_bn_mode=reference_bn_mode,
            **kwargs,
        )
        if attack_average is not None:
            require.text("attack_average", attack_average, "give the name of an average of EMAWeights")
        self.attack_average = attack_average

    def on_fit_start(self) -> None:
        """Check that the average is there, and compile it if the net is compiled."""
        super().on_fit_start()
        if self.attack_average is not None:
            average = self.average()
            if is_compiled(self.net):
                compile_in_place(average)  # a copy of a compiled net is not compiled

    def average(self) -> nn.Module:
        """The extra average of ``EMAWeights`` that is attacked."""
        name = self.attack_average or ""
        if name not in self.averaged:
            known = f", which keeps {', '.join(self.averaged)}" if self.averaged else ""
            raise ValueError(
                f'attack_average="{name}" is not an average of EMAWeights{known}: add the callback '
                f'EMAWeights(decay=0.9998, extra={{"{name}": 0.99}}).'
            )
        return self.averaged[name]

    def adversary(self) -> PGD:
        """A guided step, then an unguided one."""
        return self.climb(self.lam, steps=2)

    def perturb(self, batch: Batch) -> Any:
        """Both steps, the first one on the average from the second epoch on."""
        if self.attack_average is None or self.current_epoch < 1:
            return super().perturb(batch)
        # The average is in eval mode, also for its clean logits.
        with crafting(batch.x, batch.y) as (x, y), self.attacked(x) as net:
            x1 = self.climb(self.lam, reference_bn_mode="eval").run(self.folded(self.average(), x), x, y)
            return self.single_step().run(net, x, y, x1)
