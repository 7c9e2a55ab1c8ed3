"""The live tail of the topic: one reader of its end for all callers that watch it, as server-sent events.

Every record is framed once and handed to all of them. A caller that comes again, or was too far behind, is brought up
from the topic first. The id of each event is the offset reached in every partition, so that any copy of the service can
go on where another ended.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any, NamedTuple

import msgspec
from aiokafka.errors import KafkaError

from apps.chassis.background import Background
from apps.chassis.logs import one_line
from apps.consumer.log_reader import LogReader
from apps.consumer.offsets import write_offsets
from apps.consumer.search import Wanted
from apps.consumer.shown import show
from apps.consumer.window import Record

log = logging.getLogger(__name__)

MOST_READERS = 2_000
"""Callers that may watch at a time."""
MOST_WAITING = 4 * 1024 * 1024
"""Bytes of events that may wait for a caller that reads slowly, before it is cut off."""
PIECE = 256 * 1024
"""Bytes of keys and values that are read at a time for a caller that is behind."""
REST = 3.0
"""Seconds of rest for each second that framing events took: watching must not slow the consumption."""
NEAR = 1_000
"""Records that a caller may be behind for the live tail to be joined."""
HEARTBEAT = 15.0
"""Seconds without an event after which a caller is told that all is well, and where it stands."""
PAUSE = 1.0
"""Seconds before reading on when Kafka was out of reach."""
AT_A_TIME = 25
"""Callers that are handed a batch before others get their turn."""
PAUSE_PER_READER, LONGEST_PAUSE = 0.0002, 0.2
"""Seconds that records are collected before they are handed out: more callers, fewer and larger pieces."""

GREETING = b"retry: 2000\n"
encode = msgspec.json.Encoder().encode


class Gap(msgspec.Struct, rename={"start": "from", "stop": "to"}):
    """Records of a partition that are no longer there: from an offset up to another (not with it), and why."""

    partition: int
    start: int
    stop: int
    reason: str


class Beginning(NamedTuple):
    """Where a caller begins in each partition, the end of each at that moment, and what it has missed."""

    position: dict[int, int]
    end: dict[int, int]
    gaps: list[Gap]


class _Batch(NamedTuple):
    """Records of the live tail, each with its event, and the offset in each partition before and behind them."""

    records: list[Record]
    events: list[bytes]
    whole: bytes
    start: dict[int, int]
    position: dict[int, int]


class _Caller:
    """One who watches: the events that wait for it; `position` is what is reached when it has read them.

    What comes while it is still brought up is kept until it may `follow`.
    """

    def __init__(self, wanted: Wanted | None, position: dict[int, int]) -> None:
        self.position = position
        self.cut_off = False
        self.news = asyncio.Event()
        self._wanted = wanted
        self._kept: list[_Batch] | None = []
        self._events: list[bytes] = []
        self._size = 0

    def put(self, batch: _Batch) -> None:
        """Have the events of a batch wait for it; too many end it."""
        if self.cut_off:
            return
        if self._kept is None:
            self.tell(self._events_of(batch))
        else:
            self._kept.append(batch)
            self._grow(len(batch.whole))

    def tell(self, events: bytes) -> None:
        """Have events wait for it."""
        if events and not self.cut_off:
            self._events.append(events)
            self._grow(len(events))

    def follow(self) -> None:
        """Go on with what was kept: it has been brought up."""
        kept, self._kept, self._size = self._kept or [], None, 0
        for batch in kept:
            self.put(batch)

    def take(self) -> bytes:
        """Return all that waits."""
        events, self._events, self._size = self._events, [], 0
        self.news.clear()
        return events[0] if len(events) == 1 else b"".join(events)

    def frame(self, records: list[Record]) -> bytes:
        """Return the events of those records that it was not given yet and wants."""
        events = []
        for record in records:
            if record.offset >= self.position.get(record.partition, 0):
                self.position[record.partition] = record.offset + 1
                if self._wanted is None or self._wanted(record):
                    events.append(event_of(record, self.position))
        return b"".join(events)

    def _events_of(self, batch: _Batch) -> bytes:
        if any(at > batch.start.get(partition, 0) for partition, at in self.position.items()):
            return self.frame(batch.records)  # it comes from a copy that was further: its ids must not go back
        self.position = dict(batch.position)
        if self._wanted is None:
            return batch.whole
        return b"".join(e for record, e in zip(batch.records, batch.events, strict=True) if self._wanted(record))

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > MOST_WAITING:
            self.cut_off = True
            self._events, self._kept = [], None
        self.news.set()


class Tail:
    """Reads the end of the topic as long as somebody watches; `partitions` tells how many it has."""

    def __init__(self, reader: LogReader, partitions: Callable[[], int], background: Background) -> None:
        self._reader = reader
        self._partitions = partitions
        self._background = background
        self._position: dict[int, int] = {}
        self._following: asyncio.Task[None] | None = None
        self._watching = 0
        self._callers: set[_Caller] = set()
        self._ended = False

    @property
    def is_full(self) -> bool:
        """Whether no more callers may watch."""
        return self._watching >= MOST_READERS

    async def begin(self, start: Mapping[int, int] | None) -> Beginning:
        """Return where a caller begins: behind the last record, or where an id of an event leads.

        Raises `KafkaError`, `OSError` or, after 2 s, `TimeoutError` when Kafka is out of reach.
        """
        if start is None and self._following:
            return Beginning(dict(self._position), dict(self._position), [])
        first, end = await self._reader.offsets(self._partitions())
        if start is None:
            return Beginning(dict(end), end, [])
        position = {partition: start.get(partition, offset) for partition, offset in first.items()}
        gaps = [gap for partition, at in position.items() if (gap := _gap(partition, at, first, end))]
        return Beginning(position | {gap.partition: gap.stop for gap in gaps}, end, gaps)

    async def events(self, beginning: Beginning, wanted: Wanted | None) -> AsyncGenerator[bytes, None]:
        """Yield events, several at a time, until the service ends or the caller is cut off."""
        caller = _Caller(wanted, dict(beginning.position))
        with self._followed(beginning.end):
            yield GREETING + _id_of(caller.position) + b"".join(_event("gap", gap) for gap in beginning.gaps)
            while not self._ended and self._behind(caller) > NEAR:
                yield await self._bring_up(caller)
            joined = dict(self._position)
            self._callers.add(caller)
            try:
                while not self._ended and self._behind(caller, joined):
                    yield await self._bring_up(caller, joined)
                caller.follow()
                async with aclosing(self._live(caller)) as pieces:
                    async for piece in pieces:
                        yield piece
            finally:
                self._callers.discard(caller)

    async def end_at(self, ending: asyncio.Event) -> None:
        """Let all callers go when the service is about to end."""
        await ending.wait()
        self._ended = True
        for caller in self._callers:
            caller.news.set()

    async def _live(self, caller: _Caller) -> AsyncGenerator[bytes, None]:
        while not self._ended:
            try:
                async with asyncio.timeout(HEARTBEAT):
                    await caller.news.wait()
            except TimeoutError:
                yield b": all is well\n" + _id_of(caller.position)
                continue
            if caller.cut_off:
                yield _event("cut-off", {"reason": f"more than {MOST_WAITING} bytes waited to be read"})
                return
            if events := caller.take():
                yield events

    def _behind(self, caller: _Caller, target: Mapping[int, int] | None = None) -> int:
        """Return how many offsets the caller is behind the live tail, or behind what it was when it joined."""
        return sum(
            max(0, offset - caller.position.get(partition, 0))
            for partition, offset in (target or self._position).items()
        )

    async def _bring_up(self, caller: _Caller, target: Mapping[int, int] | None = None) -> bytes:
        """Read some of what a caller that is behind has missed; return its events."""
        ranges = {
            partition: (caller.position.get(partition, 0), offset)
            for partition, offset in dict(target or self._position).items()
            if caller.position.get(partition, 0) < offset
        }
        try:
            records, reached = await self._reader.some(ranges, PIECE)
        except (KafkaError, OSError, TimeoutError):
            await asyncio.sleep(PAUSE)
            return b": Kafka is out of reach\n\n"
        began = time.perf_counter()
        events = caller.frame(records)
        caller.position |= reached
        await asyncio.sleep(REST * (time.perf_counter() - began))
        return events or _id_of(caller.position)

    @contextmanager
    def _followed(self, end: dict[int, int]) -> Iterator[None]:
        """Read the end of the topic as long as anybody watches."""
        if self._following is None:
            self._position = dict(end)
            self._following = self._background.start(self._follow(), "live tail")
        self._watching += 1
        try:
            yield
        finally:
            self._watching -= 1
            if not self._watching and self._following:
                self._following.cancel()
                self._following = None

    async def _follow(self) -> None:
        told = ""
        while True:
            self._position = dict.fromkeys(range(self._partitions()), 0) | self._position
            try:
                async with aclosing(self._reader.follow(self._position)) as fetched:
                    await self._hand_out_until_grown(fetched)
                told = ""
            except (KafkaError, OSError, TimeoutError) as error:
                if told != (told := one_line(error)):
                    log.warning("the live tail is read anew until it works: %s", told)
                await asyncio.sleep(PAUSE)

    async def _hand_out_until_grown(self, fetched: AsyncIterator[list[Record]]) -> None:
        """Hand out what is read, until the topic has more partitions than are read."""
        async for records in fetched:
            took = await self._hand_out(records) if records else 0.0
            if self._partitions() > len(self._position):
                return
            await asyncio.sleep(max(REST * took, min(PAUSE_PER_READER * len(self._callers), LONGEST_PAUSE)))

    async def _hand_out(self, records: list[Record]) -> float:
        """Give records to all callers; return the seconds that it took."""
        await self._tell_gaps(records)
        began = time.perf_counter()
        events, start = [], dict(self._position)
        for record in records:
            self._position[record.partition] = record.offset + 1
            events.append(event_of(record, self._position))
        batch = _Batch(records, events, b"".join(events), start, dict(self._position))
        took = time.perf_counter() - began
        callers = list(self._callers)  # who comes after this line has its place behind the batch
        for first in range(0, len(callers), AT_A_TIME):
            began = time.perf_counter()
            for caller in callers[first : first + AT_A_TIME]:
                caller.put(batch)
            took += time.perf_counter() - began
            await asyncio.sleep(0)  # what else there is to do must not wait for hundreds of callers
        return took

    async def _tell_gaps(self, records: list[Record]) -> None:
        """Tell all callers when records were deleted before the tail had read them: compaction leaves holes too."""
        lowest: dict[int, int] = {}
        for record in records:
            lowest.setdefault(record.partition, record.offset)
        if all(offset == self._position[partition] for partition, offset in lowest.items()):
            return
        first, end = await self._reader.offsets(self._partitions())
        for partition in lowest:
            if gap := _gap(partition, self._position[partition], first, end):
                for caller in self._callers:
                    caller.tell(_event("gap", gap))


def event_of(record: Record, position: Mapping[int, int]) -> bytes:
    """Return the event of a record; `position` is what is reached with it."""
    return b"id: %b\ndata: %b\n\n" % (write_offsets(position).encode(), encode(show(record)))


def _event(name: str, data: Any) -> bytes:  # noqa: ANN401 - anything that is JSON
    return b"event: %b\ndata: %b\n\n" % (name.encode(), encode(data))


def _id_of(position: Mapping[int, int]) -> bytes:
    """Return an event without data: it is not shown to a page, but remembered (HTML, 9.2.6)."""
    return b"id: %b\n\n" % write_offsets(position).encode()


def _gap(partition: int, at: int, first: Mapping[int, int], end: Mapping[int, int]) -> Gap | None:
    """Return what a reader that stands at an offset has missed, or None."""
    if at < first[partition]:
        return Gap(partition, at, first[partition], "deleted")
    if at > end[partition]:
        return Gap(partition, at, first[partition], "the topic was made anew")
    return None
