"""What a training batch is."""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """A batch of images, as every DataModule yields it and every Defense reads it.

    Shape:
        x: ``(N, C, H, W)`` float32 in [0, 1];  y: ``(N,)`` int64;  index: ``(N,)`` int64;
        weight: ``(N,)`` float32.
    """

    x: Tensor
    #: Class labels.
    y: Tensor
    #: Position of each sample in its split; per-sample state and coresets are keyed by it.
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which a batch does not need
    #: 1 for an ordinary sample, a coreset's gamma, or 0 for the padding that keeps ranks equally long.
    weight: Tensor


#: Types of labels that are converted to int64, the only one that losses accept.
SHORT = (torch.uint8, torch.int8, torch.int16, torch.int32)


def as_batch(batch: Any) -> Batch:
    """Return a ``Batch`` with int64 labels, also from another loader's ``(x, y)``, with weights 1 and indices -1.

    Raises:
        TypeError: If the batch is neither.
        ValueError: If the labels are not integers ``(N,)``.
    """
    if isinstance(batch, Batch):
        return batch if batch.y.dtype == torch.int64 and batch.y.ndim < 2 else batch._replace(y=class_labels(batch.y))
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch):
        x, y = batch[0], class_labels(batch[1])
        return Batch(x, y, torch.full_like(y, -1), torch.ones_like(y, dtype=torch.float32))
    raise TypeError(f"a batch must be a lit_robust.batch.Batch or a pair (images, labels), not {type(batch).__name__}.")


def class_labels(y: Tensor) -> Tensor:
    """Convert labels ``(N,)`` of any integer type to int64.

    Raises:
        ValueError: If they are not integers, or not one for each image.
    """
    if y.ndim > 1:
        hint = "y.squeeze(1)" if y.shape[1:] == (1,) else "y.argmax(dim=1) for one-hot labels"
        raise ValueError(f"labels of shape {tuple(y.shape)} are not one class for each image: give {hint}.")
    if y.dtype != torch.int64 and y.dtype not in SHORT:
        raise ValueError(f"labels of {y.dtype} are not classes: give integers from 0 on, such as y.long().")
    return y.long()


def check_samples(batch: Batch) -> None:
    """Refuse an index and weights of a user's loader that are not one number for each image.

    Raises:
        ValueError: If there is another number of them, an index is no integer, or a weight is negative or not finite.
    """
    n, index, weight = len(batch.x), batch.index, batch.weight
    for name, values in (("index", index), ("weight", weight)):
        if values.shape != (n,):
            hint = f"{name}.squeeze(1)" if values.shape == (n, 1) else "one number for each image"
            raise ValueError(f"Batch.{name} of shape {tuple(values.shape)} does not fit {n} images: give {hint}.")
    if index.is_floating_point():
        raise ValueError(f"Batch.index of {index.dtype} does not hold positions: give integers, such as index.long().")
    if not weight.is_floating_point():
        raise ValueError(f"Batch.weight of {weight.dtype} cannot hold fractions: give weight.float().")
    if wrong := weight[~(weight.isfinite() & (weight >= 0))].tolist():
        raise ValueError(f"Batch.weight={wrong[0]:g} must be finite and at least 0: give 0 for what must not count.")
