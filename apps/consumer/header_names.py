r"""Header names that are no UTF-8: brokers take them, but aiokafka raises at each, again and again at the same record.

Such a name is read with its wrong bytes escaped, as `\xff`; everything else of the record stays as it is.
"""

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any, SupportsIndex, overload

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatch, _DefaultRecordBatchPy
from aiokafka.record.memory_records import _MemoryRecordsPy

PIECE = 500
"""Records that are read at a time, and so without a step in Python for each."""


def escape_wrong_header_names() -> None:
    """Have every consumer of this process read such names, from now on."""
    fetcher.MemoryRecords = TolerantRecords


class TolerantRecords(_MemoryRecordsPy):  # type: ignore[misc]  # aiokafka ships no types
    """What was fetched of a partition, batch by batch."""

    def next_batch(self) -> Any:  # noqa: ANN401 - aiokafka ships no types
        """Return the next batch, which is read by aiokafka's fast reader as long as that does not raise."""
        content = self._next_slice
        batch = super().next_batch()
        return TolerantBatch(batch, content) if isinstance(batch, DefaultRecordBatch) else batch


class TolerantBatch:
    """A batch of records."""

    def __init__(self, batch: Any, content: memoryview) -> None:  # noqa: ANN401 - aiokafka ships no types
        self._batch = batch
        self._content = content

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
            yield islice(_EscapingBatch(self._content), read, None)


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
