"""The generalisation gap: how much more robust a net is on its training images."""

from collections.abc import Iterable
from typing import Any, Protocol

from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from lit_robust import require
from lit_robust.attacks.base import Attack, check_attack
from lit_robust.batch import Batch
from lit_robust.callbacks.adapter import Adapter, Channels
from lit_robust.callbacks.batch_paths import Key
from lit_robust.callbacks.needs import check_alone, check_net
from lit_robust.guards import buffers_kept, frozen, own_random_state
from lit_robust.measures.accuracy import CLEAN, Survivors, surviving
from lit_robust.measures.attack_checks import tell_of_short_steps
from lit_robust.measures.directions import check_directions
from lit_robust.seeds import seed


class HasValidationAttack(Protocol):
    """What ``GeneralizationGap`` without an attack needs of a module; every Defense has it."""

    net: nn.Module
    val_attacks: dict[str, Attack]
    survivors: dict[str, Survivors]


class HasPlainImages(Protocol):
    """What ``GeneralizationGap`` needs of the data, as all of ``lit_robust.data`` have it."""

    def plain_train_dataloader(self) -> Iterable[Any]:
        """Batches of the training images as they are and in order, this rank's share of them."""


class GeneralizationGap(Callback):
    """Logs the robust accuracy of training images minus that of validation images, ``val/gap/robust``.

    Both are measured in validation, with its attack, mode, precision and weights (averaged ones under ``EMAWeights``).
    With an ``attack`` it measures both itself, on any LightningModule. The training images are not augmented; their
    robust accuracy is ``val/acc/robust_train``. (``train/acc/robust`` does not serve for this: it is under the
    training adversary, which a curriculum keeps weak, on augmented images, and with changing weights.) SAT's slides
    (Sitawarin et al., AISec 2021, arXiv:2003.09347) claim that curricula make the gap smaller.

    A validation also attacks these training images. Nothing else changes, and there is no state to resume.

    Args:
        images: The number of training images, the first ones, over all ranks together.
        attack: The attack; by default the validation attack of a Defense.
        x: Where a batch of either set keeps its images: an index, a key, the name of a field, or a path such as
            ``"views.0"``.
        y: The same for the labels.
        net: The sub-module from images to logits; None for the module itself or, without ``forward``, its ``net``.
        mean: What the data pipeline subtracts from pixels in [0, 1], if it normalises.
        std: What it then divides them by.

    Raises:
        TypeError: If there is no attack or no net, or the data have no ``plain_train_dataloader``.
        ValueError: If ``images`` is below 1, there is a second one, or pixels, labels or net do not fit in the first
            batch.
    """

    logged_keys = ("val/acc/robust_train", "val/gap/robust")

    def __init__(
        self,
        images: int = 1000,
        attack: Attack | None = None,
        x: Key = 0,
        y: Key = 1,
        net: str | None = None,
        mean: Channels | None = None,
        std: Channels | None = None,
    ) -> None:
        require.integer("images", images, least=1)
        if attack is not None:
            check_attack("attack", attack)
            tell_of_short_steps({"attack": attack})
        self.images = images
        self.attack = attack
        self.adapter = Adapter(x, y, net, mean, std)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that there is something to compare."""
        if stage != "fit":
            return
        why = "two GeneralizationGap callbacks would log the same rows: keep one."
        check_alone(trainer, self, GeneralizationGap, why)
        # By name: from Python 3.12 on, isinstance with a Protocol does not see sub-modules such as nets.
        defense = all(hasattr(pl_module, name) for name in ("net", "val_attacks", "survivors"))
        if self.attack is None and not defense:
            raise TypeError(
                f"GeneralizationGap attacks as the validation does, but {type(pl_module).__name__} has no val_attacks: "
                "give it an attack, or train a Defense."
            )
        check_net(pl_module, self.adapter.net, "GeneralizationGap attacks")
        require.fine_precision(str(trainer.precision))
        if not hasattr(_data(trainer), "plain_train_dataloader"):
            raise TypeError(
                "GeneralizationGap needs the training images as they are: give the trainer a DataModule of "
                "lit_robust.data, or one with plain_train_dataloader(), which yields them in order."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse monitors that would take the fall of an accuracy for progress."""
        check_directions(trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Attack training images before the first batch, after other callbacks have swapped their weights in."""
        if dataloader_idx != 0 or trainer.state.fn != "fit":
            return
        with trainer.precision_plugin.val_step_context():  # as validation images are measured
            if batch_idx == 0:
                self.adapter.check(pl_module, batch)
                self._held_out = self._none_yet(trainer)
                self._trained = self._measure(trainer, pl_module)
            if self.attack is not None:
                self._count(trainer, pl_module, self._held_out, batch, batch_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Log both, before the module resets its counts."""
        if trainer.state.fn == "fit":
            survivors = self._trained, pl_module.survivors["val"] if self.attack is None else self._held_out
            trained, held_out = (counted.accuracies()["robust"] for counted in survivors)
            values = {"val/acc/robust_train": trained.value, "val/gap/robust": trained.value - held_out.value}
            pl_module.log_dict(values, sync_dist=True, batch_size=1)

    def _none_yet(self, trainer: Trainer) -> Survivors:
        return Survivors([CLEAN, "robust"]).to(trainer.strategy.root_device)

    def _measure(self, trainer: Trainer, module: LightningModule) -> Survivors:
        survivors, missing = self._none_yet(trainer), -(-self.images // trainer.world_size)
        for index, batch in enumerate(_data(trainer).plain_train_dataloader()):
            converted = trainer.precision_plugin.convert_input(batch)
            on_device = move_data_to_device(converted, trainer.strategy.root_device)
            missing -= self._count(trainer, module, survivors, on_device, index, missing)
            if missing <= 0:
                break
        return survivors

    def _count(
        self, trainer: Trainer, module: Any, survivors: Survivors, batch: Any, index: int, most: int | None = None
    ) -> int:
        """Attack the first images of a batch; returns their number."""
        attack: Attack = self.attack or module.val_attacks["robust"]
        net, device = self.adapter.logits_net(module), trainer.strategy.root_device
        few = Batch(*(part[:most] for part in self.adapter.labelled(batch)))
        with own_random_state(device), frozen(net), buffers_kept(net):
            seed(device, "evaluate", index, trainer.global_rank)
            survivors.update(surviving(net, {"robust": attack}, few), few.weight)
        return len(few.x)


def _data(trainer: Any) -> HasPlainImages:
    data: HasPlainImages = trainer.datamodule
    return data
