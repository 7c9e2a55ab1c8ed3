"""Batch in, commit out: what happens between a fetched batch and its commit.

Every record is decoded apart. The good ones go to the handler, then the bad ones to the dead letters, then the batch is
committed by returning: in this order a crash at any point loses nothing, and what comes again was not dead-lettered
before its neighbours were handled. Raising commits nothing, and the batch comes again.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import CorruptRecordException
from faststream import AckPolicy
from faststream.kafka import KafkaBroker
from faststream.kafka.message import FAKE_CONSUMER, KafkaAckableMessage
from faststream.kafka.subscriber.usecase import BatchSubscriber

from apps.chassis.logs import one_line, without_values
from apps.chassis.traces import Traces
from apps.consumer.attempts import Attempts, Halted, Handle
from apps.consumer.dead_letters import BadRecord
from apps.consumer.limit import Limit
from apps.consumer.window import Record, Window, fields_of
from contracts.person import Person, decode

log = logging.getLogger(__name__)

WriteDeadLetters = Callable[[Sequence[BadRecord]], Awaitable[None]]

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

FORGOTTEN = 10.0
"""Seconds after which what could not be read, and was not met again, counts as read or passed over."""

MOST_REASONS = 30
"""Types of errors that dead letters are counted by; a handler may raise as many as it likes, the rest counts as one."""
OTHER_REASON = "other"


class Tombstone(ValueError):
    """A record without a value, which is no person."""


REASONS = ("Tombstone", "DecodeError", "ValidationError", "UnicodeDecodeError", "Reject")
"""Types of errors that are counted from the start, as 0."""


class Consumption:
    """What a service has consumed since it started, through however many connections.

    `halted` says why it consumes no more, until `resume`, and `halted_for` the same without what errors may quote.
    `paused` is whether an operator wants its partitions paused. `dead_letters` counts them by the type of their error,
    `rebalances` how often partitions were assigned.
    """

    def __init__(
        self, window: Window, handle: Handle, write_dead_letters: WriteDeadLetters, traces: Traces | None = None
    ) -> None:
        self.consumed = 0
        self.dead_letters = Counter(dict.fromkeys(REASONS, 0))
        self.rebalances = 0
        self.paused = False
        self.halted: str | None = None
        self.halted_for = ""
        self.last_error: str | None = None
        self._unreadable: tuple[str, float] | None = None
        self.window = window
        self.leaving = asyncio.Event()
        self.idle_since = time.time()
        self.busy_since: float | None = None
        self.limit = Limit()
        self.attempts = Attempts(self.leaving, self.limit.in_a_row)
        self._accept = False
        self._recovered: set[int] = set()
        self._handle = handle
        self._write_dead_letters = write_dead_letters
        self._traces = traces or Traces()

    @property
    def dead_lettered(self) -> int:
        """How many records were dead-lettered."""
        return self.dead_letters.total()

    def note_unreadable(self, what: str) -> None:
        """Note that a batch cannot be read: its partition waits until it can be, or until somebody seeks past it."""
        if self.unreadable != what:
            log.error(what)
        self._unreadable = what, time.time()
        self.last_error = what

    @property
    def unreadable(self) -> str | None:
        """What could not be read, in the last 10 s or just before the batch in hand; None when all could be."""
        what, seen = self._unreadable or ("", 0.0)
        return what if (self.busy_since or time.time()) - seen < FORGOTTEN else None

    def resume(self, *, accept: bool) -> None:
        """Consume again after a halt.

        With `accept`, the bad records of a partition are let through until a batch has only good ones of it.
        """
        self.halted = None
        self._accept = accept
        self._recovered.clear()
        if accept:
            self.limit.forget()

    async def consume(self, records: Sequence[Record]) -> None:
        """Handle a batch and write its dead letters. When it raises, nothing of the batch may be committed."""
        self.busy_since = time.time()
        try:
            if not self.halted:
                self.leaving.clear()
                with self._traces.handling(records):
                    await self._consume(records)
        except Halted as reason:
            self.halted = self.last_error = str(reason)
            self.halted_for = reason.reason
            self.leaving.clear()
            log.critical("halted: %s", reason.reason)
        finally:
            self.idle_since, self.busy_since = time.time(), None
        if self.halted:
            await self.leaving.wait()  # whoever watches ends this connection
            raise Halted(self.halted)

    async def _consume(self, records: Sequence[Record]) -> None:
        good, people, bad = sort_out(records)
        accepted = {record.partition for record in records} - self._recovered if self._accept else set()
        if people:
            refused = await self.attempts.handle(self._handle, good, people, accept=bool(accepted))
            if refused:
                places = {(one.record.partition, one.record.offset) for one in refused}
                good = [record for record in good if (record.partition, record.offset) not in places]
                bad = sorted([*bad, *refused], key=lambda one: (one.record.partition, one.record.offset))
        if excess := self.limit.review(good, bad, accepted):
            raise Halted(excess)
        if bad:
            await self.attempts.insist(partial(self._write_dead_letters, bad))
            _tell(bad)
            self.last_error = f"{_place(bad[-1].record)}: {one_line(bad[-1].error)}"
        self.limit.count()
        self._recovered |= accepted - {one.record.partition for one in bad}
        self.consumed += len(good)
        for letter in bad:
            self.dead_letters[self._reason_of(letter)] += 1
        self.window.extend(good)

    def _reason_of(self, letter: BadRecord) -> str:
        name = type(letter.error).__name__
        return name if name in self.dead_letters or len(self.dead_letters) < MOST_REASONS else OTHER_REASON


def sort_out(records: Sequence[Record]) -> tuple[Sequence[Record], list[Person], list[BadRecord]]:
    """Return the good records, the people that they are, and the bad records; never raises."""
    with suppress(Exception):  # one is bad: find it, below
        return records, [decode(record.value) for record in records], []  # type: ignore[arg-type]  # a null raises  # a third faster than one by one
    good, people, bad = [], [], []
    for record in records:
        try:
            if record.value is None:
                raise Tombstone("a record without a value (tombstone) is no person")  # noqa: TRY301
            people.append(decode(record.value))
            good.append(record)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, it must not stop its neighbours
            # its traceback would hold this list, which holds the error: for as long as garbage is not collected
            bad.append(BadRecord(record, error.with_traceback(None), tries=1))
    return good, people, bad


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


def _tell(bad: Sequence[BadRecord]) -> None:
    """Log that records were dead-lettered: how many, where the first stood and of which kind its error was."""
    first, kind = bad[0].record, type(bad[0].error).__name__
    fields = fields_of(first) | {"records": len(bad), "error": kind}
    log.warning("%d records were dead-lettered, the first of them %s: %s", len(bad), _place(first), kind, extra=fields)


def _place(record: Record) -> str:
    return f"{record.topic}-{record.partition} offset {record.offset}"
