"""Checks of a checkpoint's weights and data, before it is written and after it is read."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor


def check_weights_finite(weights: Mapping[str, Tensor]) -> None:
    """Refuse to save weights from which training cannot continue.

    Raises:
        FloatingPointError: At the first tensor with NaN or infinity.
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
    """Warn if training resumes on other data, which is known only if both sides have a fingerprint."""
    changes = [f"{key}={other.get(key)} became {value}" for key, value in own.items() if other.get(key) != value]
    if own and other and changes:
        rank_zero_warn(
            f"this training continues with other data than the checkpoint's ({', '.join(changes)}): unless "
            "that is intended, give the data of the config.yaml that is saved beside the checkpoint's folder."
        )


def warn_of_averages(checkpoint: Mapping[str, Any], trainer: Any) -> None:
    """Warn that training continues from averaged weights, because no callback restores the live ones."""
    averages = any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks)
    if "current_model_state" in checkpoint and trainer.state.fn == "fit" and not averages:
        rank_zero_warn(
            "the checkpoint holds averaged weights, and this training keeps no average, so it continues from them, "
            "not from the live ones: add the EMAWeights that the checkpoint was written with."
        )
