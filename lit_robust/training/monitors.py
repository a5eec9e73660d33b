"""Refuses callbacks and schedulers that monitor a metric which is never logged, as early as that is known.

Before training, if the method and all callbacks are ours. What a user's own ones log is only seen when they do:
``val/`` after the sanity check or the first validation, everything else at the end of the first epoch.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, Protocol

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from lit_robust.lightning_internals import misses_monitor
from lit_robust.measures.directions import check_directions

#: What Lightning's callbacks can monitor although it is never logged.
ALWAYS = ("epoch", "step")


class Logs(Protocol):
    """What each callback of ours has; a user's subclass of it may log more."""

    #: The keys that it logs in training and validation; ``monitor/*`` stands for all that begin with ``monitor/``.
    logged_keys: Sequence[str]


def monitored(trainer: Any, strict: bool = False) -> Iterator[tuple[str, str]]:
    """Each callback and scheduler that monitors a metric, with the metric; or only those that need it at once."""
    watchers = [*trainer.callbacks, *(config.scheduler for config in trainer.lr_scheduler_configs)]
    for watcher in watchers:
        if strict and not getattr(watcher, "strict", True):
            continue
        if isinstance(monitor := getattr(watcher, "monitor", None), str):
            yield type(watcher).__name__, monitor


def check_monitors(trainer: Any, logged: Collection[str], split: str = "val/", strict: bool = False) -> None:
    """Refuse monitors of a metric which is never logged; Lightning reports them an epoch later.

    Args:
        trainer: Its callbacks and schedulers are checked.
        logged: The keys that are logged; none of ``val/`` if there is no validation.
        split: Only monitored keys with this prefix are checked; all if it is empty.
        strict: Whether to pass over those with ``strict=False``, whose metric may be logged later.

    Raises:
        ValueError: If one monitors a key that is not logged.
    """
    for watcher, monitor in monitored(trainer, strict):
        is_logged = monitor in (*logged, *ALWAYS) or any(fnmatchcase(monitor, key) for key in logged)
        if monitor.startswith(split) and not is_logged:
            part = next((part for part in ("val/", "train/") if monitor.startswith(part)), "")
            known = ", ".join(key for key in sorted(logged) if key.startswith(part))
            who = {"val/": "validation", "train/": "training", "": "the run"}[part]
            raise ValueError(
                f"{watcher} monitors {monitor}, "
                + (f"but {who} logs {known}: correct the name." if known else _NO_VALIDATION)
            )


_NO_VALIDATION = (
    "but there is no validation: hold images out (data.init_args.val_size), or remove the monitor to keep the last "
    "checkpoint alone."
)


def check_all_monitors(trainer: Any, by_method: Sequence[str]) -> None:
    """Check every monitor before the first step, if all that is logged is known.

    Args:
        trainer: Its callbacks and schedulers are checked.
        by_method: The keys that the method logs.

    Raises:
        ValueError: As ``check_monitors``, or if a mode contradicts its metric.
    """
    if not validates(trainer):
        check_monitors(trainer, logged=())
    if _is_ours(trainer.lightning_module) and (others := logged_by_callbacks(trainer)) is not None:
        check_monitors(trainer, [*by_method, *others], split="")
    check_directions(trainer)


class Monitored(LightningModule):
    """Checks, while it trains, the monitors whose metrics are only known once they are logged."""

    #: Whether an epoch of this fit has ended.
    _epoch_has_ended = False

    def setup(self, stage: str) -> None:
        """Forget an earlier fit."""
        super().setup(stage)
        self._epoch_has_ended = False

    def on_train_start(self) -> None:
        """Stop at once if the run is resumed after an EarlyStopping has stopped it: Lightning would train on."""
        super().on_train_start()
        trainer: Any = self.trainer
        stops = [one for one in trainer.callbacks if isinstance(one, EarlyStopping)]
        reasons = {getattr(one, "stopping_reason", EarlyStoppingReason.NOT_STOPPED) for one in stops}
        if trainer.ckpt_path and reasons - {EarlyStoppingReason.NOT_STOPPED}:
            trainer.should_stop = True

    def on_validation_end(self) -> None:
        """Check the monitors of ``val/``, unless a user's callback may log such a metric later.

        Raises:
            ValueError: As ``check_monitors``.
        """
        super().on_validation_end()
        if self.trainer.state.fn == "fit" and (others := logged_by_callbacks(self.trainer)) is not None:
            check_monitors(self.trainer, [*self.trainer.callback_metrics, *others])

    def on_train_epoch_end(self) -> None:
        """Remember that the first epoch's metrics will be known soon: a subclass or a callback may still log some."""
        super().on_train_epoch_end()
        self._epoch_has_ended = True

    def on_train_epoch_start(self) -> None:
        """Check every monitor."""
        super().on_train_epoch_start()
        self._check_after_epoch()

    def on_train_end(self) -> None:
        """Check every monitor, for a training of one epoch."""
        super().on_train_end()
        self._check_after_epoch()

    def _check_after_epoch(self) -> None:
        """Check every monitor after an epoch with its validation: ModelCheckpoint may only warn, and never save.

        Raises:
            ValueError: As ``check_monitors``.
        """
        logged = self.trainer.callback_metrics
        validated = any(key.startswith("val/") for key in logged) or not validates(self.trainer)
        if self._epoch_has_ended and validated:
            check_monitors(self.trainer, [*logged, *(logged_by_callbacks(self.trainer) or ())], split="", strict=True)


@contextmanager
def explain_monitor_errors(trainer: Any) -> Iterator[None]:
    """Replace Lightning's error about an unknown monitor, raised at the end of the first epoch, by ours.

    Raises:
        ValueError: As ``check_monitors``.
    """
    try:
        yield
    except (RuntimeError, MisconfigurationException) as error:
        if misses_monitor(error):
            check_monitors(trainer, trainer.callback_metrics, split="")
        raise


def validates(trainer: Any) -> bool:
    """Whether the run has validation images, including loaders that are only loaded in a later epoch."""
    return trainer.enable_validation and (trainer.val_dataloaders is None or any(trainer.num_val_batches))


def logged_by_callbacks(trainer: Any) -> list[str] | None:
    """The keys that callbacks log; None if a user's own one may log others."""
    keys: list[str] = []
    for callback in trainer.callbacks:
        if _is_ours(callback) and hasattr(callback, "logged_keys"):
            keys += callback.logged_keys
        elif type(callback) is LearningRateMonitor:  # such as lr-SGD and lr-SGD-momentum
            keys.append("lr-*")
        elif not type(callback).__module__.startswith("lightning."):  # the others log nothing that can be monitored
            return None
    return keys


def _is_ours(part: Any) -> bool:
    return type(part).__module__.startswith("lit_robust.")
