"""Reads the topic without a group: any record, whoever consumed it; nothing is committed."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from apps.chassis.kafka import ClientOptions
from apps.consumer.window import Record

PATIENCE = 2.0
"""Seconds that a look at the topic may take."""
LARGEST_FETCH = 256 * 1024
"""Bytes that are fetched of a partition at a time; a larger batch comes whole all the same."""


class LogReader:
    """Reads one topic. Every call raises `KafkaError`, `OSError` or `TimeoutError` when Kafka is out of reach."""

    def __init__(self, options: ClientOptions, topic: str) -> None:
        self._options = options
        self._topic = topic
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
        wanted = [TopicPartition(self._topic, partition) for partition in range(partitions)]
        async with self._connected() as consumer:
            first, end = await asyncio.gather(consumer.beginning_offsets(wanted), consumer.end_offsets(wanted))
        return {tp.partition: offset for tp, offset in first.items()}, {tp.partition: o for tp, o in end.items()}

    async def timestamps(self, offsets: Mapping[int, int]) -> dict[int, int]:
        """Return the timestamp (ms) of the first record at or after an offset in each partition, within 2 s."""
        found: dict[int, int] = {}
        async with self._connected() as consumer:
            wanted = {TopicPartition(self._topic, partition): offset for partition, offset in offsets.items()}
            consumer.assign(list(wanted))
            for tp, offset in wanted.items():
                consumer.seek(tp, offset)
            while len(found) < len(wanted):
                for tp, records in (await consumer.getmany(*wanted, timeout_ms=100, max_records=len(wanted))).items():
                    found.setdefault(tp.partition, records[0].timestamp)
                    consumer.pause(tp)
            consumer.unsubscribe()
        return found

    async def read(self, ranges: Mapping[int, tuple[int, int]]) -> AsyncIterator[list[Record]]:
        """Yield the records of each partition from an offset up to another (not with it), as they come.

        What is not there any more, or never was (control records), is passed over.
        """
        left = {TopicPartition(self._topic, p): stop for p, (start, stop) in ranges.items() if start < stop}
        if not left:
            return
        consumer = self._new_consumer()
        try:
            await consumer.start()
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
        finally:
            await _stop(consumer)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[AIOKafkaConsumer]:
        """Lend the connection to one call at a time; one that fails ends it."""
        async with asyncio.timeout(PATIENCE), self._lock:
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
