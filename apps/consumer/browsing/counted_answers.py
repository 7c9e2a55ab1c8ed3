"""Answers that show records: counted before they are made, and made of one record at a time."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from apps.chassis.http.admission import Share
from contracts.record import Record, memory_of

RECORD_JSON_BYTES, HEADER_JSON_BYTES = 1_000, 40
"""Bytes that a record and a header take in an answer besides their content."""
TEXT_COPIES = 5
"""How many times a record's content is in memory while its part of an answer is made: characters take up to 4 bytes."""
SHORT_ESCAPES = b'"\\\b\t\n\f\r'
"""What JSON escapes in two bytes; other control characters take six."""
UNESCAPED = bytes(byte for byte in range(256) if byte >= ord(" ") and byte not in SHORT_ESCAPES)

T = TypeVar("T")


class Later:
    """A part of an answer, which is made when it is encoded: as objects it takes several times the memory."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[], object]) -> None:
        self.make = make


MAKE_LATER: Mapping[Any, Callable[[Any], Any]] = {Later: lambda part: part.make()}
"""The `type_encoders` of routes that answer with what `counted` returns."""


def counted(share: Share, records: Sequence[Record], show: Callable[[Record], T], found_bytes: int = 0) -> list[T]:
    """Return what an answer shows of records, which is made later. Raises 503 when there is no room for it.

    A call has found `found_bytes` of memory that are its own.
    """
    share.require_in_all(found_bytes + memory_of(records) * 5 // 4)  # a look at each byte would hold up all others
    share.require_in_all(found_bytes + memory_of_answer(records))
    shown: list[Any] = [Later(partial(show, record)) for record in records]
    return shown


def memory_of_answer(records: Sequence[Record]) -> int:
    """Return about how many bytes of memory it takes to make an answer that shows records."""
    answer = largest = 0
    for record in records:
        content = _content_of(record)
        largest = max(largest, len(content))
        answer += _size_in_json(content) + RECORD_JSON_BYTES + HEADER_JSON_BYTES * len(record.headers)
    return answer + TEXT_COPIES * largest


def _content_of(record: Record) -> bytes:
    """Return all bytes of a record."""
    of_headers = [part for name, value in record.headers for part in (name.encode(), value or b"")]
    return b"".join([record.key or b"", record.value or b"", *of_headers])


def _size_in_json(content: bytes) -> int:
    """Return how many bytes some bytes take at most as texts or in base64, with what JSON escapes."""
    escaped = content.translate(None, UNESCAPED)
    in_six = escaped.translate(None, SHORT_ESCAPES)
    in_base64 = 0 if content.isascii() else len(content) // 3
    return len(content) + in_base64 + len(escaped) + 4 * len(in_six)
