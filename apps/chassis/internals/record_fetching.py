r"""Fetched bytes become records, in bounded memory and with any header names: a PROTECTION.

Reaches for the classes that aiokafka's fetcher makes: `MemoryRecords`, `PartitionRecords` and `FetchResult`, and for
`Fetcher.fetched_records`. Lost without it: every record behind a header name that is not UTF-8 or a damaged batch, and
the bound on memory. It also saves time, but that cannot be given up by itself. No upstream issue is known.

aiokafka runs some twenty steps in Python for each record, and the garbage collector tracks the objects that they make.
Here all records of a batch are made at once, of a type that it does not track. Consuming takes 2.0 µs of processor time
a record instead of 3.1 (`docs/speed.md`).

Brokers accept header names that are not UTF-8, but aiokafka raises at each, again and again at the same record.
Such a name is read with its wrong bytes escaped, as `\xff`; everything else of the record is unchanged.

A batch that cannot be read blocks only its own partition: earlier records, and those fetched from other partitions, are
returned first. aiokafka raises at once, and the poll loses the records that it had already taken.

Memory is bounded for any batch: a large batch is read in parts, a record of more than 16 MiB is returned without its
value, and a poll ends when its records have 8 MiB.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from functools import wraps
from itertools import chain, islice
from operator import length_hint
from struct import Struct
from typing import Any, NamedTuple, SupportsIndex, overload

import msgspec
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch, _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition

from apps.chassis.internals.decompression import Indivisible
from apps.chassis.internals.record_batches import (
    LARGEST_RECORD_BYTES,
    LegacyBatch,
    Omitted,
    count_of,
    is_compressed,
    is_legacy,
    parts_of,
)
from apps.chassis.observability.logs import without_values
from contracts.dead_letter import OMITTED_BYTES, Header

REACHES = (
    "aiokafka.consumer.fetcher:MemoryRecords",
    "apps.chassis.internals.record_fetching:Batches.__base__.__init__(tp, records, aborted_transactions, fetch_offset)",
    "apps.chassis.internals.record_fetching:Batches.__base__.__init__(check_crcs) uses _check_crcs, _aborted_producers",
    "apps.chassis.internals.record_fetching:Batches.__base__.__init__(isolation_level) uses _isolation_level",
    "apps.chassis.internals.record_fetching:Batches.__base__._unpack_records(self) uses _tp, next_fetch_offset",
    "apps.chassis.internals.record_fetching:Batches.__base__._consume_aborted_up_to(batch_offset)",
    "apps.chassis.internals.record_fetching:Batches.__base__._contains_abort_marker(next_batch)",
    "apps.chassis.internals.record_fetching:FetchResult.__base__.__init__(tp, assignment, partition_records, backoff)",
    "apps.chassis.internals.record_fetching:FetchResult.__base__.check_assignment(tp) uses _topic_partition",
    "apps.chassis.internals.record_fetching:FetchResult.__base__.getall(max_records)",
    "apps.chassis.internals.record_fetching:FetchResult.__base__._update_position uses _partition_records",
    "aiokafka.consumer.fetcher:Fetcher.fetched_records(partitions)",
    "aiokafka.record.default_records:_DefaultRecordBatchPy._maybe_uncompress(self) uses _buffer",
)

PIECE = 500
"""Records that are made at a time: a batch that was compressed well has a great many."""
POLL_BYTES = 8 * 1024 * 1024
"""Bytes of records after which a poll returns."""
RECORD_OVERHEAD_BYTES = 256
"""Bytes of memory that a record takes besides its content."""

NO_TIMESTAMP = -1
"""The timestamp of a record that has none, as Kafka itself tells it."""
LENGTH = Struct(">8xi")
"""Where a batch says, in every format, how many bytes it has behind this."""


def read_fetched_fast() -> None:
    """Have every consumer of this process read so from now on, also those that exist."""
    fetcher.MemoryRecords = Fetched
    fetcher.PartitionRecords = PartitionRecords
    fetcher.FetchResult = FetchResult
    if not hasattr(fetcher.Fetcher.fetched_records, "__wrapped__"):
        fetcher.Fetcher.fetched_records = _bounded(fetcher.Fetcher.fetched_records)


class Budget:
    """How many bytes of records a poll may still take."""

    def __init__(self) -> None:
        self.left = POLL_BYTES


_budget: ContextVar[Budget | None] = ContextVar("budget of the current poll", default=None)


def _bounded(poll: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Return the client's poll with one budget for all its partitions.

    Records before the asked offset count too: a small compressed batch can hold gigabytes of them. When they spent the
    budget, other tasks get a turn, and what is left is read with a new budget, within the time of the poll.
    """

    @wraps(poll)
    async def bounded(fetch: Any, partitions: Any, timeout: float = 0, max_records: int | None = None) -> Any:  # noqa: ANN401, ASYNC109 - as aiokafka calls it
        deadline = time.monotonic() + timeout
        while True:
            budget = Budget()
            token = _budget.set(budget)
            try:
                found = await poll(fetch, partitions, 0, max_records)
                left = deadline - time.monotonic()
                if not found and budget.left > 0 and left > 0:  # nothing was fetched yet
                    found = await poll(fetch, partitions, left, max_records)
                    left = deadline - time.monotonic()
            finally:
                _budget.reset(token)
            if found or budget.left > 0 or left <= 0:
                return found
            await asyncio.sleep(0)

    return bounded


