"""Refuses, before training, callbacks that monitor a validation metric which is never logged."""

from collections.abc import Collection
from typing import Any


def check_monitors(trainer: Any, logged: Collection[str]) -> None:
    """Refuse callbacks that monitor a validation metric which is never logged; Lightning says so an epoch later.

    Args:
        trainer: Its callbacks are checked.
        logged: The keys that a validation logs; empty if there is no validation.

    Raises:
        ValueError: If a callback monitors a ``val/`` key that is not logged.
    """
    for callback in trainer.callbacks:
        monitor = str(getattr(callback, "monitor", None))
        if monitor.startswith("val/") and monitor not in logged:
            known = ", ".join(key for key in sorted(logged) if key.startswith("val/"))
            raise ValueError(
                f"{type(callback).__name__} monitors {monitor}, "
                + (f"but validation logs {known}: correct the name." if known else _NO_VALIDATION)
            )


_NO_VALIDATION = (
    "but there is no validation: hold images out (data.init_args.val_size), or remove the monitor to keep the last "
    "checkpoint alone."
)


def validates(trainer: Any) -> bool:
    """Whether the run has validation images, including loaders that are only loaded in a later epoch."""
    return trainer.enable_validation and (trainer.val_dataloaders is None or any(trainer.num_val_batches))
