"""Refuses, before training, callbacks and schedulers that monitor a metric which is never logged."""

from collections.abc import Collection, Iterator
from typing import Any, Protocol

#: What Lightning's callbacks can monitor although it is never logged.
ALWAYS = ("epoch", "step")


class LogsNoMetric(Protocol):
    """What a callback of ours may have; a user's subclass of it may log metrics, and does not count."""

    #: Whether it logs nothing, or ``train/switch_epoch`` alone.
    logs_no_metric: bool


def monitored(trainer: Any) -> Iterator[tuple[str, str]]:
    """Each callback and scheduler that monitors a metric, with the metric."""
    watchers = [*trainer.callbacks, *(config.scheduler for config in trainer.lr_scheduler_configs)]
    for watcher in watchers:
        if (monitor := getattr(watcher, "monitor", None)) is not None:
            yield type(watcher).__name__, str(monitor)


def check_monitors(trainer: Any, logged: Collection[str], split: str = "val/") -> None:
    """Refuse monitors of a metric which is never logged; Lightning reports them an epoch later.

    Args:
        trainer: Its callbacks and schedulers are checked.
        logged: The keys that are logged; none of ``val/`` if there is no validation.
        split: Only monitored keys with this prefix are checked; all if it is empty.

    Raises:
        ValueError: If one monitors a key that is not logged.
    """
    for watcher, monitor in monitored(trainer):
        if monitor.startswith(split) and monitor not in (*logged, *ALWAYS):
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


def validates(trainer: Any) -> bool:
    """Whether the run has validation images, including loaders that are only loaded in a later epoch."""
    return trainer.enable_validation and (trainer.val_dataloaders is None or any(trainer.num_val_batches))


def only_the_method_logs(trainer: Any) -> bool:
    """Whether all logged keys are known, because neither a user's code nor a callback can log others."""

    def is_ours(part: Any) -> bool:
        return type(part).__module__.startswith("lit_robust.")

    return is_ours(trainer.lightning_module) and all(
        (is_ours(callback) and getattr(callback, "logs_no_metric", False))
        or type(callback).__module__.startswith("lightning.")  # these log nothing that can be monitored
        for callback in trainer.callbacks
    )
