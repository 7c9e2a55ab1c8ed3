"""Measure the lag of a group, in records and in seconds: one number everywhere."""

import asyncio
import time
from collections.abc import Mapping
from typing import NamedTuple

import msgspec
from aiokafka import AIOKafkaConsumer

from apps.chassis.kafka.consumer_groups import Committed
from apps.chassis.kafka.errors import KAFKA_ERRORS
from apps.chassis.kafka.log_reader import LogReader
from apps.consumer.consuming.commits import positions_of

NO_TIMESTAMP = -1
"""The timestamp of a record whose producer gave it none."""
FRESH_S = 3.0
"""Seconds for which the timestamps of the oldest records are cached, while the partitions stay the same."""
LOOK_TIMEOUT_S = 4.0
"""Seconds to read the committed offsets and the ends of the partitions."""


class Offsets(NamedTuple):
    """One partition: what the group has committed (None: nothing), and where its records begin and end.

    `first` is the first offset. `stable` is the offset of the first open transaction, or the end without one. `end` is
    the high watermark: the offset after the last record.
    """

    committed: int | None
    first: int
    stable: int
    end: int

    @property
    def next(self) -> int:
        """The first offset that is not consumed."""
        return self.first if self.committed is None else self.committed

    @property
    def lag(self) -> int:
        """The offsets up to the high watermark that are not committed."""
        return max(0, self.end - self.next)

    @property
    def waiting(self) -> int:
        """The part of the lag behind an open transaction."""
        return min(self.lag, max(0, self.end - self.stable))


class GroupOffsets:
    """Reads the offsets of a group on a topic. `stable` reads only committed records, `every` reads all."""

    def __init__(self, stable: LogReader, every: LogReader, committed: Committed) -> None:
        self.stable = stable
        self.every = every
        self._committed = committed

    async def read(self) -> dict[int, Offsets]:
        """Return the offsets of each partition; empty before the topic was first seen.

        The order of these requests keeps the lag from being negative, and keeps new records from looking like waiting
        ones. Raises `KafkaError`, `OSError` or, after 4 s, `TimeoutError`.
        """
        async with asyncio.timeout(LOOK_TIMEOUT_S):
            committed = await self._committed()
            first, end = await self.every.offsets(len(committed))
            stable = await self.stable.ends(len(committed))
        return {p: Offsets(committed[p], first[p], stable[p], end[p]) for p in sorted(committed)}


class PartitionLag(msgspec.Struct):
    """One partition: the next offset to read, the group's committed offset, the high watermark, and the lag.

    `lag` is always end - committed; while nothing is committed it counts from the first record.
    `waiting_for_transaction` is the part of it behind another client's open transaction. Null is what Kafka did not
    report; `position` is null where this instance does not read.
    """

    partition: int
    position: int | None
    committed: int | None
    end: int | None
    lag: int | None
    waiting_for_transaction: int | None = None


class Lag(msgspec.Struct):
    """The lag of this instance's partitions; of all partitions while it has no connection.

    `ages` are the seconds since the oldest unconsumed record of each partition was written, 0 without one. A partition
    is missing where that record has no timestamp; all are missing when Kafka did not answer. `seconds` is the greatest
    age.
    """

    partitions: list[PartitionLag]
    records: int | None
    ages: dict[int, float]

    @property
    def waiting_for_transaction(self) -> int | None:
        """The part of the lag behind another client's open transaction; None when it is unknown."""
        return None if self.records is None else sum(p.waiting_for_transaction or 0 for p in self.partitions)

    @property
    def seconds(self) -> float | None:
        """The age of the oldest record that is not consumed yet; None when that is not known of a partition."""
        if len(self.ages) < len(self.partitions):
            return None
        return max(self.ages.values(), default=0.0 if self.records == 0 else None)

    def is_behind(self, partition: int, offset: int) -> bool:
        """Return whether the group is known not to have consumed a record yet."""
        return any(
            one.partition == partition and one.end is not None and (one.committed or 0) <= offset
            for one in self.partitions
        )


class LagMeter:
    """Measures the lag of a group on a topic."""

    def __init__(self, offsets: GroupOffsets) -> None:
        self._offsets = offsets
        self._oldest: Mapping[int, int] = {}
        self._read: frozenset[int] = frozenset()
        self._read_at = -FRESH_S

    async def measure(self, consumer: AIOKafkaConsumer | None) -> Lag:
        """Return the lag of the partitions of `consumer`, of all partitions without one; within 8 s.

        It is unknown (`records` is None) when Kafka does not answer, or the topic was not seen yet.
        """
        positions = await _positions(consumer)
        try:
            offsets = await self._offsets.read()
        except KAFKA_ERRORS:
            return Lag([PartitionLag(p, at, None, None, None) for p, at in sorted(positions.items())], None, {})
        if not offsets:
            return Lag([], None, {})
        numbers = sorted(offsets if consumer is None else positions)
        partitions = [
            _of_partition(partition, positions.get(partition), offsets.get(partition)) for partition in numbers
        ]
        lags = [partition.lag for partition in partitions]
        known = None if None in lags else sum(lag or 0 for lag in lags)
        return Lag(partitions, known, await self._ages({p: offsets[p] for p in numbers if p in offsets}))

    async def _ages(self, offsets: Mapping[int, Offsets]) -> dict[int, float]:
        behind = {partition: one for partition, one in offsets.items() if one.lag}
        try:
            oldest = await self._timestamps(behind)
        except KAFKA_ERRORS:
            return {}
        now = time.time()
        ages = dict.fromkeys(offsets.keys() - oldest.keys(), 0.0)
        return ages | {
            partition: max(0.0, round(now - timestamp / 1_000, 3))
            for partition, timestamp in oldest.items()
            if timestamp != NO_TIMESTAMP
        }

    async def _timestamps(self, behind: Mapping[int, Offsets]) -> Mapping[int, int]:
        """Return the timestamp of each partition's first unconsumed record; cached for 3 s for the same partitions.

        Reading one fetches a batch, and open pages ask every second when the consumer is busiest. Where only aborted
        transactions follow, no record waits, unless one follows an open transaction.
        """
        if behind.keys() != self._read or time.monotonic() - self._read_at >= FRESH_S:
            ranges = {p: (max(one.first, one.next), one.stable) for p, one in behind.items()}
            found = await self._offsets.stable.timestamps(ranges) if behind else {}
            waiting = {p: (one.stable, one.end) for p, one in behind.items() if p not in found and one.waiting}
            if waiting:
                found |= await self._offsets.every.timestamps(waiting)
            self._oldest, self._read, self._read_at = found, frozenset(behind), time.monotonic()
        return self._oldest


def _of_partition(partition: int, position: int | None, offsets: Offsets | None) -> PartitionLag:
    if offsets is None:  # it was added just now
        return PartitionLag(partition, position, None, None, None)
    return PartitionLag(partition, position, offsets.committed, offsets.end, offsets.lag, offsets.waiting)


async def _positions(consumer: AIOKafkaConsumer | None) -> dict[int, int | None]:
    """Return the next offset to read of each assigned partition, None where it is unknown, without asking Kafka."""
    if consumer is None:
        return {}
    known = {tp.partition: position for tp, position in (await positions_of(consumer)).items()}
    return {tp.partition: known.get(tp.partition) for tp in consumer.assignment()}
