"""Batch in, commit out: what happens between a fetched batch and its commit.

Each record is decoded by itself. Good records go to the handler and bad ones to the dead letters; then the batch is
committed and counted. In this order a crash at any point loses nothing, no record is dead-lettered before its
neighbours were handled, and nothing counts as consumed that will be redelivered. Raising commits nothing, and the batch
is redelivered.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
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

from apps.chassis.observability.logs import one_line, without_values
from apps.consumer.consuming.commits import CommitRefused, Commits, positions_of
from apps.consumer.consuming.consumption import Consumption, Outcome
from contracts.record import Record

POLL_MS = 500
"""Milliseconds that an empty poll takes; one that finds records ends at once."""
DRAIN = 10.0
"""Seconds that a rebalance waits for the in-flight batch, so that no other member handles it too."""
BREAK_OFF_S = DRAIN - 1
"""Seconds of these after which a running handler is cancelled: finished records are then committed."""
REBALANCE_MS = 30_000
"""Milliseconds that a member has to give up its partitions: more than `DRAIN` and a heartbeat."""
MOST_BYTES = 8 * 1024 * 1024
"""Bytes of values after which a poll reaches no further for newer records."""
STALE = 20.0
"""Seconds without a poll, and without an in-flight batch, after which a consume loop counts as wedged."""
LONGEST_BATCH_MS = 30 * 60 * 1000
"""Milliseconds that a batch may take, with all its attempts, before Kafka gives its partitions to another member."""


class FetchedBatch(KafkaAckableMessage):
    """A batch that counts as consumed once Kafka accepts its commit: FastStream logs a refused one, and goes on.

    `polled` is the position after it in each of its partitions, `outcome` its result.
    """

    outcome: Outcome | None = None

    def __init__(self, listener: "Drain", polled: Mapping[TopicPartition, int], **fields: Any) -> None:  # noqa: ANN401 - those of FastStream
        super().__init__(**fields)
        self._listener = listener
        self._polled = polled

    async def ack(self) -> None:
        """Commit the batch and count it; a batch whose commit is refused is not counted, and will be redelivered."""
        if self.committed is None:
            consumption = self._listener.consumption
            try:
                await self._listener.commits.commit(self.consumer, self._polled, consumption.leaving)
            except CommitRefused:
                await self.nack()
                return
            self.committed = AckStatus.ACKED
            if self.outcome is not None:
                consumption.settle(self.outcome)
        await super().ack()

    async def go_back(self, firsts: Mapping[tuple[str, int], int]) -> None:
        """Go back to the first unfinished record of each partition; records before it are committed.

        If the partitions were revoked meanwhile nothing is moved, and the commit is refused.
        """
        positions = await positions_of(self.consumer)
        if all(positions.get(tp) == position for tp, position in self._polled.items()):
            unfinished = {TopicPartition(*partition): first for partition, first in firsts.items()}
            for tp, first in unfinished.items():
                self.consumer.seek(partition=tp, offset=first)
            self._polled = {**self._polled, **unfinished}

    async def nack(self) -> None:
        """Go back to the batch's first records, unless its partitions were revoked and are read elsewhere anyway."""
        with suppress(IllegalStateError):
            positions = await positions_of(self.consumer)
            if all(positions.get(tp) == position for tp, position in self._polled.items()):
                await super().nack()


