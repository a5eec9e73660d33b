"""Ends training shortly after the learning rate has dropped, where robust accuracy peaks."""

import math

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lit_robust import require
from lit_robust.callbacks.needs import is_trial
from lit_robust.callbacks.rate_drop import first_drop, no_drop


class StopAfterDrop(Callback):
    """Ends training some epochs after the first drop of the learning rate: "RAT early stop" and "DAT early stop".

    The slides of DAT (Gupta, Dube and Verma, CVPRW 2020, arXiv:2002.04237) cut training where robust accuracy peaks.
    Their criterion is not known to us: the published times imply 11 to 17 epochs with the dropped rate, so the default
    is 15. The alternative, at full cost, is the best checkpoint by ``val/acc/robust``.

    The end depends only on the schedule, so all ranks stop together and a resumed run stops where an uninterrupted one
    does. The last epoch is complete, with its validation and checkpoints; the trainer's ``min_epochs`` is respected.

    Args:
        epochs: The number of epochs with the dropped rate.

    Raises:
        ValueError: If ``epochs`` is below 1, or no drop can be foreseen (see ``first_drop``).
    """

    logged_keys = ()

    def __init__(self, epochs: int = 15) -> None:
        require.integer("epochs", epochs, least=1)
        self.epochs = epochs
        self._end = math.inf

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the last epoch."""
        self._end = math.inf
        if not is_trial(trainer):
            drop = first_drop(trainer, pl_module)
            if drop is None:
                remedy = "set trainer.max_epochs where training is to end, and leave StopAfterDrop out"
                raise no_drop(trainer, remedy)
            self._end = drop + self.epochs

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop at once if the run is resumed after its end."""
        trainer.should_stop = trainer.should_stop or trainer.current_epoch >= self._end

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop after the last epoch."""
        done = trainer.current_epoch + 1
        if done < self._end:
            return
        trainer.should_stop = True
        if done >= (trainer.min_epochs or 0):  # before that, the trainer goes on
            since = done - int(self._end) + self.epochs
            rank_zero_info(f"training stops after epoch {done - 1}, {since} epochs since the learning rate's drop.")
