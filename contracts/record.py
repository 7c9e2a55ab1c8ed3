"""A record as it stands on a topic, whichever client read it."""

import time
from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple, Protocol

AHEAD_MS = 60_000
"""Milliseconds that a record may be dated ahead of now; beyond that its timestamp is wrong."""


class Record(Protocol):
    """A record as the client hands it over; `timestamp` in milliseconds since 1970 UTC, key and value may be null."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


class Place(NamedTuple):
    """Where a record stands."""

    topic: str
    partition: int
    offset: int


place_of = attrgetter("partition", "offset")
"""Returns the partition of a record and its offset there."""


def latest_date() -> int:
    """Return the latest plausible timestamp (ms) of a record, by this machine's clock."""
    return time.time_ns() // 1_000_000 + AHEAD_MS


def fields_of(record: Record) -> dict[str, object]:
    """Return the place of a record as fields of a line of the log."""
    return {"topic": record.topic, "partition": record.partition, "offset": record.offset}
