"""Wires the producer."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import chain
from typing import Any

from litestar import Litestar
from litestar.config.cors import CORSConfig
from prometheus_client import Metric

from apps.chassis.http.admission import Limit
from apps.chassis.http.api_keys import HEADER
from apps.chassis.http.asyncapi import Operation, asyncapi_document
from apps.chassis.http.authorization import guarded
from apps.chassis.http.documents import document_routes, openapi_config
from apps.chassis.http.head_requests import answer_head
from apps.chassis.http.health import health_routes
from apps.chassis.http.problems import handlers, problem_plugin, problem_routes
from apps.chassis.http.request_middleware import Edge
from apps.chassis.http.served_streams import Served
from apps.chassis.internals.kafka_client import watch_kafka_clients
from apps.chassis.kafka.clients import client_options
from apps.chassis.observability.metrics import merged, metrics_routes, new_registry
from apps.chassis.observability.traces import Traces
from apps.chassis.observability.tracing import traces_of
from apps.chassis.service import settings_from_environment
from apps.chassis.settings import Settings
from apps.producer.home.routes import home_routes
from apps.producer.metrics import acknowledgement_seconds
from apps.producer.routes import MOST_IN_MEMORY, producer_routes, weight_of
from apps.producer.stream_producer import StreamProducer
from contracts import STREAMS
from contracts.stream import Stream

SERVICE = "producer"
DESCRIPTION = "Writes records to Kafka topics, each with a receipt."


def create_app(
    settings: Settings | None = None,
    ending: asyncio.Event | None = None,
    *,
    streams: Sequence[Stream[Any]] = STREAMS,
    traces: Traces | None = None,
) -> Litestar:
    """Build the producer; it connects to Kafka when the application starts, and closes what it opened at its end.

    Without `settings` they are read from the environment, for `uvicorn --factory` and its like. `ending` announces the
    shutdown, so that no caller is left without an answer. `traces` follows its calls; by default as the settings say.
    """
    settings = settings or settings_from_environment()
    traces = traces or traces_of(settings, SERVICE)
    watch_kafka_clients()
    registry, end = new_registry(SERVICE), ending or asyncio.Event()
    edge = Edge(registry, Limit(weight_of, MOST_IN_MEMORY), settings)
    seconds = acknowledgement_seconds(registry)
    producers = [
        StreamProducer(stream, settings, client_options(settings, SERVICE), traces, seconds.labels(stream.name).observe)
        for stream in settings.served(streams)
    ]
    served = Served({one.stream.name: one for one in producers})
    operations = [
        Operation("send", one.stream, f"Sends {one.stream.name}, each to the partition of its key.") for one in served
    ]
    asyncapi = asyncapi_document("Producer", DESCRIPTION, settings, SERVICE, operations)

    async def look() -> Iterable[Metric]:
        return merged(chain.from_iterable(await asyncio.gather(*(one.metrics() for one in served))))

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        async with traces.open(), AsyncExitStack() as opened:
            for one in served:
                await opened.enter_async_context(one.open(end))
            yield

    routes = [
        *producer_routes({one.stream: one.publisher for one in served}, settings.root_path),
        *health_routes(SERVICE, served),
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
