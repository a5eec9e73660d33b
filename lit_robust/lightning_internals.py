"""All that we know of Lightning's insides, read in Lightning 2.6.6.

Nothing here is public API, so each function says what breaks without it, and no other file touches it except
``callbacks/ema.py``, which is a subclass of ``WeightAveraging``. Where Lightning no longer has what a function reads,
the function says so in one sentence when it is called; importing this file needs no Lightning at all.
"""

import re
from collections.abc import Callable, Mapping
from functools import cache, wraps
from typing import Any, ClassVar, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def _changed(what: object) -> ImportError:
    import lightning

    return ImportError(
        f"lit_robust knows the insides of lightning 2.6, which lightning {lightning.__version__} has changed ({what}): "
        'pip install "lightning>=2.6,<2.7".'
    )


def _inside(function: Callable[P, R]) -> Callable[P, R]:
    """Answer what Lightning no longer has by the range that was tested."""

    @wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except (ImportError, AttributeError, KeyError) as error:
            raise _changed(f"{function.__name__}: {error}") from error

    return guarded


# Where the training stands.


@_inside
def batch_in_epoch(trainer: Any) -> int:
    """Index in its epoch of the batch in training, 0 before the first; of a resumed run, the last one's.

    Hooks are given it, except ``on_train_start``. Without it a run that is resumed in mid-epoch starts with the ramps'
    values of the epoch's beginning, and draws other adversaries.
    """
    return max(int(trainer.fit_loop.batch_idx), 0)


@_inside
def batches_begun(trainer: Any) -> int:
    """How many batches of all epochs have begun; ``trainer.global_step`` counts steps of optimizers instead.

    Without it a closure that is evaluated twice attacks its batch twice, and intervals are off by the steps a batch.
    """
    return int(trainer.fit_loop.total_batch_idx) + 1


@_inside
def is_due_for_logging(trainer: Any) -> bool:
    """Whether ``log_every_n_steps``, which one of the trainer's connectors sets, asks for this batch's metrics.

    Without it metrics are logged for every batch, which costs as much as a small net's forward.
    """
    every = int(trainer.log_every_n_steps)
    return every > 0 and batches_begun(trainer) % every == 0


def fractional_epoch(trainer: Any, batch_idx: int) -> float:
    """The start of a batch in fractional epochs: what every schedule is a function of.

    Public API, and here because it is read together with the batch's index.
    """
    return float(trainer.current_epoch + batch_idx / trainer.num_training_batches)


@_inside
def epochs_begun(trainer: Any) -> int:
    """How many epochs have begun, the one in training included; ``trainer.current_epoch`` moves on at an epoch's end.

    Without it ``DelayedStart`` cannot tell a switch that was settled from one that has been made.
    """
    return int(trainer.fit_loop.epoch_progress.current.started)


@_inside
def epochs_done(checkpoint: Mapping[str, Any]) -> int:
    """How many epochs were trained and validated before a checkpoint was written, 0 if it keeps no loops.

    The checkpoint's ``epoch`` is the last one's index, done or not. Without it ``fit`` goes on with a training that is
    done, and moves its metrics aside.
    """
    loops = checkpoint.get("loops")
    return int(loops["fit_loop"]["epoch_progress"]["current"]["processed"]) if loops else 0


@_inside
def end_the_epoch(fit_loop: dict[str, Any]) -> None:
    """Let a run that was saved after an epoch's last batch validate and end that epoch before the next one.

    Lightning counts the batch as unfinished then, and goes on with the next epoch: no validation, no step of a
    scheduler by epochs, nothing else that waits for ``on_train_epoch_end``. So the loops' progress, as a checkpoint
    holds it, is changed in place: the batch is done, and validation was interrupted before its first batch.

    Args:
        fit_loop: ``checkpoint["loops"]["fit_loop"]``; nothing is done if it is empty.
    """
    if not fit_loop:
        return
    batches, validation = (fit_loop[f"epoch_loop.{part}batch_progress"] for part in ("", "val_loop."))
    if batches["is_last_batch"] and batches["total"]["completed"] < batches["total"]["processed"]:
        for count in ("total", "current"):
            batches[count]["completed"] = batches[count]["processed"]
            validation[count] = dict.fromkeys(validation[count], 0)
        validation["total"] |= {"ready": 1, "started": 1}
        validation["is_last_batch"] = False


