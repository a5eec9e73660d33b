"""Everything we use of Lightning that is not public API, as of Lightning 2.6.6.

Each function says what breaks without it. No other file touches Lightning's internals except ``callbacks/ema.py``,
which subclasses ``WeightAveraging``. If Lightning no longer has what a function reads, calling the function raises an
ImportError of one sentence; importing this file does not need Lightning.
"""

import re
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def _changed(what: object) -> ImportError:
    """An error that names the tested versions of Lightning, because an internal is gone."""
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

    Lightning does not pass it to ``on_train_start``. Without it, a run resumed in mid-epoch would start with the ramps'
    values at the epoch's beginning.
    """
    return max(int(trainer.fit_loop.batch_idx), 0)


@_inside
def batches_begun(trainer: Any) -> int:
    """Number of batches begun, over all epochs; ``trainer.global_step`` counts optimizer steps instead.

    Without it, a closure that is evaluated twice would attack its batch twice, and intervals would count those steps.
    """
    return int(trainer.fit_loop.total_batch_idx) + 1


@_inside
def is_due_for_logging(trainer: Any) -> bool:
    """Whether this batch's metrics are to be logged, by ``log_every_n_steps``, which one of the connectors sets.

    Without it, each batch would be logged, which costs as much as a small net's forward.
    """
    every = int(trainer.log_every_n_steps)
    return every > 0 and batches_begun(trainer) % every == 0


@_inside
def epochs_begun(trainer: Any) -> int:
    """Number of epochs begun, with the current one; ``trainer.current_epoch`` increases at an epoch's end.

    Without it, ``DelayedStart`` cannot tell whether a switch that was decided has taken place.
    """
    return int(trainer.fit_loop.epoch_progress.current.started)


@_inside
def epochs_done(checkpoint: Mapping[str, Any]) -> int:
    """Number of epochs that a checkpoint has finished; else ``fit`` would resume a complete training."""
    loops = checkpoint.get("loops")
    return int(loops["fit_loop"]["epoch_progress"]["current"]["processed"]) if loops else 0


@_inside
def validation_is_due(trainer: Any) -> bool:
    """Whether a validation follows the running hooks of a batch's end; see ``end_the_epoch``."""
    loop = trainer.fit_loop.epoch_loop
    ended = loop.batch_progress.current.completed < loop.batch_progress.current.processed
    return bool(ended and loop._should_check_val_fx(trainer.fit_loop._data_fetcher))


@_inside
def end_the_epoch(fit_loop: dict[str, Any], due: bool = False) -> None:
    """Make a run that was saved after an epoch's last batch, or when a validation was due or running, validate first.

    Lightning counts that batch as unfinished and resumes with the next one: it skips the validation or its rest, the
    step of an epoch-wise scheduler, and everything else in ``on_train_epoch_end``. So
    ``checkpoint["loops"]["fit_loop"]`` is changed in place, unless it is empty: the batch becomes finished, and the
    validation interrupted before its first batch.
    """
    if not fit_loop:
        return
    batches, validation = (fit_loop[f"epoch_loop.{part}batch_progress"] for part in ("", "val_loop."))
    ended = batches["is_last_batch"] and batches["total"]["completed"] < batches["total"]["processed"]
    if due or ended or validation["current"]["completed"] < validation["current"]["processed"]:
        for count in ("total", "current"):
            batches[count]["completed"] = batches[count]["processed"]
            validation[count] = dict.fromkeys(validation[count], 0)
        validation["total"] |= {"ready": 1, "started": 1}
        validation["is_last_batch"] = False


@_inside
def handle_sigterm(trainer: Any, handler: Callable[[int, Any], None]) -> None:
    """Set the function that handles SIGTERM once Lightning handles signals; a user's own handler is called after it.

    Lightning's own handler broadcasts on the one rank that got the signal, so the other ranks hang; and it ends with
    exit code 0 without a checkpoint. SLURM's requeueing is by another signal and stays.
    """
    connector = trainer._signal_connector
    _ = connector._sigterm_notifier_fn  # if that is gone, setting it would do nothing
    connector._sigterm_notifier_fn = handler


@_inside
def loops_to_restore(trainer: Any) -> dict[str, Any]:
    """The states of the fit loop and of this stage's loop; else a broken checkpoint would be restored in part."""
    names = ("fit_loop", f"{trainer.state.fn.value}_loop")
    # "state_dict" depends on whether the loaders have begun.
    return {name: getattr(trainer, name).state_dict() | {"state_dict": {}} for name in names}


# Batches, loaders and metrics.


