"""The outermost layer of a service: what every call meets, whoever answers it."""

import time
from collections.abc import Awaitable, Iterable
from typing import Any

import msgspec
from litestar import Litestar
from litestar.connection import Request
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from prometheus_client import CollectorRegistry

from apps.chassis.http.admission import Limit
from apps.chassis.http.authorization import SAFE_METHODS, security_headers_beside
from apps.chassis.http.origins import OriginPolicy
from apps.chassis.http.problems import BUSY, MEDIA_TYPE, RETRY_AFTER, Problem
from apps.chassis.http.query import check_query
from apps.chassis.http.request_id import HEADER, name_request
from apps.chassis.observability.metrics import HttpMetrics
from apps.chassis.settings import Settings

SMALL_ANSWER_BYTES = 16 * 1024
"""Answers up to this size, in bytes, are always sent."""


class Edge:
    """Names, limits and measures the calls of an application, and has every answer say so, those of errors too.

    It is one layer for all of it, and not in Litestar's middleware: each layer is a fortieth of a call, and Litestar's
    own does not see what no route answers.
    """

    def __init__(self, registry: CollectorRegistry, limit: Limit, settings: Settings) -> None:
        self._metrics = HttpMetrics(registry)
        self._limit = limit
        self._origins = OriginPolicy(settings)
        self._root_path = settings.root_path

    async def admit(self, request: Request[Any, Any, Any]) -> None:
        """Let a call through to its route, or refuse it: for an application's `before_request`."""
        check_query(request)
        self._limit.let_in(request.scope)

    def surround(self, app: Litestar) -> None:
        """Put the layer around an application, which has `admit` as its `before_request`."""
        handler: ASGIApp = app.asgi_handler

        def answer(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
            return answer_as(name_request(scope), scope, receive, send)  # named in the task that the server made

        async def answer_as(name: bytes, scope: Scope, receive: Receive, send: Send) -> None:
            status = 500  # what the server answers for an application that does not
            refused = False

            # Neither function may refer to the other, or to itself: each call would be a reference cycle.
            async def refuse(start: Message, body: Message) -> None:
                await send(start)
                await send(body)

            def see(message: Message) -> Awaitable[None]:
                nonlocal status, refused
                if refused:
                    return _drop(message)
                if message["type"] != "http.response.start":
                    return send(message)
                start: Any = message
                body: Any = None
                if not self._has_room_for(message["headers"], scope):
                    refused = True
                    start, body = _busy_answer(self._limit.describe(scope), self._root_path)
                status, headers = start["status"], start["headers"]
                start["headers"] = [*headers, *security_headers_beside(headers), (HEADER, name)]
                return send(start) if body is None else refuse(start, body)

            start = time.perf_counter()
            try:
                refusal = self._origins.refusal(scope)
                if refusal is None:
                    await handler(scope, receive, see)
                else:
                    request: Request[Any, Any, Any] = Request(scope, receive, send)
                    await refusal.to_response(request).to_asgi_response(None, request)(scope, receive, see)
            finally:
                self._limit.let_out(scope)
                self._metrics.note(scope, status, time.perf_counter() - start)

        app.asgi_handler = answer

    def _has_room_for(self, headers: Iterable[tuple[bytes, bytes]], scope: Scope) -> bool:
        """Count a large answer. Return False when there is no room for it and its call changed nothing."""
        for name, value in headers:
            if name == b"content-length":
                size = int(value)
                return size <= SMALL_ANSWER_BYTES or self._limit.count_answer(
                    scope, size, refusable=scope.get("method") in SAFE_METHODS
                )
        return True


def _busy_answer(detail: str, root_path: str) -> tuple[Any, Any]:
    """Return the ASGI events of the error that replaces a refused answer."""
    problem = Problem(type=root_path + BUSY.type, title=BUSY.title, status=BUSY.status, detail=detail)
    body = msgspec.json.encode(problem)
    headers = [
        (b"content-type", MEDIA_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"retry-after", RETRY_AFTER.encode()),
    ]
    return (
        {"type": "http.response.start", "status": BUSY.status.value, "headers": headers},
        {"type": "http.response.body", "body": body, "more_body": False},
    )


async def _drop(_: Message) -> None:
    """Drop the events of a refused answer."""
