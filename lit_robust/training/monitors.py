"""Refuses, before training, callbacks and schedulers that monitor a metric which is never logged."""

from collections.abc import Collection, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, Protocol

from lightning.pytorch.callbacks import LearningRateMonitor

#: What Lightning's callbacks can monitor although it is never logged.
ALWAYS = ("epoch", "step")


class Logs(Protocol):
    """What each callback of ours has; a user's subclass of it may log more."""

    #: The keys that it logs in training and validation; ``monitor/*`` stands for all that begin with ``monitor/``.
    logged_keys: Sequence[str]


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
        ValueError: As ``check_monitors``.
    """
    if not validates(trainer):
        check_monitors(trainer, logged=())
    if (others := logged_beside_the_method(trainer)) is not None:
        check_monitors(trainer, [*by_method, *others], split="")


def validates(trainer: Any) -> bool:
    """Whether the run has validation images, including loaders that are only loaded in a later epoch."""
    return trainer.enable_validation and (trainer.val_dataloaders is None or any(trainer.num_val_batches))


def logged_beside_the_method(trainer: Any) -> list[str] | None:
    """The keys that callbacks log; None if a user's method or callback may log others."""

    def is_ours(part: Any) -> bool:
        return type(part).__module__.startswith("lit_robust.")

    keys: list[str] = []
    for callback in trainer.callbacks:
        if is_ours(callback) and hasattr(callback, "logged_keys"):
            keys += callback.logged_keys
        elif type(callback) is LearningRateMonitor:  # such as lr-SGD and lr-SGD-momentum
            keys.append("lr-*")
        elif not type(callback).__module__.startswith("lightning."):  # the others log nothing that can be monitored
            return None
    return keys if is_ours(trainer.lightning_module) else None
