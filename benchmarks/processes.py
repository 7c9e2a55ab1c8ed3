"""The processes that are measured: services, raw clients and callers, how to call them and what they cost."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from apps.chassis.settings import Settings
from tools.attached import Attached
from tools.ports import free_ports

READY_WITHIN = 60.0
ENDED_WITHIN = 15.0
ANSWERED_WITHIN = 60.0
DONE_WITHIN = 600.0
"""Seconds."""
LOOK_AGAIN = 0.02
"""Seconds between two looks whether a service is healthy yet."""
NO_BYTECODE = "PYTHONDONTWRITEBYTECODE"
"""With this variable each start compiles all imports again: what is measured starts as an installed service does."""


class BenchmarkFailed(Exception):
    """Why there is nothing to report, in one line."""


class Took(NamedTuple):
    """What was done: records, seconds, and processor seconds of the process that did it."""

    records: int
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Measured:
    """A process under measurement."""

    process: "subprocess.Popen[bytes]"

    def cpu_seconds(self) -> float:
        """Return the processor time that it and its children have used so far, user and system."""
        times = [one.cpu_times() for one in self.all()]
        return float(sum(one.user + one.system for one in times))

    def all(self) -> list[psutil.Process]:
        """Return its process, and those that it has started."""
        process = psutil.Process(self.process.pid)
        return [process, *process.children(recursive=True)]

    def memory_mb(self) -> float:
        """Return the memory that it holds now, in MB."""
        return float(psutil.Process(self.process.pid).memory_info().rss) / 1e6

    def peak_mb(self) -> float:
        """Return the most memory that it has held so far, in MB; what it holds now where the system keeps no peak."""
        with suppress(OSError):
            for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024 / 1e6
        memory = psutil.Process(self.process.pid).memory_info()
        return float(getattr(memory, "peak_wset", memory.rss)) / 1e6

    def refuse_ended(self) -> None:
        """Raise `BenchmarkFailed` when it runs no more."""
        if self.process.poll() is not None:
            raise BenchmarkFailed(f"{self.process.args!r} ended with status {self.process.returncode}")


@dataclass(frozen=True)
class Service(Measured):
    """A service under measurement, and where it listens."""

    port: int

    def connection(self) -> HTTPConnection:
        """Return a connection that stays open from one call to the next."""
        return HTTPConnection("127.0.0.1", self.port, timeout=ANSWERED_WITHIN)

    def call(self, method: str, target: str) -> bytes:
        """Make one call on a connection of its own: the services close one that was idle for some seconds."""
        with closing(self.connection()) as connection:
            return call(connection, method, target)

    def consumed(self) -> int:
        """Return how many people a consumer has consumed, as it says itself."""
        return int(json.loads(self.call("GET", "/consumers/status"))["messages_consumed_count"])


@contextmanager
def service(
    name: str, bootstrap_servers: str, topic: str, group: str = "unused", *, partitions: int = 6, **settings: str
) -> Iterator[Service]:
    """Run `apps.NAME` on a free port, healthy when the block begins, ended when it ends; it knows more `settings`."""
    (port,) = free_ports(1)
    with python(
        f"apps.{name}",
        KAFKA_BOOTSTRAP_SERVERS=bootstrap_servers,
        PEOPLE_TOPIC=topic,
        PEOPLE_PARTITIONS=str(partitions),
        DEAD_LETTER_TOPIC=f"{topic}-dlt",
        CONSUMER_GROUP_ID=group,
        PRODUCER_PORT=str(port),
        CONSUMER_PORT=str(port),
        LOG_LEVEL="WARNING",
        **settings,
    ) as process:
        started = Service(process, port)
        wait_until_healthy(started)
        yield started


@contextmanager
def asgi(
    application: str, bootstrap_servers: str = "unused", topic: str = "unused", group: str = "unused"
) -> Iterator[Service]:
    """Run an application by uvicorn, as the services are run; like `service` otherwise."""
    (port,) = free_ports(1)
    with python(
        "uvicorn",
        application,
        *("--port", str(port), "--log-level", "error", "--no-access-log"),
        KAFKA_BOOTSTRAP_SERVERS=bootstrap_servers,
        PEOPLE_TOPIC=topic,
        CONSUMER_GROUP_ID=group,
    ) as process:
        started = Service(process, port)
        wait_until_healthy(started)
        yield started


@contextmanager
def python(module: str, *arguments: str, **environment: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a module with this Python; of the project's settings it knows only those given. Ends with the block."""
    process = Attached(
        module,
        *arguments,
        env=plain_environment() | environment,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C in a terminal is for the benchmark, which then ends it
    )
    try:
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(ENDED_WITHIN)
        process.kill()
        process.communicate()


def plain_environment() -> dict[str, str]:
    """Return the environment without the project's settings, and without what forbids to keep bytecode."""
    unset = {*Settings.__struct_encode_fields__, NO_BYTECODE}
    return {name: value for name, value in os.environ.items() if name not in unset}


def answer_of(module: str, *arguments: object) -> Any:  # noqa: ANN401 - JSON
    """Run a module of the benchmarks to its end, and return the JSON that it prints."""
    with python(f"benchmarks.{module}", *map(str, arguments)) as process:
        printed, _ = process.communicate(timeout=DONE_WITHIN)
    if process.returncode:
        raise BenchmarkFailed(f"benchmarks.{module} ended with status {process.returncode}")
    return json.loads(printed)


def call(connection: HTTPConnection, method: str, target: str, body: bytes | None = None) -> bytes:
    """Return the body of an answer, unread. Raises `BenchmarkFailed` for one that is no success."""
    connection.request(method, target, body, {"Content-Type": "application/json"} if body else {})
    answer = connection.getresponse()
    content = answer.read()
    if answer.status not in {HTTPStatus.OK, HTTPStatus.CREATED}:
        raise BenchmarkFailed(f"{method} {target}: {answer.status} {content[:300]!r}")
    return content


def wait_until_healthy(service: Service, target: str = "/health-check") -> None:
    """Wait until a service answers that call with a success."""
    deadline = time.monotonic() + READY_WITHIN
    while time.monotonic() < deadline:
        service.refuse_ended()
        with suppress(OSError, HTTPException, BenchmarkFailed):  # not listening, or not connected yet
            service.call("GET", target)
            return
        time.sleep(LOOK_AGAIN)
    raise BenchmarkFailed(f"a service was not healthy within {READY_WITHIN:g} s")
