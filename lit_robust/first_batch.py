"""What a net and its images must be for a robust accuracy to mean anything."""

import torch
from torch import Tensor, nn

from lit_robust.batch import Batch
from lit_robust.guards import network_mode


def check_first_batch(net: nn.Module, batch: Batch, num_classes: int) -> None:
    """Refuse, before anything is trained or reported, what would make every later number wrong.

    It costs one forward of two images and one synchronisation with the device, once a run.

    Raises:
        ValueError: If pixels leave [0, 1], labels do not fit ``num_classes``, or the net cannot read the images, has
            another number of outputs, or returns probabilities.
    """
    low, high = batch.x.min().item(), batch.x.max().item()
    if not (low >= 0 and high <= 1):  # also true of NaN
        remedy = "divide them by 255" if low >= 0 else "give the images as they are and normalise inside the net"
        raise ValueError(
            f"pixels run from {low:.4g} to {high:.4g}, but every eps here is in units of [0, 1]: {remedy}."
        )
    labels = int(batch.y.min()), int(batch.y.max())
    if labels[0] < 0 or labels[1] >= num_classes:
        raise ValueError(
            f"labels run from {labels[0]} to {labels[1]}, but num_classes={num_classes}: set it to the data's classes."
        )
    _check_logits(_try_net(net, batch.x[:2]), num_classes)


def _try_net(net: nn.Module, x: Tensor) -> Tensor:
    try:
        with network_mode(net, "eval"), torch.no_grad():
            logits: Tensor = net(x)
    except (RuntimeError, ValueError) as error:
        shape = "x".join(map(str, x.shape[1:]))
        raise ValueError(
            f"the net ({type(net).__name__}) cannot read images of shape {shape}: choose a net for this data set "
            f"({error})."
        ) from error
    return logits


def _check_logits(logits: Tensor, num_classes: int) -> None:
    if logits.ndim != 2 or logits.shape[1] != num_classes:
        raise ValueError(
            f"the net returns a tensor of shape {tuple(logits.shape)} for 2 images, but num_classes={num_classes}: "
            f"give the net num_classes={num_classes} (--model.net.num_classes {num_classes})."
        )
    logits = logits.float()
    if not bool(logits.isfinite().all()):
        raise ValueError(
            "the net returns NaN or infinite logits, whose accuracy would be that of guessing: its weights or its "
            "normalisation are broken, take an earlier checkpoint."
        )
    if bool((logits >= 0).all()) and torch.allclose(logits.sum(dim=1), torch.ones(len(logits), device=logits.device)):
        raise ValueError(
            "the net returns probabilities, but losses and attacks need logits: remove its softmax, or every attack "
            "looks weaker than it is."
        )
