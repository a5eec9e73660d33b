"""What an exact resume uses of Lightning that is not public API: the third part of ``lightning_internals``.

What a checkpoint must hold of the loops, and what a resumed run must mend of them before it goes on.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from lit_robust.lightning_internals import LOOPS, inside


@inside
def validation_is_due(trainer: Any) -> bool:
    """Whether a validation runs after the current batch's end hooks; see ``end_the_epoch``."""
    loop = trainer.fit_loop.epoch_loop
    ended = loop.batch_progress.current.completed < loop.batch_progress.current.processed
    return bool(ended and loop._should_check_val_fx(trainer.fit_loop._data_fetcher))


@inside
def end_the_epoch(checkpoint: Mapping[str, Any], due: bool | None = None) -> None:
    """Make a run that was saved after an epoch's last batch, or when a validation was due or running, validate first.

    Lightning counts that batch as unfinished and resumes with the next one: it skips the validation or its rest, the
    step of an epoch-wise scheduler, and everything else in ``on_train_epoch_end``. So the checkpoint is changed in
    place, unless it holds no loops: the batch becomes finished, and the validation interrupted before its first batch.
    Between two epochs, the last one becomes finished, and the next one is not begun; see ``settle_restart``.

    Args:
        checkpoint: What is read of the file.
        due: Whether a validation was due after the batch; None if that is unknown, for one after each epoch.
    """
    fit_loop = checkpoint.get(LOOPS, {}).get("fit_loop")
    if not fit_loop:
        return
    for epochs in fit_loop["epoch_progress"].values():
        if epochs["started"] == epochs["processed"]:
            epochs["ready"] = epochs["completed"] = epochs["processed"]
            fit_loop["state_dict"].pop("combined_loader", None)  # it is at its end, and read under max_steps alone
    batches, validation = (fit_loop[f"epoch_loop.{part}batch_progress"] for part in ("", "val_loop."))
    ended = batches["is_last_batch"] and batches["total"]["completed"] < batches["total"]["processed"]
    interrupted = validation["current"]["completed"] < validation["current"]["processed"]
    validates = interrupted or (ended if due is None else due)
    if ended or validates:
        for count in ("total", "current"):
            batches[count]["completed"] = batches[count]["processed"]
    if validates:
        for count in ("total", "current"):
            validation[count] = dict.fromkeys(validation[count], 0)
        validation["total"] |= {"ready": 1, "started": 1}
        validation["is_last_batch"] = False


@inside
def settle_restart(trainer: Any) -> None:
    """Make a run that was saved between two epochs begin the next one, in ``on_train_start``, after ``end_the_epoch``.

    Under ``max_steps``, Lightning takes every resumed run for one in mid-epoch, whose batches are all done: without
    this, an epoch would pass without a batch. In mid-epoch, it takes a finished batch for one that was saved after its
    validation: if none follows, it would ask for a batch beyond the last one, and log one step too low from then on.
    """
    loop, batches = trainer.fit_loop, trainer.fit_loop.epoch_loop
    epochs = loop.epoch_progress.current
    if loop._restarting and epochs.started == epochs.processed:
        loop._restarting = batches.restarting = False
    elif batches.restarted_on_last and not batches._should_check_val_fx(loop._data_fetcher):
        batches.reset_restart_stage()  # which counts the batch's step
        batches.val_loop._has_run |= batches.batch_progress.is_last_batch


@inside
def end_restart(trainer: Any) -> None:
    """End an epoch that ``settle_restart`` has found done. Without it, the next one would end without a batch."""
    trainer.fit_loop.epoch_loop.restarting = False


@inside
def loops_to_restore(trainer: Any) -> dict[str, Any]:
    """The states of the fit loop and of this stage's loop.

    Without them, a broken checkpoint would be restored in part before it fails.
    """
    names = ("fit_loop", f"{trainer.state.fn.value}_loop")
    # "state_dict" depends on whether the loaders have begun.
    return {name: getattr(trainer, name).state_dict() | {"state_dict": {}} for name in names}


@inside
def loader_states(checkpoint: Mapping[str, Any]) -> tuple[str, Any]:
    """The place of the training loaders' states in a checkpoint, and its content. Without it, they go unchecked."""
    states = checkpoint[LOOPS]["fit_loop"]["state_dict"].get("combined_loader", [])
    return f"{LOOPS}.fit_loop.state_dict.combined_loader", states


@inside
def row_to_come(trainer: Any, own: Callable[[], dict[str, float]]) -> dict[str, float]:
    """The row that is logged after the current batch's or epoch's end hooks, with its step; empty elsewhere.

    ``own()`` is what the module, whose hook comes last, is about to log of the batch. Checkpoints are written in these
    hooks. Without it, a run that is killed after one resumes without that row.
    """
    loop, connector = trainer.fit_loop, trainer._logger_connector
    batch, epoch = loop.epoch_loop.batch_progress.current, loop.epoch_progress.current
    of_epoch = epoch.completed < epoch.processed
    if trainer._results is None:  # nothing runs, as after a resume of a finished training
        return {}
    if not of_epoch and not (batch.completed < batch.processed and connector.should_update_logs):
        return {}
    logged = {name: float(value) for name, value in connector.metrics["log"].items()} | ({} if of_epoch else own())
    step = int(loop.epoch_loop._batches_that_stepped) - of_epoch
    return {"epoch": trainer.current_epoch, "step": step} | logged if logged else {}


@inside
def know_metrics(trainer: Any, metrics: Mapping[str, Tensor]) -> None:
    """Put the metrics of a checkpoint into ``trainer.callback_metrics``, in ``on_train_start``.

    Lightning begins with none. Without it, a resumed run would lack those of a validation within the epoch, which a
    plateau scheduler, ``EarlyStopping`` or ``ModelCheckpoint`` may read at the epoch's end.
    """
    trainer._logger_connector._callback_metrics.update(metrics)


@inside
def epoch_so_far(trainer: Any) -> dict[str, float]:
    """The epoch's metrics between its last batch and its end. Without them, a run saved there would lose them."""
    loop = trainer.fit_loop
    progress = loop.epoch_progress.current
    if not loop.epoch_loop.batch_progress.is_last_batch or progress.started == progress.processed:
        return {}
    return {name: float(value) for name, value in loop.epoch_loop._results.metrics(on_step=False)["log"].items()}
