"""Stand-ins for Kafka, for its clients and for a clock: what tests pass where a service has the real ones."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace

from aiokafka import TopicPartition
from aiokafka.errors import CorruptRecordException

from apps.chassis.kafka.connection import Connection
from apps.chassis.kafka.kafka import REAL
from tests.batches import Stored

A_WHILE = 0.01
"""Seconds: a wait that is to pass."""
Ranges = Mapping[int, tuple[int, int]]


class ImpatientConnection(Connection):
    """A connection that nobody waits for, because no Kafka answers."""

    async def connected(self, timeout_s: float) -> bool:
        return await super().connected(min(timeout_s, A_WHILE))


NO_KAFKA = replace(REAL, connection=ImpatientConnection)
"""What connects a service whose Kafka never answers."""


class Clock:
    """Tells the time that the test sets, in seconds."""

    now = 1_000.0

    def __call__(self) -> float:
        return self.now


class GroupMember:
    """A client of a group whose positions and commits are dictionaries; `errors` are raised by the next commits."""

    def __init__(self, positions: Mapping[int, int] | None = None) -> None:
        self.positions = dict(positions or {})
        self.commits: dict[int, tuple[int, str]] = {}
        self.first: dict[int, int] = {}
        self.end: dict[int, int] = {}
        self.errors: list[Exception] = []
        self._fetcher = SimpleNamespace(_preferred_read_replica={})
        self._coordinator = SimpleNamespace(member_id="member", generation=1)

    def lose_session(self) -> None:
        """Be no member any more, as aiokafka is until it has joined again."""
        self._coordinator = SimpleNamespace(member_id="", generation=-1)

    def assignment(self) -> set[TopicPartition]:
        return {TopicPartition("events", partition) for partition in self.positions}

    def last_poll_timestamp(self, _: TopicPartition) -> int:
        return 1

    def paused(self) -> set[TopicPartition]:
        return set()

    def last_stable_offset(self, _: TopicPartition) -> int | None:
        return None

    async def position(self, tp: TopicPartition) -> int:
        return self.positions[tp.partition]

    async def beginning_offsets(self, tps: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return {tp: self.first.get(tp.partition, 0) for tp in tps}

    async def end_offsets(self, tps: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return {tp: self.end[tp.partition] for tp in tps}

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.positions[partition.partition] = offset

    async def commit(self, offsets: Mapping[TopicPartition, tuple[int, str]]) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.commits |= {tp.partition: commit for tp, commit in offsets.items()}


class StoredTopic:
    """The records of a topic by partition, read as `LogReader` reads them, and not behind `end` (of any partition)."""

    def __init__(self, records: Mapping[int, Sequence[Stored]], end: int | None = None, topic: str = "events") -> None:
        self.topic = topic
        self.records = {partition: list(stored) for partition, stored in records.items()}
        self.damaged: set[int] = set()
        self._end = end

    def end(self, partition: int) -> int:
        stored = self.records.get(partition, [])
        return self._end if self._end is not None else stored[-1].offset + 1 if stored else 0

    async def offsets(self, partitions: int) -> tuple[dict[int, int], dict[int, int]]:
        return dict.fromkeys(range(partitions), 0), {partition: self.end(partition) for partition in range(partitions)}

    async def ends(self, partitions: int) -> dict[int, int]:
        return (await self.offsets(partitions))[1]

    async def timestamps(self, ranges: Ranges) -> dict[int, int]:
        found = {partition: self._between(partition, *places) for partition, places in ranges.items()}
        return {partition: records[0].timestamp for partition, records in found.items() if records}

    async def at_time(self, time: int, end: Mapping[int, int]) -> dict[int, int]:
        return {
            partition: next((one.offset for one in self.records.get(partition, []) if one.timestamp >= time), stop)
            for partition, stop in end.items()
        }

    async def dated_after(self, times: Mapping[int, int]) -> dict[int, tuple[int, int]]:
        assert all(0 <= time < 2**63 - 1 for time in times.values())
        later = [
            (partition, next((one for one in self.records.get(partition, []) if one.timestamp > time), None))
            for partition, time in times.items()
        ]
        return {partition: (record.offset, record.timestamp) for partition, record in later if record}

    async def some(self, ranges: Ranges, max_bytes: int) -> tuple[list[Stored], dict[int, int]]:
        """Return one record of each partition, and how far that came."""
        assert max_bytes > 0
        first = {partition: self._between(partition, *places)[:1] for partition, places in ranges.items()}
        reached = {one: first[one][0].offset + 1 if first[one] else stop for one, (_, stop) in ranges.items()}
        return [record for records in first.values() for record in records], reached

    async def read(self, ranges: Ranges) -> AsyncIterator[list[Stored]]:
        for partition, (start, stop) in ranges.items():
            assert stop <= self.end(partition), "nothing ever comes from behind the end of a partition"
            if partition in self.damaged:
                raise CorruptRecordException
            for record in self._between(partition, start, stop):
                yield [record]

    def _between(self, partition: int, start: int, stop: int) -> list[Stored]:
        return [record for record in self.records.get(partition, []) if start <= record.offset < stop]
