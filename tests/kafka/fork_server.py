"""Starts services from a process that has imported their libraries already: that takes most of the time of a start.

A service imports the project's own modules itself, from its own folder and with its own environment. Linux only.
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
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]
OWN = {"apps", "contracts", "tests", "tools", "__main__"}
MAX_ORDER_BYTES = 128 * 1024
_NAMES = """
import sys
import anyio._backends._asyncio, encodings.idna, uvicorn.lifespan.on, uvicorn.loops.auto, uvloop
from apps.chassis.settings import Settings
from tests.event_services import create_consumer, create_producer
for create in (create_consumer, create_producer):
    create(Settings(kafka_bootstrap_servers="127.0.0.1:1"))
print(*sys.modules)
"""


class ForkedProcess:
    """A process of the fork server, with the interface of `subprocess.Popen`."""

    def __init__(self, command: Sequence[str], cwd: Path, env: Mapping[str, str], log: IO[bytes]) -> None:
        order = json.dumps({"command": command, "cwd": str(cwd), "env": dict(env)}).encode()
        self._command = command
        self._keeper, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(_fork_server(), [order], [theirs.fileno(), log.fileno()])
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


@cache
def _fork_server() -> socket.socket:
    """Start the server of this process; it ends with it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with theirs:
        command = [sys.executable, __file__, str(theirs.fileno())]
        subprocess.Popen(command, cwd=ROOT, env=env | {"PYTHONPATH": str(ROOT)}, pass_fds=[theirs.fileno()])
    return ours


def _import_libraries() -> None:
    """Import what the services import until they serve, but for modules of the project."""
    names = subprocess.run([sys.executable, "-c", _NAMES], check=True, capture_output=True, text=True).stdout
    for name in names.split():
        if name.partition(".")[0] not in OWN:
            try:
                import_module(name)
            except ImportError:  # a name that a library makes while it is imported
                continue
    gc.freeze()  # or each service would look through all of it for garbage


def _serve(orders: socket.socket) -> tuple[Sequence[str], str]:
    """Fork for each order; return it in the process that is to follow it."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for keepers
    while True:
        order, files, _, _ = socket.recv_fds(orders, MAX_ORDER_BYTES, 2)
        if not order:
            sys.exit()
        connection, log = socket.socket(fileno=files[0]), files[1]
        with connection:
            if os.fork():
                os.close(log)
                continue
            orders.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            pid = os.fork()
            if pid:
                _keep(connection, pid, log)
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
    _import_libraries()
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
