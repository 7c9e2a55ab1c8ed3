"""Keep people in SQLite, exactly once: `python -m examples sqlite` runs the consumer with this handler.

The effect of a record and a row for its origin are written in one transaction, so a record that is redelivered or
redriven twice has no second effect. A record that failed and succeeds later still has its own effect. Before a
recreated topic is consumed, run `DELETE FROM origins WHERE topic = 'people'; UPDATE people SET at_offset = -1`:
otherwise new records count as already handled, and new values do not replace old rows.
"""

import logging
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import Annotated

from msgspec import Meta

from apps.chassis.settings import Settings
from apps.consumer.consuming.batch import Batch, Handler
from apps.consumer.consuming.resource import resource
from contracts.person import PEOPLE, Person

KEEP_ORIGINS_S = 15 * 24 * 3_600
"""Seconds after which an origin is forgotten: more than the topic's retention.ms and segment.ms, 7 days each."""
PRUNE_EVERY_S = 3_600
TABLES = """
PRAGMA journal_mode = WAL;
PRAGMA cache_size = -65536;  -- 64 MiB
CREATE TABLE IF NOT EXISTS people (id TEXT PRIMARY KEY, name TEXT, city TEXT, at_partition INTEGER, at_offset INTEGER)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cities (city TEXT PRIMARY KEY, records INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS origins (topic TEXT, at_partition INTEGER, at_offset INTEGER, handled_at INTEGER NOT NULL,
    PRIMARY KEY (topic, at_partition, at_offset)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS origins_by_time ON origins (handled_at);
"""
REMEMBER = "INSERT INTO origins VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"
SAVE = """
INSERT INTO people VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE
SET name = excluded.name, city = excluded.city, at_partition = excluded.at_partition, at_offset = excluded.at_offset
WHERE excluded.at_partition <> people.at_partition OR excluded.at_offset > people.at_offset
"""  # an older origin never overwrites a newer one; a key changes its partition only when the topic gets more of them
COUNT = "INSERT INTO cities VALUES (?, ?) ON CONFLICT (city) DO UPDATE SET records = records + excluded.records"
PRUNE = "DELETE FROM origins WHERE handled_at < ?"


class SqliteSettings(Settings, kw_only=True, frozen=True):
    """`SQLITE_FILE` names the database."""

    sqlite_file: Annotated[str, Meta(min_length=1)] = "people.db"


@asynccontextmanager
async def people_handler(settings: SqliteSettings) -> AsyncIterator[Handler[Person]]:
    """Open the database; yield the handler, a plain function that runs in a worker thread."""
    pruned_at = 0.0
    connection = sqlite3.connect(settings.sqlite_file, timeout=5, isolation_level=None, check_same_thread=False)
    with closing(connection):
        connection.executescript(TABLES)

        def save(batch: Batch[Person]) -> None:
            nonlocal pruned_at
            now = time.time()
            with connection:  # commits, or rolls back when anything raises
                connection.execute("BEGIN IMMEDIATE")
                new = [one for one in batch if connection.execute(REMEMBER, (*one.origin, int(now))).rowcount]
                people = [(one.value.id, one.value.name, one.value.city, *one.origin[1:]) for one in new]
                connection.executemany(SAVE, people)
                connection.executemany(COUNT, Counter(one.value.city for one in new).items())
                if len(batch) > 1 and not new:
                    logging.getLogger(__name__).warning("all %d records of a batch were handled before", len(batch))
                if now - pruned_at > PRUNE_EVERY_S:
                    connection.execute(PRUNE, (int(now) - KEEP_ORIGINS_S,))
                    pruned_at = now

        yield save


HANDLERS = {PEOPLE: resource(people_handler, SqliteSettings)}
