"""Epochs that a plan skips, which count for every schedule."""

from collections.abc import Callable
from typing import Any, Protocol

from lightning.pytorch import Callback, Trainer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lit_robust.lightning_internals import epoch_counts


class HasRate(Protocol):
    """What a module may have that steps a torch scheduler itself, as every Defense does."""

    rate: Any


def move_to_front(trainer: Any, callback: Callback) -> None:
    """Make a callback the first, so that the others see what it does to the clock; the trainer may be iterating."""
    trainer.callbacks = [callback, *(other for other in trainer.callbacks if other is not callback)]


def require_epochs(trainer: Trainer, warm: float) -> None:
    """Refuse a warm start of a training whose length is unknown.

    Raises:
        ValueError: If ``max_epochs`` is missing.
    """
    if warm > 0 and (trainer.max_epochs is None or trainer.max_epochs < 1):
        raise ValueError(
            f"warm={warm:g} is a share of max_epochs, which is {trainer.max_epochs}: set the trainer's max_epochs, or "
            "warm=0."
        )


def warm_start(fraction: Callable[[int], float], warm: float, epochs: int) -> tuple[int, int]:
    """How many epochs train on everything, and the first one that trains on a subset."""
    first = int(warm * epochs) if warm > 0 else 0
    return round(fraction(first) * first), first


def skip(trainer: Trainer, module: object, epochs: int) -> None:
    """Let the epoch that comes next be later, in a hook of an epoch's end or before the first epoch.

    ``trainer.current_epoch`` changes in ``follow_skipped``: until then, the epoch that ends is logged under its number.
    """
    counts = epoch_counts(trainer)
    counts.ready, counts.started = counts.ready + epochs, counts.started + epochs
    counts.processed += epochs
    _step_schedulers(trainer, module, epochs)


def follow_skipped(trainer: Trainer) -> None:
    """Let ``trainer.current_epoch`` follow, at an epoch's start and before other callbacks read it."""
    counts = epoch_counts(trainer)
    counts.completed = counts.processed


def _step_schedulers(trainer: Trainer, module: Any, epochs: int) -> None:
    """Let torch schedulers that count epochs pass over skipped ones; plateau schedulers have nothing to judge there."""
    schedulers: list[Any] = [config.scheduler for config in trainer.lr_scheduler_configs if config.interval == "epoch"]
    own = getattr(module, "rate", None)
    if getattr(own, "interval", "") == "epoch":
        schedulers.append(getattr(own, "torch_scheduler", None))
    for scheduler in schedulers:
        if isinstance(scheduler, LRScheduler) and not isinstance(scheduler, ReduceLROnPlateau):
            for _ in range(epochs):
                scheduler.step()
