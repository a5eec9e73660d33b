"""What an attack is, and what every attack needs."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import fields
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from lit_robust import require
from lit_robust.guards import is_checked
from lit_robust.magnitudes import Magnitude

P = ParamSpec("P")
A = TypeVar("A", bound="Attack")

#: The defaults: the bound of the CIFAR-10 tables and its usual step, saved as they are written here.
EPS, STEP_SIZE = Magnitude("8/255"), Magnitude("2/255")


class Attack(ABC):
    """A way to find adversarial images; a value, with no net, device or mode inside.

    A subclass is a frozen dataclass with flat arguments, so ``dataclasses.replace(attack, eps=...)`` is
    another one. It sees the net in the mode (BatchNorm, dropout) that the caller put it in: see
    ``network_mode``. It leaves no gradient on any parameter, and works inside ``torch.no_grad`` and
    ``torch.inference_mode`` too: see ``crafting``.
    """

    @abstractmethod
    def __call__(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Craft an adversarial image for each image.

        Args:
            net: Returns logits for images in [0, 1].
            x: Clean images.
            y: Their labels, or the target classes of a targeted attack.

        Shape:
            x and the result: ``(N, C, H, W)`` float32 in [0, 1];  y: ``(N,)`` int64.
        """

    def check_installed(self) -> None:  # noqa: B027  # most attacks need nothing
        """Fail at once if the attack needs a package that is missing.

        Raises:
            ImportError: With what to install.
        """


def check_images(x: Tensor) -> None:
    """Refuse clean images outside [0, 1], which an attack would clip; not inside ``guards.checked``.

    Raises:
        ValueError: With the range found and what to do about it.
    """
    if not is_checked() and len(x) and x.is_floating_point():  # `crafting` refuses others
        require.images(x, "give the images as they are, in [0, 1], and normalise inside the net")


def made_once(build: Callable[P, A]) -> Callable[P, A]:
    """Let a function that builds an attack from other values return the same one as long as these are the same.

    A training asks for its attack in every batch, and an attack checks its arguments when it is built.
    """
    cached = lru_cache(maxsize=16)(build)

    @wraps(build)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> A:
        try:
            return cached(*args, **kwargs)  # type: ignore[arg-type]  # that they are hashable is what is tried
        except TypeError:  # a value of the user's own that has no hash
            return build(*args, **kwargs)

    return wrapper


def arguments_of(attack: Any) -> dict[str, Any]:
    """The arguments that an attack, or any other dataclass, was built with, by name."""
    return {field.name: getattr(attack, field.name) for field in fields(attack)}


def within_box(distance: float) -> float:
    """A distance in L-infinity, at most 1: no pixel is farther from another than black from white."""
    return min(distance, 1.0)


def input_gradient(loss: Tensor, x_adv: Tensor) -> Tensor:
    """The gradient of per-sample losses ``(N,)`` in the images, and nothing on any parameter.

    The losses are summed, not averaged: a mean over 256 samples drives gradients in float16 to 0.

    Raises:
        ValueError: If the loss is not one number per sample.
    """
    if loss.shape != x_adv.shape[:1]:
        raise ValueError(
            f"an attack's loss must be one number per sample, but for {len(x_adv)} samples its shape is "
            f"{tuple(loss.shape)}: "
            'use a function of lit_robust.losses, or reduction="none".'
        )
    (gradient,) = torch.autograd.grad(loss.sum(), x_adv)
    return gradient


def check_attack(name: str, attack: Attack) -> None:
    """Refuse an attack that would find nothing, or the wrong thing.

    Raises:
        TypeError: If it cannot be called, or is a class.
        ValueError: If it is targeted, for it would be given the true labels as its targets, or its steps have no
            length.
    """
    if isinstance(attack, type):
        raise TypeError(f"{name}={attack.__name__} is a class: write {attack.__name__}(...).")
    if not callable(attack):
        raise TypeError(f"{name}={attack!r} is no attack: give one of lit_robust.attacks, such as PGD(steps=10).")
    if getattr(attack, "targeted", False):
        raise ValueError(
            f"{name} is targeted, and its targets would be the true labels, which helps the net: set "
            "targeted: false (AdversarialExamples draws targeted pictures)."
        )
    eps, step_size, steps = (getattr(attack, argument, None) for argument in ("eps", "step_size", "steps"))
    if eps and steps and step_size == 0:
        raise ValueError(f"step_size=0 of {name} never leaves its start: give {2.5 * eps / steps:.3g} or so.")
