"""When the learning rate drops, known before training starts."""

import warnings
from copy import deepcopy

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lit_robust.schedules import Schedule, Staircase, drops

#: As many as Lightning trains by default, where ``max_epochs`` sets no bound.
ENDLESS = 1000


def first_drop(trainer: Trainer, pl_module: LightningModule, remedy: str) -> int:
    """The first epoch whose learning rate has dropped: by a factor of 2 or more, at once, as ``schedules.drops`` says.

    Foreseen are the ``Schedule`` of a module that has it as ``module.rate.scheduler``, as all methods here do, and the
    one scheduler of torch that takes a step an epoch, by a rehearsal on a copy; not a ``ReduceLROnPlateau``, a
    scheduler that counts batches, one of several, and rates that are set by hand. Ask in ``on_fit_start``, when
    schedulers exist and have not been resumed yet.

    Args:
        trainer: Knows how many epochs there are.
        pl_module: What is trained.
        remedy: What a user can do without a drop.

    Raises:
        ValueError: If no drop can be foreseen.
    """
    epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else ENDLESS
    rate = _foreseen(trainer, pl_module, epochs)
    found = drops(rate, epochs) if rate is not None else []
    if not found:
        raise ValueError(
            "no drop of the learning rate (by a factor of 2 or more at once, by a schedule that counts epochs) can be "
            f"foreseen in {epochs} epochs: {remedy}."
        )
    return found[0]


def _foreseen(trainer: Trainer, module: LightningModule, epochs: int) -> Schedule | None:
    schedule = getattr(getattr(module, "rate", None), "scheduler", None)
    if isinstance(schedule, Schedule):
        return schedule
    configs = trainer.lr_scheduler_configs
    if len(configs) != 1 or configs[0].interval != "epoch" or configs[0].frequency != 1:
        return None
    scheduler = configs[0].scheduler
    if not isinstance(scheduler, LRScheduler) or isinstance(scheduler, ReduceLROnPlateau):
        return None
    return _rehearsed(scheduler, epochs)


def _rehearsed(scheduler: LRScheduler, epochs: int) -> Staircase:
    """The rates that a scheduler would set; its copies, nested ones too, drive a stand-in for the optimizer."""
    stand_in = torch.optim.SGD([torch.zeros(1)], lr=0.0)
    stand_in.param_groups = [dict(group) for group in scheduler.optimizer.param_groups]
    copied = deepcopy(scheduler, {id(scheduler.optimizer): stand_in})
    rates = []
    with warnings.catch_warnings(action="ignore"):  # no step of the optimizer comes before the scheduler's
        for _ in range(epochs):
            rates.append(float(stand_in.param_groups[0]["lr"]))
            copied.step()
    return Staircase(range(epochs), rates)
