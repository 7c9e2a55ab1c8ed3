"""Wires the consumer."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial

from aiokafka import AIOKafkaConsumer, TopicPartition
from faststream.kafka import KafkaBroker
from litestar import Litestar

from apps.chassis.access import guarded
from apps.chassis.asyncapi import Operation, asyncapi_document
from apps.chassis.background import Background
from apps.chassis.cluster import Cluster
from apps.chassis.connection import Connection
from apps.chassis.deadline import within
from apps.chassis.documents import document_routes, openapi_config
from apps.chassis.edge import Edge
from apps.chassis.head import answer_head
from apps.chassis.health import health_routes
from apps.chassis.internals.kafka_client import watch_kafka_clients
from apps.chassis.kafka import client_options, for_purpose, new_broker
from apps.chassis.limits import Limit
from apps.chassis.metrics import metrics_routes, new_registry
from apps.chassis.problems import handlers, problem_plugin, problem_routes
from apps.chassis.settings import Settings
from apps.chassis.topics import dead_letter_topic, marks_topic, people_topic
from apps.chassis.traces import Traces
from apps.chassis.tracing import traces_of
from apps.consumer.attempts import Handle
from apps.consumer.commits import Commits
from apps.consumer.consumption import Consumption
from apps.consumer.control import Control
from apps.consumer.dead_letter_routes import dead_letter_routes
from apps.consumer.dead_letters import DeadLetters
from apps.consumer.fetched import read_fetched_fast
from apps.consumer.group import Group, look_at_group
from apps.consumer.handler import POLICY, handle
from apps.consumer.lag import GroupOffsets, Lag, LagMeter
from apps.consumer.log_reader import LogReader
from apps.consumer.message_routes import Log, message_routes, weight_of
from apps.consumer.metrics import of_consumer, timed
from apps.consumer.page.routes import page_routes
from apps.consumer.policy import Policy
from apps.consumer.redrive import Redriver, marks_topic_name
from apps.consumer.refill import Refill
from apps.consumer.routes import Status, consumer_routes
from apps.consumer.subscriber import subscribe
from apps.consumer.tail import Tail
from apps.consumer.topic_watch import watch_topic
from apps.consumer.window import Window

SERVICE = "consumer"
DESCRIPTION = "Reads people from a Kafka topic and shows the newest."
LARGEST_BODY = 64 * 1024
"""Bytes of a request's body: orders are short."""
MOST_IN_MEMORY = 256 * 1024 * 1024
"""Bytes that all calls under way may take, about."""
LAG_S = 3.0
"""Seconds after which the status is answered without the lag: an earlier stop or start may have taken 6.5 s."""
GRACE = 5.0
"""Seconds that a stop waits for the in-flight batch."""


