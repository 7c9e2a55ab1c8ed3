"""View of a record over HTTP: decoded where that is possible, otherwise its bytes; masked for some callers."""

from base64 import b64encode
from collections.abc import Sequence
from typing import Literal

import msgspec

from apps.chassis.http.record_value import RecordValue
from apps.chassis.observability.logs import one_line, without_values
from apps.consumer.consuming.decode import Decode, sort_out
from contracts.record import Record
from contracts.sensitive import MASK, Masking
from contracts.stream import DELETION


class Content(msgspec.Struct, omit_defaults=True):
    """Bytes: as text where they are UTF-8, otherwise in base64."""

    text: str | None = None
    base64: str | None = None


class Header(msgspec.Struct):
    """A header of the record; a null one has no value."""

    name: str
    value: Content | None


class StoredMessage(msgspec.Struct, kw_only=True):
    """A record as it stands on the topic; `timestamp` in milliseconds since 1970 UTC.

    What cannot be decoded has its bytes in `content` (null for a tombstone) and the reason in `error`. `deleted` is a
    tombstone where the stream takes deletions. `masked`: the caller may not see what is sensitive.
    """

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: Content | None
    value: RecordValue | None
    content: Content | None = None
    headers: list[Header]
    error: str | None = None
    deleted: bool = False
    masked: bool | msgspec.UnsetType = msgspec.UNSET


class View:
    """How a caller sees the records of a stream: as they are, or without what `masking` masks."""

    def __init__(self, decode: Decode, masking: Masking | None = None) -> None:
        self.decode = decode
        self.masking = masking
        self.masked: Literal[True] | msgspec.UnsetType = True if masking else msgspec.UNSET
        self.hides_key = masking is not None and masking.hides_key

    def value(self, value: object) -> object:
        """Return a decoded value as the caller sees it."""
        return self.masking.mask(value) if self.masking else value

    def key(self, key: bytes | None) -> Content | None:
        """Return a key as the caller sees it."""
        return Content(MASK) if self.hides_key and key is not None else content_of(key)

    def stored(self, content: bytes | None) -> Content | None:
        """Return the bytes of a value or a header as the caller sees them."""
        return Content(MASK) if self.masking and content is not None else content_of(content)

    def headers(self, headers: Sequence[tuple[str, bytes | None]]) -> list[Header]:
        """Return headers as the caller sees them."""
        return [Header(name, self.stored(value)) for name, value in headers]

    def error(self, error: BaseException) -> str:
        """Return an error as the caller sees it: its message may quote a value."""
        return without_values(error) if self.masking else one_line(error)

    def finds(self, text: bytes, record: Record) -> bool:
        """Return whether the caller sees a text in the value of a record; none in what cannot be decoded."""
        if self.masking is None:
            return text in (record.value or b"")
        _, values, _ = sort_out(self.decode, [record])
        return any(text in self.masking.text_of(value) for value in values if value is not DELETION)


def show(view: View, record: Record) -> StoredMessage:
    """Return how a record is shown."""
    _, values, bad = sort_out(view.decode, [record])
    deleted = DELETION in values
    return StoredMessage(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        timestamp=record.timestamp,
        key=view.key(record.key),
        value=view.value(values[0]) if values and not deleted else None,
        content=view.stored(record.value) if bad else None,
        headers=view.headers(record.headers),
        error=view.error(bad[0].error) if bad else None,
        deleted=deleted,
        masked=view.masked,
    )


def content_of(content: bytes | None) -> Content | None:
    """Return how bytes are shown; null ones are null."""
    if content is None:
        return None
    try:
        return Content(text=content.decode())
    except UnicodeDecodeError:
        return Content(base64=b64encode(content).decode())
