"""Everything we use of Lightning that is not public API, as of Lightning 2.6.6.

Each function says what breaks without it. The command line's part is in ``lightning_cli_internals``, that of an exact
resume in ``lightning_resume_internals``; beside these, ``callbacks/ema.py`` subclasses ``WeightAveraging``, and
``metrics_files.py`` replaces ``save`` of CSVLogger's writer.
If Lightning no longer has what a function reads, calling the function raises an ImportError of one sentence; importing
this file does not need Lightning.
"""

from collections.abc import Callable, Mapping
from functools import wraps
from traceback import walk_tb
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

#: The section of a checkpoint that holds the states of the loops.
LOOPS = "loops"


def changed(what: object) -> ImportError:
    """An error that names the tested versions of Lightning, because an internal is gone."""
    import lightning

    return ImportError(
        f"lit_robust relies on internals of lightning 2.6 that lightning {lightning.__version__} has changed ({what}): "
        'pip install "lightning>=2.6,<2.7".'
    )


def inside(function: Callable[P, R]) -> Callable[P, R]:
    """Raise an ImportError that names the tested versions if an internal is gone; other errors stay as they are."""

    @wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except (ImportError, AttributeError, KeyError) as error:
            *_, (frame, _) = walk_tb(error.__traceback__)
            if isinstance(error, ImportError) or frame.f_code.co_filename == function.__code__.co_filename:
                raise changed(f"{function.__name__}: {error}") from error
            raise  # from code that the function calls, such as a user's

    return guarded


@inside
def batch_in_epoch(trainer: Any) -> int:
    """Index in its epoch of the current batch: 0 before the first, the last trained batch's after a resume.

    Lightning does not pass it to ``on_train_start``. Without it, ramps would resume at the values of the epoch's start.
    """
    return max(int(trainer.fit_loop.batch_idx), 0)


@inside
def batches_begun(trainer: Any) -> int:
    """Number of batches begun, over all epochs.

    Needed to attack a batch once when the optimizer evaluates its closure several times.
    """
    return int(trainer.fit_loop.total_batch_idx) + 1


@inside
def is_due_for_logging(trainer: Any) -> bool:
    """Whether this batch's metrics are to be logged. Logging each batch's would cost a small net's forward."""
    return (every := int(trainer.log_every_n_steps)) > 0 and batches_begun(trainer) % every == 0


@inside
def epochs_begun(trainer: Any) -> int:
    """Number of epochs begun. Without it, ``DelayedStart`` could not tell whether a switch has taken place."""
    return int(trainer.fit_loop.epoch_progress.current.started)


@inside
def next_epoch(trainer: Any) -> int:
    """The epoch after the last one that is trained or skipped, which ``current_epoch`` shows only when it begins."""
    return int(trainer.fit_loop.epoch_progress.current.processed)


@inside
def skip_epochs(trainer: Any, number: int) -> None:
    """Count the next epochs as trained. Without it, ``CoresetSelection`` could not skip those of its warm start."""
    counts = trainer.fit_loop.epoch_progress.current
    for name in ("ready", "started", "processed"):
        setattr(counts, name, getattr(counts, name) + number)


@inside
def set_current_epoch(trainer: Any, epoch: int | None = None) -> None:
    """Set ``trainer.current_epoch``, by default to the one after those that ``skip_epochs`` has counted."""
    counts = trainer.fit_loop.epoch_progress.current
    counts.completed = counts.processed if epoch is None else epoch


@inside
def epochs_done(checkpoint: Mapping[str, Any]) -> int:
    """Number of epochs that a checkpoint has finished. Without it, ``fit`` would resume a finished training."""
    loops = checkpoint.get(LOOPS)
    return int(loops["fit_loop"]["epoch_progress"]["current"]["processed"]) if loops else 0


@inside
def is_within_epoch(checkpoint: Mapping[str, Any]) -> bool:
    """Whether an epoch's batches were left. Without it, half an epoch's weights would pass for those of its end."""
    loops: Any = checkpoint.get(LOOPS)
    return bool(loops) and not loops["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"]


@inside
def handle_sigterm(trainer: Any, handler: Callable[[int, Any], None]) -> None:
    """Set the function that handles SIGTERM once Lightning handles signals; a user's own handler is called after it.

    Lightning's own handler broadcasts on the one rank that got the signal, so the other ranks hang; and it ends with
    exit code 0 without a checkpoint. SLURM's requeueing is by another signal and stays.
    """
    connector = trainer._signal_connector
    _ = connector._sigterm_notifier_fn  # if that is gone, setting it would do nothing
    connector._sigterm_notifier_fn = handler


def misses_monitor(error: BaseException) -> bool:
    """Whether EarlyStopping or ModelCheckpoint raised this because nothing logs its monitor; only the text says so."""
    known = ("Early stopping conditioned on metric", "could not find the monitored key")
    return any(words in str(error) for words in known)


@inside
def change_batches(trainer: Any, change: Callable[[Any], Any]) -> None:
    """Pass ``change(batch)`` to ``training_step`` instead of the batch, until ``restore_batches``.

    The strategy is patched, so the module can still be copied. Without it, ``AdversarialTraining`` changes nothing.
    """
    step = trainer.strategy.training_step

    def training_step(batch: Any, *args: Any, **kwargs: Any) -> Any:
        return step(change(batch), *args, **kwargs)

    trainer.strategy.training_step = training_step


@inside
def restore_batches(trainer: Any) -> None:
    """Undo ``change_batches``. Without it, the trainer's next fit would be attacked, too."""
    vars(trainer.strategy).pop("training_step", None)


@inside
def reload_every_epoch(trainer: Any) -> None:
    """Reload the loaders in every epoch.

    Without it, a loader that has become longer is cut off, and one that has become shorter is never validated.
    """
    _ = trainer.reload_dataloaders_every_n_epochs, trainer.fit_loop._last_train_dl_reload_epoch  # must be there
    trainer.reload_dataloaders_every_n_epochs = 1
    trainer.fit_loop._last_train_dl_reload_epoch = float("-inf")  # a torch scheduler may have asked for the length


@inside
def loader_maker(trainer: Any) -> Any:
    """The function that makes the training's loader. Without it, an unsuitable loader is only found in mid-training."""
    return trainer.fit_loop._data_source.dataloader


@inside
def batch_size_searched(finder: Any) -> str:
    """The argument that a ``BatchSizeFinder`` changes. Without it, a search without effect would go unnoticed."""
    return str(finder._batch_arg_name)


@inside
def is_logged_here(trainer: Any, name: str) -> bool:
    """Whether a metric is logged in this training or evaluation loop.

    Without it, the metrics with which a resumed run begins would pass for the module's.
    """
    results = trainer._results
    return any(name in results._forked_name(record, on_step=False) for record in (results or {}).values())


@inside
def logged_by_step_alone(trainer: Any, name: str) -> bool:
    """Whether a name has the value of a step only, as ``loss_step`` of a metric that is logged per step and per epoch.

    Without it, ``DelayedStart`` would take the last batch's value.
    """
    results = trainer._results
    records = list((results or {}).values())
    if found := [record.meta for record in records if record.meta.name == name]:
        return not any(meta.on_epoch for meta in found)
    return any(name in results._forked_name(record, on_step=True) for record in records)


@inside
def flushes_every(logger: Any) -> Any:
    """After how many steps a CSVLogger writes its file, as it was given; 0 unchecked divides the first step by 0."""
    return logger._flush_logs_every_n_steps
