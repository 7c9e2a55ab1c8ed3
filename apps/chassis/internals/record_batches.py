"""Divide fetched record batches into parts of a bounded size, which aiokafka's own reader can read: a PROTECTION.

A part is an uncompressed batch of the same format: the header of the original batch, and some of its records. A record
that is too large is omitted, and so is the rest of a batch that cannot be divided.

Reaches for aiokafka's Python reader of old formats. Lost without it: the bound on memory, which a batch of 1 MB can
exceed by gigabytes when it is decompressed.
"""

import struct
from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple

from aiokafka.errors import CorruptRecordException
from aiokafka.record.legacy_records import _LegacyRecordBatchPy

from apps.chassis.internals.decompression import CHUNK_BYTES, Buffer, Indivisible, decompressed

REACHES = ("aiokafka.record.legacy_records:_LegacyRecordBatchPy._decompress(key_offset) uses _buffer",)

MAX_RECORD_BYTES = 16 * 1024 * 1024
"""Largest record (key, value and headers) that is read, in bytes: as much as a dead letter may have."""
MAX_HEADERS = 10_000
"""Most headers of a record that is read: a header of two bytes takes 90 bytes of memory."""
MAX_PART_BYTES = 8 * 1024 * 1024
"""Largest batch, in decompressed bytes, that is read as a whole; a larger one is divided."""
MAX_UNSEEN_BYTES = 1024 * 1024
"""Largest batch that is read as a whole even if a record may have more than `MAX_HEADERS`: only reading shows it."""
MAX_GROUP_BYTES = 2 * 1024 * 1024
MAX_GROUP_RECORDS = 500
"""Bytes and records of each part of a divided batch, which has less than twice `MAX_HEADERS`."""
MAX_SKIP_BYTES = 256 * 1024 * 1024
"""Decompressed bytes that are skipped to reach later records; beyond that, the rest of the batch is omitted."""
MAX_KEY_BYTES = 64 * 1024
"""Bytes of the key that are kept of an omitted record."""

HEADER_BYTES = 61
ATTRIBUTES_AT, COUNT_AT, FIRST_TIMESTAMP_AT, MAX_TIMESTAMP_AT = 21, 57, 27, 35
LOG_APPEND_TIME, CODEC = 8, 7
LEGACY_ATTRIBUTES_AT, LEGACY_OVERHEAD_BYTES, LEGACY_MIN_BYTES = 17, 12, 14
MAGIC_AT, LEGACY_MAGIC = 16, 1
VARINT_BYTES, MIN_RECORD_BYTES = 10, 6


class Omitted(NamedTuple):
    """An omitted record, or several from the offset on where `rest` is true; `size` is in bytes.

    `offset` is None where it is unknown: then it follows the records before. `work` is the number of bytes decompressed
    for it. `headers` is their number where they are too many.
    """

    offset: int | None
    timestamp: int
    key: bytes | None
    size: int
    work: int
    rest: bool
    headers: int = 0


class Part(NamedTuple):
    """An uncompressed batch, and the number of records that its header declares."""

    batch: bytes
    records: int


class LegacyBatch(_LegacyRecordBatchPy):  # type: ignore[misc]  # final for type checkers, and aiokafka has no other hook
    """Reads a compressed batch of a format before Kafka 0.11. Raises `Indivisible` where it is too large."""

    def _decompress(self, key_offset: int) -> bytes:
        (key_size,) = struct.unpack_from(">i", self._buffer, key_offset)
        at = key_offset + 4 + max(key_size, 0)
        (size,) = struct.unpack_from(">i", self._buffer, at)
        if size < 0:
            raise CorruptRecordException("a compressed batch without content")
        content = bytearray()
        for piece in decompressed(self._compression_type, bytes(self._buffer[at + 4 : at + 4 + size])):
            content += piece
            if len(content) > MAX_RECORD_BYTES:
                raise Indivisible("a batch of an old format")
        _refuse_wrong_sizes(content)
        return bytes(content)


def _refuse_wrong_sizes(messages: bytearray) -> None:
    """Raise for an old-format message whose end is before its beginning: aiokafka would read it for ever."""
    at = 0
    while at < len(messages):
        (size,) = struct.unpack_from(">i", _at_least(messages, at, LEGACY_OVERHEAD_BYTES), at + 8)
        if size < LEGACY_MIN_BYTES:
            raise CorruptRecordException(f"a message of {size} bytes")
        at += LEGACY_OVERHEAD_BYTES + size
    if at != len(messages):
        raise CorruptRecordException("a message is longer than its batch")


