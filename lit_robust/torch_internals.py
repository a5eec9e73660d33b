"""Everything we use of torch that is not public: a module's compiled call, a tensor's version, the processor."""

import platform
import re
import sys
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def unscales_itself(optimizer: Any) -> bool:
    """Whether an optimizer's step unscales the gradients of 16-mixed; without it, they would be clipped as scaled."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def compile_alike(net: nn.Module, compiled: Any) -> None:
    """Compile a net in place as ``torch.compile`` has compiled the wrapper around it, with the same options.

    Without it, the wrapper's name would be in every key of a checkpoint, or the backend and mode would be lost.
    """
    net._compiled_call_impl = compiled.dynamo_ctx(net._call_impl)


def version_of(tensor: Tensor) -> int:
    """How often a tensor has been written to in place; without it, each batch of a selection would copy memories."""
    return tensor._version


T = TypeVar("T")


def _is_optimized(net: nn.Module) -> bool:
    """Whether a net is what ``torch.compile`` returned; it has imported dynamo, which takes as long as torch."""
    dynamo: Any = sys.modules.get("torch._dynamo")
    return dynamo is not None and isinstance(net, dynamo.OptimizedModule)


def _is_wrapper(net: nn.Module) -> bool:
    """Whether a prefix would be in the names of a checkpoint; Lightning distributes a module itself."""
    return _is_optimized(net) or isinstance(net, nn.DataParallel | nn.parallel.DistributedDataParallel)


def unwrapped(net: nn.Module) -> nn.Module:
    """Remove wrappers around a net and around its parts, so that checkpoints have its own names.

    What ``torch.compile`` has wrapped is compiled in place, with its own call and the options that it was given.
    """
    while _is_wrapper(net):
        (inner,) = net.children()
        if _is_optimized(net):
            compile_alike(inner, net)
        net = inner
    for module in [*net.modules()]:
        for name, part in module.named_children():
            if _is_wrapper(part):
                setattr(module, name, unwrapped(part))
    return net


def names_within(net: nn.Module) -> dict[str, str]:
    """The names in a net's ``state_dict``, each with the one that it has without wrappers around the net or parts."""
    wrapped = [
        (f"{name}.".lstrip("."), inner)
        for name, module in net.named_modules(remove_duplicate=False)
        if _is_wrapper(module)
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
    """Whether a net is compiled in place; without it, it would be compiled again, without the user's options."""
    return net._compiled_call_impl is not None


def allow_graphs(number: int) -> None:
    """Let dynamo keep at least this many graphs of one function; without it, further ones run uncompiled in silence.

    The function is torch's own call of a module, which all compiled nets and copies of nets share.
    """
    import torch._dynamo.config as config

    config.cache_size_limit = max(config.cache_size_limit, number)  # called recompile_limit since 2.7, with this alias


def call_uncompiled_after(
    net: nn.Module, tell: Callable[[Exception], None], attempt: Callable[..., Exception | None]
) -> None:
    """Run a compiled net uncompiled from the compiler's first error on, which ``tell`` gets.

    Before each run, ``attempt`` gets the compiled call and its arguments, and may return such an error. Without it, a
    machine without a compiler, or a net that dynamo cannot read, would end a training.
    """
    eager: Any = net._call_impl
    run: Any = net._compiled_call_impl

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal run
        try:
            failed = None if run is eager else attempt(partial(run, **kwargs), *args)
            if failed is None:
                return run(*args, **kwargs)
        except RuntimeError as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "torch._functorch")):
                raise  # not the compiler's
            failed = error
        found = eager(*args, **kwargs)
        run = eager
        tell(failed)
        return found

    net._compiled_call_impl = call


class _Compiler:
    """When dynamo's present compilation began, and the seconds and the number of those that have ended."""

    begun = seconds = 0.0
    compilations = depth = 0  # older versions of torch also tell of compilations within one

    def begin(self, *_: Any) -> None:
        self.depth += 1
        if self.depth == 1:
            self.begun = time.perf_counter()

    def end(self, *_: Any) -> None:
        self.depth -= 1
        if self.depth == 0:
            self.seconds += time.perf_counter() - self.begun
            self.compilations += 1


