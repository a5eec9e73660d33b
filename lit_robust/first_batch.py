"""Checks of the net and the first batch. Without them, the result of an attack could mean nothing.

A Defense calls ``check_first_batch``. Callbacks, which also work on a user's own module, call its parts. The messages
are the same in both cases; the caller supplies the remedy.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lit_robust import require
from lit_robust.batch import Batch, check_samples
from lit_robust.guards import network_mode, unaffected
from lit_robust.logits import REMEDY, NoLogitsError, check_numbers, has_rows, logits_of, no_logits
from lit_robust.nets import image_shapes
from lit_robust.nets.image_shapes import name_of
from lit_robust.torch_internals import is_compiled


def only_logits(net: nn.Module, args: tuple[Any, ...], found: Any) -> Tensor:
    """A forward hook that replaces a net's output by its ``logits``, in train mode as well as in eval mode.

    Raises:
        NoLogitsError: If there are none.
        ValueError: If ``check_training`` has asked for the first output in train mode, and it has probabilities.
    """
    logits = logits_of(found)
    if not isinstance(logits, Tensor):
        raise no_logits(found, args[0], f"the net ({type(net).__name__})", REMEDY)
    # In a compiled graph, reading the attribute would make a guard, and changing it another compilation.
    if net.training and not torch.compiler.is_compiling() and getattr(net, _UNCHECKED, False):
        setattr(net, _UNCHECKED, False)
        refuse_probabilities(logits)
    return logits


def a_row_for_each_image(net: nn.Module, args: tuple[Any, ...], logits: Tensor) -> None:
    """A forward hook of nets that are not compiled, whose graph it would break.

    Raises:
        NoLogitsError: If the logits have another number of rows than there are images.
    """
    if args and not has_rows(logits, args[0]):
        raise no_logits(logits, args[0], f"the net ({type(net).__name__})", REMEDY)


def refuse_probabilities(logits: Tensor) -> None:
    """Refuse an output in train mode, if it consists of probabilities.

    Raises:
        ValueError: If it does.
    """
    if _are_probabilities(logits):
        raise _no_probabilities(" in train mode", "remove the softmax that it applies there")


#: The attribute of a net whose first output in train mode is to be checked.
_UNCHECKED = "unchecked_in_training"


def check_training(net: nn.Module, x: Tensor) -> None:
    """Check for probabilities in train mode, too, which ``check_first_batch`` does not see.

    The first forward of the training is checked, by ``only_logits``, so the check itself runs none. A compiled graph
    cannot run this check, so two images are forwarded uncompiled, with buffers and random state unchanged.

    Args:
        net: The net, with ``only_logits`` as a forward hook.
        x: The first images ``(N, C, H, W)``.

    Raises:
        ValueError: If a compiled net returns probabilities; of another net, its first forward raises it.
    """
    setattr(net, _UNCHECKED, True)
    if is_compiled(net):
        eager = torch.compiler.set_stance("force_eager")
        with network_mode(net, "train"), unaffected(net, x.device), naming_drop_last(), eager:
            net(x[:2])


def check_first_batch(net: nn.Module, batch: Batch, num_classes: int) -> None:
    """Refuse a net or a batch that would make all results wrong, before anything is trained or reported.

    It costs one forward of two images and a few synchronisations with the device, once per stage.

    Args:
        net: The net, which should return logits ``(N, num_classes)``.
        batch: The first batch.
        num_classes: The number of classes.

    Raises:
        ValueError: If pixels leave [0, 1], labels do not fit ``num_classes``, there is not one index and one weight for
            each image, or the net cannot read the images, has another number of outputs, or returns probabilities.
    """
    x, y = batch.x, batch.y
    bright = bool((x >= 0).all())
    require.images(x, "divide them by 255" if bright else "give the images as they are and normalise inside the net")
    check_labels(x, y)
    check_samples(batch)
    below = f"there are the classes 0 to {num_classes - 1}: {require.BY_WEIGHT}"
    check_classes(y, num_classes, below, f"num_classes={num_classes}: set it to the data's classes")
    few = x[:2]
    found = outputs(net, few, f"the net ({name_of(net)})", "choose a net for this data set")
    tell_of_repeated_channels(net, few)
    remedy = f"give the net num_classes={num_classes} (--model.net.num_classes {num_classes})"
    logits = check_logits(found, few, "the net", remedy, "remove its softmax")
    if logits.shape[1:] != (num_classes,):
        if logits.shape[1] == num_classes:
            remedy = f"return logits.flatten({1 if logits[0].numel() == num_classes else '2).mean(2'})"
        raise ValueError(
            f"the net returns a tensor of shape {tuple(logits.shape)} for {len(few)} images, but "
            f"num_classes={num_classes}: {remedy}."
        )


def check_sources(sources: Sequence[nn.Module], x: Tensor, num_classes: int) -> None:
    """Put nets that craft images for another one where the images are, and refuse those that do not fit.

    Args:
        sources: The nets, given as ``alarm_sources``.
        x: The first images ``(N, C, H, W)``.
        num_classes: The number of classes of the data.

    Raises:
        ValueError: If one cannot read the images, has another number of classes, or gives no gradient.
    """
    remedy = "give nets for this data set"
    for number, net in enumerate(sources):
        name = f"alarm_sources[{number}] ({name_of(net)})"
        with torch.inference_mode(False), torch.enable_grad():  # an inference tensor as a weight would have no gradient
            few = x[:2].clone().requires_grad_()
            logits = check_logits(outputs(net.to(x), few, name, remedy), few, name, remedy, "remove that net's softmax")
            if logits.shape[1:] != (num_classes,):
                raise ValueError(f"{name} returns {tuple(logits.shape)} for {num_classes} classes: {remedy}.")
            if not net(few).requires_grad:
                raise ValueError(f"{name} has no graph from pixels to logits and crafts nothing: {remedy}.")


def tell_of_repeated_channels(net: nn.Module, x: Tensor) -> None:
    """Warn if images of one channel are read by a first layer for several: broadcasting a mean may have repeated them.

    Args:
        net: A net that reads the images.
        x: The images ``(N, C, H, W)``.
    """
    layer = next((part for part in net.modules() if isinstance(part, (nn.Conv2d, nn.Linear))), None)
    if layer is None or x.ndim != 4 or x.shape[1] != 1:
        return
    pixels = x[0].numel()
    read = layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features / pixels
    if read > 1 and read == int(read):
        rank_zero_warn(
            f"the net ({name_of(net)}) reads images of 1 channel although its first layer has {int(read)} input "
            "channels: unless the net repeats the channel on purpose, its mean and std do, so build it for 1 channel."
        )


def check_labels(x: Tensor, y: Tensor, found: str = "there are labels") -> None:
    """Refuse labels of any kind whose number is not that of the images.

    Raises:
        ValueError: If the numbers differ; ``found`` says where the labels come from.
    """
    if y.ndim == 0 or len(y) != len(x):
        raise ValueError(f"{found} of shape {tuple(y.shape)} for {len(x)} images: give one for each image.")


def check_classes(y: Tensor, classes: int, below: str, beyond: str) -> None:
    """Refuse labels ``(N,)`` outside ``0 .. classes - 1``.

    Raises:
        ValueError: If one is ``below`` 0 or ``beyond`` the classes, which say why that is wrong, and what to do.
    """
    low, high = require.range_of(y)
    if low < 0 or high >= classes:
        raise ValueError(f"labels run from {low} to {high}, but {below if low < 0 else beyond}.")


def outputs(net: nn.Module, x: Tensor, name: str, remedy: str) -> Any:
    """Return the net's output for a few images ``(N, C, H, W)``, computed in eval mode and without a graph.

    Raises:
        ValueError: If the net, which the message calls ``name``, cannot read the images. Of a net of
            ``lit_robust.nets``, it names the argument to change instead of ``remedy``.
    """
    try:
        # What the net draws or counts would make a resumed run, which begins with this check, another one.
        with network_mode(net, "eval"), unaffected(net, x.device):
            return net(x)
    except (torch.OutOfMemoryError, NoLogitsError):
        raise
    except Exception as error:
        shape, reason = "x".join(map(str, x.shape[1:])) or "()", f"{type(error).__name__}: {error}".splitlines()[0]
        told = image_shapes.remedy(net, x.shape[1:]) or remedy
        raise ValueError(f"{name} cannot read images of shape {shape} ({reason.rstrip('.')}): {told}.") from error


def check_logits(found: Any, x: Tensor, name: str, remedy: str, softmax: str) -> Tensor:
    """Return a net's output for a few images if it consists of logits, ``(N, num_classes)`` or with more dimensions.

    Args:
        found: The net's output.
        x: The images ``(N, C, H, W)``.
        name: The net's name in the message.
        remedy: What to do if there is no row for each image.
        softmax: What to do about probabilities.

    Raises:
        ValueError: If the output has another shape, is not finite, or consists of probabilities.
    """
    if not isinstance(found, Tensor) or not has_rows(found, x):
        raise no_logits(found, x, name, remedy)
    check_numbers(found, name)
    if _are_probabilities(found):
        raise _no_probabilities("", softmax)
    return found


def _are_probabilities(found: Tensor) -> bool:
    logits = found.detach().float()
    ones = logits.new_ones(len(logits))
    return found.ndim == 2 and bool((logits >= 0).all()) and torch.allclose(logits.sum(dim=1), ones)


def _no_probabilities(where: str, softmax: str) -> ValueError:
    return ValueError(
        f"the net returns probabilities{where}, but losses and attacks need logits: {softmax}, or every attack looks "
        "weaker than it is."
    )


@contextmanager
def naming_drop_last() -> Iterator[None]:
    """Add the remedy where BatchNorm refuses the last batch, which may hold one image.

    Raises:
        ValueError: In place of torch's.
    """
    try:
        yield
    except ValueError as error:
        if str(error).startswith("Expected more than 1 value per channel when training"):
            raise ValueError(
                "a batch of one image gives BatchNorm a single value per channel: leave a last batch that is not full "
                "out (--data.drop_last true), or change batch_size."
            ) from error
        raise
