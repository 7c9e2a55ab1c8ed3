"""Poll batches, have `Consumption` process each, and commit what is finished. A rebalance waits for the batch.

When processing raises, nothing is committed, and the batch is redelivered.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import (
    CorruptRecordException,
    IllegalStateError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)
from faststream import AckPolicy
from faststream.kafka import KafkaBroker
from faststream.kafka.message import FAKE_CONSUMER, KafkaAckableMessage
from faststream.kafka.subscriber.usecase import BatchSubscriber
from faststream.message import AckStatus

from apps.chassis.internals.batch_subscriber import locked, poll_by, wait_for_batch
from apps.chassis.internals.nearest_replica import ask_leaders
from apps.chassis.observability.logs import one_line
from apps.consumer.consuming.commits import CommitRefused, Commits, positions_of
from apps.consumer.consuming.consumption import Consumption
from apps.consumer.consuming.findings import Partition
from apps.consumer.consuming.outcome import Outcome
from contracts.record import Record, memory_of

POLL_MS = 500
"""Milliseconds that an empty poll takes; one that finds records ends at once."""
DRAIN_S = 10.0
"""Seconds that a rebalance waits for the in-flight batch, so that no other member handles it too."""
CANCEL_AFTER_S = DRAIN_S - 1
"""Seconds of these after which a running handler is cancelled: finished records are then committed."""
REBALANCE_MS = 30_000
"""Milliseconds that a member has to give up its partitions: more than `DRAIN_S` and a heartbeat."""
MAX_POLL_BYTES = 8 * 1024 * 1024
"""Bytes of records after which a poll reaches no further for newer records."""
MAX_POLL_INTERVAL_MS = 30 * 60 * 1000
"""Milliseconds that a batch may take, with all its attempts, before Kafka gives its partitions to another member."""


def subscribe(  # noqa: PLR0913, PLR0917 - the parts of a subscriber
    broker: KafkaBroker,
    topic: str,
    group: str,
    consumption: Consumption,
    commits: Commits,
    on_assigned: Callable[[set[TopicPartition]], None] = lambda _: None,
) -> BatchSubscriber:
    """Register the subscriber on a broker that is not started yet."""
    loop = ConsumeLoop(consumption, commits, on_assigned)
    batching = consumption.policy.batching

    @broker.subscriber(
        topic,
        batch=True,
        group_id=group,
        auto_offset_reset="none",  # not `earliest`: `Commits.reset` goes there itself, so that the move is reported
        ack_policy=AckPolicy.NACK_ON_ERROR,
        isolation_level="read_committed",
        max_records=batching.records,
        max_partition_fetch_bytes=batching.partition_bytes,
        batch_timeout_ms=POLL_MS,
        max_poll_interval_ms=MAX_POLL_INTERVAL_MS,
        session_timeout_ms=int(consumption.policy.session_timeout_s * 1_000),
        rebalance_timeout_ms=REBALANCE_MS,
        listener=loop,
        parser=loop.parse,
        decoder=loop.decode,
        title=topic,
        description="Each record is one value.",
    )
    async def consume(batch: Any) -> None:  # noqa: ANN401 - decoded already: any other annotation validates it again
        await loop.consume(batch)

    subscriber = broker.subscribers[-1]
    assert isinstance(subscriber, BatchSubscriber)  # noqa: S101 - of `batch=True`
    poll_by(subscriber, loop.poll, loop.in_flight)
    loop.subscriber = subscriber
    return subscriber


class FetchedBatch(KafkaAckableMessage):
    """A batch that counts as consumed once Kafka accepts its commit: FastStream logs a refused one, and goes on.

    `polled` is the position after it in each of its partitions, `outcome` its result.
    """

    outcome: Outcome | None = None

    def __init__(self, loop: "ConsumeLoop", records: Sequence[Record], consumer: Any) -> None:  # noqa: ANN401 - a client, or FastStream's fake
        first = records[0]
        super().__init__(
            raw_message=tuple(records),
            body=b"",
            headers={},
            batch_headers=[],
            message_id=f"{first.topic}-{first.partition}-{first.offset}",
            consumer=consumer,
        )
        self._consumption = loop.consumption
        self._commits = loop.commits
        self._polled = loop.polled

    async def ack(self) -> None:
        """Commit the batch and count it; a batch whose commit is refused is not counted, and will be redelivered."""
        if self.committed is None:
            abandonment = self._consumption.abandonment
            try:
                await self._commits.commit(self.consumer, self._polled, lambda: abandonment.is_asked)
            except CommitRefused:
                await self.nack()
                return
            self.committed = AckStatus.ACKED
            if self.outcome is not None:
                self._consumption.settle(self.outcome)
        await super().ack()

    async def go_back(self, firsts: Mapping[Partition, int]) -> None:
        """Go back to the first unfinished record of each partition; records before it are committed.

        If the partitions were revoked in between, nothing is moved and the commit is refused.
        """
        if await self._is_current():
            unfinished = {TopicPartition(*partition): first for partition, first in firsts.items()}
            for tp, first in unfinished.items():
                self.consumer.seek(partition=tp, offset=first)
            self._polled = {**self._polled, **unfinished}

    async def nack(self) -> None:
        """Go back to the batch's first records, unless its partitions were revoked and are read elsewhere anyway."""
        with suppress(IllegalStateError):
            if await self._is_current():
                await super().nack()

    async def _is_current(self) -> bool:
        positions = await positions_of(self.consumer)
        return all(positions.get(tp) == position for tp, position in self._polled.items())


