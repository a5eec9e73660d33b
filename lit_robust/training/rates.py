"""Learning rate and momentum over time."""

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lit_robust import require
from lit_robust.lightning_internals import epochs_done
from lit_robust.schedules import Schedule
from lit_robust.schedules.base import check_epochs_have_a_length
from lit_robust.training.added_groups import base_rates_with, unfreeze_added
from lit_robust.training.fused import fuse
from lit_robust.training.optimizer_checks import (
    check_any_parameters,
    check_optimizer,
    check_periods,
    check_plateau,
    check_scheduler,
    check_steps,
    monitored_by,
    tell_of_no_rate,
)

#: Settings of the user that a checkpoint's optimizer would overwrite. Other entries of a group may be its state.
SETTINGS = ("weight_decay", "momentum", "betas", "nesterov", "dampening", "eps")


def sgd(params: Iterable[torch.nn.Parameter]) -> torch.optim.SGD:
    """The default optimizer: SGD with rate 0.1, momentum 0.9 and weight decay 5e-4, the usual one for CIFAR."""
    return torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=5e-4)


class LearningRate:
    """Drives one optimizer by a ``Schedule`` of fractional epochs, or by a torch scheduler.

    A ``Schedule`` is a function of time, so it has no state to resume, and it holds when the number of batches per
    epoch changes. Under manual optimization Lightning steps no scheduler, so torch's are stepped here.

    Args:
        optimizer: Makes the optimizer from parameters.
        scheduler: A Schedule, whose value multiplies the optimizer's ``lr``, or a maker of a torch scheduler.
        interval: When a torch scheduler is stepped.
        momentum: A Schedule of the momentum, absolute; None leaves the optimizer's.
    """

    def __init__(
        self,
        optimizer: OptimizerCallable,
        scheduler: Schedule | LRSchedulerCallable | None,
        interval: Literal["epoch", "step"],
        momentum: Schedule | None,
    ) -> None:
        require.one_of("lr_interval", interval, ("epoch", "step"))
        require.factory("optimizer", optimizer, torch.optim.Optimizer, "functools.partial(torch.optim.SGD, lr=0.1)")
        if scheduler is not None and not isinstance(scheduler, Schedule):
            example = "a Schedule, or functools.partial(torch.optim.lr_scheduler.StepLR, step_size=30)"
            require.factory("lr_scheduler", scheduler, LRScheduler, example)
            given: Any = scheduler
            if isinstance(given, type) and issubclass(given, Schedule):
                raise TypeError(f"lr_scheduler={given.__name__} is a class: write it with its arguments.")
        if momentum is not None:
            require.instance("momentum", momentum, Schedule, "give a Schedule; a constant is the optimizer's own")
        self.make_optimizer, self.scheduler = optimizer, scheduler
        self.interval, self.momentum = interval, momentum
        self.optimizer: torch.optim.Optimizer
        self.torch_scheduler: LRScheduler | ReduceLROnPlateau | None = None
        #: The sections of the checkpoint from which training resumes that are checked here; None in a new training.
        self.resumed: dict[str, Any] | None = None
        #: Whether a batch has begun since ``epoch_done``.
        self.epoch_step_is_due = False

    def __deepcopy__(self, memo: dict[int, Any]) -> "LearningRate":
        """Share the factories: the command line's refer to the trainer, which cannot be copied once it has ranks."""
        return copy(self)

    def configure(self, params: Iterable[torch.nn.Parameter]) -> dict[str, Any]:
        """Build the optimizer, for ``configure_optimizers``."""
        check_any_parameters(weights := list(params))
        self.optimizer = require.instance(
            "what optimizer builds",
            _built("optimizer", self.make_optimizer, weights),
            torch.optim.Optimizer,
            "return a torch optimizer",
        )
        check_steps(self.optimizer)
        fuse(self.optimizer)
        # Kept here, because a checkpoint overwrites the optimizer's state: what the user asks for now counts.
        self.base_rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.settings = [{key: group[key] for key in SETTINGS if key in group} for group in self.optimizer.param_groups]
        if self.momentum is not None and not self.optimizer.param_groups[0].keys() & {"momentum", "betas"}:
            raise ValueError(
                f"momentum is scheduled, but {type(self.optimizer).__name__} has none: remove the schedule."
            )
        saved = self.resumed or {}
        names = saved.get("lit_robust", {})
        if self.resumed is not None:
            check_optimizer(self.optimizer, saved["optimizer_states"], names.get("optimizer"), kept=SETTINGS)
        if self.scheduler is None or isinstance(self.scheduler, Schedule):
            check_scheduler(None, saved.get("lr_schedulers", []), None)
            tell_of_no_rate(self.optimizer)  # a torch scheduler may set rates of its own
            return {"optimizer": self.optimizer}
        self.torch_scheduler = require.instance(
            "what lr_scheduler builds",
            _built("lr_scheduler", self.scheduler, self.optimizer),
            (LRScheduler, ReduceLROnPlateau),
            "return a torch scheduler",
        )
        if isinstance(self.torch_scheduler, ReduceLROnPlateau):
            check_plateau(self.torch_scheduler, self.interval)
        check_periods(self.torch_scheduler)
        if self.resumed is not None:
            check_scheduler(self.torch_scheduler, saved["lr_schedulers"], names.get("lr_scheduler"))
        return {
            "optimizer": self.optimizer,
            "lr_scheduler": {"scheduler": self.torch_scheduler, "interval": self.interval},
        }

    def saved(self, checkpoint: Mapping[str, Any], epoch: int) -> dict[str, Any]:
        """What a checkpoint holds besides Lightning's states: classes (none before ``configure``), and a step to come.

        And the rates that a Schedule multiplies, which cannot be computed from the present ones for groups that were
        added in mid-training.

        Args:
            checkpoint: Holds the number of epochs that a resumed training will not train.
            epoch: The current epoch.
        """
        parts = {"optimizer": getattr(self, "optimizer", None), "lr_scheduler": self.torch_scheduler}
        names = {name: None if part is None else type(part).__name__ for name, part in parts.items()}
        due = self.epoch_step_is_due and epochs_done(checkpoint) > epoch
        return {**names, "base_rates": [*getattr(self, "base_rates", ())], "epoch_step_is_due": due}

    def resume(self, checkpoint: Mapping[str, Any]) -> None:
        """Remember what ``configure`` compares with the new optimizer and scheduler."""
        self.resumed = {name: checkpoint.get(name, []) for name in ("optimizer_states", "lr_schedulers")}
        self.resumed["lit_robust"] = checkpoint.get("lit_robust", {})

    @property
    def current(self) -> float:
        """The learning rate of the first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def check_clock(self, trainer: Any) -> None:
        """Refuse schedules of time if epochs have no length.

        Raises:
            ValueError: If there is one.
        """
        for name, value in (("lr_scheduler", self.scheduler), ("momentum", self.momentum)):
            if isinstance(value, Schedule):
                check_epochs_have_a_length(trainer, name)

    def restore_settings(self, net: nn.Module) -> None:
        """Put the user's settings over a checkpoint's, under a torch scheduler only weight decay; make a step to come.

        A torch scheduler may have changed the others; its step is to come if a callback saved in
        ``on_train_epoch_end``, before the module's turn. A momentum that a Schedule drives stays, because a callback
        may log it before the next batch sets it. Weights that the checkpoint's training had added to the optimizer are
        unfrozen.
        """
        if self.resumed is not None:
            unfreeze_added(net, self.optimizer.param_groups[len(self.settings) :])
        for group, settings in zip(self.optimizer.param_groups, self.settings, strict=False):  # others were added later
            decay = {key: value for key, value in settings.items() if key == "weight_decay"}
            now = settings if self.torch_scheduler is None else decay
            if self.momentum is not None and "betas" in group:
                now = now | {"betas": (group["betas"][0], *now.get("betas", group["betas"])[1:])}
            elif self.momentum is not None:
                now = now | {"momentum": group["momentum"]}
            group.update(now)
        if self.resumed is not None and self.resumed["lit_robust"].get("epoch_step_is_due"):
            self.epoch_done({})

    def set(self, time: float) -> None:
        """Apply the schedules at a moment in fractional epochs."""
        self.epoch_step_is_due = True
        self._add_new_groups()
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            if self.torch_scheduler is None:
                group["lr"] = base * (self.scheduler(time) if isinstance(self.scheduler, Schedule) else 1)
            if group["lr"] < 0:
                raise ValueError(
                    f"lr_scheduler gives the learning rate {group['lr']:.4g} at epoch {time:.4g}: let its values be 0 "
                    "or above."
                )
            if self.momentum is not None and "betas" in group:
                group["betas"] = (self.momentum(time), group["betas"][1])
            elif self.momentum is not None:
                group["momentum"] = self.momentum(time)

    def _add_new_groups(self) -> None:
        """A group that was added in mid-training keeps the ratio of its rate to the first group's."""
        if added := self.optimizer.param_groups[len(self.base_rates) :]:
            saved = self.resumed["lit_robust"].get("base_rates", []) if self.resumed is not None else []
            self.base_rates = base_rates_with(added, self.current, self.base_rates, saved)

    def batch_done(self) -> None:
        """Step a torch scheduler that counts batches."""
        if isinstance(self.torch_scheduler, LRScheduler) and self.interval == "step":
            _step(self.torch_scheduler)

    def epoch_done(self, metrics: Mapping[str, Any]) -> None:
        """Step a torch scheduler that counts epochs, with the metric that it monitors.

        Raises:
            ValueError: If a plateau scheduler monitors a metric that is not logged, or resumes from a checkpoint of the
                end of a validation, which holds no metrics.
        """
        if isinstance(self.torch_scheduler, ReduceLROnPlateau):
            monitor = monitored_by(self.torch_scheduler)
            if not metrics:
                raise ValueError(
                    f"the scheduler monitors {monitor}, but nothing is logged yet: resume from a checkpoint of the "
                    "epoch's end, of a ModelCheckpoint with save_on_train_epoch_end: true."
                )
            if monitor not in metrics:
                raise ValueError(f"the scheduler monitors {monitor}, which is not among {sorted(metrics)}.")
            _step(self.torch_scheduler, metrics[monitor])
        elif self.torch_scheduler is not None and self.interval == "epoch":
            _step(self.torch_scheduler)
        self.epoch_step_is_due = False


def _built(name: str, make: Callable[..., Any], argument: Any) -> Any:
    """Build an optimizer or a scheduler, which may not have checked its arguments.

    Raises:
        ValueError: If it fails on one, as ``SGD(lr=None)``, or a factory keeps no parameter.
    """
    try:
        return make(argument)
    except ValueError as error:
        if "empty parameter list" in str(error):  # such as that of a filter by requires_grad
            raise ValueError(
                f"{name} keeps none of the net's parameters, so there is nothing to train: unfreeze some by "
                "requires_grad_(True), or give the optimizer all."
            ) from error
        raise
    except (TypeError, ArithmeticError, LookupError) as error:
        raise ValueError(
            f"{name} cannot be built from its arguments ({type(error).__name__}: {error}): change them."
        ) from error


def _step(scheduler: Any, *metric: Any) -> None:
    """Step a torch scheduler, which may not have checked its arguments.

    Raises:
        ValueError: If it cannot compute a rate from them, as ``StepLR(step_size=0)``.
    """
    try:
        scheduler.step(*metric)
    except ArithmeticError as error:
        raise ValueError(f"{type(scheduler).__name__} gives no rate ({error}): change its arguments.") from error
