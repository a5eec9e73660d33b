"""``torch.compile`` with a fallback to the uncompiled net, and its time."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lit_robust.guards import on_trial
from lit_robust.torch_internals import allow_graphs, call_uncompiled_after, compilations

#: Graphs of all nets of a process: one for each net and folded copy, mode, size of batches, precision, and kind of
#: gradient. A training has about ten.
GRAPHS = 64


def compile_in_place(net: nn.Module) -> None:
    """Compile a net with ``torch.compile``; one that cannot be compiled runs as it is, after a warning that says why.

    The first forward compiles. If the compiler fails, the forward is repeated uncompiled; where a part of the net has
    already run without a gradient, which takes a break of the graph, its BatchNorms see this batch twice. torch
    compiles a backward only when it runs, so the first forward with a gradient, and each of another kind (size of
    batches, precision, mode, what has a gradient), is tried with its backward before it is made. That is left out for a
    net that keeps what cannot be copied, such as an open file: a failing compilation of its backward is raised.
    """
    allow_graphs(GRAPHS)
    net.compile()

    def tell(error: Exception) -> None:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = " ".join(lines[: 1 + lines[0].endswith(":")])  # the first line may only name the backend
        warnings.warn(
            f"compile=True: the net runs uncompiled, because torch.compile failed ({reason}): fix this, or set "
            "compile=False.",
            stacklevel=2,
        )

    call_uncompiled_after(net, tell, partial(_error_of_backward, net, set()))


def _error_of_backward(
    net: nn.Module, tried: set[Any], run: Callable[..., Any], x: Any = None, *others: Any
) -> Exception | None:
    """Run a forward and its backward without an effect on the net, unless a kind is among ``tried``; return the error.

    The forward's errors, and too little memory, are raised as they are.
    """
    if not isinstance(x, Tensor) or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    kind = x.shape, x.dtype, x.requires_grad, len(weights), net.training, torch.is_autocast_enabled(x.device.type)
    if kind in tried:
        return None
    tried.add(kind)
    x = x.detach().requires_grad_(x.requires_grad)  # the backward ends here
    leaves = [leaf for leaf in (x, *weights) if leaf.requires_grad]
    with on_trial(net, x.device) as can_run:
        logits = run(x, *others) if can_run and leaves else None
        if isinstance(logits, Tensor) and logits.requires_grad:
            try:
                # Neither accumulated into weights, nor seen by the hooks that reduce gradients over ranks.
                torch.autograd.grad(logits, leaves, torch.ones_like(logits), allow_unused=True)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # any compiler's
                return error
    return None


class CompilationClock:
    """What ``torch.compile`` takes from the clock's construction on."""

    def __init__(self) -> None:
        self._before = compilations()

    def __str__(self) -> str:
        """What it has taken, in a sentence; empty if nothing was compiled."""
        seconds, graphs = (now - before for now, before in zip(compilations(), self._before, strict=True))
        took = f"torch.compile took {seconds:.0f} s ({graphs} compilations)"
        return f"{took}; a later run finds them in inductor's cache (TORCHINDUCTOR_CACHE_DIR)." if graphs else ""
