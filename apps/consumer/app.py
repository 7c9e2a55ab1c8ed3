"""Wires the consumer."""

import asyncio
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from litestar import Litestar
from prometheus_client import CollectorRegistry

from apps.chassis.application import build_application
from apps.chassis.audit import audit_of
from apps.chassis.http.admission import Limit
from apps.chassis.http.asyncapi import Operation
from apps.chassis.internals.protections import protect
from apps.chassis.kafka.clients import client_options, with_own_journal
from apps.chassis.kafka.kafka import REAL, Kafka
from apps.chassis.observability.metrics import new_registry
from apps.chassis.observability.traces import Traces
from apps.chassis.observability.tracing import traces_of
from apps.chassis.service import settings_from_environment, warn_of_other_server
from apps.chassis.settings import Settings
from apps.consumer.browsing.routes import MessageController
from apps.consumer.consuming.policy import DEFAULT, Policy
from apps.consumer.consuming.publish import Publisher
from apps.consumer.consuming.resource import AnyHandler, handler_resource
from apps.consumer.handlers import HANDLERS, POLICIES, handle_nothing
from apps.consumer.operating.metrics import HandlerMetrics
from apps.consumer.operating.routes import OperatingController
from apps.consumer.page.routes import page_routes
from apps.consumer.redriving.purge_routes import PurgeController
from apps.consumer.redriving.routes import DeadLetterController
from apps.consumer.stream_consumer import StreamConsumer
from contracts import STREAMS
from contracts.stream import Stream, check_streams

SERVICE = "consumer"
DESCRIPTION = "Reads records from Kafka topics, hands them to handlers, and shows the newest."

MAX_MEMORY_BYTES = 192 * 1024 * 1024
"""Most bytes of memory that all concurrent calls may take: with the records in memory they fit into the manifest."""
CONTROLLERS = (OperatingController, MessageController, DeadLetterController, PurgeController)


def create_app(  # noqa: PLR0913 - what tests replace
    settings: Settings | None = None,
    ending: asyncio.Event | None = None,
    *,
    streams: Sequence[Stream[Any]] = STREAMS,
    handlers: Mapping[Stream[Any], AnyHandler[Any]] = HANDLERS,
    policies: Mapping[Stream[Any], Policy] = POLICIES,
    kafka: Kafka = REAL,
    traces: Traces | None = None,
    admission: Limit | None = None,
) -> Litestar:
    """Build the consumer; it joins its groups when the application starts, and leaves them at the end.

    Without `settings` they are read from the environment, for `uvicorn --factory` and its like. `ending` announces the
    shutdown, so that the consumer leaves its groups before the last answers are given. `policies` define how batches
    are made, retried and limited. `traces` traces its calls and its handlers; by default as the settings say.
    """
    _prepare_process()
    at_start = [] if settings else [warn_of_other_server]
    settings = settings or settings_from_environment()
    traces = traces or traces_of(settings, SERVICE)
    registry = new_registry(SERVICE)
    consumers = _stream_consumers(settings, streams, handlers, policies, registry, traces, kafka)
    return build_application(
        SERVICE,
        DESCRIPTION,
        settings,
        consumers,
        [*CONTROLLERS, *page_routes(settings.producer_url, [*consumers])],
        operations=[*_operations(consumers.values())],
        registry=registry,
        traces=traces,
        ending=ending,
        admission=admission or Limit(MAX_MEMORY_BYTES),
        audit=audit_of(settings, SERVICE, kafka, registry),
        on_startup=at_start,
    )


def _stream_consumers(  # noqa: PLR0913, PLR0917 - what `create_app` is given
    settings: Settings,
    streams: Sequence[Stream[Any]],
    handlers: Mapping[Stream[Any], AnyHandler[Any]],
    policies: Mapping[Stream[Any], Policy],
    registry: CollectorRegistry,
    traces: Traces,
    kafka: Kafka,
) -> dict[str, StreamConsumer]:
    check_streams(streams)  # also those that no settings were read for: what cannot be strict is not masked either
    measured, options = HandlerMetrics(registry), client_options(settings, SERVICE)

    def consumer_of(stream: Stream[Any]) -> StreamConsumer:
        policy, handler = policies.get(stream, DEFAULT), handlers.get(stream, handle_nothing)
        publisher = Publisher(settings, options, traces, kafka)
        resource = handler_resource(handler, settings, os.environ, stream.name, policy.retry, publisher)
        handle = measured.timed(stream.name, resource.handle)
        own = with_own_journal(options)  # the rebalance of one group holds up no other stream
        return StreamConsumer(stream, settings, own, handle, policy, traces, kafka, resource)

    return {stream.name: consumer_of(stream) for stream in settings.served(streams)}


def _operations(consumers: Iterable[StreamConsumer]) -> Iterable[Operation]:
    for one in consumers:
        stream, kept = one.stream, "Keeps what cannot be consumed, byte for byte, with what became of it."
        yield Operation("receive", stream, f"Consumes {stream.name}.", one.settings.group_id)
        yield Operation("send", stream, kept, dead_letters=True)
        yield Operation("send", stream, "Sends dead letters back, when an operator says so, each once.")


def _prepare_process() -> None:
    """Set what can be set for a whole process alone."""
    # FastStream would restart a loop that failed at once, thousands of times a second: `Control` does it, with pauses
    os.environ.setdefault("FASTSTREAM_SUPERVISOR_DISABLED", "1")
    protect()
