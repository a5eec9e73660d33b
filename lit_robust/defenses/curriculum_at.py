"""Curriculum adversarial training: the attack gets more steps as the net learns to withstand it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from lit_robust import losses, require
from lit_robust.attacks import PGD, Attack
from lit_robust.attacks.base import made_once, within_box
from lit_robust.attacks.pgd import check_pgd
from lit_robust.batch import Batch
from lit_robust.guards import BNMode
from lit_robust.measures.accuracy import Survivors, rows_of
from lit_robust.training.arguments import TrainingArguments
from lit_robust.training.defense import Defense
from lit_robust.training.monitors import validates


def stepped(attack: PGD, j: int, step_size: float) -> PGD:
    """The attack with j steps; with 0 steps it returns the images."""
    if j == 0:
        return replace(attack, steps=0, init="zero", loss=losses.ce, compare_with="label")
    return replace(attack, steps=j, step_size=step_size)


#: For fixed step sizes; random ones would fill the cache.
stepped_once = made_once(stepped)


class CurriculumAT(Defense):
    """CAT (Cai et al., IJCAI 2018, arXiv:1805.04807): PGD of k steps, k growing from 0 to the attack's ``steps``.

        min_theta  E  CE(f(x'), y),     x' = PGD of j steps in part j = 0, ..., k of k + 1 equal parts of the batch
        k <- k + 1  after an epoch in which the training accuracy was above expect_acc

    With ``patience``, k also waits until that many validations have brought no new best accuracy under k steps
    (``val/acc/k_steps``). ``AttributeRamp("k", ...)`` sets k by the epoch instead. k is logged as ``train/k``.

    As in the authors' code: the parts ("batch mixing", their CAT; their BASIC is ``batch_mixing=False,
    attack_bn_mode="eval"``), the last of which takes the remainder; BatchNorm in train mode during the attack; steps of
    2 eps/j U(1, 10/j), drawn once per part, so ``attack.step_size`` is not used (a step above 2 eps ends on the ball's
    surface as one of 2 eps does, and is cut to that); steps of 2 eps/k in validation. For their random start, which is
    not clipped to [0, 1], set ``PGD(clip_init=False)``.

    Differs from the authors' code: if there are fewer images than parts, all are attacked with k steps and none is left
    out; when k grows, training continues from the last weights (theirs returns to the best with ``patience``);
    validation images are not quantised to 16 levels, which hides small perturbations.

    Args:
        attack: A PGD whose ``steps`` is the last k: 7 for CIFAR-10 and 40 for MNIST in the authors' code.
        batch_mixing: Whether the batch is divided into parts.
        expect_acc: The training accuracy to exceed, on attacked images; the code's 0.95, or 0.9 with ``patience``.
        patience: Validations without a new best before k grows; 0 waits for none. 10 in the authors' code.

    Raises:
        TypeError: If ``attack`` is not a PGD.
        ValueError: If an argument is out of range, or ``patience`` is set and there is no validation.
    """

    attack: PGD
    counted = ("acc/robust", "k")

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        attack: Attack,
        *,
        batch_mixing: bool = True,
        expect_acc: float = 0.95,
        patience: int = 0,
        attack_bn_mode: BNMode = "train",
        **kwargs: Unpack[TrainingArguments],
    ) -> None:
        super().__init__(net, num_classes, attack, attack_bn_mode=attack_bn_mode, **kwargs)
        check_pgd(self, self.attack, "gives PGD more and more steps")
        require.number("expect_acc", expect_acc, least=0, below=1, hint="it is an accuracy to exceed")
        require.integer("patience", patience, least=0)
        require.flags(batch_mixing=batch_mixing)
        self.batch_mixing = batch_mixing
        self.expect_acc = expect_acc
        self.patience = patience
        # The training accuracy of the last epoch; the best validation accuracy at this k, and the validations since.
        self.memory.declare(check=self.check_k, means=["right"], k=0, learned=0.0, best=-1.0, stale=0)
        if patience:
            self.val_attacks["k_steps"] = self.with_steps(0)
            self.survivors["val"] = Survivors(rows_of(self.val_attacks))

    @property
    def k(self) -> float:
        """The present number of steps; a ramp sets floats."""
        k: float = self.memory.values["k"]  # may be an int
        return k

    @k.setter
    def k(self, k: float) -> None:
        self.memory.values["k"] = k

    def check_k(self, values: Mapping[str, Any]) -> None:
        """Refuse a checkpoint's k that the attack cannot have.

        Raises:
            ValueError: If it is above the attack's steps.
        """
        if values["k"] > self.attack.steps:
            raise ValueError(
                f"the checkpoint has reached k={values['k']:g}, but attack.steps={self.attack.steps}: give the attack "
                "as many steps as its training had, or use an earlier one."
            )

    def check_numbers(self) -> None:
        """Refuse a k that is negative or above the attack's steps."""
        super().check_numbers()
        require.number("k", self.k, least=0, most=self.attack.steps, hint="the attack has no more steps")

    def adversary(self) -> PGD:
        """The attack with k steps."""
        return self.with_steps(int(self.k))

    def perturb(self, batch: Batch) -> Tensor:
        """Attack the parts of the batch one after the other."""
        self.memory.collect("right")
        n, k = len(batch.x), int(self.k)
        each = n // (k + 1) if self.batch_mixing else 0
        sizes = [each] * k + [n - k * each]
        parts = enumerate(zip(torch.split(batch.x, sizes), torch.split(batch.y, sizes), strict=True))
        with self.attacked(batch.x) as net:
            return torch.cat([self.with_steps(j, random=True)(net, x, y) for j, (x, y) in parts if len(x)])

    def perturb_all(self, batch: Batch) -> Tensor:
        """Attack all images with k steps: batches of a coreset's selection are not shuffled, so parts never change."""
        x_adv: Tensor = super().perturb(batch)
        return x_adv

    def with_steps(self, j: int, random: bool = False) -> PGD:
        """The attack with j steps, of random size if ``random``; with 0 steps it returns the images."""
        if j == 0:
            return stepped_once(self.attack, 0, 0.0)
        longest = 2 * self.attack.eps
        size = longest / j * (1 + (10 / j - 1) * float(torch.rand(())) if random else 1)  # drawn on the host
        cut = min(size, longest)
        build = stepped if random else stepped_once
        return build(self.attack, j, cut if self.attack.norm == "l2" else within_box(cut))

    def loss(self, batch: Batch, x_adv: Tensor) -> Tensor:
        """Cross-entropy on all parts."""
        logits = self.net(x_adv)
        self.seen |= {"robust": logits, "k": torch.full_like(batch.weight, self.k)}
        self.memory.leave("right", logits.argmax(dim=1) == batch.y, batch.weight)
        return losses.ce(logits, batch.y)

    # The curriculum.

    def on_train_start(self) -> None:
        """Refuse ``patience`` without validation."""
        super().on_train_start()
        if self.patience and not validates(self.trainer):
            raise ValueError(
                f"patience={self.patience} counts validations, but there is none: hold images out "
                "(data.init_args.val_size), or set patience=0."
            )

    def end_epoch(self) -> None:
        """Remember the epoch's training accuracy; 0 while no batch is adversarial."""
        self.memory.collect("right")
        self.memory.values["learned"] = self.memory.mean("right") or 0.0

    def on_validation_epoch_start(self) -> None:
        """Set the attack of ``val/acc/k_steps`` to k steps."""
        super().on_validation_epoch_start()
        if self.patience:
            self.val_attacks["k_steps"] = self.adversary()

    def on_validation_epoch_end(self) -> None:
        """Count the validations since the best one."""
        super().on_validation_epoch_end()
        if self.patience and not self.trainer.sanity_checking:
            accuracy, memory = self.val_results["k_steps"].value, self.memory.values
            better = accuracy > memory["best"]
            memory |= {"best": accuracy, "stale": 0} if better else {"stale": memory["stale"] + 1}

    def on_train_epoch_end(self) -> None:
        """Add a step when the net has learned enough and no longer improves.

        Not in ``end_epoch``, because this needs the epoch's validation, which comes later. A checkpoint that is written
        in between holds the old k, and its resumed run ends the epoch first (``end_the_epoch``).
        """
        super().on_train_epoch_end()
        memory = self.memory.values
        learned = memory["learned"] > self.expect_acc and memory["stale"] >= self.patience
        if self.k < self.attack.steps and learned:
            memory |= {"k": self.k + 1, "best": -1.0, "stale": 0}
