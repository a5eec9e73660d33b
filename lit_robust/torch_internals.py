"""Everything we use of torch that is not public API: a module's compiled call."""

from typing import Any

from torch import nn


def compile_alike(net: nn.Module, compiled: Any) -> None:
    """Compile a net in place as ``torch.compile`` has compiled the wrapper around it, with the same options.

    Without it, the wrapper's name would be in every key of a checkpoint, or the backend and mode would be lost.
    """
    net._compiled_call_impl = compiled.dynamo_ctx(net._call_impl)


def is_compiled(net: nn.Module) -> bool:
    """Whether a net is compiled in place; without it, it would be compiled anew, without the user's options."""
    return net._compiled_call_impl is not None
