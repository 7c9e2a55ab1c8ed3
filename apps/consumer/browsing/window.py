"""Keep the last consumed records in memory: a cache of the topic, bounded in records and in bytes.

They keep the order of consumption, not that of their timestamps. Records that were consumed before this instance
started are read again from the topic, and come before those. Nothing is kept of a record whose key was deleted later
but its place and key.
"""

import re
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from operator import attrgetter
from typing import NamedTuple

from apps.chassis.kafka.search import merged_by_time
from apps.consumer.browsing.forgetting import deletions_in, without_deleted
from contracts.record import Record, memory_of, place_of

WINDOW_BYTES = 32 * 1024 * 1024
"""Bytes of memory that the window takes at most, however many records it may have."""
PIECE_RECORDS = 500
"""Records of one piece, where they did not arrive as a larger batch."""
MAX_PIECES = 100
"""Pieces that all bytes may consist of: a piece is dropped as a whole."""

key_of = attrgetter("key")


class Cursor(NamedTuple):
    """Where a page begins: records are numbered as they are consumed, and those from `before` on were shown.

    Those from `top` on were consumed after the first page was requested. `window` identifies the instance that numbered
    them.
    """

    window: int
    top: int
    before: int

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Read what `str` made of a cursor. Raises `ValueError` for anything else."""
        if not (found := re.fullmatch(r"([0-9]{1,19})-([0-9]{1,18})-([0-9]{1,18})", text)):
            raise ValueError(f"not a cursor: {text[:60]!r}")
        return cls(*map(int, found.groups()))

    def __str__(self) -> str:
        return f"{self.window}-{self.top}-{self.before}"


class StaleCursor(ValueError):
    """A cursor of another instance, or from before this one was restarted or dropped its records."""


FIRST_NUMBER = 2**40
"""The number of the first consumed record; records consumed before the start have lower ones."""


class Piece:
    """Records that are kept and dropped together, and the bytes of memory that they take.

    Their keys are collected by the first search for a key: a caller that waits for a record searches again and again.
    """

    __slots__ = ("_keys", "records", "size")

    def __init__(self, records: Sequence[Record], size: int | None = None) -> None:
        self.records = records
        self.size = memory_of(records) if size is None else size
        self._keys: frozenset[bytes | None] | None = None

    def has(self, *keys: bytes | None) -> bool:
        """Return whether a record has one of these keys."""
        if self._keys is None:
            self._keys = frozenset(map(key_of, self.records))
        return not self._keys.isdisjoint(keys)


class Window:
    """Keeps the last `size` records that were added, fewer where they are large.

    Pieces are kept and dropped as a whole, so that a record costs next to nothing. Small batches are joined, so that
    thousands of them are searched as fast. With `deletes` a record without a value deletes its key.
    """

    def __init__(self, size: int, max_bytes: int = WINDOW_BYTES, *, deletes: bool = False) -> None:
        self.size = size
        self._deletes = deletes
        self._max_bytes = max_bytes
        self._pieces: deque[Piece] = deque()
        self._records = 0
        self._bytes = 0
        self._name = time.time_ns() // 1_000
        self._end = FIRST_NUMBER
        self._consumed = 0

    def __len__(self) -> int:
        return min(self._records, self.size)

    def __iter__(self) -> Iterator[Record]:
        """Iterate over the records, the first consumed first."""
        records = chain.from_iterable(piece.records for piece in self._pieces)
        return islice(records, max(0, self._records - self.size), None)

    def bytes_of(self, count: int) -> int:
        """Return about how many bytes of memory this many records take: the average of all, times their number."""
        return self._bytes * min(count, self._records) // max(self._records, 1)

    def extend(self, records: Sequence[Record]) -> None:
        """Add consumed records; the first consumed are dropped when there are too many."""
        self._end += len(records)
        self._consumed += len(records)
        self._append(records)
        self._forget(records)

    def _append(self, records: Sequence[Record]) -> None:
        if not records:
            return
        piece = Piece(records)
        self._records += len(records)
        self._bytes += piece.size
        last = self._pieces[-1] if self._pieces else Piece(())
        size = last.size + piece.size
        if last.records and len(last.records) + len(records) <= PIECE_RECORDS and size <= self._max_bytes // MAX_PIECES:
            self._pieces[-1] = Piece([*last.records, *records], size)
        else:
            self._pieces.append(piece)
        while self._records - len(self._pieces[0].records) >= self.size:
            self._drop_first()
        while self._bytes > self._max_bytes and self._records > 1:
            first = self._drop_first()
            if len(first) > 1:
                self._insert_first(first[len(first) // 2 :])

    def _drop_first(self) -> Sequence[Record]:
        first = self._pieces.popleft()
        self._records -= len(first.records)
        self._bytes -= first.size
        return first.records

    def _insert_first(self, records: Sequence[Record]) -> None:
        piece = Piece(records)
        self._pieces.appendleft(piece)
        self._records += len(records)
        self._bytes += piece.size

    def refill(self, records: Iterable[Record]) -> None:
        """Add records that were read from the topic again, before all those consumed since the start.

        They are merged by timestamp, each partition in offset order. Records that are already here are skipped. None
        are added once consumed ones were dropped, which are newer, and may have deleted the keys of some.
        """
        present = list(self)
        if (consumed := self._consumed) > len(present):
            return
        begin = len(present) - consumed
        refilled = {place_of(record): record for record in (*records, *present[:begin])}
        for record in present[begin:]:
            refilled.pop(place_of(record), None)
        room = self.size - consumed
        merged = [*(merged_by_time(refilled.values())[-room:] if room else ()), *present[begin:]]
        self._clear()
        for start in range(0, len(merged), PIECE_RECORDS):
            self._append(merged[start : start + PIECE_RECORDS])
        self._forget(merged)

    def invalidate(self) -> None:
        """Drop all records if they can be deleted: from now on another instance may consume their deletions.

        Cursors end with them.
        """
        if self._deletes:
            self._clear()
            self._consumed = 0
            self._name += 1

    def _clear(self) -> None:
        self._pieces.clear()
        self._records = self._bytes = 0

    def _forget(self, records: Sequence[Record]) -> None:
        """Keep no value of earlier records whose keys some records delete."""
        if not self._deletes:
            return
        deletions = deletions_in(records)
        for number, piece in enumerate(self._pieces):
            if deletions and piece.has(*deletions):
                self._pieces[number] = left = Piece(without_deleted(piece.records, deletions))
                self._bytes += left.size - piece.size

    def newest(
        self, limit: int, *, key: bytes | None = None, partition: int | None = None, before: Cursor | None = None
    ) -> tuple[list[Record], Cursor | None]:
        """Return the `limit` last consumed records, in the order of consumption, and the cursor for earlier ones.

        The cursor is None when there are no more. Records match this `key` and this `partition`, and come before this
        cursor. A record that was consumed twice is listed where it was consumed last. Raises `StaleCursor`.
        """
        name, top, below = before or (self._name, self._end, self._end)
        if name != self._name:
            raise StaleCursor(
                "a cursor of another instance, or of before a restart or rebalance: begin again without it"
            )
        found: list[tuple[int, Record]] = []
        seen: set[tuple[int, int]] = set()
        for number, record in self._backwards(top, key, partition):
            place = place_of(record)
            if place in seen:
                continue
            seen.add(place)
            if number >= below:
                continue
            found.append((number, record))
            if len(found) > limit:
                break
        shown = found[:limit]
        cursor = Cursor(name, top, shown[-1][0]) if len(found) > limit else None
        return [record for _, record in reversed(shown)], cursor

    def _backwards(self, top: int, key: bytes | None, partition: int | None) -> Iterator[tuple[int, Record]]:
        """Iterate over matching records below a number with their numbers, the last consumed first."""
        end, last = self._end, self._end - len(self)
        for piece in reversed(self._pieces):
            begin = end - len(piece.records)
            if begin < top and (key is None or piece.has(key)):
                for number, record in zip(range(end - 1, begin - 1, -1), reversed(piece.records), strict=True):
                    matches = (key is None or record.key == key) and (
                        partition is None or record.partition == partition
                    )
                    if matches and last <= number < top:
                        yield number, record
            end = begin
