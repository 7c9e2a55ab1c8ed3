"""Wires the producer."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from itertools import chain

from faststream.kafka import KafkaBroker
from litestar import Litestar
from litestar.config.cors import CORSConfig
from prometheus_client import Metric

from apps.chassis.access import guarded
from apps.chassis.asyncapi import Operation, asyncapi_document
from apps.chassis.background import Background
from apps.chassis.cluster import Cluster
from apps.chassis.connection import Connection
from apps.chassis.documents import document_routes, openapi_config
from apps.chassis.edge import Edge
from apps.chassis.head import answer_head
from apps.chassis.health import health_routes
from apps.chassis.internals.kafka_client import watch_kafka_clients
from apps.chassis.kafka import client_options, for_purpose, new_broker
from apps.chassis.keys import HEADER
from apps.chassis.limits import Limit
from apps.chassis.metrics import metrics_routes, new_registry, of_kafka
from apps.chassis.problems import handlers, problem_plugin, problem_routes
from apps.chassis.settings import Settings
from apps.chassis.topics import people_topic
from apps.chassis.traces import Traces
from apps.chassis.tracing import traces_of
from apps.producer.home.routes import home_routes
from apps.producer.metrics import acknowledgement_seconds, of_publisher
from apps.producer.publisher import LARGEST_BATCH, Publisher
from apps.producer.routes import MOST_IN_MEMORY, producer_routes, weight_of

SERVICE = "producer"
DESCRIPTION = "Writes people to a Kafka topic, each with a receipt."


def create_app(settings: Settings, ending: asyncio.Event | None = None, *, traces: Traces | None = None) -> Litestar:
    """Build the producer; it connects to Kafka when the application starts, and closes what it opened at its end.

    `ending` tells it beforehand that it is about to end, so that no caller is left without an answer.
    `traces` follows its calls; by default as the settings say.
    """
    traces = traces or traces_of(settings, SERVICE)
    watch_kafka_clients()
    options = client_options(settings, SERVICE)
    cluster = Cluster(for_purpose(options, "admin"), [people_topic(settings, "write")])
    background = Background()

    def make_broker() -> KafkaBroker:
        return new_broker(
            options,
            acks="all",
            enable_idempotence=True,
            max_batch_size=LARGEST_BATCH,
            max_request_size=4 * LARGEST_BATCH,
            id_generator=lambda: "",  # a correlation id would be a header of every record
        )

    connection = Connection(make_broker, cluster.ensure_topics, options["client_id"].journal)
    backoff = options["retry_backoff_ms"] / 1_000
    registry = new_registry(SERVICE)
    edge = Edge(registry, Limit(weight_of, MOST_IN_MEMORY), settings)
    publisher = Publisher(
        settings.people_topic,
        connection,
        cluster,
        background,
        backoff,
        acknowledged_after=acknowledgement_seconds(registry).observe,
        traces=traces,
    )

    operations = [Operation("send", "people", "Sends people, each to the partition of its key.")]
    asyncapi = asyncapi_document("Producer", DESCRIPTION, settings, SERVICE, operations)

    async def examine() -> tuple[bool, str, str]:
        if trouble := await cluster.trouble() or connection.trouble():
            return False, "connecting", trouble
        if unfit := background.failure or publisher.recent_refusal():
            return False, "connected", unfit
        return True, "connected", cluster.at_risk(connection.journal.with_throttling("people can be sent"))

    async def look() -> Iterable[Metric]:
        healthy, _, _ = await examine()
        return chain(of_kafka(connection, healthy=healthy), of_publisher(publisher, connection))

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        async with traces.open(), cluster.open(), background.open():
            background.start(connection.hold(), "connection")
            background.start(cluster.watch(), "watch of the cluster")
            background.start(publisher.give_up_at(ending or asyncio.Event()), "last answers")
            yield

    routes = [
        *producer_routes(publisher, settings.root_path),
        *health_routes(SERVICE, examine),
        *metrics_routes(registry, look),
        *problem_routes(settings.root_path),
        *document_routes(asyncapi),
        *home_routes(settings),
    ]
    app = Litestar(
        guarded(routes, settings.api_keys, registry),
        lifespan=[lifespan],
        cors_config=_cors(settings.allowed_origins),
        before_request=edge.admit,
        exception_handlers=handlers,
        plugins=[problem_plugin(settings.root_path)],
        logging_config=None,
        openapi_config=openapi_config("Producer", DESCRIPTION, settings.root_path),
    )
    traces.follow_http(app)
    edge.surround(app)
    return answer_head(app)


def _cors(origins: list[str]) -> CORSConfig | None:
    """Let pages of these origins call the service, and no other."""
    if not origins:
        return None
    return CORSConfig(
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["Content-Type", HEADER],
    )
