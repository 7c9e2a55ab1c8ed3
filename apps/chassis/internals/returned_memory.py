"""Return the memory of large bodies and batches to the system: a PROTECTION.

Reaches for `mallopt` and `malloc_trim` of glibc. With its defaults glibc keeps freed buffers of up to 32 MiB for later
ones, and has an arena for each thread. Large ones then leave holes that stay with the process. Lost without it: on
Linux a process remains as large as its largest calls made it. Other C libraries have no such functions, and nothing is
changed there.
"""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

REACHES = ("ctypes:CDLL",)

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
"""The parameters' numbers in `malloc.h`."""
LARGE_BYTES = 8 * 1024 * 1024
"""Buffers of this size or more go back to the system as soon as they are freed.

What a poll fetches is smaller: returned each time, it would take a quarter of the CPU time of a consumed record.
"""
KEPT_BYTES = 2 * LARGE_BYTES
"""Free memory that may wait at the end of an arena."""
ARENAS = 2
"""Arenas that all threads share."""
RETURNED_EVERY_S = 5.0
"""Seconds between two returns of all free memory: 20 ms for 300 MB, and next to nothing where there is none."""


def keep_little_memory() -> None:
    """Have glibc return large buffers to the system when they are freed."""
    with suppress(AttributeError, OSError, TypeError):  # another C library
        set_parameter = _glibc().mallopt
        set_parameter(MMAP_THRESHOLD, LARGE_BYTES)
        set_parameter(TRIM_THRESHOLD, KEPT_BYTES)
        set_parameter(ARENA_MAX, ARENAS)


@contextmanager
def returning_memory(every_s: float = RETURNED_EVERY_S) -> Iterator[None]:
    """Return free memory to the system now and then, until the end of the block."""
    ended = threading.Event()
    with suppress(AttributeError, OSError, TypeError):  # another C library
        trim = _glibc().malloc_trim
        threading.Thread(target=_trim, args=(trim, ended, every_s), name="return of memory", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _trim(trim: Any, ended: threading.Event, every_s: float) -> None:  # noqa: ANN401 - a function of C
    while not ended.wait(every_s):
        trim(0)


def _glibc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
