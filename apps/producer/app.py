"""Wires the producer."""

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from litestar import Litestar
from prometheus_client import CollectorRegistry

from apps.chassis.application import build_application
from apps.chassis.audit import audit_of
from apps.chassis.http.admission import Limit
from apps.chassis.http.asyncapi import Operation
from apps.chassis.http.authorization import cors
from apps.chassis.internals.protections import protect
from apps.chassis.kafka.clients import client_options
from apps.chassis.kafka.kafka import REAL, Kafka
from apps.chassis.observability.metrics import new_registry
from apps.chassis.observability.traces import Traces
from apps.chassis.observability.tracing import traces_of
from apps.chassis.service import settings_from_environment, warn_of_other_server
from apps.chassis.settings import Settings
from apps.producer.home.routes import home_routes
from apps.producer.metrics import acknowledgement_seconds
from apps.producer.publishing.lanes import IN_FLIGHT_BYTES, Limits, Route
from apps.producer.publishing.transport import choose_transport
from apps.producer.routes import answer_with_reason, seed_route, stream_router
from apps.producer.stream_producer import StreamProducer
from contracts import STREAMS
from contracts.stream import Stream

SERVICE = "producer"
DESCRIPTION = "Writes records to Kafka topics, each with a receipt."


def create_app(  # noqa: PLR0913 - what tests replace
    settings: Settings | None = None,
    ending: asyncio.Event | None = None,
    *,
    streams: Sequence[Stream[Any]] = STREAMS,
    kafka: Kafka = REAL,
    limits: Limits | None = None,
    traces: Traces | None = None,
    admission: Limit | None = None,
) -> Litestar:
    """Build the producer. It connects to Kafka when the application starts, and disconnects when it ends.

    `settings` are read from the environment by default. `ending` announces the shutdown. Tests replace the others.
    """
    at_start = [] if settings else [warn_of_other_server]
    settings = settings or settings_from_environment()
    traces, registry = traces or traces_of(settings, SERVICE), new_registry(SERVICE)
    protect()
    producers = _stream_producers(settings, streams, limits, registry, traces, kafka)
    deletes = any(producer.stream.deletes for producer in producers.values())
    return build_application(
        SERVICE,
        DESCRIPTION,
        settings,
        producers,
        [seed_route(next(iter(producers.values()))), *map(stream_router, producers.values()), *home_routes(settings)],
        operations=[*_operations(settings.served(streams))],
        registry=registry,
        traces=traces,
        ending=ending,
        admission=admission,
        audit=audit_of(settings, SERVICE, kafka, registry, is_written=deletes),
        exception_handlers={Exception: answer_with_reason(settings.served(streams))},
        on_startup=at_start,
        cors_config=cors(settings.allowed_origins, ("GET", "POST", *(("DELETE",) if deletes else ()))),
    )


def _stream_producers(  # noqa: PLR0913, PLR0917 - what `create_app` is given
    settings: Settings,
    streams: Sequence[Stream[Any]],
    limits: Limits | None,
    registry: CollectorRegistry,
    traces: Traces,
    kafka: Kafka,
) -> dict[str, StreamProducer]:
    seconds, send = acknowledgement_seconds(registry), choose_transport(settings.accelerators, registry)
    new_route = partial(Route, send=send, limits=limits or Limits(in_flight_bytes=settings.share_of(IN_FLIGHT_BYTES)))
    return {
        stream.name: StreamProducer(
            stream, settings, client_options(settings, SERVICE), traces, kafka, seconds.labels(stream.name), new_route
        )
        for stream in settings.served(streams)
    }


def _operations(streams: Iterable[Stream[Any]]) -> Iterable[Operation]:
    for one in streams:
        yield Operation("send", one, f"Sends {one.name}, each record to the partition of its key.")
