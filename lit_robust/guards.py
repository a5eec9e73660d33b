"""Context managers that restore what they change: modes, ``requires_grad``, random states, gradient mode."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import torch
from torch import Tensor, nn

from lit_robust import require
from lit_robust.batch import class_labels
from lit_robust.torch_internals import is_compiled

BNMode = Literal["eval", "train"]

_checked = ContextVar("checked", default=False)
_smaller_batches = ContextVar("smaller_batches", default=False)


@contextmanager
def _switched_on(variable: ContextVar[bool]) -> Iterator[None]:
    token = variable.set(True)
    try:
        yield
    finally:
        variable.reset(token)


@contextmanager
def checked() -> Iterator[None]:
    """Tell attacks that the images have been checked, so that they need not read them, which waits for the device."""
    with _switched_on(_checked):
        yield


def is_checked() -> bool:
    """Whether the caller has checked the images."""
    return _checked.get()


@contextmanager
def smaller_batches() -> Iterator[None]:
    """Let attacks leave images out of the batch that are misclassified already, where ``may_shrink`` allows it.

    An evaluation enters this; it needs one misclassified point per image and does not look at the others.
    """
    with _switched_on(_smaller_batches):
        yield


def may_shrink(net: nn.Module) -> bool:
    """Whether an attack may leave images out of the batch without a change for the other ones.

    Not where a layer is in train mode, whose statistics or draws depend on the batch, nor where the shape is fixed by
    a compiled graph or a CUDA graph.
    """
    if not _smaller_batches.get() or torch.compiler.is_compiling():
        return False
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return False
    return not any(module.training or _is_compiled(name, module) for name, module in net.named_modules())


def _is_compiled(name: str, module: nn.Module) -> bool:
    """Whether a module is what ``torch.compile`` wraps, or was compiled in place."""
    return name.endswith("_orig_mod") or is_compiled(module)


@contextmanager
def crafting(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Enable gradients in any gradient mode of the caller, and yield images and labels that a graph can use.

    Labels of any integer type become int64. Tensors made in inference mode are copied, because no graph can use them.

    Raises:
        ValueError: If the images are integers, or the labels neither integers nor shares of the classes ``(N, C)``.
    """
    require.floating(x)
    y = y if y.ndim == 2 and y.is_floating_point() else class_labels(y)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield x.clone() if x.is_inference() else x.detach(), y.clone() if y.is_inference() else y
    except (IndexError, RuntimeError) as error:  # torch's, on the CPU; a GPU could only tell by waiting for it
        if "out of bounds" not in str(error):
            raise
        raise ValueError(f"a label is not one of the net's classes ({error}): number them from 0 on.") from error
    finally:
        # Autocast caches the weights it casts. torch 2.6 also caches those cast without a gradient for an attack;
        # a training forward would then reuse them, and the weights would get no gradient.
        torch.clear_autocast_cache()


@contextmanager
def network_mode(net: nn.Module, mode: BNMode) -> Iterator[None]:
    """Put a net into a mode, and restore every sub-module's own flag afterwards."""
    flags = [(module, module.training) for module in net.modules()]
    try:
        net.train(mode == "train")
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextmanager
def frozen(net: nn.Module) -> Iterator[None]:
    """Freeze all parameters, and restore each one's own ``requires_grad`` afterwards.

    Attacks on an uncompiled net do not need this, because they only ask for the images' gradient. A compiled graph
    computes all gradients that it was traced for, so freeze a compiled net while it is attacked.
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
    """Restore the random states of the CPU and of this device afterwards, so that the body may seed and draw."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
