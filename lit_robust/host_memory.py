"""Memory that glibc keeps: what one batch frees is there for the next, and need not be cleared again by the system."""

import ctypes
import os

#: Parameters of ``mallopt``, see ``malloc.h``, by the variable that sets the same when a process starts. Blocks below
#: 32 MB, the most that glibc takes, come from the heap, which grows by 64 MB and is not trimmed below 2 GB.
PARAMETERS = {
    "MALLOC_MMAP_THRESHOLD_": (-3, 2**25),
    "MALLOC_TOP_PAD_": (-2, 2**26),
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1),
}


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory until this process ends; the command does so, see "What a step costs" in README.md.

    By default glibc returns it after each batch, and the kernel clears it for the next one. Without that, a training on
    a CPU is usually faster where the activations of a batch are tensors below 32 MB, and needs no more memory. So do
    processes that are forked later, such as the workers of a loader.

    Returns:
        Whether glibc accepts it: not where the C library is another one, nor where an environment variable already says
        what glibc does (``MALLOC_TRIM_THRESHOLD_`` and the like, or ``GLIBC_TUNABLES``).
    """
    tuned = {*PARAMETERS, "MALLOC_MMAP_MAX_"} & os.environ.keys() or "glibc.malloc" in os.getenv("GLIBC_TUNABLES", "")
    if tuned or os.name != "posix":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return all(mallopt(number, value) for number, value in PARAMETERS.values())
