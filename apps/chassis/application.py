"""Build the Litestar application of a service from what both services have in common."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Protocol

from litestar import Litestar
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.types import ASGIApp, ControllerRouterHandler, Receive, Scope, Send
from litestar.utils import normalize_path
from prometheus_client import CollectorRegistry

from apps.chassis.audit import AUDIT, Audit
from apps.chassis.http.admission import MAX_CALLS, Limit, for_strangers
from apps.chassis.http.asyncapi import Operation, asyncapi_document
from apps.chassis.http.authentication import Authenticator
from apps.chassis.http.authorization import ACCESS, Access
from apps.chassis.http.direct_calls import DirectCalls
from apps.chassis.http.documents import document_routes, openapi_config
from apps.chassis.http.health import PARTS, SERVICE, Examined, HealthController
from apps.chassis.http.litestar_caches import LitestarCaches
from apps.chassis.http.problems import ROOT_PATH, ProblemController, answer_error
from apps.chassis.http.record_value import RecordValueSchema
from apps.chassis.http.request_middleware import RequestMiddleware, admit
from apps.chassis.http.served_streams import stream_dependencies
from apps.chassis.http.sessions import SessionController
from apps.chassis.internals.returned_memory import returning_memory
from apps.chassis.loop_watch import LOOP_WATCH, LoopWatch
from apps.chassis.observability.metrics import METRICS_READS, REGISTRY, Measured, MetricsController
from apps.chassis.observability.traces import Traces
from apps.chassis.settings import Settings
from apps.chassis.shared_reads import SharedReads
from contracts.stream import Stream

MAX_MEMORY_BYTES = 256 * 1024 * 1024
"""Most bytes of memory that all concurrent calls may take, approximately."""


class StreamPart(Examined, Measured, Protocol):
    """The part of a service that serves one stream."""

    stream: Stream[Any]

    def open(self, ending: asyncio.Event) -> AbstractAsyncContextManager[None]:
        """Connect, and close at the end of the block; `ending` is set when the shutdown begins."""


class Application(Litestar):
    """A Litestar application inside ASGI middleware for every call: Litestar's own sees only calls with a route."""

    outermost: ASGIApp
    direct: DirectCalls
    caches: LitestarCaches

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI's events of two kinds
        """Answer a call, or open and close the application."""
        if scope["type"] == "lifespan":
            await super().__call__(scope, receive, send)
            return
        try:
            await self.outermost(scope, receive, send)
        finally:
            self.caches.forget(scope)

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a call without the outermost middleware."""
        if answer := await self.direct.make(scope, receive, send):
            await answer.answer(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    def route_of(self, scope: Scope) -> Any:  # noqa: ANN401 - any of Litestar's handlers
        """Return the route of a call that Litestar has not seen, None for an unknown one."""
        prefix, whole = scope.get("root_path"), scope["path"]  # another server may have been given a prefix
        path = normalize_path(whole.split(prefix, maxsplit=1)[-1] if prefix else whole)
        try:
            found = self.asgi_router.handle_routing(path=path, method=scope.get("method"))
        except HTTPException:
            return None
        return found[1]


CONTROLLERS = (HealthController, MetricsController, ProblemController, SessionController)
"""The controllers of any service."""


def build_application(  # noqa: PLR0913 - how the two services differ
    name: str,
    description: str,
    settings: Settings,
    parts: Mapping[str, StreamPart],
    routes: Sequence[ControllerRouterHandler],
    *,
    operations: Sequence[Operation],
    registry: CollectorRegistry,
    traces: Traces,
    ending: asyncio.Event | None,
    admission: Limit | None,
    audit: Audit,
    **options: Any,  # noqa: ANN401 - as Litestar takes them
) -> Litestar:
    """Return the application of a service, with the given routes and those of any service.

    `parts` are open while it runs. `ending` is set when a shutdown begins. `admission` has 256 MiB by default.
    """
    title, limit, end = name.capitalize(), admission or _limit_of(settings), ending or asyncio.Event()
    registry.register(watch := LoopWatch())
    access = Access(authenticator := Authenticator(settings, name, registry), metrics_public=settings.metrics_public)
    common = {ROOT_PATH: settings.root_path, SERVICE: name, REGISTRY: registry, LOOP_WATCH: watch, AUDIT: audit}
    app = Application(
        [*routes, *CONTROLLERS, *document_routes(asyncapi_document(title, description, settings, name, operations))],
        dependencies=stream_dependencies(parts),
        state=State({**common, ACCESS: access, PARTS: parts, METRICS_READS: SharedReads()}),
        guards=[access.guard] if access.keys.needed else [],
        before_request=admit(limit, for_strangers(settings.producer_workers)),
        lifespan=[lambda _: authenticator.open(), lambda _: _open(parts.values(), traces, end, watch, audit)],
        plugins=[RecordValueSchema(part.stream for part in parts.values())],
        logging_config=None,
        openapi_config=openapi_config(title, description, settings, [part.stream for part in parts.values()]),
        **{"exception_handlers": {Exception: answer_error}, **options},
    )
    app.direct, app.caches = DirectCalls(app, limit), LitestarCaches(app)
    audit.keys_needed, audit.streams, audit.route_of = access.keys.needed, parts.keys(), app.route_of
    traced = traces.follow_http(app.answer)
    app.outermost = RequestMiddleware(traced, registry, limit, settings, end, audit.note, app.route_of)
    return app


def _limit_of(settings: Settings) -> Limit:
    return Limit(settings.share_of(MAX_MEMORY_BYTES), settings.share_of(MAX_CALLS))


@asynccontextmanager
async def _open(
    parts: Iterable[StreamPart], traces: Traces, ending: asyncio.Event, watch: LoopWatch, audit: Audit
) -> AsyncIterator[None]:
    async with traces.open(), audit.open(), AsyncExitStack() as opened:
        opened.enter_context(watch.open())
        opened.enter_context(returning_memory())
        for part in parts:
            await opened.enter_async_context(part.open(ending))
        yield
