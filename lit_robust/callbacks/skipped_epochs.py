"""Epochs that a plan skips, which count for every schedule."""

import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from lightning.pytorch import Callback, Trainer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lit_robust.lightning_internals import skip_epochs


def move_to_front(trainer: Any, callback: Callback) -> None:
    """Put a callback first, so that the others see the changed epoch.

    The list is a new one, because the trainer may be iterating over the old one.
    """
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
    """How many epochs train on everything, and the first one that trains on a subset.

    The product of a share and a count is rounded as if it was exact: 0.29 of 100 epochs are 29, although the product of
    these floats is below 29.
    """
    first = min(int(times(warm, epochs)), max(epochs - 1, 0)) if warm > 0 else 0
    return round(times(fraction(first), first)), first


def times(share: float, count: int) -> Fraction:
    """A share as it was meant (0.29, or 1/3 with 16 digits) times a count, without a float's rounding error."""
    return Fraction(share).limit_denominator(10**9) * count


def skip(trainer: Trainer, first: int, end: int) -> None:
    """Skip epochs ``first`` to ``end - 1``, which come next, in a hook of an epoch's end or before the first epoch.

    ``trainer.current_epoch`` changes in ``set_current_epoch``, so that the epoch that ends is logged under its own
    number.
    """
    skip_epochs(trainer, end - first)
    for epoch in range(first, end):
        _step_schedulers(trainer, epoch)


def _step_schedulers(trainer: Trainer, epoch: int) -> None:
    """Step torch schedulers that count epochs; plateau schedulers have no metric in a skipped epoch."""
    for config in trainer.lr_scheduler_configs:
        scheduler: Any = config.scheduler
        due = config.interval == "epoch" and (epoch + 1) % config.frequency == 0
        if due and isinstance(scheduler, LRScheduler) and not isinstance(scheduler, ReduceLROnPlateau):
            with warnings.catch_warnings():
                # torch warns of a scheduler step before the first optimizer step; here it is intended.
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
                scheduler.step()
