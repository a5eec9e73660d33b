"""Nuclear-norm adversarial training: NuAT, its hybrid NuAT-H, and NuAT2 with one attack step more."""

from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lit_robust import losses
from lit_robust.batch import Batch
from lit_robust.defenses.gat import GAT
from lit_robust.defenses.hybrid import Hybrid, Trigger


class NuAT(GAT):
    """NuAT (Sriramanan et al., NeurIPS 2021, OpenReview kuK2VARZGnI): GAT with a penalty that couples the batch.

        min_theta  1/N sum_i CE(f(x_i), y_i) + lam/N |f(X') - f(X)|_*,      f(X): the (N, C) logits of the batch
        X' = P( X0 + eps sign grad[ sum_i CE(f(x0_i), y_i) + alt lam |f(X0) - f(X)|_* ] ),     X0 = clip(X +- alpha)

    |.|_* is the nuclear norm, the sum of singular values. ``lam`` is a plain number. The code's grows from 0, and at
    its maximum from the start this is another algorithm, so ramp it: ``AttributeRamp("lam", PerEpoch(Linear(0, 4.5, 0,
    90)))``. NuAT-WA is this with ``EMAWeights``, NuAT-H with ``two_step``.

    Where this follows the authors' code against the slides: the attack, too, sees the mean CE beside the norm over N;
    ``alt`` is the parity of the batch, as in ``GAT``; the attack's clean logits come from a forward in train mode, so
    that BatchNorm's statistics move three times in a batch; the momentum was cycled (``CyclicMomentum``). Different
    from it: N is the number of rows, where the code's is 64 in the shorter last batch too.

    The norm grows like sqrt(N), the sum of cross-entropies like N: with batches of another size than 64 scale ``lam``
    like sqrt(N) (our estimate). Under several ranks N is the batch of one rank.

    Samples' weights: a row counts as so many copies of itself, relative to the batch's mean weight.

    Args:
        *args: The arguments of ``Defense``; ``attack`` as in ``GAT``.
        lam: The paper's lambda; the code's maximum is 4.5, that of NuAT-WA 4.
        two_step: Makes it NuAT-H: when to take NuAT2's second attack step. The authors' rule is not published.
        **kwargs: The arguments of ``GAT`` and ``Defense``.
    """

    def __init__(self, *args: Any, lam: float = 4.5, two_step: Trigger | None = None, **kwargs: Any) -> None:
        super().__init__(*args, lam=lam, **kwargs)
        self.hybrid = Hybrid(two_step) if two_step is not None else None

    def penalty(self, logits: Tensor, clean_logits: Tensor, weight: Tensor | None = None) -> Tensor:
        """The nuclear norm over N, one number for the batch, which is added to every sample's."""
        difference = logits.float() - clean_logits.float()
        if weight is not None:
            # The Gram matrix is then the sum of w_i a_i a_i^T; dividing by the mean keeps the term at its level. It is
            # 0 where a rank's batch is all padding.
            copies = weight / weight.mean().clamp_min(torch.finfo(weight.dtype).tiny)
            difference = difference * copies.sqrt().unsqueeze(1)
        return losses.nuclear_norm(difference) / len(difference)

    def steps(self) -> list[tuple[nn.Module, float]]:
        """GAT's, or while the hybrid is on alert, NuAT2's."""
        if self.hybrid is not None and self.hybrid.memory.alert:
            return [(self.net, self.lam), (self.net, 0.0)]
        return super().steps()

    # NuAT-H.

    def setup(self, stage: str) -> None:
        """Forget an earlier fit."""
        super().setup(stage)
        if self.hybrid is not None and stage == "fit":
            self.hybrid.reset()

    def perturb(self, batch: Batch) -> Tensor:
        """Let the hybrid look at the training so far, then climb."""
        if self.hybrid is not None:
            self.hybrid.begin_batch(self, batch)
        return super().perturb(batch)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Let the hybrid take along what it has not looked at yet."""
        super().training_step(batch, batch_idx)
        if self.hybrid is not None and self.trainer.is_last_batch:
            self.hybrid.end_epoch(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the hybrid remembers."""
        super().on_save_checkpoint(checkpoint)
        if self.hybrid is not None:
            checkpoint["lit_robust"]["hybrid"] = self.hybrid.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with it."""
        super().on_load_checkpoint(checkpoint)
        state = checkpoint.get("lit_robust", {}).get("hybrid")
        if self.hybrid is not None and state is not None:
            self.hybrid.load_state_dict(state)


class NuAT2(NuAT):
    """NuAT2 (the same paper): two attack steps of full size, the first one guided by the nuclear norm.

        x1 = P( x0 + eps sign grad[ sum CE(g(x0), y) + lam |g(X0) - g(X)|_* ] ),     g = f, or its average omega
        x2 = P( x1 + eps sign grad  sum CE(f(x1), y) ),                              the update is NuAT's

    NuAT2-WA has two averages: the first step attacks the fast one, from the second epoch on, and the slow one is
    reported. ``EMAWeights(decay=0.9998, extra={"fast": 0.99})`` keeps both, and ``attack_average="fast"`` names it.

    As in the authors' code, both steps have size eps, the steps alternate instead of the batches, and the attack's
    clean logits come from a forward in eval mode, so that BatchNorm's statistics move twice in a batch. The two decays
    are in the code alone; the slides have one symbol for both.

    Args:
        *args: The arguments of ``Defense``; ``attack`` as in ``GAT``.
        lam: The paper's lambda; the code's maximum.
        attack_average: The average that the first step attacks, by its name in ``EMAWeights(extra=...)``.
        reference_bn_mode: See ``GAT``.
        **kwargs: The arguments of ``Defense``, and ``alpha`` and ``attack_bn_mode`` of ``GAT``.

    Raises:
        TypeError: If ``two_step`` or ``attack_alternate`` is given, of which there is no choice here.
        ValueError: If nothing keeps the average.
    """

    def __init__(
        self,
        *args: Any,
        lam: float = 4.0,
        attack_average: str | None = None,
        reference_bn_mode: Literal["eval", "train"] = "eval",
        **kwargs: Any,
    ) -> None:
        if not kwargs.keys().isdisjoint(("two_step", "attack_alternate")):
            raise TypeError(
                "NuAT2 guides the first of two steps in each batch: leave out two_step and attack_alternate."
            )
        super().__init__(
            *args,
            lam=lam,
            two_step=None,
            attack_alternate=False,
            reference_bn_mode=reference_bn_mode,
            **kwargs,
        )
        self.attack_average = attack_average

    def on_fit_start(self) -> None:
        """Find the average."""
        super().on_fit_start()
        if self.attack_average is not None:
            average = average_of(self, self.attack_average)
            if self.compiled:
                average.compile()  # a copy of a compiled net is not

    def steps(self) -> list[tuple[nn.Module, float]]:
        """A guided step, on the average from the second epoch on, and unguided ones."""
        guide = self.net
        if self.attack_average is not None and self.current_epoch >= 1:
            guide = average_of(self, self.attack_average)
        return [(guide, self.lam), (self.net, 0.0)]


def average_of(module: LightningModule, name: str) -> nn.Module:
    """The extra average of ``EMAWeights`` that has this name.

    Raises:
        ValueError: If there is none.
    """
    averages: dict[str, nn.Module] = getattr(module, "averaged", {})
    if name not in averages:
        known = f", which keeps {', '.join(averages)}" if averages else ""
        raise ValueError(
            f'attack_average="{name}" is no average of EMAWeights{known}: add the callback '
            f'EMAWeights(decay=0.9998, extra={{"{name}": 0.99}}).'
        )
    return averages[name]
