"""Everything we use of torch that is not public API: a module's compiled call."""

from collections.abc import Callable
from functools import partial
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


def watch_compiled(net: nn.Module, hook: Callable[[nn.Module, Any, Any], None]) -> Callable[[], None]:
    """Call a forward hook outside of a compiled net's graph; return what undoes it.

    Without it, the hook would be traced into the graph, which would be compiled anew whenever a count changes.
    """
    compiled: Any = net._compiled_call_impl

    def call(*args: Any, **kwargs: Any) -> Any:
        found = compiled(*args, **kwargs)
        hook(net, args, found)
        return found

    net._compiled_call_impl = call
    return partial(setattr, net, "_compiled_call_impl", compiled)
