"""What the handler for SQLite writes, without a Kafka."""

import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from apps.consumer.consuming.batch import Batch, Handler
from contracts.dead_letter import DeadLetter, Header, redrive_headers
from contracts.person import Person
from examples import sqlite
from tests.batches import Stored

pytestmark = pytest.mark.anyio


def received(*records: tuple[int, str, str], headers: Sequence[Header] = ()) -> Batch[Person]:
    """Return a batch of people by their offset, id and city."""
    people = [
        Person(key, "Ada Lovelace", 36, "a@example.com", "1", "12", city, "NY", "1", "US") for _, key, city in records
    ]
    stored = [Stored(offset=offset, key=key.encode(), headers=headers, topic="people") for offset, key, _ in records]
    return Batch(stored, people)


def redriven(offset: int, first_offset: int, key: str, city: str) -> Batch[Person]:
    letter = DeadLetter(key.encode(), b"", (), "people", 0, first_offset, 0, "group", None, None, 1)
    return received((offset, key, city), headers=redrive_headers(letter))


@asynccontextmanager
async def handler(file: Path) -> AsyncIterator[Handler[Person]]:
    async with sqlite.people_handler(sqlite.SqliteSettings(sqlite_file=str(file))) as handle:
        yield handle


def rows(file: Path, query: str) -> Sequence[Any]:
    with closing(sqlite3.connect(file)) as connection, connection:
        return connection.execute(query).fetchall()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "people.db"


async def test_what_is_redelivered_or_redriven_twice_counts_once(file: Path) -> None:
    async with handler(file) as save:
        for _ in range(2):
            save(received((0, "1", "Paris"), (1, "2", "Paris"), (2, "1", "Rome")))
        for offset in (7, 8):
            save(redriven(offset, 3, "3", "Oslo"))
    assert rows(file, "SELECT city, records FROM cities") == [("Oslo", 1), ("Paris", 2), ("Rome", 1)]
    assert rows(file, "SELECT id, city FROM people") == [("1", "Rome"), ("2", "Paris"), ("3", "Oslo")]


async def test_a_record_that_comes_after_its_successor_counts_and_overwrites_nothing(file: Path) -> None:
    async with handler(file) as save:
        save(received((5, "1", "Rome")))
        save(redriven(9, 3, "1", "Paris"))
        assert rows(file, "SELECT city, at_offset FROM people") == [("Rome", 5)]
        save(received((10, "1", "Oslo")))
    assert rows(file, "SELECT city, at_offset FROM people") == [("Oslo", 10)]
    assert rows(file, "SELECT city, records FROM cities") == [("Oslo", 1), ("Paris", 1), ("Rome", 1)]


async def test_a_recreated_topic_replaces_old_rows_after_the_statements_of_the_guide(file: Path) -> None:
    async with handler(file) as save:
        save(received((5, "1", "Rome"), (6, "2", "Rome")))
        rows(file, "DELETE FROM origins WHERE topic = 'people'")
        rows(file, "UPDATE people SET at_offset = -1")
        save(received((0, "1", "Oslo")))
    assert rows(file, "SELECT id, city, at_offset FROM people") == [("1", "Oslo", 0), ("2", "Rome", -1)]
    assert rows(file, "SELECT city, records FROM cities") == [("Oslo", 1), ("Rome", 2)]


async def test_a_batch_of_which_all_records_were_handled_before_is_logged(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with handler(file) as save:
        save(received((0, "1", "Rome"), (1, "2", "Rome")))
        save(received((1, "2", "Rome"), (2, "3", "Rome")))
        save(received((1, "2", "Rome")))
        assert not caplog.messages
        save(received((0, "1", "Rome"), (1, "2", "Rome")))
    assert caplog.messages == ["all 2 records of a batch were handled before"]


async def test_a_batch_that_fails_writes_nothing(file: Path) -> None:
    async with handler(file) as save:
        rows(file, "CREATE TRIGGER refused BEFORE INSERT ON cities BEGIN SELECT RAISE(ABORT, 'refused'); END")
        with pytest.raises(sqlite3.IntegrityError):
            save(received((0, "1", "Paris")))
        assert rows(file, "SELECT id FROM people") == rows(file, "SELECT at_offset FROM origins") == []
        rows(file, "DROP TRIGGER refused")
        save(received((0, "1", "Paris")))
    assert rows(file, "SELECT city, records FROM cities") == [("Paris", 1)]


async def test_old_origins_are_forgotten(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "PRUNE_EVERY_S", -1)
    async with handler(file) as save:
        save(received((0, "1", "Paris")))
        assert rows(file, "SELECT at_offset FROM origins") == [(0,)]
        rows(file, "UPDATE origins SET handled_at = 0")
        save(received((1, "1", "Rome")))
        assert rows(file, "SELECT at_offset FROM origins") == [(1,)]
