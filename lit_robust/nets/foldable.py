"""Finds the BatchNorms that directly follow a convolution, by tracing."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from lit_robust.guards import on_trial
from lit_robust.nets.narrow import SubsamplingConv2d

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, SubsamplingConv2d)
NORMALIZATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Pair(NamedTuple):
    """The names of a convolution and of the BatchNorm that alone reads it."""

    conv: str
    norm: str


def types_fit(conv: nn.Module, norm: nn.Module) -> bool:
    """Whether both are torch's own layers, or our convolution; a parametrisation changes the type."""
    return type(conv) in CONVOLUTIONS and type(norm) in NORMALIZATIONS


def candidates(net: nn.Module, device: torch.device) -> list[Pair]:
    """The pairs of a convolution and the BatchNorm that alone reads its output, in the order of the net.

    None where a net cannot be traced without leaving traced values in it, because an attribute cannot be copied; and
    none that would change the output of one of its ``stages``, which perceptual attacks read.
    """
    with on_trial(net, device) as can_run, torch.no_grad():
        found = list(_traced(net)) if can_run else []
    names = Counter(module for _, module in net.named_modules(remove_duplicate=False))
    stages = [f"{name}.{stage}".lstrip(".") for name, part in net.named_modules() for stage in _stages(part)]
    return [
        pair
        for pair in found
        if all(names[net.get_submodule(name)] == 1 for name in pair)
        and not any(_within(pair.conv, stage) and not _within(pair.norm, stage) for stage in stages)
    ]


def _stages(part: nn.Module) -> list[str]:
    found = getattr(part, "stages", ())  # of other nets, possibly a module
    return [stage for stage in found if isinstance(stage, str)] if isinstance(found, Sequence) else []


def _within(name: str, layer: str) -> bool:
    return f"{name}.".startswith(f"{layer}.")


class _Tracer(fx.Tracer):
    """Does not look into our convolution, as into none of torch's."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the module is one node."""
        return isinstance(m, SubsamplingConv2d) or super().is_leaf_module(m, module_qualified_name)


def _traced(module: nn.Module, prefix: str = "") -> Iterator[Pair]:
    if not any(isinstance(part, NORMALIZATIONS) for part in module.modules()):
        return
    try:
        nodes = [*_Tracer().trace(module).nodes]
    except Exception:  # any error of any code, such as a branch that depends on the images
        for name, part in module.named_children():
            yield from _traced(part, f"{prefix}{name}.")
        return
    calls = Counter(node.target for node in nodes if node.op == "call_module")
    tensors = {str(node.target).rpartition(".")[0] for node in nodes if node.op == "get_attr"}
    for node in nodes:
        before = node.args[0] if node.args else None
        if not (isinstance(before, fx.Node) and node.op == before.op == "call_module" and len(before.users) == 1):
            continue
        conv, norm = str(before.target), str(node.target)
        alone = calls[conv] == calls[norm] == 1 and not tensors & {conv, norm}
        if alone and types_fit(module.get_submodule(conv), module.get_submodule(norm)):
            yield Pair(prefix + conv, prefix + norm)


@contextmanager
def in_full_precision(on_gpu: bool) -> Iterator[None]:
    """Neither convolutions nor products of matrices in TF32, whose rounding would look like another result."""
    if not on_gpu:
        yield
        return
    cudnn: Any = torch.backends.cudnn
    undo: list[Callable[[], None]] = []
    try:
        if (precision := torch.get_float32_matmul_precision()) != "highest":
            undo += [partial(torch.set_float32_matmul_precision, precision)]
            torch.set_float32_matmul_precision("highest")
    except RuntimeError:  # it was set by the switch of torch 2.9, which does not mix with the older one
        undo += [_exchanged(torch.backends.cuda.matmul, "fp32_precision", "ieee")]
    newer = hasattr(cudnn, "conv")
    undo += [_exchanged(cudnn.conv, "fp32_precision", "ieee") if newer else _exchanged(cudnn, "allow_tf32", False)]
    try:
        yield
    finally:
        for restore in undo:
            restore()


def _exchanged(owner: Any, name: str, value: Any) -> Callable[[], None]:
    """Set an attribute; return what undoes it."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    return partial(setattr, owner, name, before)
