"""What several callbacks need: a module's net, and a trainer without a second callback of the same kind."""

from typing import Any, Protocol, TypeVar

from lightning.pytorch import Callback
from torch import nn

Kind = TypeVar("Kind", bound=Callback)


class HasNet(Protocol):
    """A module with a ``net``, from images in [0, 1] to logits, as several callbacks need it."""

    net: nn.Module


def net_of(module: object, does: str) -> nn.Module:
    """The net of a module that is a ``HasNet``.

    Args:
        module: What is trained.
        does: The callback and what it does with the net: ``"EMAWeights averages"``.

    Raises:
        TypeError: If there is none.
    """
    # From Python 3.12 on, `isinstance(module, HasNet)` does not see what a torch module finds in its `__getattr__`.
    net = getattr(module, "net", None)
    if not isinstance(net, nn.Module):
        raise TypeError(
            f"{does} module.net, which {type(module).__name__} lacks: assign it the nn.Module that returns logits."
        )
    return net


def callbacks_of(trainer: Any, kind: type[Kind]) -> list[Kind]:
    """The trainer's callbacks of a kind, in order; the trainer does not declare their type."""
    return [callback for callback in trainer.callbacks if isinstance(callback, kind)]


def check_alone(trainer: Any, me: Callback, kind: type[Callback], why: str) -> None:
    """Refuse a second callback of a kind.

    Args:
        trainer: Its callbacks are searched.
        me: The callback that checks.
        kind: The class that may occur once.
        why: The message: what two would do, and what to do instead.

    Raises:
        ValueError: If there is another.
    """
    if any(other is not me for other in callbacks_of(trainer, kind)):
        raise ValueError(why)


def is_trial(trainer: Any) -> bool:
    """Whether this is a ``fast_dev_run``, which is too short for any plan of epochs."""
    return bool(trainer.fast_dev_run)
