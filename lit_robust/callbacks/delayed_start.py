"""Delayed adversarial training: natural epochs until the loss has levelled off."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_robust import require
from lit_robust.callbacks.needs import check_not_natural, is_trial
from lit_robust.callbacks.rate_drop import first_drop, no_drop
from lit_robust.checkpoint_states import COUNT_OR_NONE, NUMBERS, check_entries
from lit_robust.lightning_internals import epochs_begun, is_logged_here, logged_by_step_alone


@runtime_checkable
class HasAdversarial(Protocol):
    """What ``DelayedStart`` needs of a module: it trains naturally while this is false."""

    adversarial: bool


class SwitchRule(ABC):
    """When to end natural training; a subclass is a frozen dataclass without state."""

    @abstractmethod
    def __call__(self, losses: Sequence[float]) -> bool:
        """Whether to switch, given the mean natural losses of all epochs so far."""


@dataclass(frozen=True)
class Plateau(SwitchRule):
    """Fires when the loss falls, from one window of epochs to the next, by less than a share of the first loss.

        mean( L[-2W:-W] ) - mean( L[-W:] )  <  drop L[0]

    The test in the DAT paper is not known to us: **this one is ours**. It is relative to the first epoch's loss because
    relative to the present one it would never fire while the loss falls geometrically, even by only 1.5 % per epoch. A
    rising loss counts as levelled off, too.

    Args:
        window: W, in epochs: the smoothing.
        drop: The share of the first epoch's loss.
        min_epochs: The least number of natural epochs; 2 W are needed anyway.

    Raises:
        ValueError: If the window or ``min_epochs`` is below 1, or ``drop`` is not a number from 0 to 1.
    """

    window: int = 5
    drop: float = 0.01
    min_epochs: int = 10

    def __post_init__(self) -> None:
        require.integer("window", self.window, least=1)
        require.integer("min_epochs", self.min_epochs, least=1)
        require.number("drop", self.drop, least=0, most=1, hint="it is a share of the first epoch's loss")

    def __call__(self, losses: Sequence[float]) -> bool:
        """Compare the last two windows."""
        if len(losses) < max(self.min_epochs, 2 * self.window):
            return False
        before, last = losses[-2 * self.window : -self.window], losses[-self.window :]
        return fmean(before) - fmean(last) < self.drop * losses[0]


class DelayedStart(Callback):
    """DAT, delayed adversarial training (Gupta, Dube and Verma, CVPRW 2020, arXiv:2002.04237), on any method.

        min_theta  E CE(f(x), y)                        in the epochs before s
        min_theta  E max_{|x' - x| <= eps} CE(f(x'), y)     from epoch s on, or the method's own objective

    Training switches when ``rule`` finds that the natural loss has levelled off, and at the latest when the learning
    rate drops for the first time: the first epoch with the dropped rate is adversarial. The switch happens once,
    between epochs, and sets only ``module.adversarial``, which is restored after training. Momentum, BatchNorm's
    statistics and schedules, which count natural epochs too, continue, and the loss jumps. The first s epochs cost what
    natural training costs.

    When s is decided, it is announced and logged as ``train/switch_epoch``. Checkpoints hold the losses and s. Losses
    are averaged over ranks, so all ranks switch together. A resumed run follows its own arguments, but a switch that
    was made stands. (In an epoch that is resumed mid-way, Lightning's own means cover the batches since then; a
    Defense's cover all.) A ``fast_dev_run`` is natural.

    Args:
        rule: Judges the losses.
        latest_epoch: The latest s, counted from 0, besides the first epoch with a dropped learning rate. Required if no
            drop can be foreseen (see ``first_drop``): triangular and cosine schedules have none.
        at_epoch: Epoch s itself; then no loss is judged.
        monitor: The name under which the module logs its training loss, with ``on_epoch=True``, which is not
            Lightning's default in a ``training_step``.

    Raises:
        TypeError: If the module has no boolean ``adversarial``.
        ValueError: If the method is natural, training would end before it becomes adversarial, no drop can be foreseen,
            or the loss is not logged, or only by step.
    """

    logged_keys = ("train/switch_epoch",)

    def __init__(
        self,
        rule: SwitchRule = Plateau(),
        latest_epoch: int | None = None,
        at_epoch: int | None = None,
        monitor: str = "train/loss",
    ) -> None:
        if latest_epoch is not None and at_epoch is not None:
            raise ValueError(f"at_epoch={at_epoch} leaves nothing for latest_epoch={latest_epoch} to bound: drop one.")
        require.instance("rule", rule, SwitchRule, "give a Plateau, or a subclass of your own")
        given = {"latest_epoch": latest_epoch, "at_epoch": at_epoch}
        self._given = {name: require.integer(name, n, least=0) for name, n in given.items() if n is not None}
        self.rule = rule
        self.latest_epoch, self.at_epoch = latest_epoch, at_epoch
        self.monitor, self.mode = require.text("monitor", monitor, "give the loss's name, train/loss"), "min"
        #: The mean loss of each natural epoch.
        self.losses: list[float] = []
        #: The first adversarial epoch, once it is decided.
        self.switch_epoch: int | None = None
        self._deadline, self._deadline_name = math.inf, ""
        self._before: bool | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the module and reset; a checkpoint is loaded after this."""
        if stage != "fit":
            return
        check_not_natural(pl_module, "DelayedStart delays the training's attack")
        self._before = _fitting(pl_module).adversarial
        epochs = trainer.max_epochs or -1
        for name, epoch in self._given.items():
            if 0 < epochs <= epoch and not is_trial(trainer):
                raise ValueError(f"{name}={epoch} is not before max_epochs={epochs}: nothing would be adversarial.")
        self.losses, self.switch_epoch = [], None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the latest epoch of the switch."""
        deadlines: dict[str, float] = {f"{name}={epoch}": epoch for name, epoch in self._given.items()}
        if self.at_epoch is None and not is_trial(trainer):
            drop = first_drop(trainer, pl_module)
            if drop is not None:
                deadlines["the learning rate drops"] = drop
            if not deadlines:
                remedy = "give DelayedStart latest_epoch, the epoch that is adversarial in any case, or at_epoch"
                raise no_drop(trainer, remedy)
        self._deadline_name, self._deadline = min(deadlines.items(), key=lambda one: one[1], default=("", math.inf))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continue from a checkpoint, also from the middle of an epoch."""
        made = self.switch_epoch
        if made is not None and made >= epochs_begun(trainer):
            self.switch_epoch = None  # decided, but no batch was adversarial yet: the present arguments count
        elif made is not None:
            late = self.at_epoch is not None and made != self.at_epoch
            remark = f": at_epoch={self.at_epoch} is too late" if late else ""
            rank_zero_info(f"training has been adversarial since epoch {made}{remark}.")
        self._switch(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Switch, if it is time; epochs may have been skipped since the last one's end."""
        self._switch(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check after the first batch that the loss is averaged over the epoch."""
        if batch_idx == 0 and self.switch_epoch is None and self.at_epoch is None:
            self._check_mean(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the epoch's loss to the rule, and log the switch epoch once it is known."""
        if self.switch_epoch is None and self.at_epoch is None:
            self.losses.append(self._loss(trainer, pl_module))
        self._settle(trainer.current_epoch + 1)
        if self.switch_epoch is not None:
            epoch = float(self.switch_epoch)
            pl_module.log("train/switch_epoch", epoch, on_step=False, on_epoch=True, sync_dist=True, batch_size=1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if training was natural throughout: a limit of steps or another callback may end it early."""
        if not _fitting(pl_module).adversarial and not is_trial(trainer):
            rank_zero_warn(
                f"training ends at step {trainer.global_step} and was natural throughout: the switch was to come in "
                f"epoch {self._deadline:g} at the latest."
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the module as it was, for training without a delay."""
        if stage == "fit" and self._before is not None and hasattr(pl_module, "adversarial"):
            _fitting(pl_module).adversarial = self._before
            self._before = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Do the same when training fails."""
        self.teardown(trainer, pl_module, "fit")

    def _settle(self, epoch: int) -> None:
        """Decide whether ``epoch`` is the first adversarial one."""
        if self.switch_epoch is not None:
            return
        if epoch >= self._deadline:
            reason = self._deadline_name
        elif self.losses and self.rule(self.losses):
            reason = f"{self.monitor} has levelled off at {self.losses[-1]:.4g} by {self.rule}"
        else:
            return
        self.switch_epoch = epoch
        rank_zero_info(f"training is adversarial from epoch {epoch} on: {reason}.")

    def values_at(self, epoch: int) -> dict[str, bool]:
        """Whether an epoch that comes next is adversarial, for callbacks that look ahead."""
        return {"adversarial": epoch >= (self._deadline if self.switch_epoch is None else self.switch_epoch)}

    def _switch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._settle(trainer.current_epoch)
        _fitting(pl_module).adversarial = self.values_at(trainer.current_epoch)["adversarial"]

    def _loss(self, trainer: Trainer, pl_module: LightningModule) -> float:
        """The epoch's mean loss over all ranks, whether or not the module's metric is."""
        metrics = trainer.callback_metrics
        if not metrics:
            raise ValueError(
                f"DelayedStart monitors {self.monitor}, but nothing is logged yet: log it with on_epoch=True, and "
                "resume from a checkpoint of the epoch's end, of a ModelCheckpoint with save_on_train_epoch_end: true, "
                "or give at_epoch, which asks for no loss."
            )
        if self.monitor not in metrics:
            raise ValueError(f"DelayedStart monitors {self.monitor}, which is not among {sorted(metrics)}.")
        self._check_mean(trainer)
        mine = metrics[self.monitor].detach().to(pl_module.device, copy=True)  # because reduce works in place
        return float(trainer.strategy.reduce(mine, reduce_op="mean"))

    def _check_mean(self, trainer: Trainer) -> None:
        if logged_by_step_alone(trainer, self.monitor):
            mean = f"{self.monitor.removesuffix('_step')}_epoch"
            remedy = f"monitor {mean}" if is_logged_here(trainer, mean) else "log it with on_epoch=True"
            raise ValueError(
                f"DelayedStart monitors {self.monitor}, which is a batch's value and not the epoch's mean: {remedy}."
            )

    def state_dict(self) -> dict[str, Any]:
        """The losses so far, and the switch if it is decided."""
        return {"losses": list(self.losses), "switch_epoch": self.switch_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint, if it can be used."""
        check_entries(f"callbacks[{self.state_key}]", state_dict, {"losses": NUMBERS, "switch_epoch": COUNT_OR_NONE})
        self.losses, self.switch_epoch = list(state_dict["losses"]), state_dict["switch_epoch"]


def _fitting(module: object) -> HasAdversarial:
    if isinstance(module, HasAdversarial) and isinstance(module.adversarial, bool):
        return module
    raise TypeError(
        f"DelayedStart switches module.adversarial, which {type(module).__name__} lacks: let it train naturally while "
        "that is false, or list AdversarialTraining, which sets it, before DelayedStart."
    )
