"""How far consumption is behind the topic, in records and in seconds."""

import time
from collections.abc import Mapping

import msgspec
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError

from apps.chassis.cluster import Committed
from apps.consumer.log_reader import LogReader

NO_TIMESTAMP = -1
"""The timestamp of a record whose producer gave it none."""


FRESH = 3.0
"""Seconds for which the times of the oldest records of the same partitions are not read again."""


class PartitionLag(msgspec.Struct):
    """One partition: the next offset to read, the one committed, the one behind its last record, and the lag.

    `lag` is end - position while running, and end - committed (of the group) while stopped. What Kafka did not tell is
    null; `committed` is null as long as the group has committed nothing.
    """

    partition: int
    position: int | None
    committed: int | None
    end: int | None
    lag: int | None


class Lag(msgspec.Struct):
    """The lag of this copy's partitions; of all partitions while it is stopped.

    `ages` are the seconds since the oldest record of each partition that is not consumed yet was written, 0 without
    lag; a partition is missing where that record has no time, and all are when Kafka did not tell. `seconds` is the
    greatest of them.
    """

    partitions: list[PartitionLag]
    records: int | None
    ages: dict[int, float]

    @property
    def seconds(self) -> float | None:
        """The age of the oldest record that is not consumed yet; None when that is not known of a partition."""
        if len(self.ages) < len(self.partitions):
            return None
        return max(self.ages.values(), default=0.0 if self.records == 0 else None)


class LagMeter:
    """Measures the lag of a group on a topic."""

    def __init__(self, reader: LogReader, committed: Committed) -> None:
        self._reader = reader
        self._committed = committed
        self._oldest: Mapping[int, int] = {}
        self._read_at = -FRESH

    async def measure(self, consumer: AIOKafkaConsumer | None) -> Lag:
        """Return the lag of what `consumer` holds, of all partitions without one; within 6 s.

        Unknown (`records` is None) when Kafka does not tell, or the topic was not seen yet.
        """
        positions = await _positions(consumer)
        try:
            committed = await self._committed()
            first, end = await self._reader.offsets(len(committed))
            partitions = [
                self._of_partition(partition, positions, committed, first, end)
                for partition in sorted(committed if consumer is None else positions)
                if partition in end
            ]
        except (KafkaError, OSError, TimeoutError):
            return Lag([PartitionLag(p, at, None, None, None) for p, at in sorted(positions.items())], None, {})
        if not committed:
            return Lag([], None, {})
        return Lag(partitions, sum(p.lag or 0 for p in partitions), await self._ages(partitions, first))

    def _of_partition(
        self,
        partition: int,
        positions: Mapping[int, int | None],
        committed: Mapping[int, int | None],
        first: Mapping[int, int],
        end: Mapping[int, int],
    ) -> PartitionLag:
        position, done = positions.get(partition), committed.get(partition)
        reached = next((offset for offset in (position, done) if offset is not None), first[partition])
        return PartitionLag(partition, position, done, end[partition], max(0, end[partition] - reached))

    async def _ages(self, partitions: list[PartitionLag], first: Mapping[int, int]) -> dict[int, float]:
        behind = {
            p.partition: max(first[p.partition], p.end - p.lag) for p in partitions if p.lag and p.end is not None
        }
        try:
            oldest = await self._timestamps(behind)
        except (KafkaError, OSError, TimeoutError):
            return {}
        now = time.time()
        ages = {p.partition: 0.0 for p in partitions if p.partition not in behind}
        return ages | {
            partition: max(0.0, round(now - timestamp / 1_000, 3))
            for partition, timestamp in oldest.items()
            if timestamp != NO_TIMESTAMP
        }

    async def _timestamps(self, behind: Mapping[int, int]) -> Mapping[int, int]:
        """Return the timestamp at an offset of each partition; of the same partitions, what was read up to 3 s ago.

        A batch of each must be read for it, and pages that are open ask every second while there is most to do.
        """
        if behind.keys() != self._oldest.keys() or time.monotonic() - self._read_at >= FRESH:
            self._oldest = await self._reader.timestamps(behind) if behind else {}
            self._read_at = time.monotonic()
        return self._oldest


async def _positions(consumer: AIOKafkaConsumer | None) -> dict[int, int | None]:
    """Return the next offset to read of each partition held, without asking Kafka; None where it is not known yet."""
    positions: dict[int, int | None] = {}
    if consumer is None:
        return positions
    for tp in consumer.assignment():
        known = consumer.last_poll_timestamp(tp) is not None
        positions[tp.partition] = await consumer.position(tp) if known else None
    return positions
