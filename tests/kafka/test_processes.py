"""What a command started on a developer's machine ends with it, however it ends."""

import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from services import ROOT, ended, wait_until

from contracts import STREAMS
from tools.ports import free_ports

SOON = 20.0
"""Seconds that a condition may take."""
STARTED = 60.0


class Command:
    """A command on a terminal of its own."""

    def __init__(self, *command: str, **environment: str) -> None:
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:  # the child
            os.chdir(ROOT)
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests themselves run under `nohup`
            os.execvpe(command[0], command, os.environ | environment)  # noqa: S606 - it is on a terminal already
        os.set_blocking(self._terminal, False)
        self.said = ""
        self.known: set[psutil.Process] = set()
        """All its processes that were seen: what it leaves behind is no child of it any more."""

    def until_said(self, text: str) -> None:
        wait_until(lambda: text in self._read(), STARTED, f"for {text!r} in {self.said}")

    def processes(self) -> list[psutil.Process]:
        process = psutil.Process(self.pid)
        found = [process, *process.children(recursive=True)]
        self.known.update(found)
        return found

    def close_terminal(self) -> None:
        os.close(self._terminal)

    def _read(self) -> str:
        with suppress(OSError):  # nothing, or its end
            self.said += os.read(self._terminal, 65_536).decode(errors="replace")
        return self.said


@pytest.fixture
def command() -> Iterator[Callable[..., Command]]:
    """Start a command; at the end of the test kill what a failed one left."""
    started: list[Command] = []

    def start(*words: str, **environment: str) -> Command:
        if shutil.which("uv") is None:
            pytest.skip("needs uv")
        started.append(Command(*words, **environment))
        return started[-1]

    yield start
    for one in started:
        with suppress(psutil.Error):
            one.processes()
        for process in one.known:
            with suppress(psutil.Error):
                process.kill()
        with suppress(ChildProcessError):
            os.waitpid(one.pid, 0)


def until_all_ended(processes: list[psutil.Process]) -> None:
    wait_until(lambda: all(map(ended, processes)), SOON, f"for the end of {processes}")


def free_ports_of_services() -> dict[str, str]:
    producer, consumer = map(str, free_ports(2))
    return {"PRODUCER_PORT": producer, "CONSUMER_PORT": consumer, STREAMS[0].variables("topic")[0]: f"demo-{producer}"}


def kill_the_demo_itself(demo: Command) -> None:
    (python,) = [
        one for one in demo.processes() if one.cmdline()[1:] == ["-m", "tools.demo"] and "python" in one.name()
    ]
    python.kill()


def kill(command: Command) -> None:
    os.kill(command.pid, signal.SIGKILL)


@pytest.mark.parametrize("end", [Command.close_terminal, kill_the_demo_itself])
def test_a_demo_that_ends_in_any_way_leaves_no_service_behind(
    end: Callable[[Command], None], command: Callable[..., Command], bootstrap_servers: str
) -> None:
    demo = command("uv", "run", "just", "demo", KAFKA_BOOTSTRAP_SERVERS=bootstrap_servers, **free_ports_of_services())
    demo.until_said("Ctrl-C ends all of it")
    processes = demo.processes()
    assert sum("apps." in " ".join(one.cmdline()) for one in processes) == 2
    end(demo)
    until_all_ended(processes)


@pytest.mark.parametrize("end", [Command.close_terminal, kill])
def test_a_kafka_that_just_started_ends_with_the_command(
    end: Callable[[Command], None], command: Callable[..., Command], tmp_path: Path
) -> None:
    kafka = command("uv", "run", "just", "kafka", "--port", str(free_ports(1)[0]), TMPDIR=str(tmp_path))
    kafka.until_said("Kafka is ready")
    processes = kafka.processes()
    assert any("java" in one.name() for one in processes)
    end(kafka)
    until_all_ended(processes)
    wait_until(lambda: not list(tmp_path.glob("local-kafka-*")), SOON)


@pytest.mark.parametrize(("name", "end"), [("producer", signal.SIGTERM), ("consumer", signal.SIGKILL)])
def test_a_service_that_just_started_ends_with_the_command(
    name: str, end: signal.Signals, command: Callable[..., Command], bootstrap_servers: str
) -> None:
    ports = free_ports_of_services()
    service = command("uv", "run", "just", f"run-{name}", KAFKA_BOOTSTRAP_SERVERS=bootstrap_servers, **ports)
    service.until_said("connected")
    processes = service.processes()
    os.kill(service.pid, end)
    until_all_ended(processes)


def test_a_module_that_a_process_started_ends_with_it() -> None:
    code = "from tools.attached import Attached; print(Attached('http.server', '0').pid, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as starter:
        assert starter.stdout is not None
        module = psutil.Process(int(starter.stdout.readline()))
        starter.kill()
        until_all_ended([module])


def demo(**environment: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "tools.demo"],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=STARTED,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("variable", ["PRODUCER_PORT", "CONSUMER_PORT"])
def test_a_demo_names_a_port_that_is_taken_and_by_whom_before_it_starts_anything(variable: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        status, said, error = demo(**(free_ports_of_services() | {variable: port}))
    assert (status, said, error.count("\n")) == (1, "", 1)
    assert error.startswith(f"{variable}: port {port} is taken by ")
    assert f"(process {os.getpid()})" in error


def test_a_kafka_that_was_named_and_does_not_answer_is_an_error_and_no_reason_to_start_another() -> None:
    (port,) = free_ports(1)
    status, said, error = demo(**free_ports_of_services(), KAFKA_BOOTSTRAP_SERVERS=f"127.0.0.1:{port}")
    assert (status, said, error.count("\n")) == (1, "", 1)
    assert error.startswith(f"KAFKA_BOOTSTRAP_SERVERS: no Kafka answers at 127.0.0.1:{port}")