class FetchedRecord(msgspec.Struct, gc=False):
    """A record as readers here need it; key and value may be null, and so may the value of a header."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


class OversizedRecord(FetchedRecord):
    """A record that is too large to be read; it has no value, and its only header is its size in bytes.

    `detail` describes what was omitted. The record itself stays readable on its topic.
    """

    detail: str


class TooLarge(ValueError):
    """A record that is larger than the largest that is read; the message has its size."""


class Unreadable(CorruptRecordException):  # type: ignore[misc]  # aiokafka ships no types
    """Records of a partition cannot be read: from an offset up to another (not with it), and why.

    Where the bytes are damaged, `stop` is only what they say, but always behind `start`.
    """

    def __init__(self, partition: TopicPartition, start: int, stop: int, reason: str) -> None:
        self.partition: int = partition.partition
        self.start = start
        self.stop = stop
        self.reason = f"cannot be read: {reason}"
        self.text = f"{partition.topic}-{self.partition} offset {start} {self.reason}"
        super().__init__(self.text)

    def __str__(self) -> str:
        return self.text


class Fetched(MemoryRecords):  # type: ignore[misc]  # aiokafka ships no types
    """What was fetched of a partition, batch by batch; keeps the bytes, so that a batch can be read another time."""

    def __init__(self, fetched: bytes) -> None:
        super().__init__(fetched)
        self.fetched = fetched


class Piece(NamedTuple):
    """Records that were made together, the offset after them, and the bytes of memory that they take."""

    records: list[FetchedRecord]
    behind: int
    size: int


class PartitionRecords:
    """The records that were fetched of a partition, without those of aborted transactions where that is wanted.

    Deserializers of keys and values are not called. aiokafka's holds itself until it is read to its end: after a seek
    or a rebalance megabytes would wait for a collection of garbage, which comes late where records are no part of it.
    """

    def __init__(self, tp: TopicPartition, records: Fetched, aborted: Any, offset: int, *options: Any) -> None:  # noqa: ANN401 - as aiokafka calls it
        self._pieces = Batches(tp, records, aborted, offset, *options).pieces()
        self._left: Iterator[FetchedRecord] = iter(())
        self._piece: list[FetchedRecord] = []
        self._behind = offset
        self.ended = False
        """Whether all records were returned."""

    def __iter__(self) -> Iterator[FetchedRecord]:
        return chain.from_iterable(self._in_turn())

    def __next__(self) -> FetchedRecord:
        return next(iter(self))

    @property
    def next_fetch_offset(self) -> int:
        """The offset of the first record that was not handed out."""
        left = length_hint(self._left)
        return self._piece[-left].offset if left else self._behind

    def take(self, most: int | None, budget: Budget) -> list[FetchedRecord]:
        """Return at most this many of the next records, until the budget is spent."""
        found = list(islice(self._left, most))
        while budget.left > 0 and (most is None or len(found) < most):
            piece = next(self._pieces, None)
            if piece is None:
                self.ended = True
                break
            budget.left -= piece.size
            self._begin(piece)
            found += islice(self._left, None if most is None else most - len(found))
        return found

    def _in_turn(self) -> Iterator[Iterator[FetchedRecord]]:
        yield self._left
        for piece in self._pieces:
            self._begin(piece)
            yield self._left

    def _begin(self, piece: Piece) -> None:
        self._piece, self._left, self._behind = piece.records, iter(piece.records), piece.behind


class Batches(fetcher.PartitionRecords):  # type: ignore[misc]  # aiokafka ships no types
    """What was fetched of a partition, batch by batch; aiokafka's own knows which transactions were aborted."""

    _records: Fetched

    def _unpack_records(self) -> None:
        """Make nothing that would be kept, and hold what holds it: `pieces` is asked for."""

    def pieces(self) -> Iterator[Piece]:
        """Yield records, or none, and the offset behind them. Raises `Unreadable` at the first alone.

        What cannot be read and stands behind others is not yielded: it is fetched again, and stands first then.
        """
        start = behind = reached = self.next_fetch_offset
        fetched, length_at, begin, end = self._records.fetched, LENGTH.unpack_from, 0, 0
        try:
            while self._records.has_next():
                (length,) = length_at(fetched, end)
                begin, end = end, end + LENGTH.size + length
                batch = self._records.next_batch()
                reached = batch.next_offset
                if self._check_crcs and not batch.validate_crc():
                    raise CorruptRecordException("the checksum is wrong")  # noqa: TRY301 - it is told as the others are
                if not self._is_passed_over(batch):
                    for records, size in self._pieces_of(batch, begin, end):
                        made = self._from(behind, records, reached)
                        behind = made[-1].offset + 1 if made else behind
                        yield Piece(made, behind, size)
                if behind != batch.next_offset:  # it was passed over, or its last records were compacted away
                    behind = batch.next_offset
                    yield Piece([], behind, 0)
        except Exception as error:
            if behind == start:
                raise Unreadable(self._tp, start, max(start + 1, reached), without_values(error)) from error

    def _from(self, behind: int, records: list[FetchedRecord] | Omitted, reached: int) -> list[FetchedRecord]:
        """Return the records that were not returned before: a batch is fetched as a whole, or read once more."""
        if isinstance(records, Omitted):
            records = [self._oversized(records, behind, reached)]
        if records[0].offset < behind:
            return [record for record in records if record.offset >= behind]
        return records

    def _is_passed_over(self, batch: Any) -> bool:  # noqa: ANN401 - aiokafka ships no types
        if self._isolation_level == fetcher.READ_COMMITTED and batch.producer_id is not None:
            self._consume_aborted_up_to(batch.base_offset)
            if batch.is_control_batch and self._contains_abort_marker(batch):
                self._aborted_producers.discard(batch.producer_id)
        aborted = batch.is_transactional and batch.producer_id in self._aborted_producers
        return bool(aborted or batch.is_control_batch)

    def _pieces_of(self, batch: Any, begin: int, end: int) -> Iterator[tuple[list[FetchedRecord] | Omitted, int]]:  # noqa: ANN401 - as above
        """Yield records and omissions, each with the bytes of memory that it takes."""
        fetched = self._records.fetched
        if is_legacy(fetched, begin):
            yield from self._legacy(batch, begin, end)
        elif end - begin <= LARGEST_RECORD_BYTES and not is_compressed(fetched, begin):
            yield from self._made(batch, lambda: fetched[begin:end], count_of(fetched, begin), end - begin)
        else:
            for part in parts_of(fetched[begin:end]):
                if isinstance(part, Omitted):
                    yield part, part.work
                else:
                    content, count = part
                    yield from self._made(DefaultRecordBatch(content), lambda c=content: c, count, len(content))  # type: ignore[misc]  # mypy cannot infer it

    def _legacy(self, batch: Any, begin: int, end: int) -> Iterator[tuple[list[FetchedRecord] | Omitted, int]]:  # noqa: ANN401 - as above
        fetched = self._records.fetched
        if is_compressed(fetched, begin):
            batch = LegacyBatch(fetched[begin:end], fetched[begin + 16])
        try:
            for records in self._divided(batch):
                for one in records:
                    one.timestamp = NO_TIMESTAMP if one.timestamp is None else one.timestamp  # before Kafka 0.10
                yield records, sum(len(one.value or b"") + RECORD_OVERHEAD_BYTES for one in records)
        except Indivisible:
            omitted = Omitted(None, 0, None, LARGEST_RECORD_BYTES, LARGEST_RECORD_BYTES, rest=True)
            yield omitted, LARGEST_RECORD_BYTES

    def _made(
        self,
        batch: Any,  # noqa: ANN401 - as above
        content: Callable[[], bytes],
        count: int,
        size: int,
    ) -> Iterator[tuple[list[FetchedRecord], int]]:
        """Yield the records of a batch that is not compressed; `content` returns its bytes."""
        of_each = RECORD_OVERHEAD_BYTES + size // max(1, count)
        try:
            for records in filter(None, (self._make(batch),) if count <= PIECE else self._divided(batch)):
                yield records, len(records) * of_each
        except UnicodeDecodeError:
            for records in self._divided(_EscapingBatch(content())):
                yield records, len(records) * of_each

    def _divided(self, records: Iterable[Any]) -> Iterator[list[FetchedRecord]]:
        left = chain(records)  # asked for more behind its end, a batch raises; a chain does not ask
        return iter(lambda: self._make(islice(left, PIECE)), [])

    def _make(self, records: Iterable[Any]) -> list[FetchedRecord]:
        topic, partition = self._tp
        return [
            FetchedRecord(topic, partition, one.offset, one.timestamp, one.key, one.value, tuple(one.headers))
            for one in records
        ]

    def _oversized(self, omitted: Omitted, behind: int, reached: int) -> OversizedRecord:
        topic, partition = self._tp
        offset = behind if omitted.offset is None else omitted.offset
        if offset >= reached:
            raise CorruptRecordException(f"a record says that it has offset {offset}, its batch that it ends before")
        headers: list[Header] = [(OMITTED_BYTES, b"%d" % omitted.size)]
        detail = f"the record has {omitted.size:,} bytes, more than the {LARGEST_RECORD_BYTES:,} that are read"
        if omitted.rest:
            detail = (
                f"the records from offset {offset} to {reached - 1} stand in a compressed batch of more than "
                f"{omitted.size:,} bytes, which cannot be read in pieces"
            )
        detail += f"; it stays on {topic}, partition {partition}, until its retention ends"
        return OversizedRecord(topic, partition, offset, omitted.timestamp, omitted.key, None, headers, detail)


