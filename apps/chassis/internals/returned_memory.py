"""Return the memory of large bodies and batches to the system: a PROTECTION.

Reaches for `mallopt` of glibc. With its defaults glibc keeps a freed buffer of up to 32 MiB for later ones, and has an
arena for each thread. Large ones then leave holes that stay with the process. Lost without it: on Linux a process
remains as large as its largest calls made it. Other C libraries have no such function, and nothing is changed there.
"""

import ctypes
from contextlib import suppress

REACHES = ("ctypes:CDLL",)

MMAP_THRESHOLD, ARENA_MAX = -3, -8
"""The parameters' numbers in `malloc.h`."""
LARGE_BYTES = 128 * 1024
"""Buffers of this size or more go back to the system as soon as they are freed."""
ARENAS = 2
"""Arenas that all threads share."""


def return_large_buffers() -> None:
    """Have glibc return large buffers to the system."""
    with suppress(AttributeError, OSError, TypeError):  # another C library
        set_parameter = ctypes.CDLL(None).mallopt
        set_parameter(MMAP_THRESHOLD, LARGE_BYTES)
        set_parameter(ARENA_MAX, ARENAS)
