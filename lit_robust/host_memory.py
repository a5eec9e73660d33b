"""Memory that glibc keeps: what one batch frees is there for the next, and need not be cleared again by the system."""

import ctypes
import os
from typing import Any

#: Parameters of ``mallopt``, see ``malloc.h``, by the variable that sets the same when a process starts. Blocks below
#: 32 MB, the most that glibc takes, come from the heap, which grows by 64 MB and is not trimmed below 2 GB.
PARAMETERS = {
    "MALLOC_MMAP_THRESHOLD_": (-3, 2**25),
    "MALLOC_TOP_PAD_": (-2, 2**26),
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1),
}
#: How far the heap is reserved at once, to be advised as a whole: less than what is not trimmed.
RESERVED = 2**31 - 2**27
#: ``MADV_HUGEPAGE`` of ``sys/mman.h``, and the size of a huge page.
ADVICE, HUGE = 14, 2**21


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory until this process ends; the command does so, see "What a step costs" in README.md.

    By default glibc returns it after each batch, and the kernel clears it for the next one. Without that, a training on
    a CPU is usually faster where the activations of a batch are tensors below 32 MB, and needs no more memory. So do
    processes that are forked later, such as the workers of a loader. Linux is also asked for pages of 2 MB instead of
    4 kB, with which the processor looks up fewer addresses.

    Returns:
        Whether glibc accepts it: not where the C library is another one, nor where an environment variable already says
        what glibc does (``MALLOC_TRIM_THRESHOLD_`` and the like, or ``GLIBC_TUNABLES``).
    """
    tuned = {*PARAMETERS, "MALLOC_MMAP_MAX_"} & os.environ.keys() or "glibc.malloc" in os.getenv("GLIBC_TUNABLES", "")
    if tuned or os.name != "posix":
        return False
    try:
        libc: Any = ctypes.CDLL(None)
        kept = all(libc.mallopt(number, value) for number, value in PARAMETERS.values())
        if kept:
            _reserve_huge_pages(libc)
        return kept
    except (AttributeError, OSError):
        return False


def _reserve_huge_pages(libc: Any) -> None:
    """Let the heap grow once, without touching it, and ask for huge pages there; Linux may decline."""
    libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
    pad, step = PARAMETERS["MALLOC_TOP_PAD_"]
    before = libc.sbrk(ctypes.c_ssize_t(0))
    libc.mallopt(pad, RESERVED)
    block = libc.malloc(ctypes.c_size_t(2**24))  # more than is free at the heap's end, so it grows
    libc.mallopt(pad, step)
    begin, end = -(-before // HUGE) * HUGE, libc.sbrk(ctypes.c_ssize_t(0)) // HUGE * HUGE
    if end > begin:
        libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), ADVICE)
    libc.free(ctypes.c_void_p(block))
