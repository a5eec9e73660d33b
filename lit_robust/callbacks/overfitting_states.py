"""What a checkpoint may hold of a ``CatastrophicOverfittingMonitor``."""

from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from lit_robust import require
from lit_robust.batch import Batch
from lit_robust.callbacks.overfitting_bound import Bound
from lit_robust.checkpoint_states import Rule, are_finite_by_name, broken, is_finite
from lit_robust.threats import Norm


def _are_means(values: Any) -> bool:
    """Whether it is a list of mappings, one per epoch, with the same names and numbers as values."""
    if not isinstance(values, list) or not all(map(are_finite_by_name, values)):
        return False
    return all(means and means.keys() == values[0].keys() for means in values)


def _is_bound(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, tuple | list) or len(value) != len(Bound._fields) or value[1] not in get_args(Norm):
        return False
    eps = value[0]
    return (is_finite(eps) and eps >= 0) or (isinstance(eps, float) and eps != eps)  # NaN: the module has no attack


def _are_batches(values: Any) -> bool:
    """Whether it is a list of batches whose images have the same channels."""
    if not isinstance(values, list) or not all(map(_is_batch, values)):
        return False
    return all(batch[0].shape[1] == values[0][0].shape[1] for batch in values)


def _is_batch(values: Any) -> bool:
    if not isinstance(values, tuple | list) or len(values) != len(Batch._fields):
        return False
    if not all(isinstance(part, Tensor) and len(part.shape) > 0 for part in values):
        return False
    x, y, index, weight = values
    rows = x.ndim > 1 and all(part.shape == (len(x),) for part in (y, index, weight))
    if not rows or not x.is_floating_point() or not weight.is_floating_point() or x.numel() == 0:
        return False
    integers = y.dtype == index.dtype == torch.int64 and bool((y >= 0).all())
    low, high = require.range_of(x)
    within = low >= -require.TOLERANCE and high <= 1 + require.TOLERANCE  # NaN compares as False
    return integers and within and bool((weight.isfinite() & (weight >= 0)).all())


def check_kept(where: str, kept: Sequence[Batch], batch: Batch, classes: int | None) -> None:
    """Refuse a checkpoint's batches that are not of this training.

    Args:
        where: Their place in the checkpoint, for the message.
        kept: The batches.
        batch: One of this training.
        classes: The number of the net's outputs; None if it is unknown.

    Raises:
        ValueError: If their images have another shape, or labels are none of the classes.
    """
    for one in kept:
        if one.x.shape[1:] != batch.x.shape[1:] or (classes is not None and int(one.y.max()) >= classes):
            shape = ", ".join(map(str, batch.x.shape[1:]))
            needed = f"batches of images (N, {shape})" + (f" in {classes} classes" if classes is not None else "")
            raise broken(where, one.x, needed)


def _are_weights(values: Any) -> bool:
    """Whether it is None or holds finite tensors by name; ``check_tensors`` compares them with the net's."""
    if values is None:
        return True
    return isinstance(values, dict) and all(
        isinstance(name, str) and isinstance(one, Tensor) and bool(one.isfinite().all()) for name, one in values.items()
    )


RULES: dict[str, Rule] = {
    "earlier": (_are_means, "a list of each epoch's means by name"),
    "bound": (_is_bound, "an eps of at least 0 and a norm, or null"),
    "batches": (_are_batches, "a list of batches: images in [0, 1], labels, indices and weights"),
    "healthy": (_are_weights, "finite weights by name, or null"),
    "stopped": (lambda value: isinstance(value, bool), "true or false"),
}
