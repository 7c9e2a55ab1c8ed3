"""A Kafka in memory, for tests of the pair.

FastStream's `TestKafkaBroker` carries what the producer publishes to the consumer's subscribers. They keep it here and
poll it as they poll Kafka, so a batch that was not committed is redelivered. A group has one member. Receipts have no
offsets, because `TestKafkaBroker` knows none.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar
from uuid import UUID

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.structs import OffsetAndMetadata, RecordMetadata
from faststream import Response
from faststream.kafka import KafkaBroker
from faststream.kafka.subscriber.usecase import BatchSubscriber

from apps.chassis.internals.fetched_batches import FetchedRecord
from apps.chassis.kafka.client_journal import ClientJournal
from apps.chassis.kafka.clients import ClientOptions
from apps.chassis.kafka.cluster import Cluster
from apps.chassis.kafka.connection import Connection
from apps.chassis.kafka.consumer_groups import Member
from apps.chassis.kafka.kafka import Kafka
from apps.chassis.kafka.log_reader import LogReader
from apps.chassis.kafka.topic_settings import Topic
from contracts.dead_letter import Header

PARTITIONS = 6
POLL_MS = 5
MEMBER = "in memory"
Content = tuple[bytes | None, bytes | None, Sequence[Header]]
"""Key, value and headers."""


class Memory:
    """Topics in memory. Pass `kafka` to both services, and then their `brokers` to `TestKafkaBroker`."""

    def __init__(self) -> None:
        self.brokers: list[KafkaBroker] = []
        self.records: defaultdict[TopicPartition, list[FetchedRecord]] = defaultdict(list)
        self.committed: dict[TopicPartition, OffsetAndMetadata] = {}
        self.hidden_from: dict[TopicPartition, int] = {}  # where an open transaction begins
        self.kafka = Kafka(
            partial(MemoryConnection, self),
            partial(MemoryCluster, self),
            partial(MemoryReader, self),
            partial(MemoryProducer, self),
            _no_topic_ids,
        )

    def append(self, topic: str, partition: int, timestamp: int, content: Content) -> None:
        """Keep a record at the end of its partition."""
        records = self.records[TopicPartition(topic, partition)]
        records.append(FetchedRecord(topic, partition, len(records), timestamp, *content))


class MemorySubscriber(BatchSubscriber):
    """Keeps what `TestKafkaBroker` delivers, and processes what the consume loop polls."""

    __slots__ = ()
    memory: ClassVar[Memory]

    async def process_message(self, msg: Any) -> Any:  # noqa: ANN401 - as FastStream has it
        if isinstance(msg, tuple):
            return await super().process_message(msg)
        for one in msg:
            self.memory.append(one.topic, one.partition, one.timestamp, (one.key, one.value, one.headers))
        return Response(None)


class MemoryConnection(Connection):
    """Holds one broker, whose subscribers consume meanwhile: `TestKafkaBroker` alone starts no consume loop."""

    def __init__(
        self,
        memory: Memory,
        make: Callable[[], KafkaBroker],
        prepare: Callable[[], Awaitable[None]],
        journal: ClientJournal,
    ) -> None:
        self._broker = make()
        self._memory = memory
        super().__init__(lambda: self._broker, prepare, journal)
        memory.brokers.append(self._broker)
        for subscriber in self._broker.subscribers:  # what is published from now on is kept, until it is polled
            bases = MemorySubscriber, type(subscriber)
            subscriber.__class__ = type("Subscriber", bases, {"__slots__": (), "memory": memory})

    async def stay_connected(self) -> None:
        self._broker.config.broker_config.builder = partial(MemoryConsumer, self._memory)
        for subscriber in self._broker.subscribers:
            await subscriber.start()
        try:
            await super().stay_connected()
        finally:
            for subscriber in self._broker.subscribers:
                await subscriber.stop()


class MemoryConsumer:
    """Reads topics in memory as an `AIOKafkaConsumer` does."""

    def __init__(self, memory: Memory, isolation_level: str = "read_committed", **_: object) -> None:
        self.memory = memory
        self._hidden_from = memory.hidden_from if isolation_level == "read_committed" else {}
        self._positions: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()
        self._coordinator = SimpleNamespace(member_id=MEMBER, generation=1)
        self._fetcher = SimpleNamespace(_preferred_read_replica={})

    def subscribe(self, topics: Sequence[str], pattern: None, listener: ConsumerRebalanceListener) -> None:  # noqa: ARG002 - aiokafka's
        """Assign all partitions of the topics, from the committed offsets on."""
        tps = [TopicPartition(topic, partition) for topic in topics for partition in range(PARTITIONS)]
        committed = self.memory.committed
        self._positions = {tp: committed[tp].offset if tp in committed else 0 for tp in tps}
        self._listener = listener

    async def start(self) -> None:
        if self._positions:
            await self._listener.on_partitions_assigned(self.assignment())

    async def stop(self) -> None: ...

    def assign(self, tps: Sequence[TopicPartition]) -> None:
        self._positions = dict.fromkeys(tps, 0)
        self._paused.clear()

    def unsubscribe(self) -> None:
        self._positions.clear()

    def assignment(self) -> set[TopicPartition]:
        return set(self._positions)

    def paused(self) -> set[TopicPartition]:
        return self._paused & self.assignment()

    def pause(self, *tps: TopicPartition) -> None:
        self._paused.update(tps)

    def resume(self, *tps: TopicPartition) -> None:
        self._paused.difference_update(tps)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._positions[partition] = offset

    async def position(self, tp: TopicPartition) -> int:
        return self._positions[tp]

    async def commit(self, offsets: Mapping[TopicPartition, tuple[int, str]]) -> None:
        self.memory.committed.update({tp: OffsetAndMetadata(*commit) for tp, commit in offsets.items()})

    def last_poll_timestamp(self, _: TopicPartition) -> int:
        return int(time.time() * 1_000)

    def last_stable_offset(self, tp: TopicPartition) -> int:
        end = len(self.memory.records[tp])
        return min(end, self._hidden_from.get(tp, end))

    async def beginning_offsets(self, tps: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(tps, 0)

    async def end_offsets(self, tps: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return {tp: self.last_stable_offset(tp) for tp in tps}

    async def offsets_for_times(
        self, times: Mapping[TopicPartition, int]
    ) -> dict[TopicPartition, FetchedRecord | None]:
        """Return the first record of each partition at or after a time: it has the offset and the time."""
        read = {tp: self.memory.records[tp][: self.last_stable_offset(tp)] for tp in times}
        return {tp: next((one for one in read[tp] if one.timestamp >= at), None) for tp, at in times.items()}

    async def getmany(
        self, *tps: TopicPartition, timeout_ms: int = 0, max_records: int | None = None
    ) -> dict[TopicPartition, list[FetchedRecord]]:
        """Return the next records of some partitions; wait a little when there are none."""
        found: dict[TopicPartition, list[FetchedRecord]] = {}
        for tp in set(tps or self._positions) - self._paused:
            visible = slice(self._positions[tp], self.last_stable_offset(tp))
            if batch := self.memory.records[tp][visible][:max_records]:
                found[tp] = batch
                self._positions[tp] += len(batch)
        await asyncio.sleep(0 if found else min(timeout_ms, POLL_MS) / 1_000)
        return found


class MemoryReader(LogReader):
    """Reads a topic in memory."""

    def __init__(self, memory: Memory, options: ClientOptions, topic: str, *, committed_only: bool = True) -> None:
        super().__init__(options, topic, committed_only=committed_only)
        self._memory = memory

    def _new_consumer(self, _: int) -> AIOKafkaConsumer:
        return MemoryConsumer(self._memory, self._isolation)


class MemoryCluster(Cluster):
    """Topics that exist, and a group with one member."""

    def __init__(
        self, memory: Memory, options: ClientOptions, topics: Sequence[Topic], group: str | None = None
    ) -> None:
        super().__init__(options, topics, group)
        self._memory = memory
        self.partitions = {topic.name: PARTITIONS for topic in topics}

    async def ensure_topics(self) -> None: ...

    async def trouble(self) -> str | None:
        return None

    async def watch(self, every_s: float = 0) -> None: ...

    async def topic_id(self, topic: str) -> UUID | None:  # noqa: ARG002 - as of a Kafka that gives none
        return None

    async def commits(self, group: str, topic: str) -> dict[int, OffsetAndMetadata | None]:  # noqa: ARG002 - one group a topic
        return {
            partition: self._memory.committed.get(TopicPartition(topic, partition)) for partition in range(PARTITIONS)
        }

    async def members(self, group: str, topic: str) -> tuple[str, list[Member]]:  # noqa: ARG002 - likewise
        return "Stable", [Member(MEMBER, "consumer", "127.0.0.1", list(range(PARTITIONS)))]


class MemoryProducer:
    """Writes dead letters, and what handlers publish, to memory, as an `AIOKafkaProducer` does."""

    def __init__(self, memory: Memory, **_: object) -> None:
        self._memory = memory

    async def start(self) -> None: ...
    async def stop(self) -> None: ...

    async def partitions_for(self, _: str) -> set[int]:
        return set(range(PARTITIONS))

    def create_batch(self) -> "MemoryBatch":
        return MemoryBatch()

    async def send_batch(self, batch: "MemoryBatch", topic: str, *, partition: int) -> "asyncio.Future[RecordMetadata]":
        for content in batch.records:
            self._memory.append(topic, partition, time.time_ns() // 1_000_000, content)
        written: asyncio.Future[RecordMetadata] = asyncio.get_running_loop().create_future()
        written.set_result(RecordMetadata(topic, partition, None, 0, None, 0, 0))
        return written


class MemoryBatch:
    """A batch without a size."""

    def __init__(self) -> None:
        self.records: list[Content] = []

    def append(self, *, key: bytes | None, value: bytes | None, headers: Sequence[Header], **_: object) -> bool:
        self.records.append((key, value, headers))
        return True


async def _no_topic_ids(_: AIOKafkaConsumer, tps: Collection[TopicPartition]) -> Mapping[TopicPartition, UUID | None]:
    return dict.fromkeys(tps)
