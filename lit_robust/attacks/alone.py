"""Checks of an attack that is called by itself, not in a loop that has checked its batches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from lit_robust import require
from lit_robust.batch import SHORT
from lit_robust.guards import checked, is_checked
from lit_robust.logits import REMEDY, check_numbers, has_rows, logits_of, no_logits
from lit_robust.torch_internals import is_compiled

#: An attack's ``__call__``.
Call = Callable[[Any, nn.Module, Tensor, Tensor], Tensor]


def checked_by_itself(call: Call) -> Call:
    """Check what an attack is given by itself: the images, the labels, and the first logits that the net returns.

    Where a loop has checked them, see ``guards.checked``, nothing is done.
    """

    @wraps(call)
    def checked_call(self: Any, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if is_checked():
            return call(self, net, x, y)
        require.instance("net", net, nn.Module, "wrap a function in an nn.Module whose forward calls it")
        check_batch(x, y)
        with checked(), first_logits_checked(net, x, y):
            return call(self, net, x, y)

    return checked_call


def check_batch(x: Tensor, y: Tensor) -> None:
    """Refuse images outside [0, 1], which an attack would clip, and labels that are not one from 0 on for each.

    Raises:
        TypeError: If either is not a tensor.
        ValueError: With the range found and what to do about it.
    """
    require.instance("x", x, Tensor, "give a tensor of images (N, C, H, W)")
    require.instance("y", y, Tensor, "give a tensor of labels (N,)")
    if not len(x):
        return
    if x.is_floating_point():  # `crafting` refuses others
        require.images(x, "give the images as they are, in [0, 1], and normalise inside the net")
    if y.ndim == 0 or len(y) != len(x):
        raise ValueError(f"there are labels of shape {tuple(y.shape)} for {len(x)} images: give one for each image.")
    if y.ndim == 1 and y.dtype in (torch.int64, *SHORT) and (least := int(y.min())) < 0:
        raise ValueError(f"labels begin at {least}, but classes are numbered from 0 on: leave such samples out.")


@contextmanager
def first_logits_checked(net: nn.Module, x: Tensor, y: Tensor) -> Iterator[None]:
    """Take ``.logits`` of each output of the net, and refuse the first one if no attack can use it.

    Raises:
        ValueError: If the net cannot read the images, or returns no logits, NaN, or too few for the labels.
    """
    name = f"the net ({type(net).__name__})"
    seen: list[bool] = []

    def check(module: nn.Module, args: tuple[Any, ...], found: Any) -> Any:
        logits = logits_of(found)
        if not seen:
            seen.append(True)
            if not isinstance(logits, Tensor) or not has_rows(logits, args[0]):
                raise no_logits(logits, args[0], name, REMEDY)
            check_numbers(logits, name)
            if y.ndim == 1 and len(y) and not y.is_floating_point() and (most := int(y.max())) >= logits.shape[1]:
                raise ValueError(
                    f"labels run up to {most}, but {name} returns {logits.shape[1]} logits per image: number the "
                    "classes from 0 on, or give the net an output for each."
                )
        return logits

    # A hook on a compiled net would compile it again.
    handle = None if is_compiled(net) else net.register_forward_hook(check)
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if seen and y.ndim > 1:
            raise ValueError(
                f"labels of shape {tuple(y.shape)} are not read by this attack: give class numbers (N,), such as "
                "y.argmax(dim=1) of one-hot labels."
            ) from error
        if seen or handle is None:
            raise
        reason = str(error).splitlines()[0].rstrip(".")
        shape = "x".join(map(str, x.shape[1:]))
        raise ValueError(
            f"{name} cannot read images of shape {shape} and {x.dtype} ({reason}): give it images (N, C, H, W) of the "
            "size and type that it is built for."
        ) from error
    finally:
        if handle is not None:
            handle.remove()
