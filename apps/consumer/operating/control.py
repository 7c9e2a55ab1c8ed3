"""Start, stop, pause and seek the consumption, and replace a consume loop that died or hangs."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Literal, NamedTuple
from uuid import UUID

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError
from faststream.kafka.subscriber.usecase import BatchSubscriber

from apps.chassis.background import Background
from apps.chassis.internals.batch_subscriber import locked, wait_for_batch
from apps.chassis.kafka.cluster import Cluster
from apps.chassis.kafka.connection import Connection
from apps.chassis.loop_watch import BLOCKED_AFTER_S
from apps.consumer.consuming.commits import Commits, positions_of
from apps.consumer.consuming.consumption import Consumption
from apps.consumer.consuming.containment import contain_child_tasks
from apps.consumer.consuming.stuck_loop import why_stuck
from apps.consumer.operating.missing_partitions import MissingPartitions
from apps.consumer.operating.places import Place, offsets_at

State = Literal["starting", "running", "retrying", "paused", "stopped", "reconnecting", "halted"]

START_TIMEOUT_S = 6.0
"""Seconds that `start` waits for its turn and for assigned partitions, before it returns."""
STOP_TURN_S, SEEK_TURN_S, STOPPING_S = 1.0, 2.0, 7.0
"""Seconds that a stop and a seek wait for another operator action, and that a stop waits for another stop."""
BATCH_TIMEOUT_S = 5.0
"""Seconds that `seek` waits for the in-flight batch."""
CANCEL_HANDLER_AFTER_S = 4.0
"""Seconds after which a seek or a stop cancels a running handler."""
SEEK_TIMEOUT_S = 9.0
"""Seconds that a `seek` may take in all."""
WATCH_EVERY_S = 2.0
"""Seconds between two checks of the consume loop."""
READABLE_AGAIN = "what may not be read for a while may be read again"
REVOKED = "the group revoked the partitions in between: try again once they are assigned"


class SeekPreview(NamedTuple):
    """Where a seek would go in each partition, and how many committed offsets it would repeat or others skip."""

    partitions: dict[int, int]
    again: int
    skipped: int


class NotNow(Exception):
    """An operator action does not fit the current state; the message says why."""


class Control:
    """Controls the consumption of a stream. Every call is safe at any time, also concurrent or repeated."""

    def __init__(  # noqa: PLR0913, PLR0917 - what it controls and watches
        self,
        connection: Connection,
        cluster: Cluster,
        consumption: Consumption,
        commits: Commits,
        background: Background,
        slow_batch_s: float,
        stream_name: str,
        missing: MissingPartitions,
        on_left: Callable[[], object],
    ) -> None:
        self._connection = connection
        self._cluster = cluster
        self._consumption = consumption
        self._commits = commits
        self._slow_batch_s = slow_batch_s
        self._background = background
        self._stream_name = stream_name
        self._missing = missing
        self._on_left = on_left
        self._consumption_task: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()
        self._is_ending = False

    @property
    def subscriber(self) -> BatchSubscriber | None:
        """The subscriber that consumes now; None while there is no connection."""
        broker = self._connection.current
        if broker is None:
            return None
        (subscriber,) = broker.subscribers
        assert isinstance(subscriber, BatchSubscriber)  # noqa: S101 - the one registered by `subscribe`
        return subscriber

    @property
    def consumer(self) -> AIOKafkaConsumer | None:
        """The client that consumes now; None while there is no connection."""
        subscriber = self.subscriber
        return subscriber.consumer if subscriber else None

    @property
    def stopped(self) -> bool:
        """Whether an operator has stopped the consumption."""
        return self._consumption_task is None

    async def start(self, *, accept: bool = False) -> None:
        """Join the group and consume; return once partitions are assigned, or after 6 s.

        With `accept`, after a halt or while retrying, bad records are dead-lettered until a batch has only good ones.
        """
        late = time.monotonic() + START_TIMEOUT_S
        async with self._turn(START_TIMEOUT_S):
            if self._consumption.halted:
                await self._end()
            elif accept and self._consumption.retrying:
                self._consumption.accept()
            if self._consumption_task is None or self._consumption_task.done():
                self._consumption.resume(accept=accept)
                self._consumption_task = self._background.start(self._connection.stay_connected(), "consumption")
        await self._connection.connected(max(0.0, late - time.monotonic()))

    async def stop(self) -> None:
        """Commit the in-flight batch, leave the group and return.

        A failing batch is abandoned at once, and a handler call of more than 4 s is cancelled. What comes before the
        first unfinished record of each partition is committed; the rest will be redelivered.
        """
        async with self._turn(STOPPING_S if self._is_ending else STOP_TURN_S):
            await self._end()

    async def _end(self) -> None:
        if self._consumption_task is not None:
            self._is_ending = True
            self._consumption.abandonment.ask("stop", CANCEL_HANDLER_AFTER_S)
            self._consumption_task.cancel()
            await asyncio.wait([self._consumption_task])
            self._consumption.forget()  # its records may be redelivered to another member
            self._on_left()
            self._consumption_task, self._is_ending = None, False

    @asynccontextmanager
    async def _turn(self, seconds: float) -> AsyncIterator[None]:
        """Wait until no other operator action is under way. Raises `NotNow` when that takes too long."""
        try:
            async with asyncio.timeout(seconds):
                await self._changing.acquire()
        except TimeoutError:
            raise NotNow("another operator action is under way: try again") from None
        try:
            yield
        finally:
            self._changing.release()

    async def stop_at(self, ending: asyncio.Event) -> None:
        """Stop when the service is about to end."""
        await ending.wait()
        async with self._changing:
            await self._end()

    async def pause(self) -> None:
        """Stop reading, but keep the partitions; the in-flight batch is finished. It lasts until `resume`."""
        async with self._turn(START_TIMEOUT_S):
            self._consumption.paused = True
            self._apply_pause()

    async def resume(self) -> None:
        """Resume reading where `pause` stopped."""
        async with self._turn(START_TIMEOUT_S):
            self._consumption.paused = False
            self._consumption.idle_since = time.monotonic()  # what was paused has not been polled
            if consumer := self.consumer:
                consumer.resume(*consumer.paused())

    def _apply_pause(self) -> None:
        consumer = self.consumer
        if self._consumption.paused and consumer:
            consumer.pause(*consumer.assignment())

    async def seek(self, place: Place) -> dict[int, int]:
        """Consume from another place; return the offset in each requested partition of this instance.

        The offsets are committed, so that a restart does not undo it. Raises `NotNow` when none is assigned, or
        a batch is in flight for more than 5 s; `ValueError` for an offset that is not in the topic; `KafkaError`
        or `OSError`, or after 9 s `TimeoutError`, when Kafka is out of reach.
        """
        async with self._connection.journal.answers_within(SEEK_TIMEOUT_S), self._turn(SEEK_TURN_S):
            subscriber, consumer = self._consuming()
            return await self._seek(subscriber, consumer, _wanted(consumer, place), place)

    async def preview_seek(self, place: Place) -> SeekPreview:
        """Return what `seek` would do now, and do nothing. Raises the errors of `seek`.

        It counts from the committed offsets: a seek abandons an in-flight batch that fails or takes too long.
        """
        async with self._connection.journal.answers_within(SEEK_TIMEOUT_S):
            _, consumer = self._consuming()
            try:
                found = await offsets_at(consumer, _wanted(consumer, place), place)
                first = await consumer.beginning_offsets(list(found))
            except IllegalStateError:
                raise NotNow(REVOKED) from None
            committed = await self._commits.read()
        moves = [to - max(first[tp], committed.get(tp.partition) or 0) for tp, to in found.items()]
        partitions = {tp.partition: to for tp, to in sorted(found.items())}
        return SeekPreview(
            partitions, -sum(move for move in moves if move < 0), sum(move for move in moves if move > 0)
        )

    async def leave_deleted_topic(self) -> dict[int, tuple[int, int]]:
        """Seek positions that belong to a deleted topic to the beginning of the one that was created since.

        Return the positions before and after in each of these partitions. Raises the errors of `seek`.
        """
        async with self._connection.journal.answers_within(SEEK_TIMEOUT_S):
            if not await self._commits.recreated(self._consuming()[1]):
                return {}  # no operator action waits for this look
        async with self._connection.journal.answers_within(SEEK_TIMEOUT_S), self._turn(SEEK_TURN_S):
            subscriber, consumer = self._consuming()
            if not (recreated := await self._commits.recreated(consumer)):
                return {}
            before = {tp.partition: at for tp, at in (await positions_of(consumer)).items()}
            after = await self._seek(subscriber, consumer, recreated, "beginning", self._commits.is_of_another)
            return {number: (before[number], after[number]) for number in sorted(after.keys() & before.keys())}

    def _consuming(self) -> tuple[BatchSubscriber, AIOKafkaConsumer]:
        subscriber = self.subscriber
        if subscriber is None or subscriber.consumer is None:
            ended = "it is halted" if self._consumption.halted else "it is stopped" if self.stopped else None
            why = ended or self._connection.trouble("it is not connected yet")
            raise NotNow(f"there is no consumption to seek in: {why}")
        return subscriber, subscriber.consumer

    async def _seek(
        self,
        subscriber: BatchSubscriber,
        consumer: AIOKafkaConsumer,
        wanted: Collection[TopicPartition],
        place: Place,
        is_due: Callable[[TopicPartition, UUID | None], bool] = lambda *_: True,
    ) -> dict[int, int]:
        """Commit other positions between two batches, where that is still due then, and continue there."""
        others = consumer.assignment() - consumer.paused()
        consumer.pause(*consumer.assignment())  # or the next batch would be in flight before the seek is done
        try:
            topic_ids = await self._commits.ask_topic_ids(consumer, wanted)
            found = await offsets_at(consumer, wanted, place)
            await self._wait_for_batch(subscriber)
            offsets = {tp: offset for tp, offset in found.items() if is_due(tp, topic_ids[tp])}
            with locked(subscriber):  # no batch is in flight, and a rebalance waits
                await self._commits.seek(consumer, offsets, topic_ids)
            self._consumption.forget(offsets.__contains__)
        except (CommitFailedError, IllegalStateError):
            raise NotNow(REVOKED) from None
        finally:
            if not self._consumption.paused:
                consumer.resume(*(others & consumer.assignment()))
        return {tp.partition: offset for tp, offset in sorted(offsets.items())}

    async def _wait_for_batch(self, subscriber: BatchSubscriber) -> None:
        """Wait until no batch is in flight; the handler is cancelled when it takes too long."""
        self._consumption.abandonment.ask("seek", CANCEL_HANDLER_AFTER_S)
        try:
            is_free = await wait_for_batch(subscriber, BATCH_TIMEOUT_S)
        finally:
            self._consumption.abandonment.withdraw("seek")
        if not is_free:
            why = "its handler ignores its cancellation, or its dead letters or its commit take long"
            raise NotNow(f"the in-flight batch has not ended after {BATCH_TIMEOUT_S:g} s: {why}")

    async def state(self) -> State:
        """Return what the consumption is doing, after a check of the cluster (4 s at most)."""
        if self._consumption.halted:
            return "halted"
        if self._consumption_task is None:
            return "stopped"
        if self._connection.current is None:
            return "reconnecting" if self._connection.replaced else "starting"
        if self.obstacle() or await self._cluster.trouble() or await self._missing.reason(self.consumer):
            return "reconnecting"
        if self._consumption.paused:
            return "paused"
        return "retrying" if self._consumption.retrying else "running"

    async def health(self) -> tuple[bool, str, str]:
        """Return whether the consumer can do its job, the state of Kafka, and why not."""
        unreachable = await self._cluster.trouble()
        kafka = "connecting" if unreachable and not self._cluster.reached else "connected"
        if self._consumption.halted:
            return False, kafka, f"halted: {self._consumption.halted_for}"
        if self.stopped:
            return True, kafka, self._cluster.at_risk("stopped by an operator")
        unfit = unreachable or self.obstacle() or self._consumption.unreadable or self._background.failure
        if unfit := unfit or self._struggle() or await self._missing.reason(self.consumer):
            return False, kafka, unfit
        consumed = self._connection.journal.with_throttling(f"{self._stream_name} are consumed")
        return True, kafka, self._cluster.at_risk("paused by an operator" if self._consumption.paused else consumed)

    def _struggle(self) -> str | None:
        """Return why fetched batches are not committed, or None."""
        retrying, age = self._consumption.retrying, self._consumption.batch_age
        if retrying and not self._consumption.paused:
            return f"{retrying} (see last_error of the status)"
        if self._commits.error:
            return f"the last commit failed, and its batch will be redelivered: {self._commits.error}"
        if age > self._slow_batch_s:
            return f"the in-flight batch has taken {age:.0f} s (SLOW_BATCH_SECONDS is {self._slow_batch_s:g})"
        return None

    def trouble(self) -> str | None:
        """Return why a started consumption consumes nothing until it is replaced, or None."""
        subscriber = self.subscriber
        if subscriber is None:
            return self._connection.trouble()
        if self._cluster.unreadable_at > self._connection.since:  # the client does not find back by itself
            return READABLE_AGAIN
        since_excused = self._connection.journal.since_excused_silence()
        since_trouble = time.monotonic() - self._cluster.trouble_at
        return why_stuck(subscriber, self._consumption, self._commits, since_excused, since_trouble)

    def obstacle(self) -> str | None:
        """Return why nothing is consumed now, even where a new connection would not help, or None."""
        return self.trouble() or self._connection.trouble()

    async def watch(self, every_s: float = WATCH_EVERY_S) -> None:
        """Until cancelled, replace a consume loop that died or hangs, and stop one that halted.

        While Kafka itself is out of reach nothing is replaced: the client connects by itself again. After a block of
        the event loop the next check decides: nothing could poll during the block.
        """
        contain_child_tasks(asyncio.get_running_loop())  # of handlers: begun before the first start
        while True:
            began = time.monotonic()
            await asyncio.sleep(every_s)
            was_blocked = time.monotonic() - began > every_s + BLOCKED_AFTER_S
            async with self._changing:
                if self._consumption.halted:
                    await self._end()
            self._apply_pause()  # a pause that was asked for while the connection was being made
            if (broker := self._connection.current) is None or was_blocked or not (reason := self.trouble()):
                continue
            if not await self._cluster.trouble():
                self._connection.replace(broker, reason)


def _wanted(consumer: AIOKafkaConsumer, place: Place) -> list[TopicPartition]:
    """Return the partitions that a seek concerns. Raises `NotNow` when none is assigned to this instance."""
    wanted = [tp for tp in consumer.assignment() if not isinstance(place, Mapping) or tp.partition in place]
    if not wanted:
        raise NotNow("none of the requested partitions is assigned to this instance")
    return wanted
