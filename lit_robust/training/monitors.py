"""Callbacks that wait for a metric which never comes, told before the training."""

from collections.abc import Collection
from typing import Any


def check_monitors(trainer: Any, logged: Collection[str]) -> None:
    """Refuse callbacks that wait for a metric of the validation that never comes; Lightning says so an epoch later.

    Args:
        trainer: Whose callbacks are asked.
        logged: The keys that one validation logs; none where there is no validation.

    Raises:
        ValueError: If a callback's ``monitor`` is another ``val/`` key.
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
    """Whether the run has images to validate on; those of a later epoch only, which are not loaded yet, count."""
    return trainer.enable_validation and (trainer.val_dataloaders is None or any(trainer.num_val_batches))
