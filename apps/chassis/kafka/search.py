"""Search backwards through a topic for the newest wanted records: decide what to read next, and when to stop.

Partitions are merged by timestamp, each in offset order: a record counts as no newer than the later records of its
partition. A record dated more than a minute ahead has a wrong timestamp, for example in microseconds. It counts as old
as the record before it in its partition.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

from contracts.record import Record, latest_date, place_of, size_of

SEARCH_BYTES = 16 * 1024 * 1024
"""Most bytes of records that a search keeps, apart from one record of each partition."""

Wanted = Callable[[Record], bool]
"""Return whether a search looks for a record."""
Skip = Callable[[int, int], int]
"""Return the offset to go back from in a partition: that, or a lower one when nothing between is wanted."""


class SearchLimits(NamedTuple):
    """How much one search reads."""

    records: int = 100_000
    """Records after which a search returns what it has found; it may read one piece more."""
    bytes: int = SEARCH_BYTES
    min_piece_records: int = 100
    max_piece_records: int = 5_000
    """Records that are read of a partition at a time (a piece): the number doubles as long as the records fit."""


DEFAULT_LIMITS = SearchLimits()


def skip_nothing(_: int, offset: int) -> int:
    """Return the same offset."""
    return offset


class Newest(NamedTuple):
    """The found records, the newest first.

    `before` is the offset in each partition to continue from, None when nothing is left. `scanned` is the number of
    records that were read. `reached` is the time (ms) down to which the topic was searched, None at its beginning.
    """

    records: list[Record]
    before: dict[int, int] | None
    scanned: int
    reached: int | None


class _Column:
    """One partition, which was read from its end down to `low`, and is to be read down to `bottom`.

    `time` (ms) is that of the last record read. `found` holds the wanted records, each with the time that it counts
    as, the newest first.
    """

    def __init__(self, bottom: int, end: int, latest: int, skip: Callable[[int], int]) -> None:
        end = max(bottom, skip(end))
        self._latest = latest
        self._skip = skip
        self._undated: list[Record] = []
        self.bottom = bottom
        self.low = end
        self.time = math.inf
        self.found: list[tuple[float, Record]] = []
        self.size = 0
        """The bytes of all records that were found."""
        self.cut_short = False
        self._piece: deque[tuple[Record, int]] = deque()
        self._start = end
        self._bytes = 0

    @property
    def pending(self) -> bool:
        return self.low > self.bottom

    def begin(self, size: int) -> tuple[int, int]:
        """Begin the next piece, below what was read; return its first offset and the offset after its last."""
        self._start = max(self.bottom, self.low - size)
        self.cut_short = False
        self._piece.clear()
        self._bytes = 0
        return self._start, self.low

    def take(self, records: Iterable[Record], max_bytes: int) -> int:
        """Add records to the piece, in order; drop the oldest ones if they exceed `max_bytes`. Return their bytes."""
        taken = 0
        for record in records:
            size = size_of(record)  # of many headers this takes as long as reading them
            self._piece.append((record, size))
            self._bytes += size
            taken += size
            while self._bytes > max_bytes and len(self._piece) > 1:
                self._bytes -= self._piece.popleft()[1]
                self._start = self._piece[0][0].offset
                self.cut_short = True
        return taken

    def settle(self, wanted: Wanted) -> int:
        """Finish the piece: keep its wanted records, and return how many records it had."""
        self.low = max(self.bottom, self._skip(self._start))
        for record, size in reversed(self._piece):
            is_dated = record.timestamp <= self._latest
            if is_dated:
                self.time = min(self.time, record.timestamp)
                if self._undated:
                    self.date_rest()
            if wanted(record):
                self.size += size
                if is_dated:
                    self.found.append((self.time, record))
                else:
                    self._undated.append(record)
        if not self.pending:
            self.date_rest()
        scanned = len(self._piece)
        self._piece.clear()
        self._bytes = 0
        return scanned

    def date_rest(self) -> None:
        """Give records that are dated ahead the time of the last record read.

        Without one, they count as the newest possible while there is more to read, else as the oldest.
        """
        if self._undated and self.pending:
            self.time = min(self.time, self._latest)
        self.found += [(self.time if math.isfinite(self.time) else 0, record) for record in self._undated]
        self._undated.clear()


class Search:
    """A search for the newest `limit` wanted records before an offset in each partition.

    Repeat until `pieces` returns nothing: read the pieces, and pass the records to `take`. Where it has room for all of
    them, pass each partition of the pieces to `settle`.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what bounds a search
        self,
        bottom: Mapping[int, int],
        before: Mapping[int, int],
        wanted: Wanted,
        limit: int,
        limits: SearchLimits = DEFAULT_LIMITS,
        skip: Skip = skip_nothing,
    ) -> None:
        latest = latest_date()
        self._limits = limits
        self._columns = {
            partition: _Column(bottom[partition], offset, latest, partial(skip, partition))
            for partition, offset in before.items()
        }
        self._share = limits.bytes // (2 * max(1, len(before)))
        self._wanted = wanted
        self._limit = limit
        self._size = max(limit, limits.min_piece_records)
        self._scanned = 0
        self._piece_records = self._taken_records = self._taken_bytes = 0

    def pieces(self) -> dict[int, tuple[int, int]]:
        """Return what to read next, by partition: the first offset and the offset after the last."""
        pending = {partition: column for partition, column in self._columns.items() if column.pending}
        if not pending or self._scanned >= self._limits.records or self._is_full() or len(self._ready()) >= self._limit:
            return {}
        times = [column.time for column in pending.values()]
        middle = (min(times) + max(times)) / 2  # partitions that were read further back wait for the others
        next_ones = {partition: column for partition, column in pending.items() if column.time >= middle}
        self._piece_records, self._size = self._size, min(2 * self._size, self._limits.max_piece_records)
        self._taken_records = self._taken_bytes = 0
        return {partition: column.begin(self._piece_records) for partition, column in next_ones.items()}

    def take(self, records: Sequence[Record]) -> bool:
        """Add records of one partition, in order; return whether the pieces have room for more.

        Where they have not, their records are too large to read all: the next pieces have as many as fit.
        """
        self._taken_bytes += self._columns[records[0].partition].take(records, self._share)
        self._taken_records += len(records)
        if self._taken_bytes <= 2 * self._limits.bytes or self._piece_records == 1:
            return True
        self._size = max(1, self._share * self._taken_records // self._taken_bytes)
        return False

    def settle(self, partition: int) -> None:
        """Finish the piece of a partition that `pieces` returned last."""
        scanned = self._columns[partition].settle(self._wanted)
        self._scanned += scanned
        if self._columns[partition].cut_short:
            self._size = min(self._size, scanned)

    def newest(self) -> Newest:
        """Return the result of the search."""
        for column in self._columns.values():
            column.date_rest()
        chosen = self._ready()[: self._limit]
        before = {partition: column.low for partition, column in self._columns.items()}
        left: list[float] = [-math.inf]
        for partition, column in self._columns.items():
            taken = sum(record.partition == partition for _, record in chosen)
            if rest := column.found[taken:]:
                before[partition] = rest[0][1].offset + 1
                left.append(rest[0][0])
        horizon = max(self._horizon(), *left)
        reached = int(horizon) if math.isfinite(horizon) else None
        return Newest([record for _, record in chosen], before if horizon > -math.inf else None, self._scanned, reached)

    def _horizon(self) -> float:
        """Return the time down to which every partition was read."""
        return max((column.time for column in self._columns.values() if column.pending), default=-math.inf)

    def _ready(self) -> list[tuple[float, Record]]:
        """Return the found records that are newer than all unread ones, the newest first."""
        horizon = self._horizon()
        ready = [one for column in self._columns.values() for one in column.found if one[0] >= horizon]
        return sorted(ready, key=lambda one: (-one[0], one[1].partition, -one[1].offset))

    def _is_full(self) -> bool:
        size = sum(column.size for column in self._columns.values())
        return size >= self._limits.bytes // 2  # the other half is for the pieces being read


def merged_by_time(records: Iterable[Record]) -> list[Record]:
    """Merge records of several partitions by timestamp, each partition in offset order.

    A record counts as no older than the earlier ones of its partition. One that is dated too far ahead counts as old as
    the one before it.
    """
    latest = latest_date()
    timed: list[tuple[int, int, int, Record]] = []
    for partition, of_one in groupby(sorted(records, key=place_of), key=attrgetter("partition")):
        written = 0
        for record in of_one:
            if record.timestamp <= latest:
                written = max(written, record.timestamp)
            timed.append((written, partition, record.offset, record))
    return [record for *_, record in sorted(timed, key=lambda one: one[:3])]
