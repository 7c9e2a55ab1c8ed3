r"""Header names that are no UTF-8: brokers take them, but aiokafka raises at each, again and again at the same record.

Such a name is read with its wrong bytes escaped, as `\xff`; everything else of the record stays as it is.
"""

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any, SupportsIndex, overload

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatch, _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords, _MemoryRecordsPy

PIECE = 500
"""Records that are read at a time, and so without a step in Python for each."""


def escape_wrong_header_names() -> None:
    """Have every consumer of this process read such names, from now on."""
    fetcher.MemoryRecords = TolerantRecords


class TolerantRecords:
    """What was fetched of a partition, batch by batch, read by aiokafka's own reader as long as that does not raise."""

    def __init__(self, fetched: bytes) -> None:
        self._fetched = fetched
        self._records = MemoryRecords(fetched)
        self._handed_out = 0
        self.has_next = self._records.has_next

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever aiokafka's has
        return getattr(self._records, name)

    def next_batch(self) -> Any:  # noqa: ANN401 - aiokafka ships no types
        """Return the next batch."""
        batch = self._records.next_batch()
        self._handed_out += 1
        if not isinstance(batch, DefaultRecordBatch):
            return batch  # in a format from before there were headers
        return TolerantBatch(batch, self._fetched, self._handed_out - 1)


class TolerantBatch:
    """The batch of records with a number, from 0, in what was fetched. What a client asks of each is at hand."""

    __slots__ = (
        "_batch",
        "_fetched",
        "_number",
        "base_offset",
        "is_control_batch",
        "is_transactional",
        "next_offset",
        "producer_id",
        "validate_crc",
    )

    def __init__(self, batch: Any, fetched: bytes, number: int) -> None:  # noqa: ANN401 - aiokafka ships no types
        self._batch = batch
        self._fetched = fetched
        self._number = number
        self.base_offset = batch.base_offset
        self.is_control_batch = batch.is_control_batch
        self.is_transactional = batch.is_transactional
        self.next_offset = batch.next_offset
        self.producer_id = batch.producer_id
        self.validate_crc = batch.validate_crc

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever a batch has
        return getattr(self._batch, name)

    def __next__(self) -> Any:  # noqa: ANN401 - aiokafka ships no types
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        return chain.from_iterable(self._pieces())

    def _pieces(self) -> Iterator[Iterable[Any]]:
        records, read = chain(self._batch), 0  # asked for more behind its end, a batch raises; a chain does not ask
        try:
            while piece := list(islice(records, PIECE)):
                yield piece
                read += len(piece)
        except UnicodeDecodeError:
            yield islice(self._escaped(), read, None)

    def _escaped(self) -> Iterable[Any]:
        batches = _MemoryRecordsPy(self._fetched)
        for _ in range(self._number):
            batches.next_batch()
        return _EscapingBatch(batches._next_slice)  # noqa: SLF001 - its bytes, which aiokafka shows nowhere else


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
