"""The live tail of the topic: one reader of its end for all callers that watch it, as server-sent events.

Every record is framed once and handed to all of them. A caller that comes again, or was too far behind, is brought up
from the topic first. The id of each event is the offset reached in every partition, so that any copy of the service can
go on where another ended.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import NamedTuple

from aiokafka.errors import KafkaError

from apps.chassis.background import Background
from apps.chassis.internals.record_fetching import Unreadable
from apps.chassis.kafka.log_reader import LogReader
from apps.chassis.kafka.search import Wanted
from apps.chassis.observability.logs import one_line
from apps.consumer.browsing.tail_events import MOST_WAITING, Batch, Caller, Gap, event, event_of, id_of, pieces_of
from apps.consumer.consuming.consumption import Decode
from contracts.record import Record

log = logging.getLogger(__name__)

MOST_READERS = 2_000
"""Callers that may watch at a time."""
PIECE = 256 * 1024
"""Bytes of keys and values that are read at a time for a caller that is behind."""
CATCH_UP_BYTES = 64 * 1024 * 1024
"""Bytes that all callers together may hold while they are brought up: unlike live events, no two share them."""
REST = 3.0
"""Seconds of rest for each second that framing events took: watching must not slow the consumption."""
NEAR = 1_000
"""Records that a caller may be behind for the live tail to be joined."""
HEARTBEAT = 15.0
"""Seconds without an event after which a caller gets a heartbeat with its place, or learns that reading stalls."""
STALE_AFTER_S = 5.0
"""Seconds without a read of the topic after which the tail's place is too old for a new caller."""
PAUSE = 1.0
"""Seconds before reading on when Kafka was out of reach."""
PAUSE_PER_HOLE = 0.2
"""Seconds before reading on behind what cannot be read: each costs a connection, and there may be many."""
AT_A_TIME = 25
"""Callers that are handed a batch before others get their turn."""
PAUSE_PER_READER, LONGEST_PAUSE = 0.0002, 0.2
"""Seconds that records are collected before they are handed out: more callers, fewer and larger pieces."""

GREETING = b"retry: 2000\n"


class Beginning(NamedTuple):
    """Where a caller begins in each partition, the end of each at that moment, and what it has missed."""

    position: dict[int, int]
    end: dict[int, int]
    gaps: list[Gap]


