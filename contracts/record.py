"""A record that was read from a topic, by any client."""

import time
from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple, Protocol

AHEAD_MS = 60_000
"""Milliseconds that a record's timestamp may be ahead of now; beyond that it counts as wrong."""
RECORD_OVERHEAD_BYTES = 256
"""Bytes of memory that a record takes besides its content."""
HEADER_OVERHEAD_BYTES = 200
"""Bytes of memory that a header takes besides its content: a tuple with its place, and two objects."""


class Record(Protocol):
    """A record as the client returns it. `timestamp` is in milliseconds since 1970 UTC; key and value may be None."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


class Place(NamedTuple):
    """The topic, partition and offset of a record."""

    topic: str
    partition: int
    offset: int


place_of = attrgetter("partition", "offset")
"""Return the partition and the offset of a record."""


def latest_date() -> int:
    """Return the latest plausible timestamp of a record (ms since 1970 UTC), by this machine's clock."""
    return time.time_ns() // 1_000_000 + AHEAD_MS


def memory_of(records: Sequence[Record]) -> int:
    """Return about how many bytes of memory records take."""
    content = sum([len(record.key or b"") + len(record.value or b"") for record in records])
    headers = sum([_size_of_header(header) for record in records if record.headers for header in record.headers])
    return content + headers + RECORD_OVERHEAD_BYTES * len(records)


def size_of(record: Record) -> int:
    """Return about how many bytes of memory a record's key, value and headers take."""
    size = len(record.key or b"") + len(record.value or b"")
    return size + sum(map(_size_of_header, record.headers)) if record.headers else size


def _size_of_header(header: tuple[str, bytes | None]) -> int:
    name, value = header
    return HEADER_OVERHEAD_BYTES + len(name) + len(value or b"")


def name_of(record: Record) -> str:
    """Return the topic, partition and offset of a record, as a person reads them."""
    return f"{record.topic}-{record.partition} offset {record.offset}"


def fields_of(record: Record) -> dict[str, object]:
    """Return the topic, partition and offset of a record as fields of a log line."""
    return {"topic": record.topic, "partition": record.partition, "offset": record.offset}
