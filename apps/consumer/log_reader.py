"""Reads the topic without a group: any record, whoever consumed it; nothing is committed."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from apps.chassis.kafka import ClientOptions
from apps.consumer.window import Record

PATIENCE = 2.0
"""Seconds that a look at the topic may take."""
SEARCH = 10.0
"""Seconds that a search may take."""
STEP = 100
"""Records that are read of a partition at a time when going back."""
MOST_PASSED = 10_000
"""Records that a search passes over before it returns what it has."""
LARGEST_FETCH = 256 * 1024
"""Bytes that are fetched of a partition at a time; a larger batch comes whole all the same."""


class Newest(NamedTuple):
    """Records, the newest first; `before` is where to go on for those before them, None when there are none."""

    records: list[Record]
    before: dict[int, int] | None


class LogReader:
    """Reads one topic. Every call raises `KafkaError`, `OSError` or `TimeoutError` when Kafka is out of reach."""

    def __init__(self, options: ClientOptions, topic: str) -> None:
        self._options = options
        self.topic = topic
        self._consumer: AIOKafkaConsumer | None = None
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Close the connection at the end; it is opened by the first call."""
        try:
            yield
        finally:
            await self._close()

    async def offsets(self, partitions: int) -> tuple[dict[int, int], dict[int, int]]:
        """Return the first offset of each partition and the one behind its last record, within 2 s."""
        wanted = [TopicPartition(self.topic, partition) for partition in range(partitions)]
        async with self._connected() as consumer:
            first, end = await asyncio.gather(consumer.beginning_offsets(wanted), consumer.end_offsets(wanted))
        return {tp.partition: offset for tp, offset in first.items()}, {tp.partition: o for tp, o in end.items()}

    async def timestamps(self, offsets: Mapping[int, int]) -> dict[int, int]:
        """Return the timestamp (ms) of the first record at or after an offset in each partition, within 2 s."""
        found: dict[int, int] = {}
        async with self._connected() as consumer:
            wanted = {TopicPartition(self.topic, partition): offset for partition, offset in offsets.items()}
            consumer.assign(list(wanted))
            for tp, offset in wanted.items():
                consumer.seek(tp, offset)
            while len(found) < len(wanted):
                for tp, records in (await consumer.getmany(*wanted, timeout_ms=100, max_records=len(wanted))).items():
                    found.setdefault(tp.partition, records[0].timestamp)
                    consumer.pause(tp)
            consumer.unsubscribe()
        return found

    async def read(self, ranges: Mapping[int, tuple[int, int]]) -> AsyncGenerator[list[Record], None]:
        """Yield the records of each partition from an offset up to another (not with it), as they come.

        What is not there any more, or never was (control records), is passed over.
        """
        if all(start >= stop for start, stop in ranges.values()):
            return
        consumer = self._new_consumer()
        try:
            await consumer.start()
            async for records in self._fetch(consumer, ranges):
                yield records
        finally:
            await _stop(consumer)

    async def newest(self, before: Mapping[int, int], wanted: Callable[[Record], bool], limit: int) -> Newest:
        """Return the newest `limit` records that are wanted, going back from an offset in each partition (not with it).

        The partitions are merged by timestamp, each in the order of its offsets. After 10,000 records that were not
        wanted it returns what it has; `Newest.before` goes on. Takes 10 s at most.
        """
        heads: dict[int, list[Record]] = {partition: [] for partition in before}
        reached, low, passed = dict(before), dict(before), 0
        found: list[Record] = []
        step = max(limit, STEP)
        async with self._connected(SEARCH) as consumer:
            first = await consumer.beginning_offsets([TopicPartition(self.topic, partition) for partition in before])
            bottom = {tp.partition: offset for tp, offset in first.items()}
            while len(found) < limit and passed < MOST_PASSED:
                while ranges := {
                    partition: (max(bottom[partition], at - step), at)
                    for partition, at in low.items()
                    if not heads[partition] and at > bottom[partition]
                }:
                    async for records in self._fetch(consumer, ranges):
                        heads[records[0].partition].extend(records)
                    low |= {partition: start for partition, (start, _) in ranges.items()}
                full = [records for records in heads.values() if records]
                if not full:
                    break
                record = max(full, key=lambda records: records[-1].timestamp).pop()
                reached[record.partition] = record.offset
                if wanted(record):
                    found.append(record)
                else:
                    passed += 1
        more = any(heads.values()) or any(low[partition] > bottom[partition] for partition in low)
        return Newest(found, reached if more else None)

    async def _fetch(
        self, consumer: AIOKafkaConsumer, ranges: Mapping[int, tuple[int, int]]
    ) -> AsyncIterator[list[Record]]:
        left = {TopicPartition(self.topic, p): stop for p, (start, stop) in ranges.items() if start < stop}
        consumer.assign(list(left))
        for tp in left:
            consumer.seek(tp, ranges[tp.partition][0])
        while left:
            batches = await consumer.getmany(*left, timeout_ms=200)
            for tp, records in batches.items():
                if kept := [record for record in records if record.offset < left[tp]]:
                    yield kept
            for tp in [tp for tp, stop in left.items() if await consumer.position(tp) >= stop]:
                del left[tp]
                consumer.pause(tp)

    @asynccontextmanager
    async def _connected(self, patience: float = PATIENCE) -> AsyncIterator[AIOKafkaConsumer]:
        """Lend the connection to one call at a time; one that fails ends it."""
        async with asyncio.timeout(patience), self._lock:
            try:
                if self._consumer is None:
                    self._consumer = self._new_consumer()
                    await self._consumer.start()
                yield self._consumer
            except BaseException:
                await self._close()
                raise

    def _new_consumer(self) -> AIOKafkaConsumer:
        return AIOKafkaConsumer(
            **self._options,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            max_partition_fetch_bytes=LARGEST_FETCH,
        )

    async def _close(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await _stop(consumer)


async def _stop(consumer: AIOKafkaConsumer) -> None:
    with suppress(KafkaError, OSError, TimeoutError):
        async with asyncio.timeout(PATIENCE):
            await consumer.stop()
