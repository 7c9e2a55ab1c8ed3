"""Shows where time goes: `uv run --group bench python -m benchmarks.profile [--seconds 8]`.

Looks at a service under load 500 times a second (py-spy, from outside) and reports whose code it was in: that of a
library, Python's own, or this project's. It does not stop the service to look: one that is stopped is found at its next
system call instead. Starts a Kafka and the services for itself, and ends them. On Linux it needs
the right to look at other processes of the same user (root has it; or kernel.yama.ptrace_scope=0).
"""

import argparse
import logging
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.measures import CALLERS, LIST, LISTS, MAX_REQUEST_RECORDS, ONES, SENDERS, fill
from benchmarks.processes import BenchmarkFailed, Service, answer_of, service
from benchmarks.report import put_into, table
from benchmarks.watching import create_topic
from tools.local_kafka import LocalKafka, LocalKafkaError

TOPIC = "people"
A_SECOND = 500
"""Looks at a process."""
WAITING = ("_worker (concurrent/futures/thread.py", "_watch (apps/chassis/loop_watch.py")
"""Threads that mostly wait, which py-spy takes for busy."""
MAX_ROWS = 9
"""Functions of a path that are listed."""
OWNERS = {
    "apps/": "ours",
    "contracts/": "ours",
    "aiokafka/": "client (aiokafka)",
    "faststream/": "framework (FastStream)",
    "fast_depends/": "framework (FastStream)",
    "anyio/": "framework (FastStream)",
    "litestar/": "framework (Litestar)",
    "uvicorn/": "framework (uvicorn)",
    "asyncio/": "event loop (asyncio, uvloop)",
    "numpy/": "numpy",
    "polyfactory/": "ours",
    "prometheus_client/": "metrics",
}
"""Whose a file is; what is C (msgspec, crc32, sockets, uvloop) counts for the Python function that called it."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Look at each path, print what was found, and write it to the documents where that is wanted."""
    parser = argparse.ArgumentParser("python -m benchmarks.profile")
    parser.add_argument("--seconds", type=int, default=8, help="of each path (default: 8)")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="whose speed.md gets the figures")
    options = parser.parse_args(arguments)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    try:
        with LocalKafka() as kafka:
            found = _look(kafka.bootstrap_servers[0], options.seconds)
    except (BenchmarkFailed, LocalKafkaError, OSError) as error:
        sys.exit(f"benchmarks.profile: {type(error).__name__}: {error}")
    report = "\n\n".join([_by_owner(found), *(_by_function(name, samples) for name, samples in found.items())])
    print("", report, sep="\n")
    if options.write:
        put_into(options.write / "speed.md", "profile", report)


Samples = Counter[tuple[str, ...]]
"""How often each stack was seen, outermost function first."""


def _look(servers: str, seconds: int) -> dict[str, Samples]:
    """Return what was seen of each path, by its name."""
    found: dict[str, Samples] = {}
    create_topic(servers, TOPIC)
    with service("producer", servers, TOPIC) as producer:
        loads: dict[str, Callable[[Service], None]] = {
            "producing: people made": _make,
            "producing: lists of 500": partial(_post, connections=SENDERS, people=LIST, requests=LISTS),
            "producing: one by one": partial(_post, connections=CALLERS, people=1, requests=ONES),
        }
        for name, load in loads.items():
            load(producer)  # warm
            with _repeated(load, producer):
                found[name] = _samples_of(producer, seconds)
        fill(producer, servers, TOPIC, 400_000 * seconds)
    with service("consumer", servers, TOPIC, "profile") as consumer:
        found["consuming"] = _samples_of(consumer, seconds)
    return found


def _make(producer: Service) -> None:
    producer.call("POST", f"/producers/basic_producer?number_of_people={MAX_REQUEST_RECORDS}")


def _post(producer: Service, connections: int, people: int, requests: int) -> None:
    answer_of("caller", "post", producer.port, "/producers/people", connections, people, requests)


@contextmanager
def _repeated(load: Callable[[Service], None], producer: Service) -> Iterator[None]:
    """Put a load on a service, again and again, during the block."""
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            load(producer)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _samples_of(running: Service, seconds: int) -> Samples:
    """Look at a process for some seconds; only at what is on the processor."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "stacks"
        pid, rate = str(running.process.pid), str(A_SECOND)
        more = ("--pid", pid, "--rate", rate, "--duration", str(seconds), "--format", "raw", "--output", str(output))
        command = [str(Path(sys.executable).with_name("py-spy")), "record", "--nonblocking", *more]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchmarkFailed(f"py-spy: {done.stderr.strip()[-300:]}")
        lines = output.read_text(encoding="utf-8").splitlines()
    samples: Samples = Counter()
    for line in lines:
        stack, _, number = line.rpartition(" ")
        if stack and not any(frame in stack for frame in WAITING):  # empty if it changed while it was read
            samples[tuple(stack.split(";"))] += int(number)
    return samples


def _by_owner(found: dict[str, Samples]) -> str:
    """Return the share of each owner in each path."""
    shares = {name: _shares(samples, lambda stack: _owner_of(stack[-1])) for name, samples in found.items()}
    most = Counter[str]()
    for one in shares.values():
        most |= one
    owners = [owner for owner, _ in most.most_common()]
    rows = [(owner, *(f"{100 * one[owner]:.0f} %" for one in shares.values())) for owner in owners]
    return table([("whose", *found), *rows])


def _by_function(name: str, samples: Samples) -> str:
    """Return the functions in which most time was spent, what they call in C included."""
    shares = _shares(samples, lambda stack: _function_of(stack[-1]))
    rows = [(f"{100 * share:.0f} %", function) for function, share in shares.most_common(MAX_ROWS)]
    return table([("share", name), *rows])


def _shares(samples: Samples, of: Callable[[tuple[str, ...]], str]) -> Counter[str]:
    total = samples.total()
    shares: Counter[str] = Counter()
    for stack, number in samples.items():
        shares[of(stack)] += number / total  # type: ignore[assignment]  # a share is no whole number
    return shares


def _function_of(frame: str) -> str:
    """Return a frame, `function (file:line)`, without its line."""
    function, _, place = frame.partition(" (")
    return f"`{function}` in {place.partition(':')[0]}"


def _owner_of(frame: str) -> str:
    """Return whose code a frame is, `function (file:line)`."""
    file = frame.rpartition("(")[2]
    return next((owner for folder, owner in OWNERS.items() if file.startswith(folder)), "Python's library")


if __name__ == "__main__":
    main()
