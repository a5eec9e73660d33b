"""Context managers that restore what they change: modes, ``requires_grad``, buffers, random states, gradient mode."""

import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lit_robust import require
from lit_robust.batch import class_labels
from lit_robust.torch_internals import copied_attributes, is_compiled

BNMode = Literal["eval", "train"]

T = TypeVar("T")

_checked = ContextVar("checked", default=False)
_smaller_batches = ContextVar("smaller_batches", default=False)
#: The flags of modules as they are in training, which those in eval mode within ``network_mode`` do not show.
_of_training: ContextVar[Mapping[nn.Module, bool]] = ContextVar("of_training", default=MappingProxyType({}))


@contextmanager
def _having(variable: ContextVar[T], value: T) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


@contextmanager
def checked() -> Iterator[None]:
    """Tell attacks that the images have been checked, so that they need not read them, which waits for the device."""
    with _having(_checked, True):
        yield


def is_checked() -> bool:
    """Whether the caller has checked the images."""
    return _checked.get()


@contextmanager
def smaller_batches() -> Iterator[None]:
    """Let attacks leave images out of the batch that are misclassified already, where ``may_shrink`` allows it.

    An evaluation enters this; it needs one misclassified point per image and does not look at the others.
    """
    with _having(_smaller_batches, True):
        yield


def may_shrink(net: nn.Module) -> bool:
    """Whether an attack may leave images out of the batch without a change for the other ones.

    Not where a layer is in train mode, whose statistics or draws depend on the batch, nor where the shape is fixed by
    a compiled graph or a CUDA graph.
    """
    if not _smaller_batches.get() or torch.compiler.is_compiling():
        return False
    begun = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch's
    if begun and torch.cuda.is_current_stream_capturing():  # not is_available, which asks the driver in each step
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
    """Put a net into a mode, and restore every sub-module's own flag afterwards.

    ``train`` is the mode in which the net is trained. A net that is in train mode stays as it is, so that layers that
    its owner has frozen by ``eval()``, such as BatchNorms in fine-tuning, stay frozen. Within ``eval``, the flags are
    those from before it. A net that its owner has put into eval mode as a whole has no other flags to go by, so its own
    ``train()`` is called.
    """
    flags = {module: module.training for module in net.modules()}
    known = _of_training.get()
    with _having(_of_training, {**known, **flags} if net.training else {**flags, **known}):
        try:
            if mode == "eval":
                net.eval()
            elif not net.training:
                net.train()
                for module in flags:
                    module.training = known.get(module, module.training)
            yield
        finally:
            for module, flag in flags.items():
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
    """Restore the random states of Python, NumPy and torch, of the CPU and of this device, afterwards.

    So the body may seed and draw; a user's net may draw from any of them.
    """
    numpy: Any = sys.modules.get("numpy")
    of_python, of_numpy = random.getstate(), numpy.random.get_state() if numpy else None
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(of_python)
        if of_numpy is not None:
            numpy.random.set_state(of_numpy)


@contextmanager
def buffers_kept(net: nn.Module) -> Iterator[None]:
    """Restore a net's buffers afterwards, also those that a forward has replaced by other tensors."""
    kept = [
        (part, name, buffer, buffer.detach().clone())
        for part in net.modules()
        for name, buffer in part.named_buffers(recurse=False)
        if not is_lazy(buffer)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for part, name, buffer, before in kept:
                if getattr(part, name) is not buffer:
                    setattr(part, name, buffer)
                if not buffer.is_inference():  # which nothing could write to
                    buffer.copy_(before)


@contextmanager
def unaffected(net: nn.Module, device: torch.device) -> Iterator[None]:
    """Let the body run a net without gradients, and restore its buffers and all random states afterwards.

    It suits any module, also one that belongs to a trainer, whose attributes cannot be copied; see ``on_trial``.
    """
    with torch.no_grad(), own_random_state(device), buffers_kept(net):
        yield


@contextmanager
def on_trial(net: nn.Module, device: torch.device) -> Iterator[bool]:
    """Let the body run any code of a net without an effect: it has copies of its buffers and attributes meanwhile.

    Parameters, sub-modules and hooks are its own. Random states are restored.

    Yields:
        Whether everything could be copied; otherwise the net has what it had, and should not run.
    """
    kept = [(vars(module), dict(vars(module))) for module in net.modules()]
    with own_random_state(device):
        try:
            copies = copied_attributes(net)
        except Exception:  # any error of any attribute's code
            copies = []
        try:
            for (attributes, _), copied in zip(kept, copies, strict=False):
                attributes.update(copied)
            yield bool(copies)
        finally:
            for attributes, before in kept:
                attributes.clear()
                attributes.update(before)
