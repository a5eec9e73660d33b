"""What an attack is, and what every attack needs."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real
from operator import index
from typing import Literal

import torch
from torch import Tensor, nn

from lit_robust.magnitudes import Magnitude, magnitude
from lit_robust.threats import Norm

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


@contextmanager
def crafting(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Make gradients work in any mode of the caller's, and give back images and labels fit for a graph.

    Tensors made in inference mode are not, so they are copied.

    Raises:
        TypeError: If the images are no floating-point numbers.
    """
    if not x.is_floating_point():
        raise TypeError(
            f"images must be floating-point numbers in [0, 1], not {x.dtype}: convert them and divide by 255."
        )
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield x.clone() if x.is_inference() else x.detach(), y.clone() if y.is_inference() else y
    finally:
        # Autocast keeps the weights that it cast; torch 2.6 also keeps those that an attack needed without
        # a gradient, and a training forward that follows would get none.
        torch.clear_autocast_cache()


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


@contextmanager
def network_mode(net: nn.Module, mode: Literal["eval", "train"]) -> Iterator[None]:
    """Put a net into a mode, and give every sub-module its own flag back afterwards."""
    flags = [(module, module.training) for module in net.modules()]
    try:
        net.train(mode == "train")
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextmanager
def frozen(net: nn.Module) -> Iterator[None]:
    """Tell autograd that no parameter needs a gradient, and restore each one's own flag afterwards.

    Attacks do without: they ask for the images' gradient only. A compiled graph computes all gradients that
    it was traced for, so a caller who compiles the net freezes it while it is attacked.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in net.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def pixel_magnitude(value: float | str, name: str, norm: Norm) -> float:
    """Read a bound or step of an attack; in L-infinity it cannot exceed 1, the distance from black to white.

    Raises:
        ValueError: If it does, or is no magnitude at all.
    """
    number = magnitude(value, name)
    if norm == "linf" and number > 1:
        raise ValueError(f"{name}={number} is above 1, but pixels are in [0, 1]: did you mean {number:g}/255?")
    return number


def check_count(value: int, name: str, least: int) -> None:
    """Check how often something is done.

    Raises:
        ValueError: If it is not an integer, or below ``least``.
    """
    try:
        valid = index(value) >= least
    except TypeError:
        valid = False
    if not valid:
        raise ValueError(f"{name}={value!r} must be an integer, at least {least}.")


def check_precision(precision: str) -> None:
    """Refuse a trainer's precision that rounds pixels to steps as coarse as an eps.

    Raises:
        ValueError: If it is one of bfloat16's or float16's that leave no float32.
    """
    if precision in ("16-true", "bf16-true"):
        raise ValueError(
            f"trainer.precision={precision} rounds images to steps as coarse as an eps: use "
            f"{precision.replace('true', 'mixed')}."
        )


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


def check_not_negative(**arguments: float) -> None:
    """Check weights and bounds, of which 0 switches something off.

    Raises:
        ValueError: If one is below 0, infinite or no number.
    """
    for name, value in arguments.items():
        if not isinstance(value, Real) or not 0 <= value < math.inf:
            raise ValueError(f"{name}={value!r} must be 0 or above, and finite.")


def check_choice(value: str, name: str, choices: tuple[str, ...]) -> None:
    """Check an argument that is one of a few words.

    Raises:
        ValueError: If it is another.
    """
    if value not in choices:
        raise ValueError(f'{name}="{value}" is unknown: choose {", ".join(choices[:-1])} or {choices[-1]}.')
