"""What a checkpoint must be, and what Lightning forgets, for a resumed run to equal an uninterrupted one."""

from typing import Any


def end_the_epoch(fit_loop: dict[str, Any]) -> None:
    """Let a run that was saved after an epoch's last batch validate and end that epoch before the next one.

    Lightning 2.6 counts the batch as unfinished then, and goes on with the next epoch: no validation, no step of a
    scheduler by epochs, nothing else that waits for ``on_train_epoch_end``. So the loops' progress, as a checkpoint
    holds it, is changed in place: the batch is done, and validation was interrupted before its first batch.
    """
    batches, validation = (fit_loop.get(f"epoch_loop.{part}batch_progress") for part in ("", "val_loop."))
    if not batches or not validation or not batches["is_last_batch"]:
        return
    if batches["total"]["completed"] < batches["total"]["processed"]:
        for count in ("total", "current"):
            batches[count]["completed"] = batches[count]["processed"]
            validation[count] = dict.fromkeys(validation[count], 0)
        validation["total"] |= {"ready": 1, "started": 1}
        validation["is_last_batch"] = False
