"""Refuses monitors that take a worse metric for a better one."""

from collections.abc import Iterator
from typing import Any


def right_mode(monitor: str) -> str | None:
    """Whether the best value of a metric is its ``max`` or its ``min``; None if the name does not tell."""
    return "max" if "/acc/" in monitor else "min" if "loss" in monitor else None


def check_directions(trainer: Any) -> None:
    """Refuse callbacks and schedulers whose ``mode`` contradicts the metric; the default of most is ``min``.

    Raises:
        ValueError: At the first one.
    """
    for watcher, monitor in _watchers(trainer):
        mode, right = getattr(watcher, "mode", None), right_mode(monitor)
        if right is not None and mode in ("min", "max") and mode != right:
            sought = {"min": "smallest", "max": "largest"}[mode]
            raise ValueError(
                f'{type(watcher).__name__} monitors {monitor}, but mode="{mode}" looks for its {sought} value: set '
                f'mode="{right}".'
            )


def _watchers(trainer: Any) -> Iterator[tuple[Any, str]]:
    parts = [(callback, getattr(callback, "monitor", None)) for callback in trainer.callbacks]
    for config in trainer.lr_scheduler_configs:
        parts.append((config.scheduler, getattr(config.scheduler, "monitor", None) or config.monitor))
    yield from ((part, monitor) for part, monitor in parts if isinstance(monitor, str))
