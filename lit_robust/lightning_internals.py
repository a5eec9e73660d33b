"""Everything we use of Lightning that is not public API, as of Lightning 2.6.6.

Each function says what breaks without it. No other file touches Lightning's internals except ``callbacks/ema.py``,
which subclasses ``WeightAveraging``. If Lightning no longer has what a function reads, calling the function raises an
ImportError of one sentence; importing this file does not need Lightning.
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
        f"lit_robust relies on internals of lightning 2.6 that lightning {lightning.__version__} has changed ({what}): "
        'pip install "lightning>=2.6,<2.7".'
    )


def _inside(function: Callable[P, R]) -> Callable[P, R]:
    """Raise an ImportError that names the tested versions if an internal is gone."""

    @wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except (ImportError, AttributeError, KeyError) as error:
            raise _changed(f"{function.__name__}: {error}") from error

    return guarded


# Training progress.


@_inside
def batch_in_epoch(trainer: Any) -> int:
    """Index in its epoch of the current batch: 0 before the first, the last trained batch's after a resume.

    Lightning passes it to hooks, except ``on_train_start``. Without it, a run resumed in mid-epoch would start with the
    ramps' values at the epoch's beginning, and would draw other adversarial images.
    """
    return max(int(trainer.fit_loop.batch_idx), 0)


@_inside
def batches_begun(trainer: Any) -> int:
    """Number of batches begun, over all epochs; ``trainer.global_step`` counts optimizer steps instead.

    Without it, a closure that is evaluated twice would attack its batch twice, and intervals would be wrong by the
    number of optimizer steps per batch.
    """
    return int(trainer.fit_loop.total_batch_idx) + 1


@_inside
def is_due_for_logging(trainer: Any) -> bool:
    """Whether this batch's metrics are to be logged, by ``log_every_n_steps``, which one of the connectors sets.

    Without it, metrics would be logged for every batch, which costs as much as a small net's forward.
    """
    every = int(trainer.log_every_n_steps)
    return every > 0 and batches_begun(trainer) % every == 0


def fractional_epoch(trainer: Any, batch_idx: int) -> float:
    """The start of a batch in fractional epochs, the argument of every schedule.

    It uses public API only, and is here because it is needed together with ``batch_in_epoch``.
    """
    return float(trainer.current_epoch + batch_idx / trainer.num_training_batches)


@_inside
def epochs_begun(trainer: Any) -> int:
    """Number of epochs begun, including the current one; ``trainer.current_epoch`` increases at an epoch's end.

    Without it, ``DelayedStart`` cannot tell whether a switch that has been decided has already taken place.
    """
    return int(trainer.fit_loop.epoch_progress.current.started)


@_inside
def epochs_done(checkpoint: Mapping[str, Any]) -> int:
    """Number of epochs trained and validated before a checkpoint was written, 0 if it holds no loops.

    The checkpoint's ``epoch`` is the last epoch's index, whether it was finished or not. Without this, ``fit`` would
    resume a training that is complete, and rename its metrics file.
    """
    loops = checkpoint.get("loops")
    return int(loops["fit_loop"]["epoch_progress"]["current"]["processed"]) if loops else 0


@_inside
def end_the_epoch(fit_loop: dict[str, Any]) -> None:
    """Make a run that was saved after an epoch's last batch validate and end that epoch when it resumes.

    Lightning counts that batch as unfinished and resumes with the next epoch: it skips the validation, the step of an
    epoch-wise scheduler, and everything else in ``on_train_epoch_end``. So the loops' progress in the checkpoint is
    changed in place: the batch becomes finished, and the validation interrupted before its first batch.

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


@_inside
def loops_to_restore(trainer: Any) -> dict[str, Any]:
    """The states of the fit loop and of this stage's loop, by their names in a checkpoint.

    Without it, a broken checkpoint would be restored in part, and fail by a KeyError of Lightning's or in mid-training.
    """
    names = ("fit_loop", f"{trainer.state.fn.value}_loop")
    # "state_dict" depends on whether the loaders have begun.
    return {name: getattr(trainer, name).state_dict() | {"state_dict": {}} for name in names}


# Batches, loaders and metrics.


