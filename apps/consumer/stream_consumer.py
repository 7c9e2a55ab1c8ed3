"""Everything that the consumer has for one stream: group member, readers, window and dead letters."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from faststream.kafka import KafkaBroker
from prometheus_client import Metric

from apps.chassis.background import Background
from apps.chassis.deadline import within
from apps.chassis.http.health import Fitness
from apps.chassis.internals.client_parts import member_id_of
from apps.chassis.kafka.clients import ClientOptions, for_purpose, new_broker
from apps.chassis.kafka.kafka import Kafka
from apps.chassis.kafka.log_reader import LogReader
from apps.chassis.kafka.open_transactions import OpenTransactions, in_words
from apps.chassis.kafka.topics import dead_letter_topic, marks_topic, record_topic
from apps.chassis.observability.metrics import of_kafka, of_stream
from apps.chassis.observability.traces import Traces
from apps.chassis.open_files import fewer_where_files_are_few
from apps.chassis.settings import Settings
from apps.chassis.shared_reads import SharedReads
from apps.consumer.browsing.live_tail import Tail
from apps.consumer.browsing.record_view import View
from apps.consumer.browsing.tail_limits import TailLimits
from apps.consumer.browsing.window import Window
from apps.consumer.browsing.window_refill import Refill
from apps.consumer.consuming.batch import Handle
from apps.consumer.consuming.commits import Commits
from apps.consumer.consuming.consumption import Consumption
from apps.consumer.consuming.dead_letters import DeadLetters
from apps.consumer.consuming.policy import Policy
from apps.consumer.consuming.resource import HandlerResource
from apps.consumer.consuming.subscriber import subscribe
from apps.consumer.operating.control import READABLE_AGAIN, Control
from apps.consumer.operating.group import Group, look_at_group
from apps.consumer.operating.history import Counts, HistoryKeeper
from apps.consumer.operating.lag import GroupOffsets, Lag, LagMeter
from apps.consumer.operating.lasting_errors import LastingErrors, TimedError
from apps.consumer.operating.metrics import of_commits, of_consumption, of_dead_letters, of_lag
from apps.consumer.operating.missing_partitions import MissingPartitions
from apps.consumer.operating.rebalances import Rebalances
from apps.consumer.operating.recreated_topics import watch_topic
from apps.consumer.operating.status import StreamStatus, failing_record
from apps.consumer.redriving.deletions import Deletions
from apps.consumer.redriving.letter_log import LetterLog
from apps.consumer.redriving.letters import MAX_ROUNDS
from apps.consumer.redriving.redrive import Redriver
from apps.consumer.redriving.schedule import DueLetters, Schedule, of_schedule
from contracts.stream import Stream

NEVER = datetime.min.replace(tzinfo=UTC)
LAG_S = 3.0
"""Seconds after which the status is answered without the lag: an earlier stop or start may have taken 6.5 s."""
GRACE_S = 5.0
"""Seconds that a stop waits for the in-flight batch."""


class StreamConsumer:
    """Consumes one stream, independently of the others.

    `log` reads the topic as consumers see it; `uncommitted` also reads what transactions did not commit. `view` shows
    records as they are, `masked_view` to callers that may not see what is sensitive; each has a live tail. Calls read
    through `shared_reads`. Calls that search, operator actions and consuming each have readers of their own: none of
    them waits for another's connections.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what it is made of
        self,
        stream: Stream[Any],
        settings: Settings,
        options: ClientOptions,
        handle: Handle,
        policy: Policy,
        traces: Traces,
        kafka: Kafka,
        resource: HandlerResource | None = None,
    ) -> None:
        self.stream = stream
        self.settings = own = settings.of(stream)
        self._options, self._rack, reading = options, settings.client_rack or None, for_purpose(options, "reader")
        self._background = background = Background()
        self._delays_s = settings.redrive_after_s
        self._started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        topics = [record_topic(own, "read"), dead_letter_topic(own), marks_topic(own)]
        self.cluster = cluster = kafka.cluster(for_purpose(options, "admin"), topics, own.group_id)
        self._reader, self.log = kafka.reader(reading, own.topic), kafka.reader(reading, own.topic)
        self._every = kafka.reader(options, own.topic, committed_only=False)
        self.uncommitted = kafka.reader(reading, own.topic, committed_only=False)
        self.letter_log = LetterLog(reading, cluster, own.dead_letter_topic, own.marks_topic, kafka.reader)
        self._dead_letters = self._new_dead_letters(kafka)
        self.redriver = self._new_redriver(for_purpose(options, "redrive"), kafka.reader)
        self.window = Window(settings.window_size, deletes=stream.deletes)
        self.consumption = self._new_consumption(handle, traces, policy, resource)
        self._commits = commits = self._new_commits(kafka)
        self._offsets = GroupOffsets(self._reader, self._every, commits.read)
        self.history, self._meter = HistoryKeeper(self._counts, self._records_behind), LagMeter(self._offsets)
        self.view = whole = View(stream.decode)
        self.masked_view = masked = View(stream.decode, stream.masking) if stream.masking else whole
        self.tails = {view: self._new_tail(view) for view in {whole, masked}}
        self._refill = Refill(self.window, self._reader, commits.read, background, stream.decode, own.group_id)
        self._members = partial(cluster.members, own.group_id, own.topic)
        self._missing, self._rebalances = MissingPartitions(self._members), Rebalances()
        self._connection = kafka.connection(self._new_broker, cluster.ensure_topics, options["client_id"].journal)
        self.shared_reads, self._lasting = SharedReads(), LastingErrors(lambda: math.isfinite(self._connection.since))
        self.control = self._new_control(background, settings.slow_batch_seconds)
        self.schedule = self._new_schedule()

    def _new_tail(self, view: View) -> Tail:
        limits = TailLimits(callers=fewer_where_files_are_few(TailLimits().callers))
        ask_topic_id = partial(self.cluster.topic_id, self.settings.topic)
        reading = self.log, self.partition_count, self._background
        return Tail(*reading, view, ask_topic_id, limits, deletes=self.stream.deletes)

    def _new_commits(self, kafka: Kafka) -> Commits:
        read = partial(self.cluster.commits, self.settings.group_id, self.settings.topic)
        journal = self._options["client_id"].journal
        return Commits(read, self._every.ends, kafka.ask_topic_ids, followers=bool(self._rack), journal=journal)

    def _new_dead_letters(self, kafka: Kafka) -> DeadLetters:
        own, options = self.settings, for_purpose(self._options, "dead-letters")
        return DeadLetters(options, own.dead_letter_topic, self.cluster, own.group_id, kafka.producer)

    def _new_consumption(
        self, handle: Handle, traces: Traces, policy: Policy, resource: HandlerResource | None
    ) -> Consumption:
        decode, write, group = self.stream.decode, self._dead_letters.write, self.settings.group_id
        return Consumption(decode, self.window.extend, handle, write, traces, policy, group=group, resource=resource)

    def _new_control(self, background: Background, slow_s: float) -> Control:
        consuming = self._connection, self.cluster, self.consumption, self._commits, background
        return Control(*consuming, slow_s, self.stream.name, self._missing, self._release)

    def _new_schedule(self) -> Schedule:
        due = DueLetters(self._redriven, self.redriver, self.settings.group_id, self._delays_s)
        return Schedule(self.redriver, due, self.control, self.settings.topic)

    def _new_redriver(self, options: ClientOptions, reader: Callable[..., LogReader]) -> Redriver:
        own, cluster = self.settings, self.cluster
        self._redriven = reader(options, own.dead_letter_topic)
        records = OpenTransactions(reader(options, own.topic), reader(options, own.topic, committed_only=False))
        return Redriver(
            options,
            cluster,
            self._redriven,
            own.marks_topic,
            own.topic,
            own.group_id,
            reader,
            max_rounds=len(self._delays_s) or MAX_ROUNDS,
            kept_s=own.dead_letter_retention_s,
            deletions=Deletions(records, cluster, own.group_id) if self.stream.deletes else None,
        )

    def _new_broker(self) -> KafkaBroker:
        broker = new_broker(self._options, consumer_only=True, graceful_timeout=GRACE_S, client_rack=self._rack)
        own = self.settings
        self._rebalances.joins()
        self._release()
        subscribe(broker, own.topic, own.group_id, self.consumption, self._commits, self._on_assigned)
        return broker

    def _counts(self) -> Counts:
        return Counts(self.consumption.consumed, self.consumption.dead_lettered)

    async def _records_behind(self) -> int | None:
        return (await self._lag(self.control.consumer)).records

    def _on_assigned(self, assigned: set[TopicPartition]) -> None:
        cause = self._connection.error if self._connection.replaced else None
        member = member_id_of(consumer) if (consumer := self.control.consumer) else None
        self._rebalances.assigned([tp.partition for tp in assigned], cause, member)
        self._release()
        self._refill.begin([tp.partition for tp in assigned])

    def _release(self) -> None:
        """Keep nothing to show that can be deleted: another instance may consume its deletion from now on."""
        self._refill.stop()
        if self.stream.deletes:
            self.consumption.forget_quotes()

    @asynccontextmanager
    async def open(self, ending: asyncio.Event) -> AsyncIterator[None]:
        """Consume in the background; leave the group when `ending` announces the end, and close all connections."""
        parts = (
            self.cluster,
            self._reader,
            self._every,
            self.log,
            self.uncommitted,
            self.letter_log,
            self.redriver,
            self._dead_letters,
            self.consumption.resource,  # closed once the background has committed its last batch
            self._background,
        )
        async with AsyncExitStack() as opened:
            for part in parts:
                await opened.enter_async_context(part.open())
            for work, name in {
                self.control.watch(): "watch of the consume loop",
                self.cluster.watch(): "watch of the cluster",
                watch_topic(self.control, self._commits): "watch of the topic",
                self._missing.watch(lambda: self.control.consumer): "watch of the partitions",
                self.consumption.resource.keep_open(): "resource of the handler",
                self.control.start(): "first start",
                self.control.stop_at(ending): "last stop",
                **{tail.end_at(ending): "end of the live tail" for tail in self.tails.values()},
                self.history.keep(): "history",
                self._lasting.watch(self._errors_without_time): "watch of the errors",
            }.items():
                self._background.start(work, name)
            if self._delays_s:
                self._background.start(self.schedule.watch(self._delays_s), "scheduled redrive")
            yield

    def partition_count(self) -> int:
        """Return how many partitions the topic has. Raises `KafkaError` as long as Kafka was not reached."""
        return self.cluster.partition_count(self.settings.topic)

    async def health(self) -> Fitness:
        """Return whether the stream can be consumed now."""
        return Fitness(*await self.control.health())

    async def group(self) -> Group:
        """Return the whole group; raises `KafkaError`, `OSError` or, after some seconds, `TimeoutError`."""
        return await look_at_group(self.settings.group_id, self._members, self._offsets)

    async def status(self, *, quotes: bool = True) -> StreamStatus:
        """Return what the consumption of the stream is doing, within 4 s; with `quotes`, errors may quote values."""
        control, consumption, commits, connection = self.control, self.consumption, self._commits, self._connection
        missing = await self._missing.reason(consumer := control.consumer)
        lagging, hiding = self._lag(None if missing else consumer), self.redriver.letters.waiting_if_known()
        state, lag, trouble, hidden = await asyncio.gather(control.state(), lagging, self.cluster.trouble(), hiding)
        last = self._last_error(trouble, missing, quotes=quotes and self._may_quote(lag))
        return StreamStatus(
            running=state == "running",
            state=state,
            messages_consumed_count=consumption.consumed,
            dead_lettered_count=consumption.dead_lettered,
            topic=self.settings.topic,
            group_id=self.settings.group_id,
            member_id=member_id_of(consumer) if consumer else None,
            lag=lag.records,
            waiting_for_transaction=lag.waiting_for_transaction,
            dead_letters_waiting_for_transaction=hidden,
            lag_seconds=lag.seconds,
            partitions=lag.partitions,
            paused_partitions=sorted(tp.partition for tp in consumer.paused()) if consumer else [],
            restarts=connection.replaced,
            failures=consumption.attempts.failures,
            batch_age_seconds=round(consumption.batch_age, 3),
            commit_failures=commits.failures.total(),
            skipped_count=commits.moves.skipped.total(),
            passed_over_count=consumption.passed_over,
            moves=list(commits.moves.newest),
            **last,
            throttled_seconds=round(connection.journal.throttled_for(), 1),
            started_at=self._started_at,
            redriven_by_schedule_count=self.schedule.redriven,
            next_redrive_at=self.schedule.next_at,
            last_rebalance=self._rebalances.last,
            failing_since=consumption.failing_since,
            failing_record=failing_record(consumption.redelivery.failing, quotes=quotes),
            next_retry_at=consumption.next_retry_at,
            notes=self._notes(hidden),
        )

    def _may_quote(self, lag: Lag) -> bool:
        """Return whether errors may quote values.

        They may not after a halt, once another instance has consumed the halting record, and perhaps its deletion.
        """
        consumption = self.consumption
        return not (self.stream.deletes and consumption.halted) or lag.is_behind(*consumption.halted_at)

    def _notes(self, hidden_letters: int | None) -> list[str]:
        hidden = in_words(self.settings.dead_letter_topic, hidden_letters)
        settings = [f"{name}: {line}" for name, lines in self.cluster.reports.items() for line in lines]
        return [*settings, *self.cluster.limits.values(), *filter(None, [hidden])]

    def _errors_without_time(self) -> dict[str, str | None]:
        control, connection = self.control, self._connection
        found = control.trouble() if control.subscriber else None, connection.failure()
        errors = [error for error in found if error not in {None, READABLE_AGAIN}]
        lost = None if control.stopped or self.consumption.halted else next(iter(errors), None)
        return {"commit": self._commits.error, "connection": lost, "scheduled redrive": self.schedule.error}

    def _last_error(self, trouble: str | None, missing: str | None, *, quotes: bool) -> dict[str, Any]:
        """Return the fields of the last error: the one that lasts, or else the newest that is over."""
        consumption, resource, lasting = self.consumption, self.consumption.resource, self._lasting
        timed = {source: lasting.note(source, error) for source, error in self._errors_without_time().items()}
        failing_since = consumption.failing_since or consumption.last_error_at
        last_trouble, trouble_at = self.cluster.last_trouble
        over: tuple[TimedError, ...] = (
            (consumption.last_error if quotes else consumption.last_trouble, consumption.last_error_at),
            (last_trouble, _as_time(trouble_at)),
            lasting.newest,
        )
        lasts: tuple[TimedError, ...] = (
            (trouble, _as_time(self.cluster.trouble_since or trouble_at or time.time())),
            lasting.note("partitions", missing),
            (resource.error if quotes else resource.error and resource.trouble, failing_since),
            timed["commit"],
            (consumption.handler_error(quotes=quotes), failing_since),
            timed["connection"],
        )
        found = next((one for one in lasts if one[0]), None)
        error, at = found or max(over, key=lambda one: one[1] or NEVER)
        return {"last_error": error, "last_error_at": at, "last_error_lasts": found is not None}

    async def _lag(self, consumer: AIOKafkaConsumer | None) -> Lag:
        try:
            return await within(LAG_S, self._meter.measure(None if self.consumption.halted else consumer))
        except TimeoutError:
            return Lag([], None, {})

    async def metrics(self) -> Iterator[Metric]:
        """Return what is read at each scrape: within 8 s, also while Kafka is out of reach."""
        consumer = None if self.consumption.halted else self.control.consumer
        consumer = None if await self._missing.reason(consumer) else consumer
        health, state, lag, hidden = await asyncio.gather(
            self.health(),
            self.control.state(),
            self._meter.measure(consumer),
            self.redriver.letters.waiting_if_known(),
        )
        metrics = chain(
            of_kafka(self._connection, healthy=health.fit, connected=health.kafka == "connected"),
            of_consumption(self.consumption, self._connection, state),
            of_commits(self._commits, [partition.partition for partition in lag.partitions]),
            of_lag(lag, len(consumer.assignment()) if consumer else 0),
            of_dead_letters(hidden),
            of_schedule(self.schedule),
        )
        return of_stream(self.stream.name, metrics)


def _as_time(seconds: float | None) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if seconds else None
