"""Serves an ASGI application on a port, within the limits of the services, and opens connections to it."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import uvicorn
from litestar import Litestar
from litestar.types import ASGIApp
from prometheus_client import CollectorRegistry
from samples import LONG

from apps.chassis.http.admission import Limit
from apps.chassis.http.connection_limits import ConnectionLimits, LimitedProtocol
from apps.chassis.http.problems import answer_error
from apps.chassis.http.request_middleware import RequestMiddleware, admit
from apps.chassis.settings import Settings
from tests.event_services import create_producer

Connect = Callable[..., Any]
ON_UVLOOP = pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": True})], ids=["uvloop"])
"""Runs tests on the loop of the services: it raises where asyncio's own only warns."""


@asynccontextmanager
async def serving(
    app: Any,  # noqa: ANN401 - ASGI
    connections: set[Any] | None = None,
    protocol: type[LimitedProtocol] = LimitedProtocol,
    close_after_s: float = 0.01,
    tls: ssl.SSLContext | None = None,
    **limits: float,
) -> AsyncIterator[Connect]:
    """Serve an application within the limits; what is yielded opens connections to it, which are in `connections`."""
    limited: Any = partial(protocol, limits=ConnectionLimits(**limits), close_after_s=close_after_s)  # type: ignore[arg-type]  # one is a whole number
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(
            app,
            http=limited,
            log_config=None,
            lifespan="off",
            timeout_keep_alive=600,
            ssl_context_factory=(lambda *_: tls) if tls else None,
        )
        server = uvicorn.Server(config)
        server.server_state.connections = set() if connections is None else connections
        async with asyncio.timeout(LONG):
            running = asyncio.create_task(server._serve([listening]))
            address = listening.getsockname()
            try:
                yield partial(asyncio.open_connection, *address)
            finally:
                server.should_exit = server.force_exit = True
                for connection in list(server.server_state.connections):
                    connection.transport.abort()  # or the end of the server waits for callers that do not read
                await running


LINES = b"POST /producers/events%b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n"


def noting_reads(app: Any, has_read: asyncio.Event) -> Any:  # noqa: ANN401 - ASGI
    """Return an application that sets an event when it asks for more of a body than it has."""

    async def noting(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        asked = 0

        async def seen() -> Any:  # noqa: ANN401 - ASGI
            nonlocal asked
            asked += 1
            if asked > 1:
                has_read.set()
            return await receive()

        await app(scope, seen, send)

    return noting


async def hello(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
    """Answer when the body is there."""
    while scope["type"] == "http" and (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


async def answer_to(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    return head + (await reader.readexactly(5) if b" 200 " in head else b"")


async def closed(reader: asyncio.StreamReader) -> bytes:
    """Return what came before the connection was closed."""
    said = b""
    try:
        while more := await reader.read(65_536):
            said += more
    except ConnectionError:
        pass
    return said


async def answered(
    path: str,
    headers: dict[str, str],
    *arriving: bytes | None,
    silent: bool = False,
    app: ASGIApp | None = None,
    **more: str,
) -> list[Any]:
    """Return what a service (a producer by default) sends to a caller that sends some pieces, and then (None) goes.

    A caller that is `silent` stays, and sends nothing more.
    """
    sent: list[Any] = []
    pieces = list(arriving)

    async def receive() -> Any:  # noqa: ANN401 - an ASGI event
        if not pieces and silent:
            await asyncio.Event().wait()
        piece = pieces.pop(0)
        if piece is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": piece, "more_body": bool(pieces) or silent}

    async def send(message: Any) -> None:  # noqa: ANN401 - an ASGI event
        sent.append(message)

    named = [(name.encode(), value.encode()) for name, value in {"host": "localhost", **headers}.items()]
    path, _, query = path.partition("?")
    scope: Any = {"type": "http", "method": "POST", "path": path, "headers": named, "state": {}}
    scope |= {"query_string": query.encode(), "http_version": "1.1"} | more
    app = app or create_producer(Settings())
    await app(scope, receive, send)
    return sent


def limited(handlers: list[Any], limit: Limit, settings: Settings | None = None) -> RequestMiddleware:
    """Return an application whose calls count against a limit, as those of the services do."""
    app = Litestar(
        handlers,
        before_request=admit(limit),
        openapi_config=None,
        exception_handlers={Exception: answer_error},
        logging_config=None,  # Litestar would set the level of all loggers, for later tests too
    )
    return RequestMiddleware(app, CollectorRegistry(), limit, settings or Settings(), asyncio.Event())
