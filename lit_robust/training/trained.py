"""Training around the batches: the clock, logging and checkpoints."""

from typing import Any, Literal, Unpack

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lit_robust import require
from lit_robust.attacks import Attack
from lit_robust.batch import Batch
from lit_robust.checkpoint_files import forget_foreign_paths
from lit_robust.lightning_cli_internals import built_by_the_command_line, make_iterator_anew
from lit_robust.lightning_internals import batches_begun, is_due_for_logging
from lit_robust.lightning_resume_internals import (
    end_restart,
    end_the_epoch,
    know_metrics,
    settle_restart,
    validation_is_due,
)
from lit_robust.measures.accuracy import rows_of
from lit_robust.ranks import average_buffers, gather_over_ranks
from lit_robust.schedules import Schedule
from lit_robust.schedules.base import fractional_epoch
from lit_robust.seeds import seed
from lit_robust.torch_internals import unscales_itself
from lit_robust.training import checkpoint_checks
from lit_robust.training.arguments import EvaluatedArguments, check_arguments
from lit_robust.training.checkpoint_io import keep_checkpoints_whole
from lit_robust.training.loadable import Loadable
from lit_robust.training.memory import Memory, of_older_versions
from lit_robust.training.meter import Meter
from lit_robust.training.metrics import REDUCED, EpochMeans
from lit_robust.training.monitors import check_all_monitors
from lit_robust.training.rates import LearningRate, sgd
from lit_robust.training.trainer_checks import check_one_loader
from lit_robust.training.unlogged import keep_metrics_whole, log_late, log_row, logged_and_unlogged