class ConsumeLoop(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka ships no types
    """What FastStream calls: a poll, the steps of a batch, and rebalances, which wait for the in-flight batch.

    `polled` is the position after the last batch in each of its partitions.
    """

    def __init__(
        self,
        consumption: Consumption,
        commits: Commits,
        on_assigned: Callable[[set[TopicPartition]], None] = lambda _: None,
    ) -> None:
        self.subscriber: BatchSubscriber | None = None
        self.consumption = consumption
        self.commits = commits
        self.polled: Mapping[TopicPartition, int] = {}
        self._on_assigned = on_assigned

    @property
    def consumer(self) -> AIOKafkaConsumer | None:
        """The client that consumes; None before the start."""
        return self.subscriber.consumer if self.subscriber else None

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """Wait for the in-flight batch, at most 10 s."""
        if revoked and self.subscriber is not None:
            self.consumption.abandonment.ask("rebalance", CANCEL_AFTER_S)
            await wait_for_batch(self.subscriber, DRAIN_S)

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """Resume after an assignment, paused if an operator wants that, and report the partitions.

        The client resumes newly assigned partitions.
        """
        self.consumption.assigned(assigned)
        self.commits.assigned()
        if self.consumer is not None:
            ask_leaders(self.consumer, assigned)
        if self.consumption.paused and self.consumer is not None:
            self.consumer.pause(*assigned)
        self._on_assigned(assigned)

    async def poll(self, consumer: AIOKafkaConsumer) -> tuple[Record, ...]:
        """Return the records of a poll, if there were any.

        Other results of a poll (an unusable position, or one that moved without a record) are committed under the
        subscriber's lock: a rebalance and a seek wait for them. What cannot be read is tried again with the next
        polls, which read other partitions too.
        """
        if self.consumption.acceptance.is_on:
            done = [tp.partition for tp, waits in (await records_waiting(consumer)).items() if not waits]
            self.consumption.acceptance.note_recovered(done, [tp.partition for tp in consumer.assignment()])
        fetched: dict[TopicPartition, list[Record]] = {}
        try:
            fetched = await consumer.getmany(timeout_ms=POLL_MS, max_records=self.consumption.max_records)
        except CorruptRecordException as error:  # nothing was read with it: see `record_fetching`
            self.consumption.note_unreadable(one_line(error))
        except (OffsetOutOfRangeError, NoOffsetForPartitionError) as error:
            with locked(self.subscriber):
                await self.commits.begin(consumer)
                self.consumption.forget((await self.commits.reset(consumer, error)).__contains__)
        else:
            with locked(self.subscriber):
                await self.commits.begin(consumer)
                if not fetched:
                    await self.commits.commit_idle(consumer)
                elif self.consumption.redelivery.extra_records:
                    await self._reach_newer(consumer, fetched)
        self.polled = {tp: await consumer.position(tp) for tp in fetched}
        return tuple(chain.from_iterable(fetched.values()))

    async def _reach_newer(self, consumer: AIOKafkaConsumer, fetched: dict[TopicPartition, list[Record]]) -> None:
        """Add further fetches to a poll: one has 1 MiB of a partition, and all of it may wait for a suspect's key."""
        max_records = self.consumption.max_records
        with suppress(KafkaError):  # the next poll meets the error again
            while any((await records_waiting(consumer)).values()):
                records = list(chain.from_iterable(fetched.values()))
                if len(records) >= max_records or memory_of(records) >= MAX_POLL_BYTES:
                    return
                more = await consumer.getmany(timeout_ms=POLL_MS, max_records=max_records - len(records))
                if not more:
                    return
                for tp, further in more.items():
                    fetched.setdefault(tp, []).extend(further)

    async def parse(self, records: Sequence[Record]) -> FetchedBatch:
        """Return a batch as FastStream hands it on; never raises.

        FastStream's own parser raises for a null or binary header, and the batch is lost then
        (https://github.com/ag2ai/faststream/issues/2458).
        """
        return FetchedBatch(self, records, self.consumer or FAKE_CONSUMER)

    async def decode(self, batch: FetchedBatch) -> FetchedBatch:
        """Return a batch as it is: `Consumption` decodes its records."""
        return batch

    async def consume(self, batch: FetchedBatch) -> None:
        """Process a batch, and go back to the first of its records that are to be redelivered."""
        batch.clear_cache()  # it refers to itself there: its records would stay until a garbage collection
        batch.outcome = await self.consumption.consume(batch.raw_message, self._has_newer)
        if batch.outcome.redelivered:
            await batch.go_back(batch.outcome.redelivered)

    async def _has_newer(self) -> bool:
        return self.consumer is not None and any((await records_waiting(self.consumer)).values())

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """Note since when a batch is in flight: until it is committed or abandoned."""
        self.consumption.busy_since = time.monotonic()
        try:
            yield
        finally:
            self.consumption.idle_since, self.consumption.busy_since = time.monotonic(), None


async def records_waiting(consumer: AIOKafkaConsumer) -> dict[TopicPartition, bool]:
    """Return whether records wait behind the position of each partition that is read, as of its last fetch."""
    ends = {tp: consumer.last_stable_offset(tp) for tp in consumer.assignment() - consumer.paused()}
    return {tp: end > await consumer.position(tp) for tp, end in ends.items() if end is not None}
