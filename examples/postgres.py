"""Keep people in PostgreSQL, exactly once: `python -m examples postgres` runs the consumer with this handler.

The effect of a record and a row for its origin are written in one transaction: a redelivery has no second effect.
Before a recreated topic is read, run `DELETE FROM origins WHERE topic = 'people'; UPDATE people SET at_offset = -1`:
otherwise new records count as already handled, and new values do not replace old rows.
"""

import logging
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
    "INSERT INTO cities AS c VALUES (%s, %s) ON CONFLICT (city) DO UPDATE SET records = c.records + excluded.records"
)
PRUNE = "DELETE FROM origins WHERE handled_at < now() - interval '15 days'"  # retention.ms + segment.ms: 7 + 7 days


class PostgresSettings(Settings, kw_only=True, frozen=True):
    """`DATABASE_URL` says where the database is."""

    database_url: Annotated[str, Meta(pattern="^postgresql://", description="an address like postgresql://localhost/x")]


@asynccontextmanager
async def people_handler(settings: PostgresSettings) -> AsyncIterator[Handler[Person]]:
    """Connect; yield the handler. A connection that died is replaced by the consumer: it opens this again."""
    pruned_at = 0.0
    connecting = AsyncConnection.connect(settings.database_url, connect_timeout=5, options="-c statement_timeout=30s")
    async with await connecting as connection:
        await connection.execute(TABLES)
        await connection.commit()

        async def save(batch: Batch[Person]) -> None:
            nonlocal pruned_at
            async with connection.transaction(), connection.cursor() as cursor:
                records = {tuple(record.origin): record.value for record in batch}
                await cursor.execute(REMEMBER, [list(column) for column in zip(*records, strict=True)])
                new = {origin: records[origin] async for origin in cursor}
                if len(batch) > 1 and not new:
                    logging.getLogger(__name__).warning("all %d records of a batch were handled before", len(batch))
                await cursor.executemany(SAVE, [(one.id, one.name, one.city, *at[1:]) for at, one in new.items()])
                await cursor.executemany(COUNT, sorted(Counter(p.city for p in new.values()).items()))  # no deadlock
                if time.time() - pruned_at > PRUNE_EVERY_S:
                    await cursor.execute(PRUNE)
                    pruned_at = time.time()

        yield save


HANDLERS = {PEOPLE: resource(people_handler, PostgresSettings)}
