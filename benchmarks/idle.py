"""Measures what a service takes before it does anything: `python -m benchmarks.idle [--rounds 9] [--seconds 30]`.

How long from the start of the process to its first answer over HTTP, and what importing the libraries takes that it
stands on; then, connected to a Kafka in which nothing happens, how much processor time and memory. Starts a Kafka and
the services for itself, and ends them.
"""

import argparse
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path

from benchmarks.processes import READY_WITHIN, BenchmarkFailed, plain_environment, python, service
from benchmarks.report import load, machine, put_into, spread, table
from tools.local_kafka import LocalKafka, LocalKafkaError
from tools.ports import free_ports

SERVICES = ("producer", "consumer")
LIBRARIES = "import litestar, faststream.kafka, numpy"
MAX_TIMES, MAX_CPU_PERCENT, MAX_MB = 1.5, 2.0, 90.0
"""Of the time of the imports; per cent of a core; MB."""
LOOK_AGAIN = 0.005
"""Seconds between two attempts to be answered."""
SETTLED = 5.0
"""Seconds after which a service that is healthy has done what it does at its start."""
ASK = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the report, and write it to the documents where that is wanted."""
    parser = argparse.ArgumentParser("python -m benchmarks.idle")
    parser.add_argument("--rounds", type=int, default=9, help="of starts (default: 9)")
    parser.add_argument("--seconds", type=int, default=30, help="of idleness (default: 30)")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="whose speed.md gets the figures")
    options = parser.parse_args(arguments)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    before = load()
    try:
        with LocalKafka() as kafka:
            servers = kafka.bootstrap_servers[0]
            rows = [*_starts(servers, options.rounds), *_idleness(servers, options.seconds)]
    except (BenchmarkFailed, LocalKafkaError, OSError) as error:
        sys.exit(f"benchmarks.idle: {type(error).__name__}: {error}")
    figures = table([("measured", "producer", "consumer", "target"), *rows])
    starts = f"Medians of {options.rounds} starts (least to most)"
    report = f"{figures}\n\n{machine()}. {starts}. Load average {before} before, {load()} after."
    print("", report, sep="\n")
    if options.write:
        put_into(options.write / "speed.md", "idle", report)


def _starts(servers: str, rounds: int) -> list[tuple[str, ...]]:
    """Start everything in turn; the first round, in which Python compiles what it imports, does not count."""
    imports: list[float] = []
    answers: dict[str, list[float]] = {name: [] for name in SERVICES}
    for number in range(rounds + 1):
        took = _imported()
        waited = {name: _answered(name, servers) for name in SERVICES}
        print(f"imports {took:.2f} s, first answers {waited}", flush=True)
        if number:
            imports.append(took)
            for name, seconds in waited.items():
                answers[name].append(seconds)
    ratios = [[one / other for one, other in zip(answers[name], imports, strict=True)] for name in SERVICES]
    return [
        ("start of the process to its first answer, s", *(spread(answers[name], "{:.2f}") for name in SERVICES), ""),
        (f"`{LIBRARIES}`, s", *[spread(imports, "{:.2f}")] * len(SERVICES), ""),
        ("times the imports", *(spread(ratio, "{:.2f}") for ratio in ratios), f"at most {MAX_TIMES:g}"),
    ]


def _imported() -> float:
    """Return the seconds that a process takes which imports the libraries."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", LIBRARIES], env=plain_environment(), check=True, timeout=READY_WITHIN)
    return time.perf_counter() - start


def _answered(name: str, servers: str) -> float:
    """Return the seconds from the start of a service to its first answer."""
    (port,) = free_ports(1)
    variables = {"KAFKA_BOOTSTRAP_SERVERS": servers, f"{name.upper()}_PORT": str(port), "LOG_LEVEL": "ERROR"}
    start = time.perf_counter()
    with python(f"apps.{name}", **variables) as process:
        while time.perf_counter() - start < READY_WITHIN and process.poll() is None:
            with suppress(OSError), closing(socket.create_connection(("127.0.0.1", port))) as connection:
                connection.settimeout(READY_WITHIN)  # it listens before it answers
                connection.sendall(ASK)
                if connection.recv(100).startswith(b"HTTP/1.1 200"):
                    return time.perf_counter() - start
            time.sleep(LOOK_AGAIN)
    raise BenchmarkFailed(f"the {name} did not answer")


def _idleness(servers: str, seconds: int) -> list[tuple[str, ...]]:
    """Let both services be, connected; return what they took meanwhile."""
    with ExitStack() as stack:
        running = [stack.enter_context(service(name, servers, "people", "idle")) for name in SERVICES]
        time.sleep(SETTLED)
        print(f"idle for {seconds} s ...", flush=True)
        before, start = [one.cpu_seconds() for one in running], time.perf_counter()
        time.sleep(seconds)
        elapsed = time.perf_counter() - start
        used = [(one.cpu_seconds() - cpu) / elapsed * 100 for one, cpu in zip(running, before, strict=True)]
        memory = [(one.memory_mb(), one.peak_mb()) for one in running]
    return [
        ("idle: % of a core", *(f"{one:.1f}" for one in used), f"under {MAX_CPU_PERCENT:g}"),
        (
            "idle: memory, MB (at most so far)",
            *(f"{now:.0f} ({peak:.0f})" for now, peak in memory),
            f"under {MAX_MB:g}",
        ),
    ]


if __name__ == "__main__":
    main()
