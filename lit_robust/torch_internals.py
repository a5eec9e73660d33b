"""Everything we use of torch that is not public API: a module's compiled call."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from torch import nn
from torch._dynamo import OptimizedModule


def compile_alike(net: nn.Module, compiled: Any) -> None:
    """Compile a net in place as ``torch.compile`` has compiled the wrapper around it, with the same options.

    Without it, the wrapper's name would be in every key of a checkpoint, or the backend and mode would be lost.
    """
    net._compiled_call_impl = compiled.dynamo_ctx(net._call_impl)


T = TypeVar("T")

#: Wrappers whose prefix would be in the names of a checkpoint; Lightning distributes a module itself.
_WRAPPERS = (OptimizedModule, nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrapped(net: nn.Module) -> nn.Module:
    """Remove wrappers around a net and around its parts, so that checkpoints have its own names.

    What ``torch.compile`` has wrapped is compiled in place, with its own call and the options that it was given.
    """
    while isinstance(net, _WRAPPERS):
        (inner,) = net.children()
        if isinstance(net, OptimizedModule):
            compile_alike(inner, net)
        net = inner
    for module in [*net.modules()]:
        for name, part in module.named_children():
            if isinstance(part, _WRAPPERS):
                setattr(module, name, unwrapped(part))
    return net


def names_within(net: nn.Module) -> dict[str, str]:
    """The names in a net's ``state_dict``, each with the one that it has without wrappers around the net or parts."""
    wrapped = [
        (f"{name}.".lstrip("."), inner)
        for name, module in net.named_modules(remove_duplicate=False)
        if isinstance(module, _WRAPPERS)
        for inner, _ in module.named_children()
    ]
    names = {}
    for key in net.state_dict():
        plain = key
        for outer, inner in reversed(wrapped):  # the innermost first
            plain = re.sub(f"^{re.escape(f'{outer}{inner}.')}", outer, plain)
        names[key] = plain
    return names


def plain_name(key: Any) -> str:
    """A name in a ``state_dict`` without ``torch.compile``'s wrappers."""
    return re.sub(r"(?<=\.)_orig_mod\.", "", f".{key}")[1:]


def plain_names(state: Mapping[str, T]) -> dict[str, T]:
    """A ``state_dict`` by the names without ``torch.compile``'s wrappers."""
    return {plain_name(key): value for key, value in state.items()}


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
