"""The outermost ASGI layer of a service: what applies to every call, also to an unknown path."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from random import Random
from typing import Any

from anyio import CancelScope
from litestar.connection import Request
from litestar.plugins.problem_details import ProblemDetailsException
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from prometheus_client import CollectorRegistry

from apps.chassis.http.admission import FOR_STRANGERS, FREE_BYTES, LARGE, Limit, for_strangers, share_of
from apps.chassis.http.authentication import SAFE_METHODS
from apps.chassis.http.authorization import missing_security_headers
from apps.chassis.http.direct_calls import OUTCOME
from apps.chassis.http.origins import OriginPolicy
from apps.chassis.http.problem_kinds import BUSY
from apps.chassis.http.problems import ANSWERED, RETRY_AFTER, encoded, problem, with_root_path
from apps.chassis.http.query import check_query
from apps.chassis.http.request_headers import find_fault, headers_of
from apps.chassis.observability.logs import key_name, request_id, trace_id
from apps.chassis.observability.metrics import HttpMetrics
from apps.chassis.settings import Settings

SMALL_ANSWER_BYTES = 16 * 1024
"""Answers up to this size, in bytes, are always sent."""
REQUEST_ID = b"x-request-id"
SAFE_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
"""A caller's request id that is used: it cannot change the meaning of a log line."""
UNLIMITED = "unlimited"
"""The option of a route that is answered under any load: `@get(..., unlimited=True)`."""
CUT_OFF = "the service has ended before the call was done; a part of it may have been done"
DISALLOWED = "pages of other origins may not make this call: CORS does not allow its method or a header of it"
RETRY = {"Retry-After": RETRY_AFTER}
made_up = Random()  # noqa: S311 - an id is no secret, and the system's randomness is a system call


class RequestMiddleware:
    """Gives each call an id, limits and measures it, and adds the headers that every answer has.

    It is one layer for all of it, because each layer takes a fortieth of a call's time. HEAD is answered as GET without
    the body. The server cancels calls that are not done some seconds after `ending` is set.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what applies to every call
        self,
        app: ASGIApp,
        registry: CollectorRegistry,
        limit: Limit,
        settings: Settings,
        ending: asyncio.Event,
        audit: Callable[[Scope, int], object] = lambda *_: None,
        route_of: Callable[[Scope], Any] = lambda _: None,
    ) -> None:
        self._app = app
        self._ending = ending
        self._audit = audit
        self._metrics = HttpMetrics(registry)
        self._limit = limit
        self._origins = OriginPolicy(settings, route_of)
        self._root_path = settings.root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a call."""
        if scope.get("method") == "HEAD":
            await self._answer_head(scope, receive, send)
            return
        name, status, refused = _identify(scope), 0, False

        def see(message: Message) -> Awaitable[None]:  # must not refer to itself: each call would be a reference cycle
            nonlocal status, refused
            if refused:
                return _drop(message)
            if message["type"] != "http.response.start":
                return send(message)
            start: Any = message
            body: Any = None
            own = dict(message["headers"])
            if error := self._refusal_of(scope, message["status"], int(own.get(b"content-length", 0))):
                refused = True
                start, body = self._events_of(error)
                own = dict(start["headers"])
            status = start["status"]
            start["headers"] = [*start["headers"], *missing_security_headers(own), (REQUEST_ID, name)]
            return send(start) if body is None else _send_both(send, start, body)

        begun = time.perf_counter()
        try:
            if refusal := find_fault(scope) or self._origins.refusal(scope):
                await self._refuse(scope, refusal, see)
            else:
                await self._app(scope, receive, see)
        except asyncio.CancelledError:
            if not self._ending.is_set():
                raise
            if not status:  # the server closes the connection of an answer that has begun
                await self._refuse(scope, problem(HTTPStatus.SERVICE_UNAVAILABLE, CUT_OFF, headers=RETRY), see)
        finally:
            self._limit.let_out(scope)
            self._audit(scope, status)
            self._metrics.note(scope, status or 500, time.perf_counter() - begun)  # the server answers 500 itself

    async def _answer_head(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as GET, and break off once the head is sent: a body may have no end."""
        as_get: Any = {**scope, "method": "GET"}
        with CancelScope() as answering:

            async def send_head(message: Message) -> None:
                if message["type"] == "http.response.start":
                    await send(message)
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                    answering.cancel()

            await self(as_get, receive, send_head)

    async def _refuse(self, scope: Scope, error: ProblemDetailsException, send: Send) -> None:
        """Answer a call by a problem."""
        scope[ANSWERED] = error.detail  # type: ignore[literal-required]  # a key of our own
        for message in self._events_of(error):
            await send(message)

    def _refusal_of(self, scope: Scope, status: int, size: int) -> ProblemDetailsException | None:
        """Return the problem to answer instead of an answer.

        A large one is counted. When there is no room for it and its call changed nothing, it is not sent.
        """
        if size > SMALL_ANSWER_BYTES:
            has_room = self._limit.count_answer(scope, size, refusable=scope.get("method") in SAFE_METHODS)
            return None if has_room else problem(BUSY, self._limit.describe(scope))
        if status == HTTPStatus.BAD_REQUEST and scope.get("method") == "OPTIONS":
            return problem(HTTPStatus.BAD_REQUEST, DISALLOWED)  # Litestar says it in plain text
        return None

    def _events_of(self, error: ProblemDetailsException) -> tuple[Any, Any]:
        """Return the ASGI events that answer a problem."""
        status, headers, body = encoded(with_root_path(self._root_path, error))
        start = {"type": "http.response.start", "status": status, "headers": headers}
        return start, {"type": "http.response.body", "body": body, "more_body": False}


def admit(limit: Limit, strangers: Limit | None = None) -> Any:  # noqa: ANN401 - a hook of Litestar's
    """Return a `before_request` hook that checks the query of a call, and that there is room for the call."""
    strangers = strangers or for_strangers()

    async def check(request: Request[Any, Any, Any]) -> Any:  # noqa: ANN401 - an answer, None to call the route
        outcome, options = request.scope.pop(OUTCOME, None), request.route_handler.opt  # type: ignore[misc]
        if isinstance(outcome, Exception):
            try:
                raise outcome
            finally:
                del outcome  # it and this frame, which its traceback has, would be a reference cycle
        if outcome is None:
            check_query(request)
            if not options.get(UNLIMITED):
                (strangers if options.get(FOR_STRANGERS) else limit).let_in(request.scope)
                if options.get(LARGE):
                    await share_of(request.scope).turn(FREE_BYTES + 1)
        return outcome

    return check


def _identify(scope: Scope) -> bytes:
    """Return the `X-Request-Id` of a request, or a new one; all that the request starts is logged with it."""
    given = headers_of(scope).get(REQUEST_ID, b"")
    name = given if SAFE_REQUEST_ID.fullmatch(given) else b"%016x" % made_up.getrandbits(64)
    request_id.set(name.decode())
    key_name.set(None)  # uvicorn begins a pipelined request in the context of the one before
    trace_id.set(None)
    return name


async def _send_both(send: Send, start: Message, body: Message) -> None:
    """Send a whole answer."""
    await send(start)
    await send(body)


async def _drop(_: Message) -> None:
    """Drop the events of a refused answer."""
