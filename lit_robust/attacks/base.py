"""The base class of attacks, and what every attack needs."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import fields
from functools import lru_cache, wraps
from math import prod
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from lit_robust.attacks.alone import checked_by_itself
from lit_robust.magnitudes import Magnitude
from lit_robust.shown import shown

P = ParamSpec("P")
A = TypeVar("A", bound="Attack")

#: From this number of passes per image on an attack is long; AutoAttack's takes about 3,000.
LONG = 1000

#: The default bound, that of the CIFAR-10 tables; saved as written here.
EPS = Magnitude("8/255")


class NoGraphError(ValueError):
    """The net's logits have no graph to the pixels, so an attack has no gradient."""

    def __init__(self) -> None:
        super().__init__(
            "the net's logits have no graph to the pixels, so there is no gradient: compute them with torch's "
            "differentiable functions, give the step without a gradient a substitute (BPDA), or attack with Square."
        )


class Attack(ABC):
    """A way to find adversarial images: a value that holds no net, device or mode.

    A subclass is a frozen dataclass with flat arguments, so ``dataclasses.replace(attack, eps=...)`` makes a variant.
    An attack runs the net in the mode (BatchNorm, dropout) that the caller has set, see ``network_mode``. It leaves no
    gradient on any parameter, and also works inside ``torch.no_grad`` and ``torch.inference_mode``, see ``crafting``.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let a call that stands alone check what it is given."""
        super().__init_subclass__(**kwargs)
        if "__call__" in vars(cls):
            setattr(cls, "__call__", checked_by_itself(vars(cls)["__call__"]))  # noqa: B010  # mypy forbids the other

    @abstractmethod
    def __call__(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Craft an adversarial image for each image.

        Args:
            net: Returns logits for images in [0, 1].
            x: Clean images.
            y: Their labels, or the target classes of a targeted attack.

        Shape:
            x and the result: ``(N, C, H, W)`` float32 in [0, 1];  y: ``(N,)`` int64.

        Raises:
            TypeError: If images or labels are not tensors.
            ValueError: If pixels leave [0, 1], a label is not one of the net's classes, or the net returns no logits.
        """

    @property
    def is_long(self) -> bool:
        """Whether an evaluation can keep what is finished, block by block, see ``measures.image_blocks``."""
        numbers = (getattr(self, name, 1) for name in ("steps", "eot", "restarts", "targets"))
        return prod(number for number in numbers if isinstance(number, int)) >= LONG

    @property
    def package(self) -> str:
        """The name and version of the package that the attack runs, if it is another one's."""
        return ""

    def check_installed(self) -> None:  # noqa: B027  # most attacks need nothing
        """Fail at once if the attack needs a package that is missing.

        Raises:
            ImportError: If one is missing; the message says what to install.
        """


def made_once(build: Callable[P, A]) -> Callable[P, A]:
    """Cache a function that builds an attack from other values.

    Training asks for its attack in every batch, and an attack checks its arguments when it is built.
    """
    cached = lru_cache(maxsize=16)(build)

    @wraps(build)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> A:
        try:
            hash((args, *kwargs.values()))
        except TypeError:  # an unhashable value of the user's own
            return build(*args, **kwargs)
        return cached(*args, **kwargs)  # type: ignore[arg-type]  # they are hashable

    return wrapper


def arguments_of(attack: Any) -> dict[str, Any]:
    """The arguments that an attack, or any other dataclass, was built with, by name."""
    return {field.name: getattr(attack, field.name) for field in fields(attack)}


def step_length(eps: float, step_size: float | None, steps: int) -> float:
    """The length of a step: ``step_size`` if it is given, otherwise ``2.5 eps / steps``, at most ``eps``.

    So the steps can cross the ball at every eps, with a margin; Madry et al. (arXiv:1706.06083) choose it in this
    way where they vary eps.
    """
    return min(2.5 * eps / max(steps, 1), eps) if step_size is None else step_size


def within_box(distance: float) -> float:
    """Cap a distance in L-infinity at 1, the distance from black to white."""
    return min(distance, 1.0)


def input_gradient(loss: Tensor, x_adv: Tensor) -> Tensor:
    """The gradient of per-sample losses ``(N,)`` with respect to the images; parameters get none.

    The losses are summed, not averaged: with a mean over 256 samples, float16 gradients underflow to 0.

    Raises:
        NoGraphError: If the loss does not depend on the images by a graph.
        ValueError: If the loss is not one number per sample.
    """
    if loss.shape != x_adv.shape[:1]:
        raise ValueError(
            f"an attack's loss must be one number per sample, but for {len(x_adv)} samples its shape is "
            f"{tuple(loss.shape)}: "
            'use a function of lit_robust.losses, or reduction="none".'
        )
    if not loss.requires_grad:
        raise NoGraphError
    (gradient,) = torch.autograd.grad(loss.sum(), x_adv, allow_unused=True)
    if gradient is None:  # there is a graph, to the parameters only
        raise NoGraphError
    return gradient


def check_is_attack(name: str, attack: Attack) -> None:
    """Refuse what is not an attack; a targeted one is allowed.

    Raises:
        TypeError: If it cannot be called, or is a class.
    """
    if isinstance(attack, type):
        raise TypeError(f"{name}={attack.__name__} is a class: write {attack.__name__}(...).")
    if not callable(attack):
        raise TypeError(
            f"{name}={shown(attack)} is not an attack: give one of lit_robust.attacks, such as PGD(steps=10)."
        )


def check_attack(name: str, attack: Attack) -> None:
    """Refuse an attack that would find nothing, or the wrong thing.

    Raises:
        TypeError: If it cannot be called, or is a class.
        ValueError: If it is targeted, because its targets would be the true labels, or if its step size is 0.
    """
    check_is_attack(name, attack)
    if getattr(attack, "targeted", False):
        raise ValueError(
            f"{name} is targeted, and its targets would be the true labels, which helps the net: set "
            "targeted: false (AdversarialExamples draws targeted pictures)."
        )
    eps, step_size, steps = (getattr(attack, argument, None) for argument in ("eps", "step_size", "steps"))
    if eps and steps and step_size == 0:
        usual = step_length(eps, None, steps)
        raise ValueError(f"step_size=0 of {name} never leaves its start: leave step_size out (it is then {usual:.3g}).")
