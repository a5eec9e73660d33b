"""What a net returns: logits, alone or as the attribute ``logits`` of its output."""

from typing import Any

from torch import Tensor

#: What a net must return.
REMEDY = "let it return one tensor (N, num_classes), alone or as the attribute logits"


class NoLogitsError(ValueError):
    """The net returns something other than logits."""


def logits_of(found: Any) -> Any:
    """The logits of a net's output if it has them as an attribute ``logits``, else the output itself."""
    logits = None if isinstance(found, Tensor) else getattr(found, "logits", None)
    return logits if isinstance(logits, Tensor) else found


def no_logits(found: Any, x: Tensor, name: str, remedy: str) -> NoLogitsError:
    """The error about an output without logits; ``name`` is the net's in the message."""
    what = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
    return NoLogitsError(f"{name} returns {what} for {len(x)} images instead of logits: {remedy}.")


def predicts(logits: Tensor, y: Tensor) -> Tensor:
    """For which images the predicted class is ``y``, ``(N,)`` bool; none is where a logit is NaN or infinite."""
    return (logits.argmax(dim=1) == y) & logits.isfinite().all(dim=1)


def has_rows(logits: Tensor, x: Any) -> bool:
    """Whether there is a row for each image."""
    return logits.ndim >= 2 and (not isinstance(x, Tensor) or len(logits) == len(x))


def check_numbers(logits: Tensor, name: str) -> None:
    """Refuse logits that no attack can use; this waits for the device.

    Raises:
        ValueError: If they are not floating-point, or not finite.
    """
    if not logits.is_floating_point():
        raise ValueError(
            f"{name} returns logits of {logits.dtype}, but losses and attacks need floating-point numbers: return real "
            "numbers (such as logits.abs() of complex ones), and not the predicted classes."
        )
    if not bool(logits.float().isfinite().all()):
        raise ValueError(
            "the net returns NaN or infinite logits, whose accuracy would be that of guessing: its weights or its "
            "normalisation are broken, take an earlier checkpoint."
        )
