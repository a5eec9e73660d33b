"""Finds the BatchNorms that directly follow a convolution, by tracing."""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import fx, nn

from lit_robust.guards import own_random_state

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMALIZATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Pair(NamedTuple):
    """The names of a convolution and of the BatchNorm that alone reads it."""

    conv: str
    norm: str


def types_fit(conv: nn.Module, norm: nn.Module) -> bool:
    """Whether both are torch's own layers; a parametrisation changes the type."""
    return type(conv) in CONVOLUTIONS and type(norm) in NORMALIZATIONS


def candidates(net: nn.Module) -> list[Pair]:
    """The pairs of a convolution and the BatchNorm that alone reads its output, in the order of the net."""
    attributes = [(module, dict(vars(module))) for module in net.modules()]
    with own_random_state(torch.device("cpu")), torch.no_grad():
        found = list(_traced(net))
    for module, before in attributes:  # which code of the user's may have assigned traced values
        vars(module).clear()
        vars(module).update(before)
    names = Counter(module for _, module in net.named_modules(remove_duplicate=False))
    return [pair for pair in found if all(names[net.get_submodule(name)] == 1 for name in pair)]


def _traced(module: nn.Module, prefix: str = "") -> Iterator[Pair]:
    if not any(isinstance(part, NORMALIZATIONS) for part in module.modules()):
        return
    try:
        nodes = [*fx.Tracer().trace(module).nodes]
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
