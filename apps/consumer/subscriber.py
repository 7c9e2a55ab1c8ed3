"""Batch in, commit out: what happens between a fetched batch and its commit.

Every record is decoded apart. The good ones go to the handler, then the bad ones to the dead letters, then the batch is
committed by returning: in this order a crash at any point loses nothing, and what comes again was not dead-lettered
before its neighbours were handled. Raising commits nothing, and the batch comes again.
"""

import time
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import CorruptRecordException
from faststream import AckPolicy
from faststream.kafka import KafkaBroker
from faststream.kafka.message import FAKE_CONSUMER, KafkaAckableMessage
from faststream.kafka.subscriber.usecase import BatchSubscriber

from apps.chassis.logs import one_line, without_values
from apps.consumer.consumption import Consumption
from apps.consumer.window import Record

MOST_RECORDS = 2_000
"""Records of a batch; one call of the handler and one commit for all of them."""
POLL_MS = 500
"""Milliseconds that an empty poll takes; one that finds records ends at once."""
DRAIN = 10.0
"""Seconds that a rebalance waits for the batch in hand, so that no other member handles it too."""
REBALANCE_MS = 30_000
"""Milliseconds that a member has to give up its partitions: more than `DRAIN` and a heartbeat."""
STALE = 20.0
"""Seconds without a poll, and without a batch in hand, after which a consume loop counts as wedged."""
LONGEST_BATCH_MS = 30 * 60 * 1000
"""Milliseconds that a batch may take, with all its attempts, before Kafka gives its partitions to another member."""


class Drain(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka ships no types
    """Lets the batch in hand be committed before its partitions are given to another member."""

    def __init__(self, consumption: Consumption, on_assigned: Callable[[set[TopicPartition]], None]) -> None:
        self.subscriber: BatchSubscriber | None = None
        self.consumption = consumption
        self._on_assigned = on_assigned

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """Wait for the batch in hand, 10 s at most."""
        if revoked and self.subscriber is not None:
            self.consumption.leaving.set()
            await self.subscriber.lock.wait_release(DRAIN)  # type: ignore[attr-defined]  # a MultiLock once started

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """Go on, paused if that is wanted (no assignment is by itself), and tell which partitions there are now."""
        self.consumption.leaving.clear()
        self.consumption.idle_since = time.time()  # what was given out just now could not be polled before
        self.consumption.rebalances += 1
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
        """Return the records of a poll, none when there were none."""
        try:
            fetched = await consumer.getmany(timeout_ms=self.batch_timeout_ms, max_records=self.max_records)
        except CorruptRecordException as error:  # nothing was read with it: see `fetched`
            self._listener.consumption.note_unreadable(one_line(error))
            return ()
        return tuple(chain.from_iterable(fetched.values()))


def subscribe(
    broker: KafkaBroker,
    topic: str,
    group: str,
    consumption: Consumption,
    on_assigned: Callable[[set[TopicPartition]], None] = lambda _: None,
) -> BatchSubscriber:
    """Register the subscriber on a broker that is not started yet.

    FastStream's own parser raises for a null or binary header, and the batch is lost then
    (https://github.com/ag2ai/faststream/issues/2458): parser and decoder here never raise.
    """
    drain = Drain(consumption, on_assigned)

    async def parse(records: Sequence[Record]) -> KafkaAckableMessage:
        first = records[0]
        return KafkaAckableMessage(
            body=b"",
            headers={},
            batch_headers=[],
            content_type=None,
            reply_to="",
            correlation_id=None,
            raw_message=tuple(records),
            message_id=f"{first.topic}-{first.partition}-{first.offset}",
            consumer=subscriber.consumer or FAKE_CONSUMER,
        )

    async def take(message: KafkaAckableMessage) -> Any:  # noqa: ANN401 - whatever FastStream may pass on
        return message.raw_message

    subscriber = broker.subscriber(
        topic,
        batch=True,
        group_id=group,
        auto_offset_reset="earliest",
        ack_policy=AckPolicy.NACK_ON_ERROR,
        isolation_level="read_committed",
        max_records=MOST_RECORDS,
        batch_timeout_ms=POLL_MS,
        max_poll_interval_ms=LONGEST_BATCH_MS,
        rebalance_timeout_ms=REBALANCE_MS,
        listener=drain,
        parser=parse,
        decoder=take,
        title=topic,
        description="People; each record is one.",
    )

    subscriber.__class__ = PromptSubscriber  # FastStream makes its own, whatever one asks for

    @subscriber
    async def consume(records: Any) -> None:  # noqa: ANN401 - decoded already: any other annotation validates it again
        await consumption.consume(records)

    drain.subscriber = subscriber
    return subscriber


def ailment(subscriber: BatchSubscriber, consumption: Consumption) -> str | None:
    """Return why a started consume loop consumes no more, or None.

    It can end, or stop polling although no batch is in hand, while `running` is true and the broker answers a ping:
    after a cancelled coordination task, or when the right to the group was taken away and given back.
    """
    consumer = subscriber.consumer
    if ended := [task for task in subscriber.tasks if task.done()]:
        error = None if ended[0].cancelled() else ended[0].exception()
        return "the consume loop has ended" + (f": {without_values(error)}" if error else "")
    if consumer is None:
        return "the consume loop was not started"
    if not subscriber.lock.empty:  # type: ignore[attr-defined]  # a MultiLock once started; a batch is in hand
        busy = time.time() - (consumption.busy_since or time.time())
        too_long = busy > LONGEST_BATCH_MS / 1_000
        return f"the batch in hand takes {busy:.0f} s: Kafka gave its partitions away" if too_long else None
    polls = [consumer.last_poll_timestamp(tp) for tp in consumer.assignment() - consumer.paused()]
    last = max([consumption.idle_since, *(poll / 1_000 for poll in polls if poll)])
    silent = time.time() - last
    return f"the consume loop has not polled for {silent:.0f} s" if polls and silent > STALE else None
