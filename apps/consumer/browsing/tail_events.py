"""Server-sent events of records, and how far one reader of the live tail has come."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from apps.chassis.kafka.search import Wanted
from apps.consumer.browsing.cursors import write_offsets
from apps.consumer.browsing.forgetting import Deletions, without_deleted
from apps.consumer.browsing.record_view import View, show
from contracts.record import Record

PIECE_BYTES = 64 * 1024
"""Bytes that are handed to a connection at a time. The connection copies them; what waits is shared by all callers."""

RECREATED = "the topic was recreated"
"""Why a gap goes back: offsets of the deleted topic mean nothing in the new one."""

encode = msgspec.json.Encoder().encode


class Gap(msgspec.Struct, rename={"start": "from", "stop": "to"}):
    """Records of a partition that are gone or cannot be read: from an offset up to another, exclusive, and why."""

    partition: int
    start: int
    stop: int
    reason: str


class Batch(NamedTuple):
    """Records of the live tail, each with its event, and the offset in each partition before and behind them.

    `whole` is all events joined. All callers share it. The event of a gap has no record.
    """

    records: Sequence[Record]
    events: list[bytes]
    whole: bytes
    start: dict[int, int]
    position: dict[int, int]

    def without_deleted(self, deletions: Deletions, view: View) -> "Batch":
        """Return the batch without the values of records whose keys were deleted later."""
        if deletions.keys().isdisjoint(record.key for record in self.records):
            return self
        left = without_deleted(self.records, deletions)
        events = [
            event if new is old else framed(event.partition(b"\n")[0], view, new)
            for new, old, event in zip(left, self.records, self.events, strict=True)
        ]
        return self._replace(records=left, events=events, whole=b"".join(events))


class Caller:
    """A reader of the live tail; `position` is what it has reached, and `next` the number of its next batch."""

    def __init__(self, wanted: Wanted | None, position: dict[int, int], view: View) -> None:
        self.position = position
        self.next = 0
        self.news = asyncio.Event()
        self._wanted = wanted
        self._view = view

    def has_reached(self, position: Mapping[int, int]) -> bool:
        """Return whether the caller is there, or ahead, in every partition."""
        return all(self.position.get(partition, 0) >= offset for partition, offset in position.items())

    def begin_again(self, first: Mapping[int, int]) -> bytes:
        """Go to the first records of a recreated topic; return an event for each partition."""
        gaps = [
            Gap(partition, self.position.get(partition, 0), offset, RECREATED) for partition, offset in first.items()
        ]
        self.position = dict(first)
        return b"".join(event("gap", gap) for gap in gaps)

    def frame(self, records: Sequence[Record]) -> list[bytes]:
        """Return the events of the records that the caller wants and was not given yet."""
        events = []
        for record in records:
            if record.offset >= self.position.get(record.partition, 0):
                self.position[record.partition] = record.offset + 1
                if self._wanted is None or self._wanted(record):
                    events.append(event_of(self._view, record, self.position))
        return events

    def events_of(self, batch: Batch) -> Sequence[bytes]:
        """Return the events of a batch that the caller wants and was not given yet."""
        is_ahead = any(at > batch.start.get(partition, 0) for partition, at in self.position.items())
        if is_ahead and batch.records:
            return self.frame(batch.records)  # it comes from an instance that was ahead: its ids must not go back
        if not is_ahead:
            self.position = dict(batch.position)
        if self._wanted is None or not batch.records:
            return [batch.whole]
        return [e for record, e in zip(batch.records, batch.events, strict=True) if self._wanted(record)]


def pieces_of(events: Iterable[bytes]) -> Iterator[bytes]:
    """Yield events in pieces of at most `PIECE_BYTES`."""
    piece = b""
    for one in events:
        if piece and len(piece) + len(one) > PIECE_BYTES:
            yield piece
            piece = b""
        piece = piece + one if piece else one
        if len(piece) > PIECE_BYTES:
            yield from (piece[start : start + PIECE_BYTES] for start in range(0, len(piece), PIECE_BYTES))
            piece = b""
    if piece:
        yield piece


def event_of(view: View, record: Record, position: Mapping[int, int]) -> bytes:
    """Return the event of a record; `position` is what is reached with it."""
    return framed(b"id: %b" % write_offsets(position).encode(), view, record)


def framed(event_id: bytes, view: View, record: Record) -> bytes:
    """Return the event of a record behind the line with its id."""
    return b"%b\ndata: %b\n\n" % (event_id, encode(show(view, record)))


def event(name: str, data: Any) -> bytes:  # noqa: ANN401 - anything that is JSON
    """Return an event with a name of its own."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), encode(data))


def id_of(position: Mapping[int, int]) -> bytes:
    """Return an event without data: a browser does not show it, but remembers its id (HTML, 9.2.6)."""
    return b"id: %b\n\n" % write_offsets(position).encode()


def gap_at(partition: int, at: int, first: Mapping[int, int], end: Mapping[int, int]) -> Gap | None:
    """Return what a reader at an offset has missed, or None."""
    if at < first[partition]:
        return Gap(partition, at, first[partition], "deleted")
    if at > end[partition]:
        return Gap(partition, at, first[partition], RECREATED)
    return None