_compiler = _Compiler()


def compilations() -> tuple[float, int]:
    """The seconds and the number of dynamo's compilations in this process since the first call.

    Without it, a first batch of a minute could not be told from a slow one.
    """
    from torch._dynamo.callback import callback_handler  # as slow to import as torch

    if _compiler.end not in callback_handler.end_callbacks:  # torch._dynamo.reset removes it
        callback_handler.register_start_callback(_compiler.begin)
        callback_handler.register_end_callback(_compiler.end)
    return _compiler.seconds, _compiler.compilations


def parts_of(module: nn.Module) -> Mapping[str, nn.Module | None]:
    """A module's own sub-modules by name, also those that have two; ``named_children`` leaves the second one out."""
    return module._modules


def shallow_copy(module: nn.Module, **replaced: Mapping[str, Any]) -> nn.Module:
    """Another module of the same class with the same attributes, hooks and tensors; see ``take_over``."""
    copy: nn.Module = object.__new__(type(module))
    take_over(copy, module, **replaced)
    return copy


def take_over(copy: nn.Module, module: nn.Module, **replaced: Mapping[str, Any]) -> None:
    """Give a copy a module's attributes but its compiled call, and other ``parameters``, ``buffers`` or ``modules``.

    Without both, only a copy of all tensors could be folded; ``nn.Module`` has no public way to share them.
    """
    attributes = {name: value for name, value in vars(module).items() if name != "_compiled_call_impl"}
    vars(copy).update(attributes | {f"_{name}": dict(values) for name, values in replaced.items()})


#: What every module has besides its tensors and sub-modules, such as hooks, which may belong to a trainer.
_OF_EVERY_MODULE = vars(nn.Module()).keys() - {"_parameters", "_buffers", "_modules"} | {"_compiled_call_impl"}


class _CopiesOfGraphs(TorchFunctionMode):
    """Copies tensors with a graph, such as activations that a net has kept, without it; torch refuses them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        return memo.setdefault(id(tensor), tensor.detach().clone())


def copied_attributes(net: nn.Module) -> list[dict[str, Any]]:
    """Copies of the attributes and buffers of each of a net's ``modules()``, with their own parameters and parts.

    Without it, a check that runs a net would count in its buffers, or leave traced values in its lists.
    """
    modules = [*net.modules()]
    memo = {id(own): own for own in (*modules, *net.parameters())}
    with _CopiesOfGraphs():
        return [
            {name: deepcopy(value, memo) for name, value in vars(module).items() if name not in _OF_EVERY_MODULE}
            for module in modules
        ]


def is_changed(module: nn.Module) -> bool:
    """Whether a module does something else than its class, by a hook or by a ``forward`` of its own."""
    hooks: Any = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


def watch_compiled(net: nn.Module, hook: Callable[[nn.Module, Any, Any], None]) -> Callable[[], None]:
    """Call a forward hook outside of a compiled net's graph; return what undoes it.

    Without it, the hook would be traced into the graph, which would be compiled again whenever a count changes.
    """
    compiled: Any = net._compiled_call_impl

    def call(*args: Any, **kwargs: Any) -> Any:
        found = compiled(*args, **kwargs)
        hook(net, args, found)
        return found

    net._compiled_call_impl = call
    return partial(setattr, net, "_compiled_call_impl", compiled)


def bf16_instructions() -> list[str] | None:
    """The CPU's instructions that multiply bfloat16, of AMX and AVX512-BF16; None if that is not known.

    Without it, we could not warn that ``bf16-mixed`` is faster on some CPUs and many times slower on others.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    names = {"AMX": "amx_tile", "AVX512-BF16": "avx512_bf16"}
    asked = {name: getattr(torch.cpu, f"_is_{flag}_supported", None) for name, flag in names.items()}
    return None if None in asked.values() else [name for name, ask in asked.items() if ask and ask()]
