"""The outermost layer of a service: what every call meets, whoever answers it."""

import time
from collections.abc import Awaitable
from typing import Any

from litestar import Litestar
from litestar.connection import Request
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from prometheus_client import CollectorRegistry

from apps.chassis.access import security_headers_beside
from apps.chassis.limits import Limit
from apps.chassis.metrics import HttpMetrics
from apps.chassis.query import check_query
from apps.chassis.request_id import HEADER, name_request


class Edge:
    """Names, limits and measures the calls of an application, and has every answer say so, those of errors too.

    It is one layer for all of it, and not in Litestar's middleware: each layer is a fortieth of a call, and Litestar's
    own does not see what no route answers.
    """

    def __init__(self, registry: CollectorRegistry, limit: Limit) -> None:
        self._metrics = HttpMetrics(registry)
        self._limit = limit

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

            def see(message: Message) -> Awaitable[None]:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                    headers = message["headers"]
                    message["headers"] = [*headers, *security_headers_beside(headers), (HEADER, name)]
                return send(message)

            start = time.perf_counter()
            try:
                await handler(scope, receive, see)
            finally:
                self._limit.let_out(scope)
                self._metrics.note(scope, status, time.perf_counter() - start)

        app.asgi_handler = answer
