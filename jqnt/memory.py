"""What the C library does with memory that XLA frees."""

import ctypes
import sys

__all__ = ["keep_freed_memory"]

_SETTINGS = (
    (-8, 1),  # M_ARENA_MAX: other arenas hold no blocks of more than 64 MiB
    (-3, 2**31 - 1),  # M_MMAP_THRESHOLD: blocks up to here are not mapped one by one
    (-1, -1),  # M_TRIM_THRESHOLD: never
)
"""Parameters of mallopt by their numbers in malloc.h."""


def keep_freed_memory() -> bool:
    """Keeps what XLA frees in this process, for its next call to use; CPU speed for memory.

    A compiled function asks for its scratch anew at each call. glibc maps large blocks from the
    system and gives them back when freed, so that each call faults in every page again, which
    training steps of small networks feel most. Afterwards blocks of up to 2 GiB stay, and the
    process's resident size at its peak. It is a setting of the whole process, to be made before
    its threads start, so nothing but the command line and the benchmarks calls it on its own.

    Returns whether the C library took it: only glibc has it (mallopt(3)).
    """
    if sys.platform != "linux":
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return all([library.mallopt(name, value) == 1 for name, value in _SETTINGS])
