"""What a checkpoint must be, and what Lightning forgets, for a resumed run to equal an uninterrupted one."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor


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


def check_weights_finite(weights: Mapping[str, Tensor]) -> None:
    """Refuse to write weights that no training can go on from.

    Raises:
        FloatingPointError: At the first tensor that holds NaN or infinity.
    """
    for key, value in weights.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise FloatingPointError(
                f"{key} is no longer finite, so no checkpoint was written and the one before is intact: resume from it "
                "with a lower learning rate or clipped gradients (gradient_clip_val)."
            )


def check_weights_fit(own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """Compare names and shapes of weights.

    Raises:
        ValueError: At the first tensor that is missing, unknown or of another shape.
    """
    for key in [*own, *other]:
        mine, theirs = (tuple(side[key].shape) if key in side else None for side in (own, other))
        if mine != theirs:
            raise ValueError(
                f"the checkpoint holds another net: {key} is {theirs or 'missing'} there and {mine or 'missing'} here; "
                "build the net that was trained (its configuration is saved beside the checkpoint's folder)."
            )


def warn_of_other_data(own: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Say it once if a training goes on with other data; without a fingerprint on both sides nothing is known."""
    changes = [f"{key}={other.get(key)} became {value}" for key, value in own.items() if other.get(key) != value]
    if own and other and changes:
        rank_zero_warn(
            f"this training goes on with other data than the checkpoint was trained on ({', '.join(changes)}): unless "
            "that is meant, give the data of the config.yaml that is saved beside the checkpoint's folder."
        )
