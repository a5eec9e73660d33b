"""What a net and its images must be for an attack to mean anything, read off the first batch.

A Defense knows what to expect and is checked by ``check_first_batch``; callbacks find their way into a module of the
user's own and call the parts. What is wrong is said in the same words, with the remedy that the caller knows.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lit_robust import require
from lit_robust.batch import Batch
from lit_robust.guards import network_mode


def check_first_batch(net: nn.Module, batch: Batch, num_classes: int) -> None:
    """Refuse, before anything is trained or reported, what would make every later number wrong.

    It costs one forward of two images and a few synchronisations with the device, once a stage.

    Args:
        net: Should return logits ``(N, num_classes)``.
        batch: The first batch.
        num_classes: The number of classes.

    Raises:
        ValueError: If pixels leave [0, 1], labels do not fit ``num_classes``, or the net cannot read the images, has
            another number of outputs, or returns probabilities.
    """
    x, y = batch.x, batch.y
    bright = bool((x >= 0).all())
    require.images(x, "divide them by 255" if bright else "give the images as they are and normalise inside the net")
    check_labels(x, y)
    check_classes(y, num_classes, f"num_classes={num_classes}: set it to the data's classes")
    few = x[:2]
    found = outputs(net, few, f"the net ({type(net).__name__})", "choose a net for this data set")
    remedy = f"give the net num_classes={num_classes} (--model.net.num_classes {num_classes})"
    logits = check_logits(found, few, "the net", remedy, "remove its softmax")
    if logits.shape[1:] != (num_classes,):
        raise ValueError(
            f"the net returns a tensor of shape {tuple(logits.shape)} for {len(few)} images, but "
            f"num_classes={num_classes}: {remedy}."
        )


def check_labels(x: Tensor, y: Tensor, found: str = "there are labels") -> None:
    """Refuse labels, of whatever kind, that are not as many as the images.

    Raises:
        ValueError: If they are not, with where they were found.
    """
    if y.ndim == 0 or len(y) != len(x):
        raise ValueError(f"{found} of shape {tuple(y.shape)} for {len(x)} images: give one for each image.")


def check_classes(y: Tensor, classes: int, but: str) -> None:
    """Refuse labels ``(N,)`` that are no indices of classes.

    Raises:
        ValueError: If one is not, with who says how many classes there are, and what to do.
    """
    low, high = require.range_of(y)
    if low < 0 or high >= classes:
        raise ValueError(f"labels run from {low} to {high}, but {but}.")


def outputs(net: nn.Module, x: Tensor, name: str, remedy: str) -> Any:
    """What a net returns for a few images ``(N, C, H, W)``, in eval mode and outside any graph.

    Raises:
        ValueError: If the net, called by its ``name``, cannot read them.
    """
    try:
        with network_mode(net, "eval"), torch.no_grad():
            return net(x)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        shape, reason = "x".join(map(str, x.shape[1:])), f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{name} cannot read images of shape {shape} ({reason}): {remedy}.") from error


def check_logits(found: Any, x: Tensor, name: str, remedy: str, softmax: str) -> Tensor:
    """Give back what a net returns for a few images if these are logits, ``(N, num_classes)`` or more.

    Args:
        found: What the net returns.
        x: The images ``(N, C, H, W)``.
        name: What the net is called.
        remedy: What to do if there is no row for each image.
        softmax: What to do about probabilities.

    Raises:
        ValueError: If they are none, not finite, or probabilities.
    """
    if not isinstance(found, Tensor) or found.ndim < 2 or len(found) != len(x):
        what = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"{name} returns {what} for {len(x)} images instead of logits: {remedy}.")
    logits = found.float()
    if not bool(logits.isfinite().all()):
        raise ValueError(
            "the net returns NaN or infinite logits, whose accuracy would be that of guessing: its weights or its "
            "normalisation are broken, take an earlier checkpoint."
        )
    if found.ndim == 2 and bool((logits >= 0).all()) and torch.allclose(logits.sum(dim=1), logits.new_ones(len(x))):
        raise ValueError(
            f"the net returns probabilities, but losses and attacks need logits: {softmax}, or every attack looks "
            "weaker than it is."
        )
    return found
