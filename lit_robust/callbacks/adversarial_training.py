"""Adversarial training of a module that was written without it."""

from typing import Any, Protocol

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_robust import require
from lit_robust.attacks.base import Attack, check_attack
from lit_robust.callbacks.adapter import Adapter, Channels
from lit_robust.callbacks.batch_paths import Key
from lit_robust.callbacks.needs import check_alone
from lit_robust.guards import BNMode, checked, frozen, network_mode, own_random_state
from lit_robust.lightning_internals import (
    batch_in_epoch,
    batches_begun,
    change_batches,
    is_due_for_logging,
    restore_batches,
)
from lit_robust.measures.attack_checks import tell_of_idle_attack, tell_of_short_steps
from lit_robust.seeds import seed


class Added(Protocol):
    """Attributes that this callback adds to the module during training; the module must not have its own.

    Other callbacks drive a Defense by the same ones.
    """

    adversarial: bool
    attack: Attack


#: The names in ``Added``.
ADDED = ("adversarial", "attack")


class FindsItsOwn(Protocol):
    """What a module must not have, or its images would be attacked twice."""

    def perturb(self, batch: Any) -> Any:
        """Find adversarial images."""


class AdversarialTraining(Callback):
    """Trains any LightningModule on adversarial images (Madry et al., ICLR 2018, arXiv:1706.06083).

        min_theta  E  L(theta; x', y),     x' = attack(f_theta, x, y)     with the module's own L

    ``training_step`` gets a batch with adversarial images, and is otherwise the user's own: automatic or manual
    optimization, any loss, metrics, logging. The loader's batch is never written to, and other stages see it unchanged.
    A batch is attacked once, even if an optimizer evaluates its closure several times.

    The attack runs in the trainer's precision, and under DDP on the unwrapped module. It changes no gradient, mode or
    random number of the module; its own random numbers are seeded from (seed, epoch, batch, rank), so a resumed run
    sees the same adversaries. Every device must hold all weights, as with ``ddp``.

    During training the module has two more attributes: ``adversarial``, which ``DelayedStart`` drives (while it is
    false, the module gets the loader's batch itself), and ``attack``, for ``AttributeRamp("attack.eps", ...)``. List
    the callbacks that drive them after this one. The module's class, methods and checkpoints do not change.

    Args:
        attack: The adversary.
        x: Where a batch keeps its images: an index, a key, the name of a field, or a path such as ``"views.0"``.
        y: The same for the labels that are attacked; None for the net's own predictions.
        net: The sub-module that turns images into logits, such as ``"model"`` or ``"encoder.head"``; None for the
            module itself or, if it has no ``forward``, its ``net``. Its result may have them as an attribute
            ``logits``.
        mean: What the data pipeline subtracts from pixels, one number or one per channel, if it normalises. The attack
            still acts on pixels in [0, 1].
        std: What it then divides them by.
        attack_bn_mode: The net's mode (BatchNorm, dropout) during the attack. ``train`` is PGDAT's, where every step of
            the attack moves BatchNorm's statistics, except in layers that are frozen by ``eval()``.

    Raises:
        ValueError: If the attack is targeted, the module attacks its images itself, or pixels, labels or net do not fit
            in the first batch.
    """

    logged_keys = ()

    def __init__(
        self,
        attack: Attack,
        x: Key = 0,
        y: Key | None = 1,
        net: str | None = None,
        mean: Channels | None = None,
        std: Channels | None = None,
        attack_bn_mode: BNMode = "eval",
    ) -> None:
        require.one_of("attack_bn_mode", attack_bn_mode, ("eval", "train"))
        check_attack("attack", attack)
        tell_of_short_steps({"attack": attack})
        self.attack = attack
        self.adapter = Adapter(x, y, net, mean, std)
        self.attack_bn_mode = attack_bn_mode
        self._installed = self._checked = False
        self._found: tuple[Any, int, Tensor] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Replace the batches of the module's ``training_step``."""
        if stage != "fit":
            return
        require.fine_precision(str(trainer.precision))
        why = "two AdversarialTraining callbacks would attack each other's images: keep one."
        check_alone(trainer, self, AdversarialTraining, why)
        _check_not_attacked(pl_module)
        tell_of_idle_attack(trainer, "attack", self.attack)
        for name, value in zip(ADDED, (True, self.attack), strict=True):
            setattr(pl_module, name, value)
        change_batches(trainer, lambda batch: self._attacked(trainer, pl_module, batch))
        self._installed, self._checked = True, False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Refuse pixels and labels out of range; not after every batch, because this waits for the device."""
        if is_due_for_logging(trainer) or trainer.is_last_batch:
            self.adapter.check_range()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Do the same before a checkpoint is written."""
        self.adapter.check_range()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave trainer and module as they were."""
        self.adapter.forget_copies()
        if self._installed:
            restore_batches(trainer)
            for name in ADDED:
                delattr(pl_module, name)
        self._installed, self._found = False, None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Do the same when training fails."""
        self.teardown(trainer, pl_module, "fit")

    def _attacked(self, trainer: Trainer, module: Any, batch: Any) -> Any:
        with trainer.precision_plugin.train_step_context():
            if not self._checked:  # also before a delayed start, or errors would come in epoch 50
                self.adapter.check(module, batch)
                self._checked = True
            if not module.adversarial:
                return batch
            self.adapter.watch(batch)
            return self.adapter.exchanged(batch, self._adversary(trainer, module, batch))

    def _adversary(self, trainer: Trainer, module: Any, batch: Any) -> Tensor:
        """The adversarial images, found once per batch; not in a hook, because Lightning's tuners silence hooks."""
        now = batches_begun(trainer)
        if self._found is None or self._found[0] is not batch or self._found[1] != now:
            self._found = batch, now, self._perturb(trainer, module, batch)
        return self._found[2]

    def _perturb(self, trainer: Trainer, module: Any, batch: Any) -> Tensor:
        x, y = self.adapter.pixels(batch), self.adapter.labels(batch)
        net = self.adapter.logits_net(module, wrapped=self.attack_bn_mode == "train")
        place = trainer.current_epoch, batch_in_epoch(trainer), trainer.global_rank
        # Compiled nets compute every gradient they can, the parameters' too, unless these are frozen.
        with own_random_state(x.device), checked(), frozen(net), network_mode(net, self.attack_bn_mode):
            seed(x.device, "adversarial training", *place)
            if y is None:
                with torch.no_grad():
                    y = net(x).argmax(dim=1)
            y = self.adapter.within_classes(y)
            attack: Attack = module.attack
            return attack(net if self.attack_bn_mode == "train" else self.adapter.attacked_net(module, batch), x, y)


def _check_not_attacked(module: LightningModule) -> None:
    name = type(module).__name__
    if callable(getattr(module, "perturb", None)):
        raise ValueError(
            f"{name} finds adversarial images itself (it has perturb), and AdversarialTraining would attack them once "
            "more: leave this callback out, or train a module that does not attack."
        )
    for one in ADDED:
        if hasattr(module, one):
            raise ValueError(
                f"{name} has an attribute {one} of its own, but other callbacks drive AdversarialTraining through this "
                "name: rename it."
            )
