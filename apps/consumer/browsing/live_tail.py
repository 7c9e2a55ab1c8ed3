"""The live tail of the topic: one reader of its end for all callers that watch it, as server-sent events.

Each record is framed once, and the newest batches are kept for all callers. A caller that comes back, or begins
earlier, first reads from the topic what it missed. The id of each event is the offset reached in every partition, so
that any instance of the service can continue where another ended. Nothing is kept of a record whose key was deleted
later but its place and key.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from typing import NamedTuple
from uuid import UUID

from apps.chassis.background import Background
from apps.chassis.internals.fetched_batches import Unreadable
from apps.chassis.kafka.errors import KAFKA_ERRORS
from apps.chassis.kafka.log_reader import LogReader
from apps.chassis.kafka.search import Wanted
from apps.chassis.observability.logs import one_line
from apps.consumer.browsing.forgetting import deletions_in, without_deleted
from apps.consumer.browsing.record_view import View
from apps.consumer.browsing.tail_events import RECREATED, Batch, Caller, Gap, event, event_of, gap_at, id_of, pieces_of
from apps.consumer.browsing.tail_limits import TailLimits
from contracts.record import Record

log = logging.getLogger(__name__)

GREETING = b"retry: 2000\n"
CATCH_UP_READ_BYTES = 256 * 1024
"""Bytes of keys and values that are read at a time for a caller that is behind."""
HOLE_PAUSE_S = 0.2
"""Seconds before reading on behind what cannot be read: each costs a connection, and there may be many."""
CALLERS_AT_A_TIME = 25
"""Callers that are handed a batch before other work gets its turn."""
PAUSE_PER_CALLER_S, MAX_PAUSE_S = 0.0002, 0.2
"""Seconds that records are collected before they are handed out: more callers, fewer and larger pieces."""


class Beginning(NamedTuple):
    """Where a caller begins in each partition, the end of each at that moment, and what it has missed."""

    position: dict[int, int]
    end: dict[int, int]
    gaps: list[Gap]


class Tail:
    """Reads the end of the topic as long as somebody watches; `partitions` returns how many it has.

    `ask_topic_id` returns its id: offsets of a deleted topic mean nothing in a recreated one. With `deletes` a record
    without a value deletes its key.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what it is made of
        self,
        reader: LogReader,
        partitions: Callable[[], int],
        background: Background,
        view: View,
        ask_topic_id: Callable[[], Awaitable[UUID | None]],
        limits: TailLimits | None = None,
        *,
        deletes: bool = False,
    ) -> None:
        self._reader = reader
        self._partitions = partitions
        self._background = background
        self._view = view
        self._limits = limits or TailLimits()
        self._deletes = deletes
        self._ask_topic_id = ask_topic_id
        self._topic_ids: set[UUID] = set()
        self._first_offsets: dict[int, int] = {}
        self._recreations, self._asked_at = 0, -math.inf
        self._position: dict[int, int] = {}
        self._batches: deque[Batch] = deque()
        self._first = 0  # the number of the first batch that is kept
        self._kept_bytes = 0
        self._following: asyncio.Task[None] | None = None
        self._looked_at = -math.inf
        self._trouble = ""
        self._framing_s = 0.0  # spent since the last rest
        self._watching = 0
        self._catch_up_bytes = 0
        self._callers: set[Caller] = set()
        self._ended = False

    @property
    def is_full(self) -> bool:
        """Whether no more callers may watch."""
        return self._watching >= self._limits.callers

    async def begin(self, start: Mapping[int, int] | None) -> Beginning:
        """Return where a caller begins: behind the last record, or where an id of an event leads.

        Raises `KafkaError`, `OSError` or, after 2 s, `TimeoutError` when Kafka is out of reach.
        """
        if start is None and self._following and self._silent_for() < self._limits.stale_after_s:
            return Beginning(dict(self._position), dict(self._position), [])
        first, end = await self._reader.offsets(self._partitions())
        if start is None:
            return Beginning(dict(end), end, [])
        position = {partition: start.get(partition, offset) for partition, offset in first.items()}
        gaps = [gap for partition, at in position.items() if (gap := gap_at(partition, at, first, end))]
        return Beginning(position | {gap.partition: gap.stop for gap in gaps}, end, gaps)

    async def events(self, beginning: Beginning, wanted: Wanted | None) -> AsyncGenerator[bytes, None]:
        """Yield events, several at a time, until the service ends or the caller is cut off."""
        caller, recreations = Caller(wanted, dict(beginning.position), self._view), self._recreations
        with self._followed(beginning.end):
            yield GREETING + id_of(caller.position) + b"".join(event("gap", gap) for gap in beginning.gaps)
            while not self._ended and (recreations != self._recreations or not self._joins(caller)):
                if recreations != self._recreations:
                    recreations = self._recreations
                    yield caller.begin_again(self._first_offsets)
                async with aclosing(self._catch_up(caller)) as pieces:
                    async for piece in pieces:
                        yield piece
            self._callers.add(caller)
            try:
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

    def _joins(self, caller: Caller) -> bool:
        """Let a caller continue with the batches that are kept, if it has reached the first of them."""
        behind = self._first + len(self._batches)
        starts = [(behind, self._position), *((behind - 1 - n, b.start) for n, b in enumerate(reversed(self._batches)))]
        caller.next = next((number for number, start in starts if caller.has_reached(start)), -1)
        return caller.next >= 0

    async def _live(self, caller: Caller) -> AsyncGenerator[bytes, None]:
        loop, limits = asyncio.get_running_loop(), self._limits
        idle_at, heartbeat_at = loop.time() + limits.idle_s, loop.time() + limits.heartbeat_s
        while not self._ended:
            if caller.next < self._first:
                yield event("cut-off", {"reason": f"more than {limits.waiting_bytes} bytes waited to be read"})
                return
            if caller.next < self._first + len(self._batches):
                began = time.perf_counter()
                events = caller.events_of(self._batches[caller.next - self._first])
                self._framing_s += time.perf_counter() - began
                caller.next += 1
                for piece in pieces_of(events):
                    yield piece
                    idle_at, heartbeat_at = loop.time() + limits.idle_s, loop.time() + limits.heartbeat_s
                continue
            caller.news.clear()
            try:
                async with asyncio.timeout_at(min(idle_at, heartbeat_at)):
                    await caller.news.wait()
            except TimeoutError:
                if loop.time() < heartbeat_at:
                    yield b""
                else:
                    yield self._heartbeat(caller)
                    heartbeat_at = loop.time() + limits.heartbeat_s
                idle_at = loop.time() + limits.idle_s

    def _heartbeat(self, caller: Caller) -> bytes:
        """Return a heartbeat if the topic was really read since the last one, else an event that reading stalls."""
        silent = self._silent_for()
        if silent < self._limits.heartbeat_s:
            return b": all is well\n" + id_of(caller.position)
        return event("stalled", {"seconds": round(silent), "reason": self._trouble or "Kafka does not answer"})

    def _silent_for(self) -> float:
        return time.monotonic() - self._looked_at

    async def _catch_up(self, caller: Caller) -> AsyncGenerator[bytes, None]:
        """Read some of what a caller that is behind has missed; yield its events once there is room for them."""
        if self._catch_up_bytes + CATCH_UP_READ_BYTES > self._limits.catch_up_bytes:
            await asyncio.sleep(self._limits.retry_s)
            yield b": others are catching up\n\n"
            return
        reserved = CATCH_UP_READ_BYTES
        self._catch_up_bytes += reserved
        try:
            events = await self._missed_events(caller)
            self._catch_up_bytes += len(events) - reserved
            reserved = len(events)
            for piece in pieces_of([events]):
                yield piece
        finally:
            self._catch_up_bytes -= reserved

    async def _missed_events(self, caller: Caller) -> bytes:
        """Return events of some of the records between a caller's place and the live tail."""
        ranges = {
            partition: (at, offset)
            for partition, offset in self._position.items()
            if (at := caller.position.get(partition, 0)) < offset
        }
        try:
            records, reached = await self._reader.some(ranges, CATCH_UP_READ_BYTES)
        except Unreadable as hole:
            gap = Gap(hole.partition, hole.start, min(hole.stop, ranges[hole.partition][1]), hole.reason)
            caller.position[gap.partition] = gap.stop
            await asyncio.sleep(HOLE_PAUSE_S)
            return event("gap", gap) + id_of(caller.position)
        except KAFKA_ERRORS:
            await asyncio.sleep(self._limits.retry_s)
            return b": Kafka is out of reach\n\n"
        began = time.perf_counter()
        events = b"".join(caller.frame(records))
        caller.position |= reached
        await asyncio.sleep(self._limits.rest * (time.perf_counter() - began))
        return events or id_of(caller.position)

    @contextmanager
    def _followed(self, end: dict[int, int]) -> Iterator[None]:
        """Read the end of the topic as long as anybody watches."""
        if self._following is None:
            self._position, self._looked_at = dict(end), time.monotonic()  # `begin` has just read the end
            self._asked_at = -math.inf
            self._topic_ids.clear()
            self._following = self._background.start(self._follow(), "live tail")
        self._watching += 1
        try:
            yield
        finally:
            self._watching -= 1
            if not self._watching and self._following:
                self._following.cancel()
                self._following = None
                self._first += len(self._batches)
                self._batches.clear()
                self._kept_bytes = 0

    async def _follow(self) -> None:
        while True:
            self._position = dict.fromkeys(range(self._partitions()), 0) | self._position
            try:
                await self._read_on()
            except KAFKA_ERRORS as error:
                if not self._trouble:
                    log.warning("the live tail cannot read, retrying: %s", one_line(error))
                self._trouble = one_line(error)
                await asyncio.sleep(self._limits.retry_s)

    async def _read_on(self) -> None:
        """Hand out what is read, until the topic has more partitions than are read, or has a hole."""
        try:
            async with aclosing(self._reader.follow(self._position)) as fetched:
                async for records in fetched:
                    self._looked_at, self._trouble = time.monotonic(), ""
                    if records:
                        await self._hand_out(records)
                    if self._partitions() > len(self._position) or await self._begins_recreated_topic():
                        return
                    pause = min(PAUSE_PER_CALLER_S * len(self._callers), MAX_PAUSE_S)
                    spent, self._framing_s = self._framing_s, 0.0
                    await asyncio.sleep(max(self._limits.rest * spent, pause))
        except Unreadable as hole:
            _, end = await self._reader.offsets(self._partitions())
            log.warning("the live tail continues behind what it cannot read: %s", hole)
            await self._keep_gap(Gap(hole.partition, hole.start, min(hole.stop, end[hole.partition]), hole.reason))
            await asyncio.sleep(HOLE_PAUSE_S)

    async def _begins_recreated_topic(self) -> bool:
        """Return whether the topic was recreated since the last look; then go back to its first records.

        An id that was seen before counts no more: a broker may learn late of a deletion.
        """
        if time.monotonic() - self._asked_at < self._limits.look_s:
            return False
        self._asked_at, topic_id = time.monotonic(), None
        with suppress(*KAFKA_ERRORS):
            topic_id = await self._ask_topic_id()
        if topic_id is None or topic_id in self._topic_ids:
            return False
        first, _ = await self._reader.offsets(self._partitions())
        is_recreated = bool(self._topic_ids)
        self._topic_ids.add(topic_id)
        if is_recreated:
            self._recreations += 1
            self._first_offsets = first
            for partition, offset in first.items():
                await self._keep_gap(Gap(partition, self._position.get(partition, 0), offset, RECREATED))
        return is_recreated

    async def _hand_out(self, records: list[Record]) -> None:
        """Give records to all callers."""
        await self._keep_gaps(records)
        began = time.perf_counter()
        if self._deletes:
            records = self._without_deleted(records)
        events, start = [], dict(self._position)
        for record in records:
            self._position[record.partition] = record.offset + 1
            events.append(event_of(self._view, record, self._position))
        batch = Batch(records, events, b"".join(events), start, dict(self._position))
        self._framing_s += time.perf_counter() - began
        await self._keep(batch)

    def _without_deleted(self, records: list[Record]) -> list[Record]:
        """Return records without the values that some of them delete, and keep those of earlier ones no longer."""
        if not (deletions := deletions_in(records)):
            return records
        for number, batch in enumerate(self._batches):
            self._batches[number] = left = batch.without_deleted(deletions, self._view)
            self._kept_bytes += len(left.whole) - len(batch.whole)
        return without_deleted(records, deletions)

    async def _keep(self, batch: Batch) -> None:
        """Keep a batch for all callers; drop the oldest, but never the newest, beyond the limit of bytes."""
        self._batches.append(batch)
        self._kept_bytes += len(batch.whole)
        while self._kept_bytes > self._limits.waiting_bytes and len(self._batches) > 1:
            self._kept_bytes -= len(self._batches.popleft().whole)
            self._first += 1
        callers = list(self._callers)
        for first in range(0, len(callers), CALLERS_AT_A_TIME):
            for caller in callers[first : first + CALLERS_AT_A_TIME]:
                caller.news.set()
            await asyncio.sleep(0)  # other work must not wait for hundreds of callers

    async def _keep_gaps(self, records: list[Record]) -> None:
        """Report records that were deleted before the tail had read them; compaction alone leaves holes too."""
        lowest: dict[int, int] = {}
        for record in records:
            lowest.setdefault(record.partition, record.offset)
        if all(offset == self._position[partition] for partition, offset in lowest.items()):
            return
        first, end = await self._reader.offsets(self._partitions())
        for partition in lowest:
            if gap := gap_at(partition, self._position[partition], first, end):
                await self._keep_gap(gap)

    async def _keep_gap(self, gap: Gap) -> None:
        start, of_gap = dict(self._position), event("gap", gap)
        self._position[gap.partition] = gap.stop
        await self._keep(Batch([], [of_gap], of_gap, start, dict(self._position)))
