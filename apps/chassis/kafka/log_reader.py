"""Reads the topic without a group: any record, whoever consumed it; nothing is committed."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from uuid import UUID

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaError

from apps.chassis.internals.record_fetching import Unreadable
from apps.chassis.kafka.client_journal import ClientJournal
from apps.chassis.kafka.clients import ClientOptions
from apps.chassis.kafka.search import Newest, Search, size_of
from apps.chassis.kafka.topic_ids import topic_id
from contracts.record import Record

PATIENCE = 2.0
"""Seconds that a look at the topic may take."""
SEARCH = 10.0
"""Seconds that a search may take."""
LONG_ENOUGH = 3.0
"""Seconds after which a search returns what it has."""
SILENCE = 5.0
"""Seconds without a record after which reading is given up."""
AT_ONCE = 4
"""Calls that have a connection at a time; others wait for their turn."""
SHORT_POLL_MS, LONG_POLL_MS = 5, 500
"""Milliseconds that a broker waits for new records: hardly where they are known to be there."""
LARGEST_FETCH = 256 * 1024
"""Bytes that are fetched of a partition at a time; a larger batch comes whole all the same."""
LOOKED_WITHIN_S = 2.0
"""Seconds within which every partition must have answered for the end of the topic to count as read."""
CUT_OFF_AFTER_S = 10.0
"""Seconds without an answer, and without throttling, after which following ends; a new client takes over."""
PORTION = 500
"""Records that are handed over at a time to who follows the topic."""


class LogReader:
    """Reads one topic. Every call raises `KafkaError`, `OSError` or `TimeoutError` when Kafka is out of reach.

    With `committed_only` records of transactions that are open or aborted are passed over.
    """

    def __init__(self, options: ClientOptions, topic: str, *, committed_only: bool = True) -> None:
        self._options = options
        self._isolation = "read_committed" if committed_only else "read_uncommitted"
        self.topic = topic
        self._idle: list[AIOKafkaConsumer] = []
        self._turns = asyncio.Semaphore(AT_ONCE)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Close the connections at the end; they are opened by the calls."""
        try:
            yield
        finally:
            while self._idle:
                await _stop(self._idle.pop())

    async def offsets(self, partitions: int) -> tuple[dict[int, int], dict[int, int]]:
        """Return the first offset of each partition and the one behind its last record, within 2 s."""
        wanted = [TopicPartition(self.topic, partition) for partition in range(partitions)]
        async with self._connected() as consumer:
            first, end = await asyncio.gather(consumer.beginning_offsets(wanted), consumer.end_offsets(wanted))
        return {tp.partition: offset for tp, offset in first.items()}, {tp.partition: o for tp, o in end.items()}

    async def topic_id(self) -> UUID | None:
        """Return the id of the topic, None from a Kafka before 2.8, within 2 s."""
        async with self._connected() as consumer:
            return await topic_id(consumer._client, self.topic)  # noqa: SLF001 - it knows no such request

    async def timestamps(self, ranges: Mapping[int, tuple[int, int]]) -> dict[int, int]:
        """Return the timestamp (ms) of the first record in a range of each partition, within 2 s.

        The end of a range is exclusive. A partition without a record in its range is missing.
        """
        found: dict[int, int] = {}
        wanted = {TopicPartition(self.topic, p): stop for p, (start, stop) in ranges.items() if start < stop}
        async with self._connected() as consumer:
            self._assign(consumer, {tp.partition: ranges[tp.partition][0] for tp in wanted})
            while wanted:
                batches = await consumer.getmany(*wanted, timeout_ms=100, max_records=len(wanted))
                for tp, records in batches.items():
                    if records[0].offset < wanted[tp]:
                        found[tp.partition] = records[0].timestamp
                for tp in [tp for tp, stop in wanted.items() if tp in batches or await consumer.position(tp) >= stop]:
                    del wanted[tp]
                    consumer.pause(tp)
        return found

    async def read(self, ranges: Mapping[int, tuple[int, int]]) -> AsyncGenerator[list[Record], None]:
        """Yield the records of each partition from an offset up to another (not with it), as they come.

        What is not there any more, or never was (control records), is passed over. Raises `TimeoutError` when nothing
        came for 5 s; a range must end where the partition does, or before.
        """
        if all(start >= stop for start, stop in ranges.values()):
            return
        consumer = self._new_consumer(SHORT_POLL_MS)
        try:
            async with asyncio.timeout(SILENCE):
                await _start(consumer)
            async with aclosing(self._fetch(consumer, ranges)) as fetched:
                while records := await _next(fetched):
                    yield records
        finally:
            await _stop(consumer)

    async def newest(
        self,
        before: Mapping[int, int],
        wanted: Callable[[Record], bool],
        limit: int,
        since: Mapping[int, int] | None = None,
    ) -> Newest:
        """Return the newest `limit` records that are wanted, going back from an offset in each partition (not with it).

        `since` is the offset in each partition to go back to at most (with it). A search passes some 100,000 records,
        or 3 s, and returns what it has then; `Newest.before` goes on. Raises `TimeoutError` after 10 s.
        """
        late = asyncio.get_running_loop().time() + LONG_ENOUGH
        async with self._connected(SEARCH) as consumer:
            first = await self._first(consumer, before)
            bottom = {partition: max(first[partition], (since or first).get(partition, 0)) for partition in before}
            search = Search(bottom, before, wanted, limit)
            while (pieces := search.pieces()) and asyncio.get_running_loop().time() < late:
                async for records in self._fetch(consumer, pieces):
                    search.take(records)
                search.settle()
        return search.newest()

    async def at_time(self, time: int, end: Mapping[int, int], latest: float = math.inf) -> dict[int, int]:
        """Return the first offset at or after a time (ms) in each partition, `end` where there is none; within 2 s.

        A record dated after `latest` has a meaningless timestamp; `end` is returned for it too.
        """
        async with self._connected() as consumer:
            wanted = {TopicPartition(self.topic, partition): max(0, time) for partition in end}
            found = await consumer.offsets_for_times(wanted)
        return {
            tp.partition: at.offset if at and at.timestamp <= latest else end[tp.partition] for tp, at in found.items()
        }

    async def record(self, partition: int, offset: int) -> Record | None:
        """Return the first record of a partition at or behind an offset that there is, None when there is none.

        Within 2 s.
        """
        async with self._connected() as consumer:
            end = await consumer.end_offsets([tp := TopicPartition(self.topic, partition)])
            async for records in self._fetch(consumer, {partition: (offset, end[tp])}):
                return records[0]
        return None

    async def some(self, ranges: Mapping[int, tuple[int, int]], most_bytes: int) -> tuple[list[Record], dict[int, int]]:
        """Return records of each partition from an offset up to another (not with it), about `most_bytes` of them.

        With them comes the offset that was reached in each partition. Within 2 s. Raises `Unreadable` when nothing was
        read before that.
        """
        found: list[Record] = []
        reached = {partition: start for partition, (start, _) in ranges.items()}
        async with self._connected() as consumer:
            try:
                async for records in self._fetch(consumer, ranges):
                    found += records
                    reached[records[0].partition] = records[-1].offset + 1
                    if sum(map(size_of, found)) >= most_bytes:
                        return found, reached
            except Unreadable:
                if found:
                    return found, reached
                raise
        return found, {partition: stop for partition, (_, stop) in ranges.items()}

    async def follow(self, position: Mapping[int, int]) -> AsyncGenerator[list[Record], None]:
        """Yield records from an offset in each partition on, for ever: at most 500 at a time.

        Yield none, several times a second, while every partition answers and has no more. Deleted records are skipped.
        Raises `Unreadable`, or `KafkaConnectionError` when a partition has not answered for 10 s.
        """
        consumer = self._new_consumer(LONG_POLL_MS)
        try:
            await _start(consumer)
            self._assign(consumer, position)
            answers = Answers(consumer, self._options["client_id"].journal)
            while True:
                batches = await consumer.getmany(timeout_ms=200, max_records=PORTION)
                silent = answers.silent_for()
                if batches or silent < LOOKED_WITHIN_S:
                    yield [record for records in batches.values() for record in records]
                elif silent > CUT_OFF_AFTER_S and not answers.throttled:
                    raise KafkaConnectionError(answers.silence(silent))
        finally:
            await _stop(consumer)

    async def _fetch(
        self, consumer: AIOKafkaConsumer, ranges: Mapping[int, tuple[int, int]]
    ) -> AsyncGenerator[list[Record], None]:
        left = {TopicPartition(self.topic, p): stop for p, (start, stop) in ranges.items() if start < stop}
        self._assign(consumer, {tp.partition: ranges[tp.partition][0] for tp in left})
        while left:
            batches = await consumer.getmany(*left, timeout_ms=200)
            for tp, records in batches.items():
                if kept := [record for record in records if record.offset < left[tp]]:
                    yield kept
            for tp in [tp for tp, stop in left.items() if await consumer.position(tp) >= stop]:
                del left[tp]
                consumer.pause(tp)

    def _assign(self, consumer: AIOKafkaConsumer, position: Mapping[int, int]) -> None:
        consumer.assign([TopicPartition(self.topic, partition) for partition in position])
        for partition, offset in position.items():
            consumer.seek(TopicPartition(self.topic, partition), offset)

    async def _first(self, consumer: AIOKafkaConsumer, partitions: Iterable[int]) -> dict[int, int]:
        first = await consumer.beginning_offsets([TopicPartition(self.topic, partition) for partition in partitions])
        return {tp.partition: offset for tp, offset in first.items()}

    @asynccontextmanager
    async def _connected(self, patience: float = PATIENCE) -> AsyncIterator[AIOKafkaConsumer]:
        """Lend a connection that no other call uses; one whose call fails is closed."""
        async with asyncio.timeout(patience), self._turns:
            consumer = self._idle.pop() if self._idle else None
            try:
                if consumer is None:
                    consumer = self._new_consumer(SHORT_POLL_MS)
                    await consumer.start()
                yield consumer
                consumer.unsubscribe()
            except BaseException:
                if consumer is not None:
                    await _stop(consumer)
                raise
            self._idle.append(consumer)

    def _new_consumer(self, poll_ms: int) -> AIOKafkaConsumer:
        return AIOKafkaConsumer(
            **self._options,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level=self._isolation,
            fetch_max_wait_ms=poll_ms,
            max_partition_fetch_bytes=LARGEST_FETCH,
        )


