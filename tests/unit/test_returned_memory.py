"""The memory of large buffers goes back to the system."""

import platform
import subprocess
import sys

import pytest

GROWTH = """
from apps.chassis.internals.returned_memory import return_large_buffers

def resident() -> int:
    with open("/proc/self/statm") as numbers:
        return int(numbers.read().split()[1]) * 4096

return_large_buffers()
bytes(20 << 20)  # glibc by itself now keeps buffers of this size
before, kept, large = resident(), [], []
for _ in range(32):
    large.append(b"x" * (1 << 20))
    kept.append(b"x" * 2_000)
del large
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_memory_of_large_bodies_goes_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 4 << 20
