"""The memory of large buffers goes back to the system."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
from apps.chassis.internals.returned_memory import keep_little_memory

keep_little_memory()
for _ in range(50):
    fetched = b"x" * (4 << 20)
    del fetched
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""

GROWTH = """
import time
from apps.chassis.internals.returned_memory import keep_little_memory, returning_memory

def resident() -> int:
    with open("/proc/self/statm") as numbers:
        return int(numbers.read().split()[1]) * 4096

keep_little_memory()
bytes(20 << 20)  # glibc by itself now keeps buffers of this size
kept, large = [bytes(2_000) for _ in range(5_000)], []  # so that later ones lie between the large ones
before = resident()
for _ in range(32):
    large.append(b"x" * (1 << 20))
    kept.append(bytes(2_000))
huge = b"x" * (20 << 20)
kept.append(bytes(2_000))
del huge
print(resident() - before)
del large
with returning_memory(0.01):
    ended = time.monotonic() + 10
    while resident() - before > 4 << 20 and time.monotonic() < ended:
        time.sleep(0.01)
print(resident() - before)
"""


def numbers_of(program: str) -> list[int]:
    """Return the numbers that a program prints in a process of its own."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return [int(number) for number in done.stdout.split()]


ON_GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")


@ON_GLIBC
def test_what_a_poll_fetches_is_kept_for_the_next_one_because_new_memory_takes_time() -> None:
    (page_faults,) = numbers_of(FAULTS)
    assert page_faults < 20_000  # each buffer has 1,024 pages


@ON_GLIBC
def test_memory_of_large_bodies_goes_back_to_the_system() -> None:
    at_once, soon = numbers_of(GROWTH)
    assert at_once < 36 << 20  # what is still used has 32
    assert soon <= 4 << 20
