"""Server-sent events of records, and what waits of them for one caller."""

import asyncio
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from apps.chassis.kafka.search import Wanted
from apps.consumer.browsing.cursors import write_offsets
from apps.consumer.browsing.record_view import show
from apps.consumer.consuming.consumption import Decode
from contracts.record import Record

MOST_WAITING = 4 * 1024 * 1024
"""Bytes of events that may wait for a caller that reads slowly, before it is cut off."""
PIECE_BYTES = 64 * 1024
"""Bytes that are handed to a connection at a time. The connection copies them; what waits is shared by all callers."""

encode = msgspec.json.Encoder().encode


class Gap(msgspec.Struct, rename={"start": "from", "stop": "to"}):
    """Records of a partition that are gone or cannot be read: from an offset up to another (not with it), and why."""

    partition: int
    start: int
    stop: int
    reason: str


class Batch(NamedTuple):
    """Records of the live tail, each with its event, and the offset in each partition before and behind them.

    `whole` is all events joined. All callers share it.
    """

    records: Sequence[Record]
    events: list[bytes]
    whole: bytes
    start: dict[int, int]
    position: dict[int, int]


class Caller:
    """One who watches: the events that wait for it; `position` is what is reached when it has read them.

    What comes while it is still brought up is kept until it may `follow`.
    """

    def __init__(self, wanted: Wanted | None, position: dict[int, int], decode: Decode) -> None:
        self.position = position
        self._decode = decode
        self.cut_off = False
        self.news = asyncio.Event()
        self._wanted = wanted
        self._kept: list[Batch] | None = []
        self._events: deque[bytes] = deque()
        self._size = 0

    def put(self, batch: Batch) -> None:
        """Have the events of a batch wait for it; too many end it."""
        if self.cut_off:
            return
        if self._kept is None:
            self._add(self._events_of(batch))
        else:
            self._kept.append(batch)
            self._grow(len(batch.whole))

    def tell(self, events: bytes) -> None:
        """Have events wait for it."""
        if not self.cut_off:
            self._add([events])

    def follow(self) -> None:
        """Go on with what was kept: it has been brought up."""
        kept, self._kept, self._size = self._kept or [], None, 0
        for batch in kept:
            self.put(batch)

    def take(self) -> Iterator[bytes]:
        """Yield the next waiting events in pieces. What was begun must be taken to its end."""
        if not self._events:
            self.news.clear()
            return
        taken = [self._events.popleft()]
        size = len(taken[0])
        while self._events and size + len(self._events[0]) <= PIECE_BYTES:
            taken.append(self._events.popleft())
            size += len(taken[-1])
        self._size -= size
        yield from pieces_of(taken[0] if len(taken) == 1 else b"".join(taken))

    def frame(self, records: Sequence[Record]) -> bytes:
        """Return the events of those records that it was not given yet and wants."""
        events = []
        for record in records:
            if record.offset >= self.position.get(record.partition, 0):
                self.position[record.partition] = record.offset + 1
                if self._wanted is None or self._wanted(record):
                    events.append(event_of(self._decode, record, self.position))
        return b"".join(events)

    def _events_of(self, batch: Batch) -> Sequence[bytes]:
        if any(at > batch.start.get(partition, 0) for partition, at in self.position.items()):
            return [self.frame(batch.records)]  # it comes from an instance that was ahead: its ids must not go back
        self.position = dict(batch.position)
        if self._wanted is None:
            return [batch.whole]
        return [e for record, e in zip(batch.records, batch.events, strict=True) if self._wanted(record)]

    def _add(self, events: Sequence[bytes]) -> None:
        if size := sum(map(len, events)):
            self._events.extend(events)
            self._grow(size)

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > MOST_WAITING:
            self.cut_off = True
            self._events, self._kept = deque(), None
        self.news.set()


def pieces_of(events: bytes) -> Iterator[bytes]:
    """Yield events in pieces of at most `PIECE_BYTES`."""
    if len(events) <= PIECE_BYTES:
        yield events
        return
    for start in range(0, len(events), PIECE_BYTES):
        yield events[start : start + PIECE_BYTES]


def event_of(decode: Decode, record: Record, position: Mapping[int, int]) -> bytes:
    """Return the event of a record; `position` is what is reached with it."""
    return b"id: %b\ndata: %b\n\n" % (write_offsets(position).encode(), encode(show(decode, record)))


def event(name: str, data: Any) -> bytes:  # noqa: ANN401 - anything that is JSON
    """Return an event with a name of its own."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), encode(data))


def id_of(position: Mapping[int, int]) -> bytes:
    """Return an event without data: it is not shown to a page, but remembered (HTML, 9.2.6)."""
    return b"id: %b\n\n" % write_offsets(position).encode()