class Tail:
    """Reads the end of the topic as long as somebody watches; `partitions` tells how many it has."""

    def __init__(
        self, reader: LogReader, partitions: Callable[[], int], background: Background, decode: Decode
    ) -> None:
        self._reader = reader
        self._partitions = partitions
        self._background = background
        self._decode = decode
        self._position: dict[int, int] = {}
        self._following: asyncio.Task[None] | None = None
        self._looked_at = -math.inf
        self._trouble = ""
        self._watching = 0
        self._catch_up_bytes = 0
        self._callers: set[Caller] = set()
        self._ended = False

    @property
    def is_full(self) -> bool:
        """Whether no more callers may watch."""
        return self._watching >= MOST_READERS

    async def begin(self, start: Mapping[int, int] | None) -> Beginning:
        """Return where a caller begins: behind the last record, or where an id of an event leads.

        Raises `KafkaError`, `OSError` or, after 2 s, `TimeoutError` when Kafka is out of reach.
        """
        if start is None and self._following and self._silent_for() < STALE_AFTER_S:
            return Beginning(dict(self._position), dict(self._position), [])
        first, end = await self._reader.offsets(self._partitions())
        if start is None:
            return Beginning(dict(end), end, [])
        position = {partition: start.get(partition, offset) for partition, offset in first.items()}
        gaps = [gap for partition, at in position.items() if (gap := _gap(partition, at, first, end))]
        return Beginning(position | {gap.partition: gap.stop for gap in gaps}, end, gaps)

    async def events(self, beginning: Beginning, wanted: Wanted | None) -> AsyncGenerator[bytes, None]:
        """Yield events, several at a time, until the service ends or the caller is cut off."""
        caller = Caller(wanted, dict(beginning.position), self._decode)
        with self._followed(beginning.end):
            yield GREETING + id_of(caller.position) + b"".join(event("gap", gap) for gap in beginning.gaps)
            while not self._ended and self._behind(caller) > NEAR:
                async with aclosing(self._bring_up(caller)) as pieces:
                    async for piece in pieces:
                        yield piece
            met = dict(self._position)
            self._callers.add(caller)
            try:
                while not self._ended and self._behind(caller, met):
                    async with aclosing(self._bring_up(caller, met)) as pieces:
                        async for piece in pieces:
                            yield piece
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

    async def _live(self, caller: Caller) -> AsyncGenerator[bytes, None]:
        while not self._ended:
            try:
                async with asyncio.timeout(HEARTBEAT):
                    await caller.news.wait()
            except TimeoutError:
                yield self._heartbeat(caller)
                continue
            if caller.cut_off:
                yield event("cut-off", {"reason": f"more than {MOST_WAITING} bytes waited to be read"})
                return
            for piece in caller.take():
                yield piece

    def _heartbeat(self, caller: Caller) -> bytes:
        """Send a heartbeat if the topic was really read since the last one; otherwise report that reading stalls."""
        silent = self._silent_for()
        if silent < HEARTBEAT:
            return b": all is well\n" + id_of(caller.position)
        return event("stalled", {"seconds": round(silent), "reason": self._trouble or "Kafka does not answer"})

    def _silent_for(self) -> float:
        return time.monotonic() - self._looked_at

    def _behind(self, caller: Caller, target: Mapping[int, int] | None = None) -> int:
        """Return how many offsets the caller is behind the live tail, or behind what it was when it joined."""
        return sum(
            max(0, offset - caller.position.get(partition, 0))
            for partition, offset in (target or self._position).items()
        )

    async def _bring_up(self, caller: Caller, target: Mapping[int, int] | None = None) -> AsyncGenerator[bytes, None]:
        """Read some of what a caller that is behind has missed; yield its events once there is room for them."""
        if self._catch_up_bytes + PIECE > CATCH_UP_BYTES:
            await asyncio.sleep(PAUSE)
            yield b": others are being brought up\n\n"
            return
        held = PIECE
        self._catch_up_bytes += held
        try:
            events = await self._read_missed(caller, target)
            self._catch_up_bytes += len(events) - held
            held = len(events)
            for piece in pieces_of(events):
                yield piece
        finally:
            self._catch_up_bytes -= held

    async def _read_missed(self, caller: Caller, target: Mapping[int, int] | None) -> bytes:
        """Return events of some of the records between a caller's place and the live tail, or its target."""
        ranges = {
            partition: (caller.position.get(partition, 0), offset)
            for partition, offset in dict(target or self._position).items()
            if caller.position.get(partition, 0) < offset
        }
        try:
            records, reached = await self._reader.some(ranges, PIECE)
        except Unreadable as hole:
            gap = Gap(hole.partition, hole.start, min(hole.stop, ranges[hole.partition][1]), hole.reason)
            caller.position[gap.partition] = gap.stop
            await asyncio.sleep(PAUSE_PER_HOLE)
            return event("gap", gap) + id_of(caller.position)
        except (KafkaError, OSError, TimeoutError):
            await asyncio.sleep(PAUSE)
            return b": Kafka is out of reach\n\n"
        began = time.perf_counter()
        events = caller.frame(records)
        caller.position |= reached
        await asyncio.sleep(REST * (time.perf_counter() - began))
        return events or id_of(caller.position)

    @contextmanager
    def _followed(self, end: dict[int, int]) -> Iterator[None]:
        """Read the end of the topic as long as anybody watches."""
        if self._following is None:
            self._position, self._looked_at = dict(end), time.monotonic()  # `begin` has just read the end
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
        while True:
            self._position = dict.fromkeys(range(self._partitions()), 0) | self._position
            try:
                await self._read_on()
            except (KafkaError, OSError, TimeoutError) as error:
                if not self._trouble:
                    log.warning("the live tail cannot read, retrying: %s", one_line(error))
                self._trouble = one_line(error)
                await asyncio.sleep(PAUSE)

    async def _read_on(self) -> None:
        """Hand out what is read, until the topic has more partitions or something was passed over."""
        try:
            async with aclosing(self._reader.follow(self._position)) as fetched:
                await self._hand_out_until_grown(fetched)
        except Unreadable as hole:
            _, end = await self._reader.offsets(self._partitions())
            gap = Gap(hole.partition, hole.start, min(hole.stop, end[hole.partition]), hole.reason)
            log.warning("the live tail goes on behind what it cannot read: %s", hole)
            self._position[gap.partition] = gap.stop
            for caller in self._callers:
                caller.tell(event("gap", gap))
            await asyncio.sleep(PAUSE_PER_HOLE)

    async def _hand_out_until_grown(self, fetched: AsyncIterator[list[Record]]) -> None:
        """Hand out what is read, until the topic has more partitions than are read."""
        async for records in fetched:
            self._looked_at, self._trouble = time.monotonic(), ""
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
            events.append(event_of(self._decode, record, self._position))
        batch = Batch(records, events, b"".join(events), start, dict(self._position))
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
                    caller.tell(event("gap", gap))


def _gap(partition: int, at: int, first: Mapping[int, int], end: Mapping[int, int]) -> Gap | None:
    """Return what a reader that stands at an offset has missed, or None."""
    if at < first[partition]:
        return Gap(partition, at, first[partition], "deleted")
    if at > end[partition]:
        return Gap(partition, at, first[partition], "the topic was made anew")
    return None
