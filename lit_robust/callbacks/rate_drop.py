"""When the learning rate drops, known before training starts."""

import warnings
from copy import deepcopy
from typing import Protocol

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lit_robust.schedules import Schedule, Staircase, drops

#: As many as Lightning trains by default, where ``max_epochs`` sets no bound.
ENDLESS = 1000


class Rate(Protocol):
    """What moves a learning rate: a ``Schedule``, or a scheduler of torch, which it steps itself."""

    scheduler: object


class HasRate(Protocol):
    """What a module may have whose optimization is manual, as every Defense does: who moves its learning rate."""

    rate: Rate


def first_drop(trainer: Trainer, pl_module: LightningModule) -> int | None:
    """The first epoch whose learning rate has dropped: by a factor of 2 or more, at once, as ``schedules.drops`` says.

    None if no drop can be foreseen.

    Foreseen are the ``Schedule`` of a module that has it as ``module.rate.scheduler``, as all methods here do, and the
    one scheduler of torch that takes a step an epoch, by a rehearsal on a copy; not a ``ReduceLROnPlateau``, a
    scheduler that counts batches, one of several, and what the module moves by hand. Ask in ``on_fit_start``, when
    schedulers exist and have not been resumed yet.

    Args:
        trainer: Knows how many epochs there are.
        pl_module: What is trained.
    """
    epochs = _epochs(trainer)
    rate = _foreseen(trainer, pl_module, epochs)
    return next(iter(drops(rate, epochs)), None) if rate is not None else None


def no_drop(trainer: Trainer, remedy: str) -> ValueError:
    """The error of a callback that needs one.

    Args:
        trainer: Knows how many epochs there are.
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
        return None  # its own code steps the scheduler, whenever it wants to
    if len(configs) != 1 or configs[0].interval != "epoch" or configs[0].frequency != 1:
        return None
    scheduler = configs[0].scheduler
    if not isinstance(scheduler, LRScheduler) or isinstance(scheduler, ReduceLROnPlateau):
        return None
    return _rehearsed(scheduler, module, epochs)


def _rehearsed(scheduler: LRScheduler, module: LightningModule, epochs: int) -> Staircase:
    """The rates that a scheduler would set; its copies, nested ones too, drive a stand-in for the optimizer.

    The module is not copied, be the rate a method of it or not.
    """
    stand_in = torch.optim.SGD([torch.zeros(1)], lr=0.0)
    stand_in.param_groups = [dict(group) for group in scheduler.optimizer.param_groups]
    copied = deepcopy(scheduler, {id(scheduler.optimizer): stand_in, id(module): module})
    rates = []
    with warnings.catch_warnings(action="ignore"):  # no step of the optimizer comes before the scheduler's
        for _ in range(epochs):
            rates.append(float(stand_in.param_groups[0]["lr"]))
            copied.step()
    return Staircase(range(epochs), rates)
