"""Finds the first drop of the learning rate before training starts."""

import warnings
from copy import deepcopy
from typing import Protocol

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lit_robust.schedules import Schedule, Staircase, drops

#: The epochs that are searched if ``max_epochs`` sets no bound; Lightning's default.
ENDLESS = 1000


class Rate(Protocol):
    """The owner of a learning-rate ``Schedule``, or of a torch scheduler that it steps itself."""

    scheduler: object


class HasRate(Protocol):
    """What a module with manual optimization may have, as every Defense does: the owner of its schedule."""

    rate: Rate


def first_drop(trainer: Trainer, pl_module: LightningModule) -> int | None:
    """The first epoch after a drop of the learning rate by a factor of 2 or more at once, see ``schedules.drops``.

    None if no drop can be foreseen.

    It foresees a ``Schedule`` in ``module.rate.scheduler``, where all methods here have it, and a single torch
    scheduler that is stepped once per epoch, by stepping a copy. It does not foresee a ``ReduceLROnPlateau``, a
    scheduler that counts batches, one of several, or a rate that the module changes by hand. Call it in
    ``on_fit_start``, when schedulers exist and have not been resumed yet.

    Args:
        trainer: Gives the number of epochs and the schedulers.
        pl_module: The module in training.
    """
    epochs = _epochs(trainer)
    rate = _foreseen(trainer, pl_module, epochs)
    return next(iter(drops(rate, epochs)), None) if rate is not None else None


def no_drop(trainer: Trainer, remedy: str) -> ValueError:
    """The error of a callback that needs a drop.

    Args:
        trainer: Gives the number of epochs.
        remedy: What a user can do without a drop.
    """
    return ValueError(
        "no drop of the learning rate (by a factor of 2 or more at once, by a schedule that counts epochs) can be "
        f"foreseen in {_epochs(trainer)} epochs: {remedy}."
    )


def _epochs(trainer: Trainer) -> int:
    return trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else ENDLESS


def _foreseen(trainer: Trainer, module: LightningModule, epochs: int) -> Schedule | None:
    rate = getattr(module, "rate", None)
    schedule = getattr(rate, "scheduler", None)
    if isinstance(schedule, Schedule):
        return schedule
    configs = trainer.lr_scheduler_configs
    if not (module.automatic_optimization or hasattr(rate, "scheduler")):
        return None  # its own code steps the scheduler, at any time
    if len(configs) != 1 or configs[0].interval != "epoch" or configs[0].frequency != 1:
        return None
    scheduler = configs[0].scheduler
    if not isinstance(scheduler, LRScheduler) or isinstance(scheduler, ReduceLROnPlateau):
        return None
    return _rehearsed(scheduler, module, epochs)


def _rehearsed(scheduler: LRScheduler, module: LightningModule, epochs: int) -> Staircase:
    """The rates that a scheduler would set, found by stepping a copy of it on a stand-in for the optimizer.

    Nested schedulers are copied too; the module is not, even if its method computes the rate.
    """
    stand_in = torch.optim.SGD([torch.zeros(1)], lr=0.0)
    stand_in.param_groups = [dict(group) for group in scheduler.optimizer.param_groups]
    copied = deepcopy(scheduler, {id(scheduler.optimizer): stand_in, id(module): module})
    rates = []
    with warnings.catch_warnings(action="ignore"):  # that no optimizer step comes before the scheduler's
        for _ in range(epochs):
            rates.append(float(stand_in.param_groups[0]["lr"]))
            copied.step()
    return Staircase(range(epochs), rates)
