"""Nuclear-norm adversarial training: NuAT, and NuAT-H by a rule of ``hybrid``."""

from typing import Any, Unpack

import torch
from torch import Tensor, nn

from lit_robust import losses, require
from lit_robust.attacks import PGD, Attack
from lit_robust.batch import Batch
from lit_robust.defenses.gat import GAT, GATArguments
from lit_robust.defenses.hybrid import MEMORY, Trigger, check_measurements


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
    counts in the loss as w / (the batch's mean weight) copies of itself; the attack's norm is unweighted.

    Args:
        lam: The paper's lambda; the code's maximum is 4.5, that of NuAT-WA 4.
        two_step: When to take NuAT2's second attack step, which makes it NuAT-H. The authors' rule is not published.

    Raises:
        TypeError: If ``two_step`` is not a Trigger.
    """

    checkpoint_parts = (*GAT.checkpoint_parts, Trigger)
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
            self.memory.declare(check=check_measurements, means=["clean"], **MEMORY)
            self.counted = (*self.counted, "two_step")

    def adversary(self) -> PGD:
        """GAT's attack, or NuAT2's while ``two_step`` alerts."""
        if self.two_step is not None and self.memory.values["alert"]:
            return self.climb(self.lam, steps=2)
        return super().adversary()

    def perturb(self, batch: Batch) -> Any:
        """Decide whether this batch gets a second step, and attack."""
        if self.two_step is not None:
            self.memory.collect("clean")
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
        if self.two_step is not None:
            self.seen["two_step"] = torch.full_like(batch.weight, float(self.memory.values["alert"]))
            if self.two_step.watches_clean_loss:
                self.memory.leave("clean", clean, batch.weight)
        return clean, penalty

    def single_step(self) -> PGD:
        """The attack's start and its step, unguided."""
        return self.climb(0.0, reference_bn_mode="eval")

    def log_now(self, **values: float) -> None:
        """Log values at once: ``self.log`` keeps only those of its own logging steps."""
        for logger in self.loggers:
            logger.log_metrics({f"train/{name}": float(value) for name, value in values.items()}, step=self.global_step)
