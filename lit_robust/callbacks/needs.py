"""What several callbacks need: a module's net, and a trainer without a second callback of the same kind."""

from typing import Any, Protocol, TypeVar

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn

Kind = TypeVar("Kind", bound=Callback)


class HasNet(Protocol):
    """What a module may have, as every Defense does: a net, from images in [0, 1] to logits."""

    net: nn.Module


def net_of(module: LightningModule, path: str | None) -> nn.Module:
    """The sub-module at a path; without one the module itself or, if it has no ``forward``, its ``net``.

    Args:
        module: What is trained.
        path: Such as ``"model"`` or ``"encoder.head"``.

    Raises:
        ValueError: If there is no such sub-module.
    """
    if path is None:
        # From Python 3.12 on, `isinstance(module, HasNet)` does not see what a torch module finds in its `__getattr__`.
        net = getattr(module, "net", None)
        return module if _has_forward(module) or not isinstance(net, nn.Module) else net
    try:
        return module.get_submodule(path)
    except AttributeError:
        raise ValueError(
            f'net="{path}" is not a sub-module of {type(module).__name__}: name the one that returns logits '
            f"(it has: {parts_of(module)})."
        ) from None


def check_net(module: LightningModule, path: str | None, does: str) -> None:
    """Refuse, before the first batch, a module in which ``net_of`` finds no net.

    Args:
        module: What is trained.
        path: The argument ``net`` of a callback.
        does: The callback and what it does: ``"EMAWeights averages"``.

    Raises:
        TypeError: If it has neither ``forward`` nor ``net``.
        ValueError: If there is no such sub-module.
    """
    if net_of(module, path) is module and not _has_forward(module):
        raise TypeError(
            f"{does} a net, but {type(module).__name__} has neither forward nor net: set net to the sub-module that "
            f"turns images into logits (it has: {parts_of(module)})."
        )


def parts_of(module: LightningModule) -> str:
    """The names of its sub-modules, for messages."""
    return ", ".join(name for name, _ in module.named_children()) or "none"


class ForwardsToNet(Protocol):
    """A module whose ``forward`` is exactly that of its ``net``, such as a Defense."""

    forwards_to_net: bool


def _has_forward(module: LightningModule) -> bool:
    own = type(module).forward is not LightningModule.forward
    return own and not getattr(module, "forwards_to_net", False)


class MayBeNatural(Protocol):
    """A module that may train without an attack, such as ``Natural``."""

    is_natural: bool


def check_not_natural(module: LightningModule, does: str) -> None:
    """Refuse a method whose training has no attack.

    Args:
        module: What is trained.
        does: The callback and what it does: ``"DelayedStart delays the attack"``.

    Raises:
        ValueError: If it has none.
    """
    if getattr(module, "is_natural", False):
        name = type(module).__name__
        raise ValueError(f"{does}, but {name} trains without one: leave this callback out, or train another method.")


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


def check_no_average(trainer: Any) -> None:
    """Refuse to restore weights that an average would replace.

    Raises:
        ValueError: If a callback averages weights.
    """
    for other in callbacks_of(trainer, WeightAveraging):
        raise ValueError(
            f'action="restore" would be undone by {type(other).__name__}, which leaves its average in the module '
            'after the fit: set action="stop", and go back to the best checkpoint.'
        )


def is_trial(trainer: Any) -> bool:
    """Whether this is a ``fast_dev_run``, which is too short for any plan of epochs."""
    return bool(trainer.fast_dev_run)
