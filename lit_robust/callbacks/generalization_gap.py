"""The generalisation gap: how much more robust a net is on its training images."""

from collections.abc import Iterable
from typing import Any, Protocol

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from lit_robust import require
from lit_robust.attacks.base import Attack
from lit_robust.batch import Batch
from lit_robust.guards import frozen, own_random_state
from lit_robust.measures.accuracy import Survivors, rows_of, surviving
from lit_robust.seeds import seed


class HasValidationAttack(Protocol):
    """What ``GeneralizationGap`` needs of a module, as every Defense has it."""

    net: nn.Module
    val_attacks: dict[str, Attack]
    survivors: dict[str, Survivors]


class HasPlainImages(Protocol):
    """What ``GeneralizationGap`` needs of the data, as all of ``lit_robust.data`` have it."""

    def plain_train_dataloader(self) -> Iterable[Batch]:
        """The training images as they are and in order, this rank's share of them."""


class GeneralizationGap(Callback):
    """Logs the robust accuracy of training images minus that of validation images, ``val/gap/robust``.

    Both are measured in validation, with its attack, mode, precision and weights (averaged ones under ``EMAWeights``).
    The training images are not augmented; their robust accuracy is ``val/acc/robust_train``. (``train/acc/robust`` is
    no substitute: it is under the training adversary, which a curriculum keeps weak, on augmented images, and with
    changing weights.) SAT's slides (Sitawarin et al., AISec 2021, arXiv:2003.09347) claim that curricula make the gap
    smaller.

    A validation also attacks these training images. Nothing else changes, and there is no state to resume.

    Args:
        images: The number of training images, the first ones, over all ranks together.

    Raises:
        TypeError: If the module has no validation attack, or the data have no ``plain_train_dataloader``.
        ValueError: If ``images`` is below 1.
    """

    def __init__(self, images: int = 1000) -> None:
        require.integer("images", images, least=1)
        self.images = images

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that there is something to compare."""
        if stage != "fit":
            return
        # By name: from Python 3.12 on, isinstance with a Protocol does not see sub-modules such as nets.
        if not all(hasattr(pl_module, name) for name in ("net", "val_attacks", "survivors")):
            raise TypeError(
                f"GeneralizationGap attacks as the validation does, but {type(pl_module).__name__} has no val_attacks: "
                "train a Defense, or leave it out."
            )
        if not hasattr(_data(trainer), "plain_train_dataloader"):
            raise TypeError(
                "GeneralizationGap needs the training images as they are: give the trainer a datamodule of "
                "lit_robust.data, or one with plain_train_dataloader(), which yields Batches."
            )

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Attack training images before the first batch, after other callbacks have swapped their weights in."""
        if batch_idx == 0 and dataloader_idx == 0 and trainer.state.fn == "fit":
            with trainer.precision_plugin.val_step_context():  # as validation images are measured
                self._survivors = self._measure(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Log both, before the module resets its counts."""
        if trainer.state.fn == "fit":
            trained, held_out = (s.accuracies()["robust"] for s in (self._survivors, pl_module.survivors["val"]))
            values = {"val/acc/robust_train": trained.value, "val/gap/robust": trained.value - held_out.value}
            pl_module.log_dict(values, sync_dist=True, batch_size=1)

    def _measure(self, trainer: Trainer, module: HasValidationAttack) -> Survivors:
        device = trainer.strategy.root_device
        attacks = {"robust": module.val_attacks["robust"]}
        survivors = Survivors(rows_of(attacks)).to(device)
        missing = -(-self.images // trainer.world_size)
        with own_random_state(device), frozen(module.net):
            for index, batch in enumerate(_data(trainer).plain_train_dataloader()):
                seed(device, "evaluate", index, trainer.global_rank)
                few = Batch(*(part[:missing].to(device) for part in batch))
                survivors.update(surviving(module.net, attacks, few), few.weight)
                missing -= len(few.x)
                if missing <= 0:
                    break
        return survivors


def _data(trainer: Any) -> HasPlainImages:
    data: HasPlainImages = trainer.datamodule
    return data
