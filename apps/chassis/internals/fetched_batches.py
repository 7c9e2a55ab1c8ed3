r"""Make the records of fetched batches, some at a time, with any header names: a PROTECTION.

Reaches for `MemoryRecords` and `PartitionRecords` of aiokafka's fetcher, and for its reader of batches in Python. Lost
without it: every record behind a header name that is not UTF-8 or a damaged batch, and the bound on memory. No upstream
issue is known.

aiokafka runs some twenty steps in Python for each record, and the garbage collector tracks the objects that they make.
Here all records of a batch are made at once, of a type that it does not track. Consuming takes 2.0 µs of processor time
a record instead of 3.1 (`docs/speed.md`).

Brokers accept header names that are not UTF-8, but aiokafka raises at each, again and again at the same record.
Such a name is read with its wrong bytes escaped, as `\xff`; everything else of the record is unchanged.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
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
    MAX_HEADERS,
    MAX_RECORD_BYTES,
    LegacyBatch,
    Omitted,
    Part,
    count_of,
    in_64_bits,
    is_compressed,
    is_legacy,
    may_have_many_headers,
    parts_of,
)
from apps.chassis.observability.logs import without_values
from contracts.dead_letter import OMITTED_BYTES, Header
from contracts.record import HEADER_OVERHEAD_BYTES, RECORD_OVERHEAD_BYTES, Record, memory_of

REACHES = (
    "apps.chassis.internals.fetched_batches:Batches.__base__.__init__(tp, records, aborted_transactions, fetch_offset)",
    "apps.chassis.internals.fetched_batches:Batches.__base__.__init__(check_crcs) uses _check_crcs, _aborted_producers",
    "apps.chassis.internals.fetched_batches:Batches.__base__.__init__(isolation_level) uses _isolation_level",
    "apps.chassis.internals.fetched_batches:Batches.__base__._unpack_records(self) uses _tp, next_fetch_offset",
    "apps.chassis.internals.fetched_batches:Batches.__base__._consume_aborted_up_to(batch_offset)",
    "apps.chassis.internals.fetched_batches:Batches.__base__._contains_abort_marker(next_batch)",
    "aiokafka.record.default_records:_DefaultRecordBatchPy._maybe_uncompress(self) uses _buffer",
)

PIECE = 500
"""Records that are made at a time: a batch that was compressed well has a great many."""
NO_TIMESTAMP = -1
"""The timestamp of a record that has none, in Kafka's protocol."""
LENGTH = Struct(">8xi")
"""Where a batch says, in every format, how many bytes it has behind this."""


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


def is_tombstone(record: Record) -> bool:
    """Return whether a record deletes its key: it has no value, not even one that is too large to be read."""
    return record.value is None and record.key is not None and not isinstance(record, OversizedRecord)


class TooLarge(ValueError):
    """A record that is larger than the largest that is read; the message has its size."""


class ManyHeaders(Exception):
    """Records have so many headers that they are made in smaller parts."""


class Unreadable(CorruptRecordException):  # type: ignore[misc]  # aiokafka ships no types
    """The records from `start` up to `stop`, exclusive, cannot be read, and why.

    In damaged bytes `stop` may be wrong, but it is always greater than `start`.
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


class Batches(fetcher.PartitionRecords):  # type: ignore[misc]  # aiokafka ships no types
    """What was fetched of a partition, batch by batch; aiokafka's own knows which transactions were aborted."""

    _records: Fetched

    def _unpack_records(self) -> None:
        """Unpack nothing: a generator that aiokafka kept here would keep these records in memory. See `pieces`."""

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
                    raise CorruptRecordException("the checksum is wrong")  # noqa: TRY301 - handled below like other faults
                if not self._is_passed_over(batch) and reached > behind:
                    for records, size in self._pieces_of(batch, begin, end):
                        made = self._from(behind, records, reached)
                        behind = made[-1].offset + 1 if made else behind
                        yield Piece(made, behind, size)
                if behind < reached:  # it was passed over, or its last records were compacted away
                    behind = reached
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
            return
        try:
            is_small = end - begin <= MAX_RECORD_BYTES and not is_compressed(fetched, begin)
            if is_small and not may_have_many_headers(fetched, begin, end):
                yield from self._made(batch, lambda: fetched[begin:end], count_of(fetched, begin), end - begin)
            else:
                yield from self._divided_in(parts_of(fetched[begin:end]))
        except ManyHeaders:
            yield from self._divided_in(parts_of(fetched[begin:end], max_part_bytes=0))

    def _divided_in(self, parts: Iterable[Part | Omitted]) -> Iterator[tuple[list[FetchedRecord] | Omitted, int]]:
        for part in parts:
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
                yield records, memory_of(records)
        except Indivisible:
            omitted = Omitted(None, 0, None, MAX_RECORD_BYTES, MAX_RECORD_BYTES, rest=True)
            yield omitted, MAX_RECORD_BYTES

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
                yield records, len(records) * of_each + self._headers.count * HEADER_OVERHEAD_BYTES
        except UnicodeDecodeError:
            for records in self._divided(_EscapingBatch(content())):
                for one in records:
                    one.timestamp = in_64_bits(one.timestamp)  # the reader in Python adds without an end
                yield records, len(records) * of_each + self._headers.count * HEADER_OVERHEAD_BYTES

    def _divided(self, records: Iterable[Any]) -> Iterator[list[FetchedRecord]]:
        left = chain(records)  # asked for more behind its end, a batch raises; a chain does not ask
        return iter(lambda: self._make(islice(left, PIECE)), [])

    def _make(self, records: Iterable[Any]) -> list[FetchedRecord]:
        topic, part = self._tp
        made, self._headers = FetchedRecord, (headers := _Headers())
        return [
            made(
                topic,
                part,
                one.offset,
                one.timestamp,
                one.key,
                one.value,
                headers.take(h) if (h := one.headers) else (),
            )
            for one in records
        ]

    def _oversized(self, omitted: Omitted, behind: int, reached: int) -> OversizedRecord:
        topic, partition = self._tp
        offset = behind if omitted.offset is None else omitted.offset
        if offset >= reached:
            raise CorruptRecordException(f"a record says that it has offset {offset}, its batch that it ends before")
        headers: list[Header] = [(OMITTED_BYTES, b"%d" % omitted.size)]
        detail = f"the record has {omitted.size:,} bytes, more than the {MAX_RECORD_BYTES:,} that are read"
        if omitted.headers > MAX_HEADERS:
            detail = f"the record has {omitted.headers:,} headers, more than the {MAX_HEADERS:,} that are read"
        if omitted.rest:
            detail = (
                f"the records from offset {offset} to {reached - 1} stand in a compressed batch of more than "
                f"{omitted.size:,} bytes, which cannot be read in pieces"
            )
        detail += f"; it stays on {topic}, partition {partition}, until its retention ends"
        return OversizedRecord(topic, partition, offset, omitted.timestamp, omitted.key, None, headers, detail)


class _Headers:
    """Counts the headers of records that are made together. Raises `ManyHeaders`."""

    def __init__(self) -> None:
        self.count = 0

    def take(self, of_record: Sequence[Header]) -> tuple[Header, ...]:
        self.count += len(of_record)
        if self.count > 2 * MAX_HEADERS or len(of_record) > MAX_HEADERS:
            raise ManyHeaders
        return tuple(of_record)


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
