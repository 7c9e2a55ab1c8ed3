"""The newest records, in memory: a cache of the topic, bounded in records and in bytes."""

import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from heapq import nlargest
from itertools import chain, islice
from operator import attrgetter
from typing import NamedTuple, Protocol

MOST_BYTES = 32 * 1024 * 1024
"""Bytes of values that the window keeps at most, however many records it may have."""
PIECE = 500
"""Records that go together, where they did not come as a larger batch."""
MOST_PIECES = 100
"""Of which all bytes may consist: what is put together goes together when there are too many."""


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
    def parse(cls, text: str) -> "Cursor":
        """Read what `str` made of a cursor. Raises `ValueError` for anything else."""
        if not (found := re.fullmatch(r"(-?[0-9]{1,19})-([0-9]{1,10})-([0-9]{1,19})", text)):
            raise ValueError(f"not a cursor: {text[:60]!r}")
        return cls(*map(int, found.groups()))

    def __str__(self) -> str:
        return f"{self.timestamp}-{self.partition}-{self.offset}"


place_of = attrgetter(*Cursor._fields)
"""Returns the place of a record: a plain tuple, in the order of `Cursor`."""


time_of = attrgetter("timestamp")


def fields_of(record: Record) -> dict[str, object]:
    """Return the place of a record as fields of a line of the log."""
    return {"topic": record.topic, "partition": record.partition, "offset": record.offset}


class Window:
    """Keeps the last `size` records that were added, fewer where they are large.

    Batches are kept as they came and go as a whole, so that a record costs next to nothing on its way through; small
    ones are put together, so that thousands of them are gone through as fast.
    """

    def __init__(self, size: int, most_bytes: int = MOST_BYTES) -> None:
        self.size = size
        self._most_bytes = most_bytes
        self._batches: deque[tuple[Sequence[Record], int]] = deque()
        self._records = 0
        self._bytes = 0

    def __len__(self) -> int:
        return min(self._records, self.size)

    def __iter__(self) -> Iterator[Record]:
        """Go through the records, the first added first."""
        records = chain.from_iterable(batch for batch, _ in self._batches)
        return islice(records, max(0, self._records - self.size), None)

    def bytes_of(self, count: int) -> int:
        """Return the bytes of the values of so many records, about: as many times the average of all."""
        return self._bytes * min(count, self._records) // max(self._records, 1)

    def extend(self, records: Sequence[Record]) -> None:
        """Add records behind the others; the first added go when there are too many."""
        if not records:
            return
        size = _size(records)
        self._records += len(records)
        self._bytes += size
        last, size_of_last = self._batches[-1] if self._batches else ((), 0)
        if last and len(last) + len(records) <= PIECE and size_of_last + size <= self._most_bytes // MOST_PIECES:
            self._batches[-1] = ([*last, *records], size_of_last + size)
        else:
            self._batches.append((records, size))
        while self._records - len(self._batches[0][0]) >= self.size:
            self._drop_first()
        while self._bytes > self._most_bytes and self._records > 1:
            first = self._drop_first()
            if len(first) > 1:
                self._insert_first(first[len(first) // 2 :])

    def _drop_first(self) -> Sequence[Record]:
        first, size = self._batches.popleft()
        self._records -= len(first)
        self._bytes -= size
        return first

    def _insert_first(self, records: Sequence[Record]) -> None:
        size = _size(records)
        self._batches.appendleft((records, size))
        self._records += len(records)
        self._bytes += size

    def refill(self, records: Iterable[Record]) -> None:
        """Merge in records read from the topic again; those that are here already are passed over."""
        merged = _by_place((*records, *self))
        newest = [merged[place] for place in sorted(merged)][-self.size :]
        self._batches.clear()
        self._records = self._bytes = 0
        for start in range(0, len(newest), PIECE):
            self.extend(newest[start : start + PIECE])

    def newest(
        self, limit: int, *, key: bytes | None = None, partition: int | None = None, before: Cursor | None = None
    ) -> tuple[list[Record], Cursor | None]:
        """Return the newest `limit` records, oldest first, and the cursor for those before them (None: no more).

        Only those with this `key`, of this `partition`, and before this place. A record that was consumed twice stands
        there once.
        """
        wanted: Iterable[Record] = self
        if key is not None:
            wanted = [record for record in wanted if record.key == key]
        if partition is not None:
            wanted = [record for record in wanted if record.partition == partition]
        if before is not None:
            wanted = [record for record in wanted if place_of(record) < before]
        records = list(wanted)
        times = sorted(map(time_of, records))[-limit:]
        late = [record for record in records if record.timestamp >= times[0]] if times else []
        found = _by_place(late)  # of all of them it would take six times as long
        if len(found) < limit:  # some of those were consumed twice
            late, found = records, _by_place(records)
        places = nlargest(limit, found)[::-1]
        more = len(found) > limit or len(late) < len(records)
        return [found[place] for place in places], Cursor(*places[0]) if more else None


def _size(records: Sequence[Record]) -> int:
    return sum([len(record.value or b"") for record in records])


def _by_place(records: Iterable[Record]) -> dict[tuple[int, int, int], Record]:
    """Return each record by its place, once; in C throughout, for there are thousands of them."""
    records = list(records)
    return dict(zip(map(place_of, records), records, strict=True))