@_inside
def change_batches(trainer: Any, change: Callable[[Any], Any]) -> None:
    """Pass ``change(batch)`` to ``training_step`` instead of the batch, until ``restore_batches``.

    The strategy is patched, so the module can still be copied. No callback hook can replace a batch; without this,
    ``AdversarialTraining`` would train on clean images.
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
    """Reload the loaders in every epoch; else one that has become longer is cut off, a shorter one never validated."""
    _ = trainer.reload_dataloaders_every_n_epochs  # if that is gone, setting it would do nothing
    trainer.reload_dataloaders_every_n_epochs = 1


@_inside
def batch_size_searched(finder: Any) -> str:
    """The argument that a ``BatchSizeFinder`` changes; without this, it would search one that has no effect."""
    return str(finder._batch_arg_name)


@_inside
def logged_by_step_alone(trainer: Any, name: str) -> bool:
    """Whether a metric is logged without a mean over the epoch; else ``DelayedStart`` would take the last batch's."""
    found = [record.meta for record in (trainer._results or {}).values() if record.meta.name == name]
    return bool(found) and not any(meta.on_epoch for meta in found)


@_inside
def row_to_come(trainer: Any, own: Callable[[], dict[str, float]]) -> dict[str, float]:
    """The row that is logged after the running hooks of a batch's or an epoch's end, with its step; empty elsewhere.

    ``own()`` is what the module, whose hook comes last, is about to log of the batch. Checkpoints are written in these
    hooks. Without it, a run that is killed after one resumes without that row.
    """
    loop, connector = trainer.fit_loop, trainer._logger_connector
    batch, epoch = loop.epoch_loop.batch_progress.current, loop.epoch_progress.current
    of_epoch = epoch.completed < epoch.processed
    if not of_epoch and not (batch.completed < batch.processed and connector.should_update_logs):
        return {}
    logged = {name: float(value) for name, value in connector.metrics["log"].items()} | ({} if of_epoch else own())
    step = int(loop.epoch_loop._batches_that_stepped) - of_epoch
    return {"epoch": trainer.current_epoch, "step": step} | logged if logged else {}


@_inside
def epoch_so_far(trainer: Any) -> dict[str, float]:
    """The epoch's metrics between its last batch and its end, without which a run saved there would lose them."""
    loop = trainer.fit_loop
    progress = loop.epoch_progress.current
    if not loop.epoch_loop.batch_progress.is_last_batch or progress.started == progress.processed:
        return {}
    return {name: float(value) for name, value in loop.epoch_loop._results.metrics(on_step=False)["log"].items()}


@_inside
def go_on_in_folder(logger: Any, name: str, purge_step: int | None = None, root: Path | None = None) -> None:
    """Make a file logger write into the folder of an earlier run, without which a resumed run would start a new one.

    Numeric versions stay numbers. TensorBoard drops what it has from ``purge_step`` on. ``root`` holds the folder.
    """
    _ = logger._version  # must be there
    logger._version = int(number[1]) if (number := re.fullmatch(r"version_(0|[1-9]\d*)", name)) else name
    if root is not None:
        logger._save_dir, logger._root_dir, logger._name = str(root.parent), str(root.parent), root.name
    if purge_step is not None:
        logger._kwargs["purge_step"] = logger._kwargs.get("purge_step") or purge_step


# The command line.


@_inside
def built_by_the_command_line() -> bool:
    """Whether a module is being built from a configuration, which ``save_hyperparameters`` then saves.

    Without it, a module built in Python would save live objects, which a checkpoint that is safe to load cannot hold.
    """
    from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters

    return _given_hyperparameters.get() is not None


class CommandLineInternals:
    """Overrides private methods of ``LightningCLI``: arguments beat a checkpoint's, subcommands have our defaults."""

    #: Defaults of the trainer's methods, by subcommand.
    subcommand_defaults: ClassVar[Mapping[str, dict[str, Any]]] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        for name in ("_parse_ckpt_path", "_prepare_subcommand_parser", "_parser"):
            if not hasattr(super(), name):
                raise _changed(f"LightningCLI.{name}")
        super().__init__(*args, **kwargs)

    def parser_in_use(self) -> Any:
        """The parser of the subcommand, or of a script; without it, a net would not learn the number of classes."""
        return self._parser(self.subcommand)  # type: ignore[attr-defined]  # LightningCLI's

    def _parse_ckpt_path(self) -> None:
        """Do nothing, so that a checkpoint's arguments do not override the user's."""

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> Any:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)  # type: ignore[misc]  # LightningCLI's
        parser.set_defaults(self.subcommand_defaults.get(subcommand, {}))
        return parser
