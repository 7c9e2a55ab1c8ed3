"""Trace with OpenTelemetry and W3C Trace Context. Imported only when traces are on.

Spans hold the operation, the number of records and their place. They never hold a value, a key, a query or the message
of an exception, which may be private.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from itertools import islice
from threading import Thread

from litestar.types import ASGIApp, Message, Receive, Scope, Send
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, format_trace_id, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from apps.chassis.http.health import VERSION
from apps.chassis.observability.logs import trace_id
from apps.chassis.observability.traces import TraceHeaders, Traces
from contracts import PROJECT
from contracts.record import Record

LAST_SPANS_S = 1.0
"""Seconds that a service waits at its end until the last spans are sent."""
EXPORT_TIMEOUT_S = 5.0
"""Seconds for the collector to accept spans; after that they are lost."""
MAX_STATE_CHARACTERS = 512
"""Most characters of a caller's `tracestate` that are passed on; a longer one is dropped, as the standard allows."""
MAX_TRACES = 100
"""Most traces of one batch that get a span; there may be as many as records."""
NOT_TRACED = frozenset({"/livez", "/health-check", "/metrics"})
"""Paths of probes, which are called all the time and are of no interest in traces."""
PARENT, STATE = "traceparent", "tracestate"

Attributes = Mapping[str, str | int]


def sending_to(endpoint: str, service: str) -> "OpenTelemetry":
    """Return traces that are sent to a collector (OTLP over HTTP); `endpoint` is its URL without `/v1/traces`."""
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=EXPORT_TIMEOUT_S)
    return OpenTelemetry(service, BatchSpanProcessor(exporter))


class OpenTelemetry(Traces):
    """Traces calls; `processor` gets the spans. The tracer provider is not registered globally."""

    header_bytes = 2 * 16 + len(PARENT) + 55 + len(STATE) + MAX_STATE_CHARACTERS

    def __init__(self, service: str, processor: SpanProcessor) -> None:
        resource = Resource.create({"service.name": service, "service.version": VERSION})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer(PROJECT, VERSION)
        self._propagator = TraceContextTextMapPropagator()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Send the remaining spans at the end of the block, for 1 s at most."""
        try:
            yield
        finally:
            loop, done = asyncio.get_running_loop(), asyncio.Event()

            def end() -> None:
                self._provider.shutdown()
                with suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(done.set)

            Thread(target=end, name="last spans", daemon=True).start()  # the loop waits for threads of its own pool
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_SPANS_S):
                    await done.wait()

    def follow_http(self, app: ASGIApp) -> ASGIApp:
        """Return the application with its requests traced, as part of the trace in a caller's `traceparent`."""

        async def followed(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["path"] in NOT_TRACED:
                await app(scope, receive, send)
                return
            method = str(scope.get("method"))
            given = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            with self._span(method, SpanKind.SERVER, self._context(given), {"http.request.method": method}) as span:

                async def see(message: Message) -> None:
                    if message["type"] == "http.response.start":
                        status = message["status"]
                        span.set_attribute("http.response.status_code", status)
                        if status >= 500:  # noqa: PLR2004 - HTTP's own range
                            span.set_status(StatusCode.ERROR)
                    await send(message)

                try:
                    await app(scope, receive, see)
                finally:
                    if route := scope.get("path_template"):
                        span.update_name(f"{method} {route}")
                        span.set_attribute("http.route", route)

        return followed

    def headers(self) -> TraceHeaders | None:
        """Return the trace headers for the records of the current call; None when the call is not traced."""
        carrier: TraceHeaders = {}
        if get_current_span().get_span_context().is_valid:
            self._propagator.inject(carrier)
        if len(carrier.get(STATE, "")) > MAX_STATE_CHARACTERS:
            del carrier[STATE]
        return carrier or None

    @contextmanager
    def publishing(self, topic: str, records: int) -> Iterator[None]:
        """Trace the sending of records, until they are acknowledged."""
        with self._span(f"send {topic}", SpanKind.PRODUCER, None, _messaging("send", topic, records)):
            yield

    @contextmanager
    def handling(self, records: Sequence[Record]) -> Iterator[None]:
        """Trace the handling of a batch, in the traces of its records.

        Each of the first 100 traces has a span of its own, as long as the batch. The handler runs in the span of the
        first record; the others are linked to it.
        """
        found = Counter(map(_trace_of, records))
        found = Counter({trace: number for trace, number in found.items() if trace}) or found
        (first, number), *others = islice(found.items(), MAX_TRACES)
        topic = records[0].topic
        place: dict[str, str | int] = {
            "messaging.destination.partition.id": str(records[0].partition),
            "messaging.kafka.offset": records[0].offset,
        }
        with ExitStack() as stack:
            attributes = _messaging("process", topic, number) | place
            name = f"process {topic}"
            span = stack.enter_context(self._span(name, SpanKind.CONSUMER, self._context(first), attributes))
            for other, number in others:
                link, attributes = Link(span.get_span_context()), _messaging("process", topic, number)
                linked = self._tracer.start_span(name, self._context(other), SpanKind.CONSUMER, attributes, [link])
                stack.callback(linked.end)
            yield

    def _context(self, headers: Mapping[str, str] | tuple[tuple[str, str], ...]) -> Context:
        return self._propagator.extract(dict(headers), Context())

    @contextmanager
    def _span(self, name: str, kind: SpanKind, parent: Context | None, attributes: Attributes) -> Iterator[Span]:
        """Start a span and make it the current one; of an exception it holds only the type."""
        with self._tracer.start_as_current_span(
            name, parent, kind, attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            token = trace_id.set(format_trace_id(span.get_span_context().trace_id))
            try:
                yield span
            except Exception as error:
                span.set_status(StatusCode.ERROR)
                span.set_attribute("error.type", type(error).__qualname__)
                raise
            finally:
                trace_id.reset(token)


def _trace_of(record: Record) -> tuple[tuple[str, str], ...]:
    """Return the trace headers of a record; the first of each name counts."""
    if not record.headers:
        return ()
    named = {name: value for name, value in reversed(record.headers) if name in {PARENT, STATE} and value}
    return tuple((name, value.decode("latin-1")) for name, value in sorted(named.items())) if PARENT in named else ()


def _messaging(operation: str, topic: str, records: int) -> dict[str, str | int]:
    return {
        "messaging.system": "kafka",
        "messaging.operation.type": operation,
        "messaging.operation.name": operation,
        "messaging.destination.name": topic,
        "messaging.batch.message_count": records,
    }
