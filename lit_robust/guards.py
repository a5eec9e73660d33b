"""What is put back after use: modes, parameters' flags, random states, and the caller's gradient mode."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import torch
from torch import Tensor, nn

_checked = ContextVar("checked", default=False)


@contextmanager
def checked() -> Iterator[None]:
    """Tell attacks that the images have been checked, so that they need not read them, which waits for the device."""
    token = _checked.set(True)
    try:
        yield
    finally:
        _checked.reset(token)


def is_checked() -> bool:
    """Whether the caller has checked the images."""
    return _checked.get()


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


@contextmanager
def own_random_state(device: torch.device) -> Iterator[None]:
    """Draw and seed at will on the CPU and on this device, and leave the caller's random state as it was."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
