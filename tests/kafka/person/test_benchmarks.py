"""The benchmarks measure the pair with people."""

import subprocess
import sys

import psutil
from services import ROOT, wait_until


def ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_benchmark_that_is_ended_leaves_nothing_behind() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as benchmark:
        process = psutil.Process(benchmark.pid)

        def measures() -> bool:
            return any("apps." in " ".join(one.cmdline()) for one in process.children(recursive=True))

        wait_until(measures)
        children = process.children(recursive=True)
        benchmark.terminate()
        assert benchmark.wait(20) == 130
        wait_until(lambda: all(map(ended, children)), what=f"for the end of {children}")
