"""``torch.compile`` with a way back, and with a clock."""

import time
import warnings
from typing import Any

from torch import nn

from lit_robust.torch_internals import call_uncompiled_after, on_compilation


def compile_in_place(net: nn.Module) -> None:
    """Compile a net with ``torch.compile``; what cannot be compiled here runs as it is, after a warning that says why.

    The net is compiled by its first forward. If that fails, the net is run uncompiled: if this fails too, the error is
    the net's own and is raised.
    """
    net.compile()

    def tell(error: RuntimeError) -> None:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = " ".join(lines[: 1 + lines[0].endswith(":")])  # the first line may only name the backend
        warnings.warn(
            f"compile=True: the net runs uncompiled, because torch.compile failed ({reason}): mend this, or set "
            "compile=False.",
            stacklevel=2,
        )

    call_uncompiled_after(net, tell)


class CompilationClock:
    """Adds up what ``torch.compile`` takes, from the clock's construction until ``stop``."""

    def __init__(self) -> None:
        self.seconds, self.graphs = 0.0, 0
        self._begun = 0.0
        self.stop = on_compilation(self._begin, self._end)

    def _begin(self, *_: Any) -> None:
        self._begun = time.perf_counter()

    def _end(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self._begun
        self.graphs += 1

    def __str__(self) -> str:
        """What it took, in a sentence."""
        took = f"torch.compile took {self.seconds:.0f} s, for {self.graphs} graphs"
        return f"{took}; a later run finds them in its cache (TORCHINDUCTOR_CACHE_DIR)."