# What it does with batches, loaders and metrics.


@_inside
def change_batches(trainer: Any, change: Callable[[Any], Any]) -> None:
    """Give ``training_step`` what ``change`` makes of each batch, until ``restore_batches``.

    That is done in the strategy, which calls the step: the module can still be copied and pickled. No hook can hand on
    another batch; without it ``AdversarialTraining`` trains on clean images.
    """
    step = trainer.strategy.training_step

    def training_step(batch: Any, *args: Any, **kwargs: Any) -> Any:
        return step(change(batch), *args, **kwargs)

    trainer.strategy.training_step = training_step


@_inside
def restore_batches(trainer: Any) -> None:
    """Undo ``change_batches``; without it a trainer's next fit is attacked, too."""
    vars(trainer.strategy).pop("training_step", None)


@_inside
def reload_every_epoch(trainer: Any) -> None:
    """Load loaders anew in each epoch, unless the user has said when.

    Lightning counts a loader's batches only when it loads it. Without this, an epoch that has become longer is cut off
    silently, and one that has become shorter is never validated.
    """
    if trainer.reload_dataloaders_every_n_epochs == 0:
        trainer.reload_dataloaders_every_n_epochs = 1


@_inside
def logged_by_step_alone(trainer: Any, name: str) -> bool:
    """Whether a metric of this loop is logged without a mean over the epoch, which no public record tells.

    Without it ``DelayedStart`` takes the last batch's loss for the epoch's.
    """
    found = [record.meta for record in (trainer._results or {}).values() if record.meta.name == name]
    return bool(found) and not any(meta.on_epoch for meta in found)


@_inside
def go_on_in_folder(logger: Any, name: str) -> None:
    """Let a CSVLogger write into the folder of an earlier run, such as ``version_3``.

    Its argument ``version`` would do so, but the logger exists before the checkpoint is found. A number stays one:
    of a string the progress bar shows the last four characters. Without it a resumed run logs into a new folder.
    """
    number = re.fullmatch(r"version_(0|[1-9]\d*)", name)
    _ = logger._version  # if that is gone, setting it would do nothing
    logger._version = int(number[1]) if number else name


# What modules and the command line are made of.


@cache
def names_in_every_module() -> frozenset[str]:
    """What Lightning and torch keep in the ``__dict__`` of every module, ``prepare_data_per_node`` for one.

    Without it ``AttributeRamp`` suggests these to a user who has misspelt a number of a module.
    """
    from lightning.pytorch import LightningModule

    return frozenset(vars(LightningModule()))


@_inside
def built_by_the_command_line() -> bool:
    """Whether a module is being built from a configuration, which then is what ``save_hyperparameters`` keeps.

    Without it the hyper-parameters of a module that is built in Python are live objects, which a checkpoint that is
    safe to load cannot hold.
    """
    from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters

    return _given_hyperparameters.get() is not None


class CommandLineInternals:
    """Stands before ``LightningCLI`` among the bases of a command line, and overrides what is private there.

    Without it a checkpoint's arguments silently win over those that the user writes beside ``--ckpt_path``, and
    subcommands have Lightning's defaults.
    """

    #: Defaults of the trainer's methods, by subcommand.
    subcommand_defaults: ClassVar[Mapping[str, dict[str, Any]]] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        for name in ("_parse_ckpt_path", "_prepare_subcommand_parser"):
            if not hasattr(super(), name):
                raise _changed(f"LightningCLI.{name}")
        super().__init__(*args, **kwargs)

    def _parse_ckpt_path(self) -> None:
        """Lay nothing over what the user writes."""

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> Any:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)  # type: ignore[misc]  # LightningCLI's
        parser.set_defaults(self.subcommand_defaults.get(subcommand, {}))
        return parser
