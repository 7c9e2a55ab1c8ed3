r"""Fetched bytes become records: by aiokafka's own reader, but hundreds at a time and with any header names.

aiokafka goes through some twenty steps in Python for each record, and the garbage collector looks at what they leave.
Here the records of a batch are made in one go, of a kind that it need not look at: consuming costs 2.0 µs of processor
time a record, where it cost 3.1 (`docs/speed.md`).

Header names that are no UTF-8 are taken by brokers, but aiokafka raises at each, again and again at the same record.
Such a name is read with its wrong bytes escaped, as `\xff`; everything else of the record stays as it is.

A batch that cannot be read holds up its own partition alone: what stands before it, and what was fetched of others, is
handed out first. aiokafka raises at once, and what it had taken up till then is lost to whoever polls.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from operator import length_hint
from struct import Struct
from typing import Any, SupportsIndex, overload

import msgspec
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition

from apps.chassis.logs import without_values

PIECE = 500
"""Records that are made at a time: a batch that was compressed well has a great many."""

LENGTH = Struct(">8xi")
"""Where a batch says, in every format, how many bytes it has behind this."""


def read_fetched_fast() -> None:
    """Have every consumer of this process read so from now on, also those that exist."""
    fetcher.MemoryRecords = Fetched
    fetcher.PartitionRecords = PartitionRecords
    fetcher.FetchResult = FetchResult


class FetchedRecord(msgspec.Struct, gc=False):
    """A record as readers here need it; key and value may be null, and so may the value of a header."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


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


class PartitionRecords:
    """The records that were fetched of a partition, without those of aborted transactions where that is wanted.

    Deserializers of keys and values are not called. aiokafka's holds itself until it is read to its end: after a seek
    or a rebalance megabytes would wait for a collection of garbage, which comes late where records are no part of it.
    """

    def __init__(self, tp: TopicPartition, records: Fetched, aborted: Any, offset: int, *options: Any) -> None:  # noqa: ANN401 - as aiokafka calls it
        self._pieces = Batches(tp, records, aborted, offset, *options).pieces()
        self._piece: list[FetchedRecord] = []
        self._left = iter(self._piece)
        self._behind = offset

    def __iter__(self) -> Iterator[FetchedRecord]:
        return chain.from_iterable(self._in_turn())

    def __next__(self) -> FetchedRecord:
        return next(iter(self))

    @property
    def next_fetch_offset(self) -> int:
        """The offset of the first record that was not handed out."""
        left = length_hint(self._left)
        return self._piece[-left].offset if left else self._behind

    def _in_turn(self) -> Iterator[Iterator[FetchedRecord]]:
        yield self._left
        for piece, behind in self._pieces:
            self._piece, self._left, self._behind = piece, iter(piece), behind
            yield self._left


class Batches(fetcher.PartitionRecords):  # type: ignore[misc]  # aiokafka ships no types
    """What was fetched of a partition, batch by batch; aiokafka's own knows which transactions were aborted."""

    _records: Fetched

    def _unpack_records(self) -> None:
        """Make nothing that would be kept, and hold what holds it: `pieces` is asked for."""

    def pieces(self) -> Iterator[tuple[list[FetchedRecord], int]]:
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
                for piece in () if self._is_passed_over(batch) else self._pieces_of(batch, begin, end):
                    if piece[0].offset < behind:  # a batch is fetched as a whole, or read once more
                        piece = [record for record in piece if record.offset >= behind]  # noqa: PLW2901
                    if piece:
                        behind = piece[-1].offset + 1
                        yield piece, behind
                if behind != batch.next_offset:  # it was passed over, or its last records were compacted away
                    behind = batch.next_offset
                    yield [], behind
        except Exception as error:
            if behind == start:
                raise Unreadable(self._tp, start, max(start + 1, reached), without_values(error)) from error

    def _is_passed_over(self, batch: Any) -> bool:  # noqa: ANN401 - aiokafka ships no types
        if self._isolation_level == fetcher.READ_COMMITTED and batch.producer_id is not None:
            self._consume_aborted_up_to(batch.base_offset)
            if batch.is_control_batch and self._contains_abort_marker(batch):
                self._aborted_producers.discard(batch.producer_id)
        aborted = batch.is_transactional and batch.producer_id in self._aborted_producers
        return bool(aborted or batch.is_control_batch)

    def _pieces_of(self, batch: Any, begin: int, end: int) -> Iterator[list[FetchedRecord]]:  # noqa: ANN401 - as above
        small = getattr(batch, "last_offset_delta", PIECE) < PIECE  # of an old format it is not known
        try:
            yield from filter(None, (self._make(batch),) if small else self._divided(batch))
        except UnicodeDecodeError:
            yield from self._divided(_EscapingBatch(self._records.fetched[begin:end]))

    def _divided(self, records: Iterable[Any]) -> Iterator[list[FetchedRecord]]:
        left = chain(records)  # asked for more behind its end, a batch raises; a chain does not ask
        return iter(lambda: self._make(islice(left, PIECE)), [])

    def _make(self, records: Iterable[Any]) -> list[FetchedRecord]:
        topic, partition = self._tp
        return [
            FetchedRecord(topic, partition, one.offset, one.timestamp, one.key, one.value, tuple(one.headers))
            for one in records
        ]


class FetchResult(fetcher.FetchResult):  # type: ignore[misc]  # aiokafka ships no types
    """Says that what was fetched of its partition cannot be read no sooner than at the second poll.

    The first hands out what was fetched of other partitions.
    """

    _error: CorruptRecordException | None = None

    def getall(self, max_records: int | None = None) -> list[FetchedRecord]:
        """Return records, and count them as consumed. Raises `CorruptRecordException`."""
        error, self._error = self._error, None
        if error is not None:
            if not self.check_assignment(self._topic_partition):  # somebody has sought past it
                return []
            raise error  # it is fetched again after the next poll
        try:
            return super().getall(max_records)  # type: ignore[no-any-return]  # as above
        except CorruptRecordException as unreadable:
            self._error = unreadable
            return []


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
