"""The producer's part for one stream: FastStream publisher, connection and topic."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import chain
from typing import Any

from faststream.kafka import KafkaBroker
from prometheus_client import Histogram, Metric

from apps.chassis.background import Background
from apps.chassis.http.health import Fitness
from apps.chassis.http.spool import MAX_SPOOL_BYTES, MAX_SPOOLS_BYTES, Spools
from apps.chassis.kafka.clients import ClientOptions, for_purpose, new_broker
from apps.chassis.kafka.kafka import Kafka
from apps.chassis.kafka.topics import record_topic
from apps.chassis.observability.metrics import of_kafka, of_stream
from apps.chassis.observability.traces import Traces
from apps.chassis.settings import Settings
from apps.producer.metrics import of_publisher
from apps.producer.publishing.lanes import MAX_BATCH_BYTES, Route
from apps.producer.publishing.publisher import Publisher
from contracts.stream import Stream

GENERATING_CALLS = 2
"""Calls of a stream that may generate values at a time: one thread makes them."""


class StreamProducer:
    """Publishes one stream, independently of others.

    `turns` are those of the calls that generate its values, `reading` is that of the one whose large body is read.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - its parts
        self,
        stream: Stream[Any],
        settings: Settings,
        options: ClientOptions,
        traces: Traces,
        kafka: Kafka,
        seconds: Histogram,
        new_route: Callable[..., Route],
    ) -> None:
        self.stream = stream
        self.spools = Spools(settings.share_of(MAX_SPOOLS_BYTES), settings.share_of(MAX_SPOOL_BYTES))
        self.turns = asyncio.Semaphore(settings.share_of(GENERATING_CALLS))
        self.reading = asyncio.Semaphore()
        topic = settings.of(stream).topic
        self._background = Background()
        self._cluster = kafka.cluster(for_purpose(options, "admin"), [record_topic(settings.of(stream), "write")])

        def make_broker() -> KafkaBroker:
            broker = new_broker(
                options,
                acks="all",
                enable_idempotence=True,
                max_batch_size=MAX_BATCH_BYTES,
                max_request_size=4 * MAX_BATCH_BYTES,
                compression_type=None if settings.compression == "none" else settings.compression,
                id_generator=lambda: "",  # a correlation id would add a header to every record
            )
            broker.publisher(topic, batch=True, title=stream.name)
            return broker

        options["client_id"].journal.epochs.topic = topic
        self._connection = kafka.connection(make_broker, self._cluster.ensure_topics, options["client_id"].journal)
        retry_backoff_s = options["retry_backoff_ms"] / 1_000
        route = new_route(topic, self._connection, self._cluster, retry_backoff_s, seconds.observe)
        self.publisher = Publisher(route, self._background, traces)

    @asynccontextmanager
    async def open(self, ending: asyncio.Event) -> AsyncIterator[None]:
        """Connect in the background, and close the connections at the end; `ending` is set when the shutdown begins."""
        async with self._cluster.open(), self._background.open():
            self._background.start(self._connection.stay_connected(), "connection")
            self._background.start(self._cluster.watch(), "watch of the cluster")
            self._background.start(self.publisher.give_up_at(ending), "last answers")
            yield

    async def health(self) -> Fitness:
        """Return whether records of the stream can be sent now."""
        if trouble := await self._cluster.trouble():  # perhaps of a topic, in a Kafka that answers
            return Fitness(fit=False, kafka="connected" if self._cluster.reached else "connecting", detail=trouble)
        if trouble := self._connection.trouble():
            return Fitness(fit=False, kafka="connecting", detail=trouble)
        if unfit := self._background.failure or self.publisher.recent_refusal():
            return Fitness(fit=False, kafka="connected", detail=unfit)
        well = self._connection.journal.with_throttling(f"{self.stream.name} can be sent")
        return Fitness(fit=True, kafka="connected", detail=self._cluster.at_risk(well))

    async def metrics(self) -> Iterator[Metric]:
        """Return the stream's metrics."""
        health = await self.health()
        of_connection = of_kafka(self._connection, healthy=health.fit, connected=health.kafka == "connected")
        return of_stream(self.stream.name, chain(of_connection, of_publisher(self.publisher, self._connection)))