def create_app(
    settings: Settings,
    ending: asyncio.Event | None = None,
    handle: Handle = handle,
    *,
    policy: Policy = POLICY,
    traces: Traces | None = None,
) -> Litestar:
    """Build the consumer; it joins its group when the application starts, and leaves it at the end.

    `ending` announces the shutdown, so that the consumer leaves its group before the last answers are given. `policy`
    defines how batches are made, retried and limited. `traces` traces its calls and its handler; by default as the
    settings say.
    """
    traces = traces or traces_of(settings, SERVICE)
    _prepare_process()
    topic, group = settings.people_topic, settings.consumer_group_id
    options = client_options(settings, SERVICE)
    reading = for_purpose(options, "reader")
    people, dead = people_topic(settings, "read"), dead_letter_topic(settings)
    marks = marks_topic(settings, marks_topic_name(dead.name))
    cluster = Cluster(for_purpose(options, "admin"), [people, dead, marks], group)
    background = Background()
    reader, every = LogReader(reading, topic), LogReader(options, topic, committed_only=False)
    dead_reader = LogReader(reading, dead.name)
    redriver = Redriver(for_purpose(options, "redrive"), cluster, dead_reader, topic, group)
    window = Window(settings.window_size)
    dead_letters = DeadLetters(for_purpose(options, "dead-letters"), settings.dead_letter_topic, cluster, group)
    registry = new_registry(SERVICE)
    edge = Edge(registry, Limit(partial(weight_of, window=window), MOST_IN_MEMORY), settings)
    consumption = Consumption(window, timed(handle, registry), dead_letters.write, traces, policy, group=group)
    commits = Commits(partial(cluster.commits, group, topic), every.offsets)
    offsets = GroupOffsets(reader, every, commits.read)
    meter = LagMeter(offsets)
    searched = Log(
        LogReader(reading, topic),
        LogReader(reading, topic, committed_only=False),
        partial(cluster.partition_count, topic),
    )
    tail = Tail(searched.reader, searched.partitions, background)
    end = ending or asyncio.Event()
    started_at = datetime.now(UTC).isoformat(timespec="milliseconds")

    refill = Refill(window, reader, commits.read, background, group)

    def on_assigned(assigned: set[TopicPartition]) -> None:
        refill.begin([tp.partition for tp in assigned])

    def make_broker() -> KafkaBroker:
        broker = new_broker(options, consumer_only=True, graceful_timeout=GRACE)
        subscribe(broker, topic, group, consumption, commits, on_assigned)
        return broker

    connection = Connection(make_broker, cluster.ensure_topics, options["client_id"].journal)
    control = Control(connection, cluster, consumption, commits, background, settings.slow_batch_seconds)
    operations = [
        Operation("receive", "people", "Consumes people.", group),
        Operation("send", "deadLetters", "Keeps what cannot be consumed, byte for byte, with what became of it."),
        Operation("send", "people", "Sends dead letters back, when an operator says so, each once."),
    ]
    asyncapi = asyncapi_document("Consumer", DESCRIPTION, settings, SERVICE, operations)

    async def lag_of(consumer: AIOKafkaConsumer | None) -> Lag:
        try:
            return await within(LAG_S, meter.measure(None if consumption.halted else consumer))
        except TimeoutError:
            return Lag([], None, {})

    async def status() -> Status:
        consumer = control.consumer
        state, lag, trouble = await asyncio.gather(control.state(), lag_of(consumer), cluster.trouble())
        return Status(
            running=state == "running",
            state=state,
            messages_consumed_count=consumption.consumed,
            dead_lettered_count=consumption.dead_lettered,
            topic=topic,
            group_id=group,
            member_id=consumer._coordinator.member_id if consumer else None,  # noqa: SLF001 - aiokafka shows it nowhere else
            lag=lag.records,
            waiting_for_transaction=lag.waiting_for_transaction,
            lag_seconds=lag.seconds,
            partitions=lag.partitions,
            paused_partitions=sorted(tp.partition for tp in consumer.paused()) if consumer else [],
            restarts=connection.replaced,
            failures=consumption.attempts.failures,
            batch_age_seconds=round(consumption.batch_age, 3),
            commit_failures=commits.failures.total(),
            skipped_count=commits.skipped.total(),
            passed_over_count=consumption.passed_over,
            moves=list(commits.moves),
            last_error=trouble
            or commits.error
            or (consumption.attempts.error if consumption.attempts.failures else None)
            or (None if control.stopped or consumption.halted else control.obstacle())
            or consumption.last_error
            or connection.error,
            throttled_seconds=round(connection.journal.throttled_for(), 1),
            started_at=started_at,
            notes=[f"{name}: {line}" for name, lines in cluster.reports.items() for line in lines],
        )

    async def group_now() -> Group:
        return await look_at_group(group, partial(cluster.members, group, topic), offsets)

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        async with (
            traces.open(),
            cluster.open(),
            reader.open(),
            offsets.every.open(),
            searched.reader.open(),
            searched.uncommitted.open(),
            dead_reader.open(),
            redriver.open(),
            dead_letters.open(),
            background.open(),
        ):
            for work, name in {
                control.watch(): "watch of the consume loop",
                cluster.watch(): "watch of the cluster",
                watch_topic(reader.topic_id, control, commits): "watch of the topic",
                control.start(): "first start",
                control.stop_at(end): "last stop",
                tail.end_at(end): "end of the live tail",
            }.items():
                background.start(work, name)
            yield

    routes = [
        *consumer_routes(control, status, group_now),
        *message_routes(window, searched, tail, lambda: consumption.consumed),
        *dead_letter_routes(dead_reader, redriver, cluster.partitions),
        *health_routes(SERVICE, control.health),
        *metrics_routes(registry, partial(of_consumer, control, consumption, commits, connection, meter)),
        *problem_routes(settings.root_path),
        *document_routes(asyncapi),
        *page_routes(settings.producer_url),
    ]
    app = Litestar(
        guarded(routes, settings.api_keys, registry),
        request_max_body_size=LARGEST_BODY,
        lifespan=[lifespan],
        before_request=edge.admit,
        exception_handlers=handlers,
        plugins=[problem_plugin(settings.root_path)],
        logging_config=None,
        openapi_config=openapi_config("Consumer", DESCRIPTION, settings.root_path),
    )
    traces.follow_http(app)
    edge.surround(app)
    return answer_head(app)


def _prepare_process() -> None:
    """Set what can be set for a whole process alone."""
    # FastStream would restart a loop that failed at once, thousands of times a second: `Control` does it, with pauses
    os.environ.setdefault("FASTSTREAM_SUPERVISOR_DISABLED", "1")
    read_fetched_fast()
    watch_kafka_clients()
