"""Keep people in PostgreSQL, exactly once: `python -m examples postgres` runs the consumer with this handler.

The effect of a record and a row for its origin are written in one transaction, so a record that is redelivered or
redriven twice has no second effect. A record that failed and succeeds later still has its own effect.
"""

import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from msgspec import Meta
from psycopg import AsyncConnection

from apps.chassis.settings import Settings
from apps.consumer.consuming.batch import Batch, Handler
from apps.consumer.consuming.resource import resource
from contracts.person import PEOPLE, Person

PRUNE_EVERY_S = 3_600
TABLES = """
SELECT pg_advisory_xact_lock(1);  -- instances that start at once would create the tables twice
CREATE TABLE IF NOT EXISTS people (id text PRIMARY KEY, name text, city text, at_partition int, at_offset bigint);
CREATE TABLE IF NOT EXISTS cities (city text PRIMARY KEY, records bigint NOT NULL);
CREATE TABLE IF NOT EXISTS origins (topic text, at_partition int, at_offset bigint, handled_at timestamptz
    NOT NULL DEFAULT now(), PRIMARY KEY (topic, at_partition, at_offset));
CREATE INDEX IF NOT EXISTS origins_by_time ON origins (handled_at);
"""
REMEMBER = """
INSERT INTO origins (topic, at_partition, at_offset) SELECT * FROM unnest(%s::text[], %s::int[], %s::bigint[])
ON CONFLICT DO NOTHING RETURNING topic, at_partition, at_offset
"""
SAVE = """
INSERT INTO people VALUES (%s, %s, %s, %s, %s) ON CONFLICT (id) DO UPDATE
SET name = excluded.name, city = excluded.city, at_partition = excluded.at_partition, at_offset = excluded.at_offset
WHERE excluded.at_partition <> people.at_partition OR excluded.at_offset > people.at_offset
"""  # an older origin never overwrites a newer one; a key changes its partition only when the topic gets more of them
COUNT = (
    "INSERT INTO cities VALUES (%s, %s) ON CONFLICT (city) DO UPDATE SET records = cities.records + excluded.records"
)
PRUNE = "DELETE FROM origins WHERE handled_at < now() - interval '15 days'"  # retention.ms + segment.ms: 7 + 7 days


class PostgresSettings(Settings, kw_only=True, frozen=True):
    """`DATABASE_URL` says where the database is."""

    database_url: Annotated[str, Meta(pattern="^postgresql://", description="an address like postgresql://localhost/x")]


@asynccontextmanager
async def people_handler(settings: PostgresSettings) -> AsyncIterator[Handler[Person]]:
    """Connect; yield the handler. A connection that died is replaced by the consumer: it opens this again."""
    pruned_at = 0.0
    limit = "-c statement_timeout=30s"
    connecting = AsyncConnection.connect(settings.database_url, connect_timeout=5, options=limit)
    async with await connecting as connection:
        await connection.execute(TABLES)
        await connection.commit()

        async def save(batch: Batch[Person]) -> None:
            nonlocal pruned_at
            async with connection.transaction(), connection.cursor() as cursor:
                records = {record.origin: record.value for record in batch}
                await cursor.execute(REMEMBER, [list(column) for column in zip(*records, strict=True)])
                returned = {tuple(row) for row in await cursor.fetchall()}
                new = {origin: person for origin, person in records.items() if origin in returned}
                people = [(one.id, one.name, one.city, *origin[1:]) for origin, one in new.items()]
                await cursor.executemany(SAVE, people)
                # in one order, so that two instances do not wait for each other
                await cursor.executemany(COUNT, sorted(Counter(one.city for one in new.values()).items()))
                if time.time() - pruned_at > PRUNE_EVERY_S:
                    await cursor.execute(PRUNE)
                    pruned_at = time.time()

        yield save


HANDLERS = {PEOPLE: resource(people_handler, PostgresSettings)}