@_inside
def change_batches(trainer: Any, change: Callable[[Any], Any]) -> None:
    """Pass ``change(batch)`` to ``training_step`` instead of the batch, until ``restore_batches``.

    The strategy, which calls the step, is patched, so the module can still be copied and pickled. No callback hook can
    replace a batch; without this, ``AdversarialTraining`` would train on clean images.
    """
    step = trainer.strategy.training_step

    def training_step(batch: Any, *args: Any, **kwargs: Any) -> Any:
        return step(change(batch), *args, **kwargs)

    trainer.strategy.training_step = training_step


@_inside
def restore_batches(trainer: Any) -> None:
    """Undo ``change_batches``; without it, the trainer's next fit would be attacked, too."""
    vars(trainer.strategy).pop("training_step", None)


@_inside
def reload_every_epoch(trainer: Any) -> None:
    """Reload the dataloaders in every epoch, unless the user has set an interval.

    Lightning counts a dataloader's batches only when it loads it. Without this, an epoch that has become longer would
    be cut off silently, and one that has become shorter would never be validated.
    """
    if trainer.reload_dataloaders_every_n_epochs == 0:
        trainer.reload_dataloaders_every_n_epochs = 1


@_inside
def logged_by_step_alone(trainer: Any, name: str) -> bool:
    """Whether a metric of this loop is logged without a mean over the epoch; public API does not tell.

    Without it, ``DelayedStart`` would take the last batch's loss for the epoch's.
    """
    found = [record.meta for record in (trainer._results or {}).values() if record.meta.name == name]
    return bool(found) and not any(meta.on_epoch for meta in found)


@_inside
def go_on_in_folder(logger: Any, name: str) -> None:
    """Make a CSVLogger write into the folder of an earlier run, such as ``version_3``.

    Its argument ``version`` would do the same, but the logger is built before the checkpoint is found. A numeric
    version stays a number, because the progress bar shows only the last four characters of a string. Without this, a
    resumed run would log into a new folder.
    """
    number = re.fullmatch(r"version_(0|[1-9]\d*)", name)
    _ = logger._version  # if that is gone, setting it would do nothing
    logger._version = int(number[1]) if number else name


# Modules and the command line.


@cache
def names_in_every_module() -> frozenset[str]:
    """Names that Lightning and torch put into every module's ``__dict__``, such as ``prepare_data_per_node``.

    Without it, ``AttributeRamp`` would suggest these names to a user who misspells an attribute of the module.
    """
    from lightning.pytorch import LightningModule

    return frozenset(vars(LightningModule()))


@_inside
def built_by_the_command_line() -> bool:
    """Whether a module is being built from a configuration, which ``save_hyperparameters`` then saves.

    Without it, a module built in Python would save live objects as its hyper-parameters, which a checkpoint that is
    safe to load cannot hold.
    """
    from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters

    return _given_hyperparameters.get() is not None


@_inside
def compile_alike(net: Any, compiled: Any) -> None:
    """Compile a net in place as ``torch.compile`` has compiled the wrapper around it, with the same options.

    Without it, the wrapper's name would be in every key of a checkpoint, or the backend and mode would be lost.
    """
    net._compiled_call_impl = compiled.dynamo_ctx(net._call_impl)


@_inside
def is_compiled(net: Any) -> bool:
    """Whether a net is compiled in place; without it, it would be compiled anew, without the user's options."""
    return net._compiled_call_impl is not None


class CommandLineInternals:
    """Overrides private methods of ``LightningCLI``; a command line inherits from this class first.

    Without it, a checkpoint's arguments would silently override those that the user gives beside ``--ckpt_path``, and
    subcommands would have Lightning's defaults.
    """

    #: Defaults of the trainer's methods, by subcommand.
    subcommand_defaults: ClassVar[Mapping[str, dict[str, Any]]] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        for name in ("_parse_ckpt_path", "_prepare_subcommand_parser"):
            if not hasattr(super(), name):
                raise _changed(f"LightningCLI.{name}")
        super().__init__(*args, **kwargs)

    def _parse_ckpt_path(self) -> None:
        """Do nothing, so that a checkpoint's arguments do not override the user's."""

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> Any:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)  # type: ignore[misc]  # LightningCLI's
        parser.set_defaults(self.subcommand_defaults.get(subcommand, {}))
        return parser
