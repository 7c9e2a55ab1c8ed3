"""The newest records, in memory: a cache of the topic, bounded in records and in bytes."""

import re
from collections import deque
from collections.abc import Iterable, Sequence
from heapq import nlargest
from typing import NamedTuple, Protocol

MOST_BYTES = 32 * 1024 * 1024
"""Bytes of values that the window keeps at most, however many records it may have."""


class Record(Protocol):
    """A record as the client hands it over; `timestamp` in milliseconds since 1970 UTC, key and value may be null."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


class Cursor(NamedTuple):
    """A place among the records, which are in the order of their timestamp, partition and offset."""

    timestamp: int
    partition: int
    offset: int

    @classmethod
    def of(cls, record: Record) -> "Cursor":
        """Return the place of a record."""
        return cls(record.timestamp, record.partition, record.offset)

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Read what `str` made of a cursor. Raises `ValueError` for anything else."""
        if not (found := re.fullmatch(r"(-?\d{1,19})-(\d{1,10})-(\d{1,19})", text)):
            raise ValueError(f"not a cursor: {text[:60]!r}")
        return cls(*map(int, found.groups()))

    def __str__(self) -> str:
        return f"{self.timestamp}-{self.partition}-{self.offset}"


class Window:
    """Keeps the last `size` records that were added, fewer where they are large."""

    def __init__(self, size: int, most_bytes: int = MOST_BYTES) -> None:
        self.size = size
        self._most_bytes = most_bytes
        self._records: deque[Record] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._records)

    def extend(self, records: Sequence[Record]) -> None:
        """Add records behind the others; the first added go when there are too many."""
        self._records.extend(records)
        self._bytes += sum(len(record.value or b"") for record in records)
        while len(self._records) > self.size or self._bytes > self._most_bytes:
            self._bytes -= len(self._records.popleft().value or b"")

    def refill(self, records: Iterable[Record]) -> None:
        """Merge in records read from the topic again; those that are here already are passed over."""
        merged = {Cursor.of(record): record for record in (*records, *self._records)}
        self._records.clear()
        self._bytes = 0
        self.extend([merged[place] for place in sorted(merged)])

    def newest(
        self, limit: int, *, key: bytes | None = None, partition: int | None = None, before: Cursor | None = None
    ) -> tuple[list[Record], Cursor | None]:
        """Return the newest `limit` records, oldest first, and the cursor for those before them (None: no more).

        Only those with this `key`, of this `partition`, and before this place. A record that was consumed twice stands
        there once.
        """
        found = {
            Cursor.of(record): record
            for record in self._records
            if (key is None or record.key == key) and (partition is None or record.partition == partition)
        }
        if before is not None:
            found = {place: record for place, record in found.items() if place < before}
        places = nlargest(limit, found)[::-1]
        return [found[place] for place in places], places[0] if len(found) > limit else None