class Trained(Loadable):
    """A net, its optimizer and what an exact resume needs; ``Defense`` adds the training step.

    All random numbers of a batch are seeded from (seed, epoch, batch, rank) at its start, and schedules are functions
    of fractional epochs. ModelCheckpoint runs before module hooks, so ``training_step`` calls ``finish_epoch`` to
    complete what a checkpoint must hold; ``on_train_epoch_end`` would be too late. The hooks here must stay the
    module's own: as callbacks (``configure_callbacks``) they run in another order, and resumed runs differ.

    Args:
        optimizer: Makes the optimizer from the parameters; SGD(lr=0.1, momentum=0.9, weight_decay=5e-4) by default.
        lr_scheduler: A ``lit_robust.schedules.Schedule``, whose value at each moment in fractional epochs multiplies
            the optimizer's ``lr``, or any torch scheduler.
        lr_interval: When a torch scheduler is stepped; a Schedule needs none.
        momentum: A Schedule of SGD's momentum (or Adam's first beta), absolute; None leaves the optimizer's.
        gradient_clip_val: The largest norm of the gradient; Lightning's own option refuses manual optimization.
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        attack: Attack,
        *,
        optimizer: OptimizerCallable = sgd,
        lr_scheduler: Schedule | LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        momentum: Schedule | None = None,
        gradient_clip_val: float | None = None,
        **kwargs: Unpack[EvaluatedArguments],
    ) -> None:
        check_arguments(type(self), kwargs)
        super().__init__(net, num_classes, attack, **kwargs)
        if built_by_the_command_line():
            # For `load_from_checkpoint`. In Python, arguments are live objects, which no safe checkpoint can hold.
            self.save_hyperparameters(ignore="alarm_sources", logger=False)
        if gradient_clip_val is not None:
            require.number("gradient_clip_val", gradient_clip_val, above=0, hint="null means no clipping")
        self.automatic_optimization, self.adversarial = False, True
        self.gradient_clip_val = gradient_clip_val
        self.rate = LearningRate(optimizer, lr_scheduler, lr_interval, momentum)
        #: What outlives a batch, see ``Memory``.
        self.memory = Memory()
        self.metrics, self.meter = EpochMeans(), Meter()
        #: The training metrics of the last whole epoch, by name.
        self.epoch_means: dict[str, float] = {}
        #: The index of the current batch in its epoch.
        self.batch_idx = 0
        self._trained_on: dict[str, Any] = {}
        #: What a checkpoint holds that was not logged when it was written: a row, and the present epoch's metrics.
        self._unlogged: dict[str, dict[str, float]] = {}
        #: The metrics that callbacks and schedulers of the checkpoint's training could read.
        self._known: dict[str, Tensor] = {}

    # The clock.

    def setup(self, stage: str) -> None:
        """Forget an earlier fit; here, because Lightning restores a checkpoint right after."""
        super().setup(stage)
        keep_metrics_whole(self.trainer)
        if stage == "fit":
            keep_checkpoints_whole(self.trainer)
            self.rate.resumed, self.batch_idx, self.epoch_means = None, 0, {}
            self._trained_on, self._unlogged, self._known = {}, {}, {}
            self._checked_stages.clear()
            vars(self).pop("averaged", None)  # an earlier fit's; EMAWeights assigns its own later
            self.memory.forget()
            self.metrics.reset()

    #: What ``loss`` leaves for the metrics, besides the loss, as it is logged.
    counted: tuple[str, ...] = ("acc/robust",)

    def configure_optimizers(self) -> Any:
        """Build the optimizer and, if one is given, the torch scheduler that ``rate`` steps."""
        return self.rate.configure(self.net.parameters())

    def on_train_start(self) -> None:
        """Continue from a checkpoint, on the device; log what was not logged yet when it was written.

        Raises:
            ValueError: If a callback or scheduler monitors a metric that is not logged, a Schedule has no clock, or
                several loaders validate.
        """
        super().on_train_start()
        check_one_loader(self, self.trainer.num_val_batches)
        settle_restart(self.trainer)
        names = ("loss", *(self.counted if self.adversarial else ("acc/clean",)), "adversarial", "lr", "updates")
        validated = (f"val/acc/{name}" for name in rows_of(self.val_attacks))
        check_all_monitors(self.trainer, [*(f"train/{name}" for name in names), *validated])
        checkpoint_checks.warn_of_other_data(checkpoint_checks.fingerprint_of(self.trainer), self._trained_on)
        self.rate.check_clock(self.trainer)
        self.rate.restore_settings(self.net)
        self.memory.to(self.device)
        self.metrics.to(self.device)
        know_metrics(self.trainer, {name: value.to(self.device) for name, value in self._known.items()})
        log_late(self, self._unlogged)
        if epoch := self._unlogged.get("epoch"):
            self.metrics.reset()
            self.epoch_means = {name.removeprefix("train/"): value for name, value in epoch.items()}
        self._unlogged, self._known = {}, {}

    def on_fit_end(self) -> None:
        """Log a finished training's last row, if a checkpoint holds it: Lightning starts no such training."""
        super().on_fit_end()
        log_row(self, self._unlogged)

    @property
    def time(self) -> float:
        """Fractional epochs since the start of training: the argument of every schedule."""
        return fractional_epoch(self.trainer, self.batch_idx)

    def on_train_epoch_start(self) -> None:
        """Seed the epoch, whose order a loader of one's own draws now: all validations end with the same seed."""
        super().on_train_epoch_start()
        seed(self.device, "epoch", self.current_epoch)
        make_iterator_anew(self.trainer)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the batch, so that its random numbers do not depend on earlier batches, and set the rates."""
        seed(self.device, "train", self.current_epoch, batch_idx, self.global_rank)
        self.batch_idx = batch_idx
        if batches_begun(self.trainer) > 1:
            self.rate.batch_done()  # not at the batch's end, because ModelCheckpoint runs before module hooks
        self.rate.set(self.time)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Clip here, where gradients are unscaled in every precision, and not yet by a fused optimizer's own step."""
        if (scaler := self.trainer.scaler) is not None and unscales_itself(optimizer):
            scaler.unscale_(optimizer)
        self.limit_gradients()

    def limit_gradients(self) -> None:
        """Clip the norm of the gradient of all weights."""
        if self.gradient_clip_val is not None:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.gradient_clip_val)

    def finish_epoch(self, batch_idx: int) -> None:
        """Complete the epoch after its last update, before any callback can save."""
        average_buffers(self.net)
        self._log_training(batch_idx, on_epoch=True)
        self.end_epoch()

    def end_epoch(self) -> None:
        """Called after the epoch's last update, when ``epoch_means`` are known; does nothing by default."""

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log every ``log_every_n_steps`` only, because logging costs as much as a small net's forward."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        if is_due_for_logging(self.trainer):
            self._log_training(batch_idx, on_epoch=False)
        if self.trainer.is_last_batch:
            self.metrics.reset()

    def _log_training(self, batch_idx: int, on_epoch: bool) -> None:
        means = self._means(batch_idx)
        if on_epoch:
            self.epoch_means = means
        when = {"on_step": not on_epoch, "on_epoch": on_epoch} | (REDUCED if on_epoch else {})
        for name, value in self._row(means).items():
            self.log(name, value, prog_bar=name == "train/loss", **when, batch_size=1)

    def _means(self, batch_idx: int) -> dict[str, float]:
        self.limits.check()
        return self.metrics.means(self.current_epoch, batch_idx)

    def _row(self, means: dict[str, float]) -> dict[str, float]:
        state = {"adversarial": self.adversarial, "lr": self.rate.current, "updates": self.trainer.global_step}
        return {f"train/{name}": float(value) for name, value in (means | state).items()}

    def on_train_epoch_end(self) -> None:
        """Step a torch scheduler that counts epochs."""
        end_restart(self.trainer)
        super().on_train_epoch_end()
        self.rate.epoch_done(self.trainer.callback_metrics)

    # Checkpoints.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add how the net was built, for ``load_net``, and what an exact resume needs besides weights.

        Raises:
            FloatingPointError: If loss or weights are no longer finite; the previous checkpoint stays intact.
        """
        means = self._means(self.batch_idx)
        checkpoint_checks.check_weights_finite(self.state_dict())
        checkpoint["lit_robust"] = {
            "net": getattr(self.net, "built_by", None),
            "metrics": gather_over_ranks(self.metrics.sums),
            "memory": self.memory.state_dict(),
            "buffers": self.buffers_of_ranks(),
            **self.rate.saved(checkpoint, self.current_epoch),
            "data": checkpoint_checks.fingerprint_of(self.trainer),
            "cost": cost._asdict() if (cost := self.training_cost()) else None,
            "validation_is_due": validation_is_due(self.trainer),
            **logged_and_unlogged(self.trainer, lambda: self._row(means) if is_due_for_logging(self.trainer) else {}),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the weights of another net, and restore what an exact resume needs."""
        checkpoint_checks.name_plainly(checkpoint)
        checkpoint_checks.check_states(checkpoint, self.trainer, self.memory)
        forget_foreign_paths(checkpoint, self.trainer.checkpoint_callbacks)
        super().on_load_checkpoint(checkpoint)
        checkpoint_checks.check_weights_fit(self.state_dict(), checkpoint.get("state_dict", {}))
        saved = checkpoint.get("lit_robust", {})
        self.metrics.sums = checkpoint_checks.sums_so_far(saved, self.global_rank, self.trainer)
        if (fn := self.trainer.state.fn) in ("fit", "validate"):  # a test needs none of it
            self.memory.load_state_dict(saved.get("memory") or of_older_versions(saved), self.global_rank, fn == "fit")
        self._trained_on = saved.get("data", {})
        self._unlogged = dict(saved.get("unlogged", {}))
        self._known = dict(saved.get("callback_metrics", {}))
        self.rate.resume(checkpoint)
        checkpoint_checks.warn_of_averages(checkpoint, self.trainer)
        end_the_epoch(checkpoint, saved.get("validation_is_due"))
