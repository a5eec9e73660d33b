"""``torch.compile`` with a fallback to the uncompiled net, and its time."""

import warnings

from torch import nn

from lit_robust.torch_internals import allow_graphs, call_uncompiled_after, compilations

#: Graphs of all nets of a process: one for each net and folded copy, mode, size of batches, precision, and kind of
#: gradient. A training has about ten.
GRAPHS = 64


def compile_in_place(net: nn.Module) -> None:
    """Compile a net with ``torch.compile``; one that cannot be compiled runs as it is, after a warning that says why.

    The first forward compiles. If the compiler fails, the forward is repeated uncompiled; where a part of the net has
    already run, which takes a break of the graph, its BatchNorms see this batch twice. torch compiles the backward of
    images of a second shape only when it runs; an error there is raised as it is.
    """
    allow_graphs(GRAPHS)
    net.compile()

    def tell(error: RuntimeError) -> None:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = " ".join(lines[: 1 + lines[0].endswith(":")])  # the first line may only name the backend
        warnings.warn(
            f"compile=True: the net runs uncompiled, because torch.compile failed ({reason}): fix this, or set "
            "compile=False.",
            stacklevel=2,
        )

    call_uncompiled_after(net, tell)


class CompilationClock:
    """What ``torch.compile`` takes from the clock's construction on."""

    def __init__(self) -> None:
        self._before = compilations()

    def __str__(self) -> str:
        """What it has taken, in a sentence; empty if nothing was compiled."""
        seconds, graphs = (now - before for now, before in zip(compilations(), self._before, strict=True))
        took = f"torch.compile took {seconds:.0f} s ({graphs} compilations)"
        return f"{took}; a later run finds them in inductor's cache (TORCHINDUCTOR_CACHE_DIR)." if graphs else ""
