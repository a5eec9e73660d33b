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

    By default glibc returns it after each batch, and the kernel clears it for the next one. A training on a CPU is
    faster without, and its peak of memory the same.

    Returns:
        Whether it is kept: not where the C library is another one, nor where an environment variable already sets what
        glibc does (``MALLOC_TRIM_THRESHOLD_`` and the like, or ``GLIBC_TUNABLES``).
    """
    tuned = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or not PARAMETERS.keys().isdisjoint(os.environ)
    if tuned or os.name != "posix":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(number, value) for number, value in PARAMETERS.values())
