"""Nuclear-norm adversarial training: NuAT, its hybrid NuAT-H, and NuAT2 with two attack steps."""

from typing import Any, Unpack

import torch
from torch import Tensor, nn

from lit_robust import losses, require
from lit_robust.attacks import PGD, Attack
from lit_robust.batch import Batch
from lit_robust.defenses.gat import GAT, GATArguments
from lit_robust.defenses.hybrid import MEMORY, Trigger
from lit_robust.guards import BNMode, crafting
from lit_robust.magnitudes import Magnitude
from lit_robust.torch_internals import is_compiled
from lit_robust.training.alerts import SUMS, check_measurements
from lit_robust.training.arguments import DefenseArguments
from lit_robust.training.memory import shared_out


class NuAT(GAT):
    """NuAT (Sriramanan et al., NeurIPS 2021, OpenReview kuK2VARZGnI): GAT with a penalty that couples the batch.

        min_theta  1/N sum_i CE(f(x_i), y_i) + lam/N |f(X') - f(X)|_*,      f(X): the (N, C) logits of the batch
        X' = P( X0 + eps sign grad[ sum_i CE(f(x0_i), y_i) + alt lam |f(X0) - f(X)|_* ] ),     X0 = clip(X +- alpha)

    |.|_* is the nuclear norm, the sum of singular values. ``lam`` is a plain number, which grows from 0 in the authors'
    code. Constant at its maximum, lam makes a different algorithm, so ramp it: ``AttributeRamp("lam",
    PerEpoch(Linear(0, 4.5, 0, 90)))``. NuAT-WA is this with ``EMAWeights``, NuAT-H with ``two_step``.

    As in the authors' code, against the slides: the attack, too, uses the mean CE and the norm over N; ``alt`` is the
    parity of the batch, as in ``GAT``; the attack's clean logits come from a forward in train mode, so BatchNorm's
    statistics move three times per batch; the authors' momentum is cyclic (``CyclicMomentum``). Differs from the
    authors' code: N is the number of rows; in the code it is 64 even in the shorter last batch.

    The norm grows like sqrt(N), the sum of cross-entropies like N: for batch sizes other than 64, scale ``lam`` like
    sqrt(N) (our estimate). With several ranks N is the batch of one rank. Under sample weights, a row of weight w
    counts as w / (the batch's mean weight) copies of itself.

    Args:
        lam: The paper's lambda; the code's maximum is 4.5, that of NuAT-WA 4.
        two_step: When to take NuAT2's second attack step, which makes it NuAT-H. The authors' rule is not published.

    Raises:
        TypeError: If ``two_step`` is not a Trigger.
    """

    penalty = staticmethod(losses.nuclear_penalty)

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        attack: Attack,
        *,
        lam: float = 4.5,
        two_step: Trigger | None = None,
        **kwargs: Unpack[GATArguments],
    ) -> None:
        super().__init__(net, num_classes, attack, lam=lam, **kwargs)
        self.two_step = two_step
        if two_step is not None:
            require.instance("two_step", two_step, Trigger, "give a rule of lit_robust.defenses.hybrid")
            self.memory.declare(shared_out, SUMS, check_measurements, **MEMORY)
            self.counted = (*self.counted, "two_step")

    def adversary(self) -> PGD:
        """GAT's attack, or NuAT2's while ``two_step`` alerts."""
        if self.two_step is not None and self.memory.values["alert"]:
            return self.climb(self.lam, steps=2)
        return super().adversary()

    def perturb(self, batch: Batch) -> Any:
        """Decide whether this batch gets a second step, and attack."""
        if self.two_step is not None:
            memory, before = self.memory.values, self.memory.values["alert"]
            memory["alert"] = self.two_step.alert(self, batch)
            if memory["alert"] != before:
                self.log_now(alert=memory["alert"])
            memory["batches"] += 1
            memory["spent"] += memory["alert"] / self.trainer.num_training_batches
        return super().perturb(batch)

    def terms(self, batch: Batch, x_adv: Tensor) -> tuple[Tensor, Tensor]:
        """GAT's; remembers the clean images' cross-entropy for a trigger that watches it."""
        clean, penalty = super().terms(batch, x_adv)
        if self.two_step is not None and self.two_step.watches_clean_loss:
            total = (clean.detach() * batch.weight).sum()
            self.memory.tensors["last_clean"] = torch.stack([total, batch.weight.sum()])
        if self.two_step is not None:
            self.seen["two_step"] = torch.full_like(batch.weight, float(self.memory.values["alert"]))
        return clean, penalty

    def single_step(self) -> PGD:
        """The attack's start and its step, unguided."""
        return self.climb(0.0, reference_bn_mode="eval")

    def log_now(self, **values: float) -> None:
        """Log values at once: ``self.log`` keeps only those of its own logging steps."""
        for logger in self.loggers:
            logger.log_metrics({f"train/{name}": float(value) for name, value in values.items()}, step=self.global_step)


class NuAT2(NuAT):
    """NuAT2 (the same paper): two attack steps of full size, the first one guided by the nuclear norm.

        x1 = P( x0 + eps sign grad[ sum CE(g(x0), y) + lam |g(X0) - g(X)|_* ] ),     g = f, or its average omega
        x2 = P( x1 + eps sign grad  sum CE(f(x1), y) ),                              the update is NuAT's

    NuAT2-WA has two averages: the first step attacks the fast one, from the second epoch on, and the slow one is
    reported. ``EMAWeights(decay=0.9998, extra={"fast": 0.99})`` keeps both; set ``attack_average="fast"``.

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
                average.compile()  # a copy of a compiled net is not compiled

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