class Answers:
    """Knows when each partition of a client last answered, by a monotonic clock."""

    def __init__(self, consumer: AIOKafkaConsumer, journal: ClientJournal) -> None:
        self._consumer = consumer
        self._journal = journal
        self._began = time.monotonic()
        self._seen: dict[TopicPartition, tuple[int | None, float]] = {}

    @property
    def throttled(self) -> bool:
        """Whether a quota explains the silence."""
        return self._journal.throttling() is not None

    def silent_for(self) -> float:
        """Return the seconds since the partition answered that has been silent longest."""
        now = time.monotonic()
        for tp in self._consumer.assignment():
            answered = self._consumer.last_poll_timestamp(tp)
            before, _ = self._seen.get(tp, (None, self._began))
            if answered != before:
                self._seen[tp] = answered, now
        return now - min(
            (self._seen.get(tp, (None, self._began))[1] for tp in self._consumer.assignment()), default=now
        )

    def silence(self, seconds: float) -> str:
        """Return a sentence that the topic was not read, with the client's last failure."""
        return f"the topic was not read for {seconds:.0f} s: {self._journal.last_failure() or 'no answer'}"


async def _next(fetched: AsyncIterator[list[Record]]) -> list[Record] | None:
    """Return what comes next, None at the end. Raises `TimeoutError` when nothing comes for 5 s."""
    async with asyncio.timeout(SILENCE):
        return await anext(fetched, None)


async def _start(consumer: AIOKafkaConsumer) -> None:
    """Connect. Who is cancelled meanwhile waits for it, 2 s at most: the client would leave a connection open."""
    starting = asyncio.create_task(consumer.start())
    try:
        await asyncio.shield(starting)
    finally:
        if not starting.done():
            await asyncio.wait([starting], timeout=PATIENCE)
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)


async def _stop(consumer: AIOKafkaConsumer) -> None:
    with suppress(KafkaError, OSError, TimeoutError):
        async with asyncio.timeout(PATIENCE):
            await consumer.stop()
