"""Read a topic without a consumer group: any record, consumed or not. Nothing is committed."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaError

from apps.chassis.internals.fetched_batches import Unreadable
from apps.chassis.internals.record_fetching import passed_over
from apps.chassis.kafka.answers import Answers
from apps.chassis.kafka.clients import ClientOptions
from apps.chassis.kafka.errors import NoTurn, TooDeep
from apps.chassis.kafka.search import DEFAULT_LIMITS, Newest, Search, SearchLimits, Skip, skip_nothing
from contracts.record import Record, size_of

MAX_CONNECTIONS = 4
"""Most connections of a reader for calls; further calls wait for their turn."""
SHORT_POLL_MS, LONG_POLL_MS = 5, 500
"""Milliseconds that a broker waits for new records: short where records are known to exist, long for `follow`."""
FETCH_BYTES = 256 * 1024
"""Bytes that are fetched of a partition at a time; a larger batch is fetched whole."""
PARTITIONS_AT_ONCE = 16
"""Partitions of which `in_groups` has one call read: as many times the bytes above are in memory."""
FOLLOWED_RECORDS = 500
"""Most records that `follow` yields at a time."""


class ReadTimeouts(NamedTuple):
    """How long reading may take, in seconds.

    A call waits `turn_s` for a connection. Then it may take `call_s`, one for a single record `record_s`, a search
    `search_s`; a search returns what it has found after `search_ends_after_s`. `read` fails after `silence_s` without a
    record. `follow` reports that it is at the end while every partition has answered within `answered_within_s`. It
    fails after `cut_off_after_s` without an answer, unless a quota delays it.
    """

    turn_s: float = 2.0
    call_s: float = 2.0
    record_s: float = 5.0
    search_s: float = 7.0
    search_ends_after_s: float = 3.0
    silence_s: float = 5.0
    answered_within_s: float = 2.0
    cut_off_after_s: float = 10.0


class LogReader:
    """Reads one topic. Every call raises `KafkaError`, `OSError` or `TimeoutError` when Kafka is out of reach.

    Most calls share four connections, and raise `NoTurn` when others have them for 2 s. So those that must not wait for
    each other need readers of their own.

    With `committed_only`, records of open and aborted transactions are skipped.
    """

    def __init__(
        self,
        options: ClientOptions,
        topic: str,
        *,
        committed_only: bool = True,
        timeouts: ReadTimeouts = ReadTimeouts(),  # noqa: B008 - it is immutable
    ) -> None:
        self._options = options
        self._journal = options["client_id"].journal
        self._timeouts = timeouts
        self._isolation = "read_committed" if committed_only else "read_uncommitted"
        self.topic = topic
        self._idle: list[AIOKafkaConsumer] = []
        self._turns = asyncio.Semaphore(MAX_CONNECTIONS)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Close the connections at the end of the block; calls open them."""
        try:
            yield
        finally:
            while self._idle:
                await self._stop(self._idle.pop())

    async def offsets(self, partitions: int) -> tuple[dict[int, int], dict[int, int]]:
        """Return the first offset of each partition, and the offset after its last record, within 2 s."""
        wanted = self._partitions(range(partitions))
        async with self._connected() as consumer:
            first, end = await asyncio.gather(consumer.beginning_offsets(wanted), consumer.end_offsets(wanted))
        return _by_number(first), _by_number(end)

    async def ends(self, partitions: int) -> dict[int, int]:
        """Return the offset after the last record of each partition, within 2 s."""
        async with self._connected() as consumer:
            return _by_number(await consumer.end_offsets(self._partitions(range(partitions))))

    async def timestamps(self, ranges: Mapping[int, tuple[int, int]]) -> dict[int, int]:
        """Return the timestamp (ms) of the first record in a range of each partition, within 2 s.

        The end of a range is exclusive. A partition without a record in its range is missing.
        """
        async with self._connected() as consumer:
            fetched = self._fetch(consumer, ranges, first_only=True)
            return {records[0].partition: records[0].timestamp async for records in fetched}

    async def read(self, ranges: Mapping[int, tuple[int, int]]) -> AsyncGenerator[list[Record], None]:
        """Yield the records in a range of offsets of each partition, as they arrive; the end is exclusive.

        Offsets without a record (deleted, or a control record) are skipped. A range must not end after the end of the
        partition. Raises `TimeoutError` when nothing arrives for 5 s.
        """
        if all(start >= stop for start, stop in ranges.values()):
            return
        async with self._own_client(SHORT_POLL_MS) as consumer, aclosing(self._fetch(consumer, ranges)) as fetched:
            while records := await self._next(fetched):
                yield records

    async def newest(  # noqa: PLR0913, PLR0917 - what bounds a search
        self,
        before: Mapping[int, int],
        wanted: Callable[[Record], bool],
        limit: int,
        since: Mapping[int, int] | None = None,
        skip: Skip = skip_nothing,
        limits: SearchLimits = DEFAULT_LIMITS,
    ) -> Newest:
        """Return the newest `limit` wanted records before an offset in each partition.

        `since` is the lowest offset to read in each partition, and `skip` leaves offsets out. A search reads about
        100,000 records, or for 3 s, and returns what it found; `Newest.before` continues it. Raises `TimeoutError` or
        `TooDeep` after 7 s.
        """
        deadline = asyncio.get_running_loop().time() + self._timeouts.search_ends_after_s
        async with self._connected(self._timeouts.search_s) as consumer:
            first = _by_number(await consumer.beginning_offsets(self._partitions(before)))
            bottom = {partition: max(first[partition], (since or first).get(partition, 0)) for partition in before}
            search = Search(bottom, before, wanted, limit, limits, skip)
            while (pieces := search.pieces()) and asyncio.get_running_loop().time() < deadline:
                await self._read_pieces(consumer, search, pieces)
        return search.newest()

    async def _read_pieces(
        self, consumer: AIOKafkaConsumer, search: Search, pieces: Mapping[int, tuple[int, int]]
    ) -> None:
        async with aclosing(self._fetch(consumer, pieces)) as fetched:
            async for records in fetched:
                if not search.take(records):
                    return
        for partition in pieces:
            search.settle(partition)
            await asyncio.sleep(0)  # a partition at a time: it has thousands of records

    async def at_time(self, time: int, end: Mapping[int, int], latest: float = math.inf) -> dict[int, int]:
        """Return within 2 s the first offset at or after a time (ms) in each partition, `end` where there is none.

        `end` is also returned for a record dated after `latest`: its timestamp is wrong.
        """
        async with self._connected() as consumer:
            wanted = {TopicPartition(self.topic, partition): max(0, time) for partition in end}
            found = await consumer.offsets_for_times(wanted)
        return {
            tp.partition: at.offset if at and at.timestamp <= latest else end[tp.partition] for tp, at in found.items()
        }

    async def dated_after(self, times: Mapping[int, int]) -> dict[int, tuple[int, int]]:
        """Return within 2 s the first record of each partition that is dated after a time (ms): its offset and time.

        A partition without one is missing.
        """
        async with self._connected() as consumer:
            wanted = {TopicPartition(self.topic, partition): time + 1 for partition, time in times.items()}
            found = await consumer.offsets_for_times(wanted)
        return {tp.partition: (at.offset, at.timestamp) for tp, at in found.items() if at}

    async def record(self, partition: int, offset: int) -> Record | None:
        """Return the first record of a partition at or after an offset, None when there is none.

        Raises `TimeoutError` or `TooDeep` after 5 s.
        """
        async with self._connected(self._timeouts.record_s) as consumer:
            end = await consumer.end_offsets([tp := TopicPartition(self.topic, partition)])
            async for records in self._fetch(consumer, {partition: (offset, end[tp])}):
                return records[0]
        return None

    async def some(self, ranges: Mapping[int, tuple[int, int]], max_bytes: int) -> tuple[list[Record], dict[int, int]]:
        """Return within 2 s records in a range of offsets of each partition, about `max_bytes` in all.

        The second result is the offset that was reached in each partition. Raises `Unreadable` when an unreadable batch
        comes before any record.
        """
        found: list[Record] = []
        size = 0
        reached = {partition: start for partition, (start, _) in ranges.items()}
        async with self._connected() as consumer:
            try:
                async for records in self._fetch(consumer, ranges):
                    found += records
                    size += sum(map(size_of, records))
                    reached[records[0].partition] = records[-1].offset + 1
                    if size >= max_bytes:
                        return found, reached
            except Unreadable:
                if found:
                    return found, reached
                raise
        return found, {partition: stop for partition, (_, stop) in ranges.items()}

    async def follow(self, position: Mapping[int, int]) -> AsyncGenerator[list[Record], None]:
        """Yield records from an offset in each partition, at most 500 at a time, without end.

        While every partition answers and has no more records, an empty list is yielded several times a second. Deleted
        records are skipped. Raises `Unreadable`, or `KafkaConnectionError` when a partition has not answered for 10 s.
        """
        async with self._own_client(LONG_POLL_MS) as consumer:
            self._assign(consumer, position)
            answers, journal = Answers(), self._options["client_id"].journal
            while True:
                batches = await consumer.getmany(timeout_ms=200, max_records=FOLLOWED_RECORDS)
                silent = max(answers.ages(consumer, consumer.assignment()), default=0.0)
                if batches or silent < self._timeouts.answered_within_s:
                    yield [record for records in batches.values() for record in records]
                elif silent > self._timeouts.cut_off_after_s and not journal.throttling():
                    why = journal.last_failure() or "no answer"
                    raise KafkaConnectionError(f"the topic was not read for {silent:.0f} s: {why}")

    async def _fetch(
        self, consumer: AIOKafkaConsumer, ranges: Mapping[int, tuple[int, int]], *, first_only: bool = False
    ) -> AsyncGenerator[list[Record], None]:
        """Yield the records of ranges, each list of one partition; with `first_only` at least the first of each."""
        left = {TopicPartition(self.topic, p): stop for p, (start, stop) in ranges.items() if start < stop}
        if not left:
            return  # aiokafka stops fetching for good when it is given back at once what it was just assigned
        self._assign(consumer, {tp.partition: ranges[tp.partition][0] for tp in left})
        while left:
            batches = await consumer.getmany(*left, timeout_ms=200, max_records=len(left) if first_only else None)
            for tp, records in batches.items():
                if kept := [record for record in records if record.offset < left[tp]]:
                    yield kept
            for tp, stop in list(left.items()):
                if (first_only and tp in batches) or await consumer.position(tp) >= stop:
                    del left[tp]
                    consumer.pause(tp)
            await asyncio.sleep(0)  # a poll whose records were fetched before does not wait

    def _partitions(self, numbers: Iterable[int]) -> list[TopicPartition]:
        return [TopicPartition(self.topic, number) for number in numbers]

    def _assign(self, consumer: AIOKafkaConsumer, position: Mapping[int, int]) -> None:
        consumer.assign(self._partitions(position))
        for partition, offset in position.items():
            consumer.seek(TopicPartition(self.topic, partition), offset)

    @asynccontextmanager
    async def _own_client(self, poll_ms: int) -> AsyncIterator[AIOKafkaConsumer]:
        """Open a connection within 5 s, for one call that may take long."""
        consumer = self._new_consumer(poll_ms)
        try:
            async with self._journal.answers_within(self._timeouts.silence_s):
                await self._start(consumer)
            yield consumer
        finally:
            await self._stop(consumer)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Wait for one of the connections. Raises `NoTurn`."""
        try:
            async with asyncio.timeout(self._timeouts.turn_s):
                await self._turns.acquire()
        except TimeoutError:
            waited = f"for {self._timeouts.turn_s:g} s and longer"
            raise NoTurn(f"{MAX_CONNECTIONS} other calls read {self.topic} {waited}: try again") from None
        try:
            yield
        finally:
            self._turns.release()

    @asynccontextmanager
    async def _connected(self, timeout_s: float | None = None) -> AsyncIterator[AIOKafkaConsumer]:
        """Lend a connection that no other call uses; it is closed if the call fails. Raises `NoTurn` or `TooDeep`."""
        async with self._turn():
            seconds, begun, passed = timeout_s or self._timeouts.call_s, time.monotonic(), None
            try:
                async with self._journal.answers_within(seconds):
                    consumer = self._idle.pop() if self._idle else None
                    try:
                        if consumer is None:
                            consumer = self._new_consumer(SHORT_POLL_MS)
                            await consumer.start()
                        yield consumer
                        consumer.unsubscribe()
                    except BaseException:
                        if consumer is not None:
                            passed = passed_over(consumer)
                            await self._stop(consumer)
                        raise
                    self._idle.append(consumer)
            except TimeoutError:
                if passed is None or passed.at < begun:
                    raise
                raise TooDeep(self.topic, passed.partition.partition, passed.offset, seconds) from None

    def _new_consumer(self, poll_ms: int) -> AIOKafkaConsumer:
        return AIOKafkaConsumer(
            **self._options,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level=self._isolation,
            fetch_max_wait_ms=poll_ms,
            max_partition_fetch_bytes=FETCH_BYTES,
        )

    async def _next(self, fetched: AsyncIterator[list[Record]]) -> list[Record] | None:
        """Return the next records, None at the end. Raises `TimeoutError` when nothing arrives for 5 s."""
        async with self._journal.answers_within(self._timeouts.silence_s):
            return await anext(fetched, None)

    async def _start(self, consumer: AIOKafkaConsumer) -> None:
        """Connect. When cancelled, wait up to 2 s for the connection, because the client would leave it open."""
        starting = asyncio.create_task(consumer.start())
        try:
            await asyncio.shield(starting)
        finally:
            if not starting.done():
                await asyncio.wait([starting], timeout=self._timeouts.call_s)
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)

    async def _stop(self, consumer: AIOKafkaConsumer) -> None:
        with suppress(KafkaError, OSError, TimeoutError):
            async with asyncio.timeout(self._timeouts.call_s):
                await consumer.stop()


def in_groups(ranges: Mapping[int, tuple[int, int]]) -> Iterator[dict[int, tuple[int, int]]]:
    """Yield the ranges that are not empty, of 16 partitions at a time: one call for these takes as long as for one."""
    left = [(partition, places) for partition, places in ranges.items() if places[0] < places[1]]
    for number in range(0, len(left), PARTITIONS_AT_ONCE):
        yield dict(left[number : number + PARTITIONS_AT_ONCE])


def _by_number(offsets: Mapping[TopicPartition, int]) -> dict[int, int]:
    return {tp.partition: offset for tp, offset in offsets.items()}