class Drain(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka ships no types
    """Lets the in-flight batch be committed before its partitions are revoked.

    `polled` is the position after the last batch in each of its partitions.
    """

    def __init__(
        self, consumption: Consumption, commits: Commits, on_assigned: Callable[[set[TopicPartition]], None]
    ) -> None:
        self.subscriber: BatchSubscriber | None = None
        self.consumption = consumption
        self.commits = commits
        self.polled: Mapping[TopicPartition, int] = {}
        self._on_assigned = on_assigned

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """Wait for the in-flight batch, at most 10 s."""
        if revoked and self.subscriber is not None:
            self.consumption.leaving.set(BREAK_OFF_S)
            await self.subscriber.lock.wait_release(DRAIN)  # type: ignore[attr-defined]  # a MultiLock once started

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """Resume after an assignment, paused if an operator wants that, and report the partitions.

        An assignment does not pause by itself.
        """
        self.consumption.assigned({(tp.topic, tp.partition) for tp in assigned})
        self.commits.assigned()
        if self.consumption.paused and self.subscriber is not None and self.subscriber.consumer is not None:
            self.subscriber.consumer.pause(*assigned)
        self._on_assigned(assigned)


class PromptSubscriber(BatchSubscriber):
    """Polls again at once: FastStream's own sleeps after an empty poll as long as that took.

    Short polls would make that hardly felt, but a service that has nothing to do would be busy with them.

    What cannot be read is noted, and tried again with the next polls, which go on for other partitions meanwhile.
    """

    __slots__ = ()
    _listener: Drain

    async def get_msg(self, consumer: AIOKafkaConsumer) -> tuple[Any, ...]:
        """Return the records of a poll, if there were any.

        Other results of a poll (an unusable position, or one that moved without a record) are committed under the lock:
        a rebalance and a seek wait for them.
        """
        commits = self._listener.commits
        await commits.begin(consumer)
        if self._listener.consumption.accepting and (done := await at_their_end(consumer)):
            assigned = {tp.partition for tp in consumer.assignment()}
            self._listener.consumption.caught_up({tp.partition for tp in done}, assigned)
        try:
            fetched = await consumer.getmany(
                timeout_ms=self.batch_timeout_ms, max_records=self._listener.consumption.most_records
            )
        except CorruptRecordException as error:  # nothing was read with it: see `record_fetching`
            self._listener.consumption.note_unreadable(one_line(error))
            return ()
        except (OffsetOutOfRangeError, NoOffsetForPartitionError) as error:
            with self.lock:
                moved = await commits.reset(consumer, error)
                self._listener.consumption.attempts.drop({(tp.topic, tp.partition) for tp in moved})
            return ()
        if fetched and self._listener.consumption.wants_newer:
            await self._reach_newer(consumer, fetched)
        if not fetched:
            with self.lock:
                await commits.commit_idle(consumer)
        self._listener.polled = {tp: await consumer.position(tp) for tp in fetched}
        return tuple(chain.from_iterable(fetched.values()))

    async def _reach_newer(self, consumer: AIOKafkaConsumer, fetched: dict[TopicPartition, list[Record]]) -> None:
        """Add further fetches to a poll: one holds 1 MiB of a partition, and all of it may wait for a suspect's key."""
        most = self._listener.consumption.most_records
        with self.lock, suppress(KafkaError):  # the next poll meets the error again; a rebalance and a seek wait
            while await has_newer(consumer):
                records = list(chain.from_iterable(fetched.values()))
                if len(records) >= most or sum(len(one.value or b"") for one in records) >= MOST_BYTES:
                    return
                more = await consumer.getmany(timeout_ms=self.batch_timeout_ms, max_records=most - len(records))
                if not more:
                    return
                for tp, further in more.items():
                    fetched.setdefault(tp, []).extend(further)

    async def process_message(self, msg: tuple[Any, ...]) -> Any:  # noqa: ANN401 - FastStream's `Response`
        """Process a batch; it is in flight until it is committed or abandoned."""
        consumption = self._listener.consumption
        consumption.busy_since = time.time()
        try:
            return await super().process_message(msg)
        finally:
            consumption.idle_since, consumption.busy_since = time.time(), None


def subscribe(  # noqa: PLR0913, PLR0917 - the parts of a subscriber
    broker: KafkaBroker,
    topic: str,
    group: str,
    consumption: Consumption,
    commits: Commits,
    on_assigned: Callable[[set[TopicPartition]], None] = lambda _: None,
) -> BatchSubscriber:
    """Register the subscriber on a broker that is not started yet.

    FastStream's own parser raises for a null or binary header, and the batch is lost then
    (https://github.com/ag2ai/faststream/issues/2458): parser and decoder here never raise.
    """
    drain = Drain(consumption, commits, on_assigned)

    async def parse(records: Sequence[Record]) -> FetchedBatch:
        first = records[0]
        return FetchedBatch(
            body=b"",
            headers={},
            batch_headers=[],
            content_type=None,
            reply_to="",
            correlation_id=None,
            raw_message=tuple(records),
            message_id=f"{first.topic}-{first.partition}-{first.offset}",
            consumer=subscriber.consumer or FAKE_CONSUMER,
            listener=drain,
            polled=drain.polled,
        )

    async def take(message: FetchedBatch) -> FetchedBatch:
        return message

    subscriber = broker.subscriber(
        topic,
        batch=True,
        group_id=group,
        auto_offset_reset="none",  # the first record, but `Commits` must know of it
        ack_policy=AckPolicy.NACK_ON_ERROR,
        isolation_level="read_committed",
        max_records=consumption.size.records,
        max_partition_fetch_bytes=consumption.attempts.policy.batching.partition_bytes,
        batch_timeout_ms=POLL_MS,
        max_poll_interval_ms=LONGEST_BATCH_MS,
        rebalance_timeout_ms=REBALANCE_MS,
        listener=drain,
        parser=parse,
        decoder=take,
        title=topic,
        description="Each record is one value.",
    )

    subscriber.__class__ = PromptSubscriber  # FastStream makes its own, whatever one asks for

    @subscriber
    async def consume(batch: Any) -> None:  # noqa: ANN401 - decoded already: any other annotation validates it again
        batch.clear_cache()  # it holds itself there: its records would stay until a garbage collection
        batch.outcome = outcome = await consumption.consume(batch.raw_message, newer)
        if outcome.redelivered:
            await batch.go_back(outcome.redelivered)

    async def newer() -> bool:
        return subscriber.consumer is not None and await has_newer(subscriber.consumer)

    drain.subscriber = subscriber
    return subscriber


async def has_newer(consumer: AIOKafkaConsumer) -> bool:
    """Return whether records wait behind what was polled, without asking Kafka."""
    for tp in consumer.assignment() - consumer.paused():
        end = consumer.last_stable_offset(tp)
        if end is not None and end > await consumer.position(tp):
            return True
    return False


async def at_their_end(consumer: AIOKafkaConsumer) -> set[TopicPartition]:
    """Return the partitions behind whose position no record waits, as far as the last fetch told."""
    read = consumer.assignment() - consumer.paused()
    ends = {tp: consumer.last_stable_offset(tp) for tp in read}
    return {tp for tp, end in ends.items() if end is not None and end <= await consumer.position(tp)}


def ailment(
    subscriber: BatchSubscriber, consumption: Consumption, commits: Commits, since_throttling: float = math.inf
) -> str | None:
    """Return why a started consume loop has stopped consuming, or None.

    A broker that throttles by a quota sends nothing: silence counts from the end of the throttling, `since_throttling`
    seconds ago. A loop can end, or stop polling without a batch in flight, while `running` is true and the broker
    answers a ping: after a cancelled coordination task, or when the right to the group was revoked and restored.
    """
    consumer = subscriber.consumer
    if ended := [task for task in subscriber.tasks if task.done()]:
        error = None if ended[0].cancelled() else ended[0].exception()
        return "the consume loop has ended" + (f": {without_values(error)}" if error else "")
    if consumer is None:
        return "the consume loop was not started"
    if not subscriber.lock.empty:  # type: ignore[attr-defined]  # a MultiLock once started; a batch is in flight
        if (since := commits.retrying_since) and time.time() - since > STALE:
            return f"the commit of the in-flight batch has failed for {time.time() - since:.0f} s: {commits.error}"
        busy = time.time() - (consumption.busy_since or time.time())
        too_long = busy > LONGEST_BATCH_MS / 1_000
        return f"the in-flight batch takes {busy:.0f} s: Kafka revoked its partitions" if too_long else None
    polls = [consumer.last_poll_timestamp(tp) for tp in consumer.assignment() - consumer.paused()]
    last = max([consumption.idle_since, *(poll / 1_000 for poll in polls if poll)])
    silent = min(time.time() - last, since_throttling)
    return f"the consume loop has not polled for {silent:.0f} s" if polls and silent > STALE else None
