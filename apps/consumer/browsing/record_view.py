"""View of a record over HTTP: decoded where that is possible, otherwise its bytes."""

from base64 import b64encode
from collections.abc import Sequence

import msgspec

from apps.chassis.http.record_value import RecordValue
from apps.chassis.observability.logs import one_line
from apps.consumer.consuming.decode import Decode, sort_out
from contracts.record import Record
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
    tombstone where the stream takes deletions.
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


def show(decode: Decode, record: Record) -> StoredMessage:
    """Return how a record is shown."""
    _, values, bad = sort_out(decode, [record])
    deleted = DELETION in values
    return StoredMessage(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        timestamp=record.timestamp,
        key=content_of(record.key),
        value=values[0] if values and not deleted else None,
        content=content_of(record.value) if bad else None,
        headers=headers_of(record.headers),
        error=one_line(bad[0].error) if bad else None,
        deleted=deleted,
    )


def content_of(content: bytes | None) -> Content | None:
    """Return how bytes are shown; null ones are null."""
    if content is None:
        return None
    try:
        return Content(text=content.decode())
    except UnicodeDecodeError:
        return Content(base64=b64encode(content).decode())


def headers_of(headers: Sequence[tuple[str, bytes | None]]) -> list[Header]:
    """Return how headers are shown."""
    return [Header(name, content_of(value)) for name, value in headers]