def _at_least(data: bytearray, at: int, size: int) -> bytearray:
    if len(data) - at < size:
        raise CorruptRecordException(f"expected {size} more bytes, got {len(data) - at}")
    return data


def in_64_bits(number: int) -> int:
    """Return a sum as Java has it, and with it a broker: without the bits that a number of 64 has no room for."""
    return (number + 2**63) % 2**64 - 2**63


def is_legacy(fetched: bytes, begin: int) -> bool:
    """Return whether the batch at an offset has a format before Kafka 0.11."""
    return fetched[begin + MAGIC_AT] <= LEGACY_MAGIC


def is_compressed(fetched: bytes, begin: int) -> bool:
    """Return whether the batch at an offset is compressed."""
    if is_legacy(fetched, begin):
        return bool(fetched[begin + LEGACY_ATTRIBUTES_AT] & CODEC)
    return bool(fetched[begin + ATTRIBUTES_AT + 1] & CODEC)


def count_of(fetched: bytes, begin: int) -> int:
    """Return the number of records that the header of a batch declares; not for an old format."""
    count: int = struct.unpack_from(">i", fetched, begin + COUNT_AT)[0]
    return count


def may_have_many_headers(batches: bytes, begin: int, end: int) -> bool:
    """Return whether a large batch that is not compressed has a record that may have more than `MAX_HEADERS`."""
    if end - begin <= MAX_UNSEEN_BYTES:
        return False
    at = begin + HEADER_BYTES
    try:
        for _ in range(count_of(batches, begin)):
            first, second = batches[at], batches[at + 1]
            if first >= 0x80 > second:  # noqa: PLR2004 - a varint of two bytes, as nearly all: twice as fast by itself
                at += 2 + ((first & 0x7F | second << 7) >> 1)
                continue
            length, at = _varint(batches, at)
            if not MIN_RECORD_BYTES <= length <= 2 * MAX_HEADERS:
                return True
            at += length
    except (IndexError, CorruptRecordException):
        return True  # who divides it says what is wrong
    return False


def parts_of(
    batch: bytes, max_skip_bytes: int = MAX_SKIP_BYTES, max_part_bytes: int = MAX_PART_BYTES
) -> Iterator[Part | Omitted]:
    """Yield the parts of a batch, and the omitted records. Raises `CorruptRecordException`.

    Only a batch that is read as a whole may have a record with more than `MAX_HEADERS`.
    """
    codec = batch[ATTRIBUTES_AT + 1] & CODEC
    header = batch[:HEADER_BYTES]
    pieces = decompressed(codec, batch[HEADER_BYTES:]) if codec else _slices(batch)
    first: list[Buffer] = []
    divided = _Divided(header, first, pieces, max_skip_bytes)
    size = 0
    try:
        for piece in pieces:
            first.append(piece)
            size += len(piece)
            if size > max_part_bytes:
                break
        else:
            whole = _part(header, first, size, count_of(header, 0))
            if not may_have_many_headers(whole.batch, 0, len(whole.batch)):
                yield whole
                return
        yield from divided.parts()
    except Indivisible:
        yield divided.rest()


class _Content:
    """The decompressed records of a batch: `buffer` has the next bytes; `read` counts the decompressed ones."""

    def __init__(self, pieces: Iterator[Buffer]) -> None:
        self.buffer = bytearray()
        self.read = 0
        self._pieces = pieces

    def fill(self, size: int) -> bool:
        """Read until the buffer has this many bytes; return whether it has."""
        while len(self.buffer) < size:
            piece = next(self._pieces, None)
            if piece is None:
                return False
            self.buffer += piece
            self.read += len(piece)
        return True

    def skip(self, size: int) -> None:
        """Skip bytes without keeping them. Raises `CorruptRecordException` where there are fewer."""
        while size > len(self.buffer):
            size -= len(self.buffer)
            self.buffer.clear()
            if not self.fill(1):
                raise CorruptRecordException(f"{size} bytes of a record are missing")
        del self.buffer[:size]