class FetchResult(fetcher.FetchResult):  # type: ignore[misc]  # aiokafka ships no types
    """Says that what was fetched of its partition cannot be read no sooner than at the second poll.

    The first hands out what was fetched of other partitions.
    """

    _error: CorruptRecordException | None = None
    _partition_records: PartitionRecords | None

    def getall(self, max_records: int | None = None) -> list[FetchedRecord]:
        """Return records, and count them as consumed. Raises `CorruptRecordException`."""
        error, self._error = self._error, None
        if not self.check_assignment(self._topic_partition):  # paused, or sought elsewhere
            return []
        if error is not None:
            raise error  # it is fetched again after the next poll
        if self._partition_records is None:
            return []
        try:
            records = self._partition_records.take(max_records, _budget.get() or Budget())
        except CorruptRecordException as unreadable:
            self._error = unreadable
            return []
        self._update_position()
        if self._partition_records.ended:
            self._partition_records = None
        return records


class _EscapingBatch(_DefaultRecordBatchPy):  # type: ignore[misc]  # aiokafka ships no types
    """Reads a batch in Python, ten times slower."""

    def _maybe_uncompress(self) -> None:
        super()._maybe_uncompress()
        self._buffer: Any = _Content(self._buffer)


class _Content(bytearray):
    """The bytes of a batch; what is decoded of them is the names of headers."""

    @overload
    def __getitem__(self, at: SupportsIndex) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> "_Escaping": ...
    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        return _Escaping(found) if isinstance(found, bytearray) else found


class _Escaping(bytearray):
    def decode(self, encoding: str = "utf-8", _: str = "") -> str:
        return super().decode(encoding, "backslashreplace")
