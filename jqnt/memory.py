"""What the C library does with memory that XLA frees."""

import ctypes
import sys

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
_MOST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Keeps what XLA frees in this process, for its next call to use; CPU speed for memory.

    A compiled function asks for its scratch anew at each call. glibc maps large blocks from the
    system and gives them back when freed, so that each call faults in every page again: of a
    training step of ResNet20 with 32 images on two cores that is a quarter. Afterwards blocks of
    up to 2 GiB stay, and the process's resident size at its peak. It is a setting of the whole
    process, so nothing but the command line and the benchmarks calls it on its own.

    Returns whether the C library took it: only glibc has it (mallopt(3)).
    """
    if sys.platform != "linux":
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    settings = (_MMAP_THRESHOLD, _TRIM_THRESHOLD)
    return all([library.mallopt(name, _MOST) == 1 for name in settings])