class _Divided:
    def __init__(self, header: bytes, first: list[Buffer], pieces: Iterator[Buffer], max_skip_bytes: int) -> None:
        self._header = header
        self._max_skip_bytes = max_skip_bytes
        self._content = _Content(chain(_drained(first), pieces))
        self._left = count_of(header, 0)
        self._attributes = header[ATTRIBUTES_AT + 1]
        self._skipped = 0

    def parts(self) -> Iterator[Part | Omitted]:
        while self._left > 0:
            count, size = self._group()
            if count:
                yield _part(self._header, [self._content.buffer[:size]], size, count)
                self._content.skip(size)
                self._left -= count
            else:
                omitted, size = self._omitted()
                yield omitted
                self._left -= 1
                self._skipped += size
                if self._left > 0:
                    if self._skipped > self._max_skip_bytes:
                        raise Indivisible("too much to pass over")
                    self._content.skip(size)

    def rest(self) -> Omitted:
        """Return the omission of everything that was not read yet."""
        (timestamp,) = struct.unpack_from(">q", self._header, MAX_TIMESTAMP_AT)
        read = self._content.read
        return Omitted(None, timestamp, None, max(read, MAX_PART_BYTES), read, rest=True)

    def _group(self) -> tuple[int, int]:
        """Return how many of the next records form a part, and their bytes; none where the next one is too large."""
        count = size = headers = 0
        limit = min(self._left, MAX_GROUP_RECORDS)
        while count < limit and size < MAX_GROUP_BYTES and headers < MAX_HEADERS:
            self._content.fill(size + VARINT_BYTES)
            length, begin = _varint(self._content.buffer, size)
            if length < 0:
                raise CorruptRecordException(f"a record of {length} bytes")
            if length > MAX_RECORD_BYTES:
                break
            if not self._content.fill(begin + length):
                raise CorruptRecordException("a record is longer than its batch")
            of_record = self._headers_at(begin, length)
            if of_record > MAX_HEADERS:
                break
            headers += of_record
            size = begin + length
            count += 1
        return count, size

    def _headers_at(self, begin: int, length: int) -> int:
        """Return how many headers a record has, or of a small one how many at most."""
        if length <= 2 * MAX_HEADERS:
            return length // 2
        at = begin + 1  # behind its attributes
        for is_content in (False, False, True, True):  # times and offsets have none; key and value do
            size, at = _varint(self._content.buffer, at)
            at += max(size, 0) if is_content else 0
        return _varint(self._content.buffer, at)[0]

    def _omitted(self) -> tuple[Omitted, int]:
        """Return the kept part of the next record, and its bytes."""
        content = self._content
        content.fill(6 * VARINT_BYTES)
        length, begin = _varint(content.buffer, 0)
        later, at = _varint(content.buffer, begin + 1)  # after its attributes
        offset_delta, at = _varint(content.buffer, at)
        key_size, at = _varint(content.buffer, at)
        key = None
        if 0 <= key_size <= MAX_KEY_BYTES and content.fill(at + key_size):
            key = bytes(content.buffer[at : at + key_size])
        (base,) = struct.unpack_from(">q", self._header)
        first, newest = struct.unpack_from(">qq", self._header, FIRST_TIMESTAMP_AT)
        timestamp = newest if self._attributes & LOG_APPEND_TIME else in_64_bits(first + later)
        headers = self._headers_at(begin, length) if length <= MAX_RECORD_BYTES else 0
        omitted = Omitted(base + offset_delta, timestamp, key, length, content.read, rest=False, headers=headers)
        return omitted, begin + length


def _slices(batch: bytes) -> Iterator[Buffer]:
    """Yield the content of an uncompressed batch."""
    for begin in range(HEADER_BYTES, len(batch), CHUNK_BYTES):
        yield batch[begin : begin + CHUNK_BYTES]


def _drained(pieces: list[Buffer]) -> Iterator[Buffer]:
    """Yield the pieces, and keep none that was yielded."""
    while pieces:
        yield pieces.pop(0)


def _part(header: bytes, records: list[Buffer], size: int, count: int) -> Part:
    changed = bytearray(header)
    changed[ATTRIBUTES_AT + 1] &= ~CODEC
    struct.pack_into(">i", changed, 8, HEADER_BYTES - LEGACY_OVERHEAD_BYTES + size)
    struct.pack_into(">i", changed, COUNT_AT, count)
    return Part(b"".join([changed, *records]), count)


def _varint(data: Any, at: int) -> tuple[int, int]:  # noqa: ANN401 - bytes of any kind
    """Return the zigzag-encoded number at an offset, and where the next one begins."""
    value = 0
    for shift in range(0, 7 * VARINT_BYTES, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 - the last byte of a varint
            return (value >> 1) ^ -(value & 1), at
    raise CorruptRecordException("a number has no end")
