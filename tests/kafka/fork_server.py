"""Starts services from a process that has built both already: importing takes most of the time of a start.

A service still builds its own application, with its own settings, as importing reads no environment. Linux only.
"""

import array
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]
ADDRESS = "PYTEST_FORK_SERVER"
"""The variable that names where the server listens."""
EVENT_SERVICES = "tests.event_services"
MAX_ORDER_BYTES = 128 * 1024


class ForkedProcess:
    """A process of the fork server, with the interface of `subprocess.Popen`."""

    def __init__(self, command: Sequence[str], cwd: Path, env: Mapping[str, str], log: IO[bytes]) -> None:
        order = json.dumps({"command": command, "cwd": str(cwd), "env": dict(env)}).encode()
        self._command = command
        start_fork_server()
        self._keeper = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._keeper.connect(f"\0{os.environ[ADDRESS]}")
        socket.send_fds(self._keeper, [order], [log.fileno()])
        self.returncode: int | None = None
        self.pid = self._read()

    def poll(self) -> int | None:
        """Return the exit status; None while it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, and return the exit status."""
        if self.returncode is None:
            ready, _, _ = select.select([self._keeper], [], [], timeout)
            if not ready:
                raise subprocess.TimeoutExpired(self._command, timeout or 0)
            self.returncode = self._read()
            self._keeper.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def _read(self) -> int:
        """Read a number, which the keeper sends in one piece."""
        return array.array("q", self._keeper.recv(8, socket.MSG_WAITALL))[0]


def start_fork_server() -> None:
    """Start the server of this process and of those that it starts, unless there is one; it ends with this process."""
    if ADDRESS in os.environ:
        return
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    ends_with_this_process, _ = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind("")  # to a free name, which is no file
        listening.listen(100)
        subprocess.Popen(
            [sys.executable, __file__, str(listening.fileno())],
            cwd=ROOT,
            env=env | {"PYTHONPATH": str(ROOT)},
            stdin=ends_with_this_process,
            pass_fds=[listening.fileno()],
        )
        os.environ[ADDRESS] = listening.getsockname()[1:].decode()
    os.close(ends_with_this_process)


def _import_services() -> None:
    """Import what the services import until they serve: also what they do when they are built."""
    for name in ("anyio._backends._asyncio", "encodings.idna", "uvicorn.lifespan.on", "uvicorn.loops.auto", "uvloop"):
        import_module(name)
    event_services = import_module(EVENT_SERVICES)
    for create in (event_services.create_consumer, event_services.create_producer):
        create(import_module("apps.chassis.settings").Settings(kafka_bootstrap_servers="127.0.0.1:1"))
    del sys.modules[EVENT_SERVICES]  # a service runs it as its own `__main__`
    made_up = import_module("apps.chassis.http.request_middleware").made_up
    os.register_at_fork(after_in_child=made_up.seed)  # or all services would make up the same request ids
    gc.freeze()  # or each service would look through all of it for garbage


def _serve(listening: socket.socket) -> tuple[Sequence[str], str]:
    """Fork for each order until standard input ends; return it in the process that is to follow it."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for keepers
    while True:
        ready, _, _ = select.select([listening, sys.stdin], [], [])
        if sys.stdin in ready:
            sys.exit()
        connection, _ = listening.accept()
        with connection:
            order, files, _, _ = socket.recv_fds(connection, MAX_ORDER_BYTES, 1)
            if not order:  # who connected has gone
                continue
            (log,) = files
            if os.fork():
                os.close(log)
                continue
            listening.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            pid = os.fork()
            if pid:
                _keep(connection, pid, log)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        given = json.loads(order)
        os.environ.clear()
        os.environ.update(given["env"])
        os.chdir(given["cwd"])
        return given["command"], given["cwd"]


def _keep(connection: socket.socket, pid: int, log: int) -> None:
    """Tell a service's process id and its exit status; then end."""
    os.close(log)
    connection.sendall(array.array("q", [pid]))
    _, status = os.waitpid(pid, 0)
    connection.sendall(array.array("q", [os.waitstatus_to_exitcode(status)]))
    os._exit(0)


if __name__ == "__main__":
    _import_services()
    (first, *arguments), root = _serve(socket.socket(fileno=int(sys.argv[1])))
    sys.path[0] = root
    sys.orig_argv = [sys.executable, first, *arguments]  # a supervisor starts its workers by the command of its own
    if first == "-m":
        sys.argv = arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *arguments]
        sys.path[0] = str(Path(first).parent)
        sys.path.insert(1, root)
        runpy.run_path(first, run_name="__main__")
