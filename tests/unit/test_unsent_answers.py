"""Answers that callers do not read: they count as memory until they are sent."""

import asyncio
import gc
import socket
import ssl
from functools import partial
from typing import Any

import msgspec
import pytest
import trustme
from litestar import get, post
from litestar.connection import Request
from litestar.response import Response
from litestar.types import ASGIApp
from samples import until
from serving import ON_UVLOOP, Connect, closed, limited, serving
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from apps.chassis.http.admission import UNSENT, Limit, UnsentAnswers, share_of
from apps.chassis.http.connection_limits import LimitedProtocol
from apps.chassis.settings import Settings

pytestmark = [pytest.mark.anyio, ON_UVLOOP]

AUTHORITY = trustme.CA()

LARGE = 8 * 1024 * 1024
"""Bytes of a large answer: far more than the system holds of it for a caller that does not read."""
ROOM = 3 * LARGE


@get("/large", sync_to_thread=False)
def large() -> Response[bytes]:
    return Response(b"a" * LARGE)


@post("/large", sync_to_thread=False)
def done() -> Response[bytes]:
    return Response(b"a" * LARGE)


@get(["/livez", "/health-check", "/metrics"], unlimited=True, sync_to_thread=False)
def always() -> Response[bytes]:
    return Response(b"a" * LARGE)


def application(small_bytes: int = 0) -> ASGIApp:
    @get("/small")
    async def small(request: Request[Any, Any, Any]) -> Response[bytes]:
        share_of(request.scope).require(small_bytes)
        return Response(b"a")

    return limited([large, done, always, small], Limit(ROOM), Settings(root_path="/kafka"))


@pytest.fixture(params=["plain", "tls"])
def tls(request: pytest.FixtureRequest) -> ssl.SSLContext | None:
    """The TLS of the service, or None."""
    if request.param == "plain":
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert("localhost").configure_cert(context)
    return context


class Caller:
    """Sends requests, and reads of the answers only what it is asked for."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, path: str, method: str = "GET", more: str = "") -> tuple[int, dict[str, str]]:
        """Send a request and return status and headers of the answer, whose body stays unread."""
        self.writer.write(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n".encode())
        status, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        return int(status.split()[1]), dict(line.split(": ", 1) for line in lines if line)


async def caller(connect: Connect, tls: ssl.SSLContext | None = None) -> Caller:
    """Connect with a small buffer, so that nearly all of an answer stays with the service."""
    _, writer = await connect()
    address = writer.get_extra_info("peername")
    writer.close()
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    connection.setblocking(False)  # noqa: FBT003 - positional alone
    await asyncio.get_running_loop().sock_connect(connection, address)
    if tls is None:
        return Caller(*await asyncio.open_connection(sock=connection, limit=1_024))
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    AUTHORITY.configure_trust(trusting)
    encrypted = await asyncio.open_connection(sock=connection, limit=1_024, ssl=trusting, server_hostname="localhost")
    return Caller(*encrypted)


@pytest.mark.slow
async def test_answers_that_are_not_read_count_until_they_are_and_leave_room_for_what_must_always_be_answered(
    tls: ssl.SSLContext | None,
) -> None:
    connections: set[Any] = set()
    async with serving(application(), connections, tls=tls) as connect:
        unread = [await caller(connect, tls) for _ in range(12)]
        statuses = [(await one.ask("/large"))[0] for one in unread]
        assert statuses == [200] * (ROOM // LARGE) + [503] * (len(unread) - ROOM // LARGE)
        refused = await caller(connect, tls)
        status, headers = await refused.ask("/large")
        assert (status, headers["content-type"]) == (503, "application/problem+json")
        assert int(headers["retry-after"]) > 0
        problem = msgspec.json.decode(await refused.reader.readexactly(int(headers["content-length"])))
        assert problem["type"] == "/kafka/problems/busy"
        assert (await refused.ask("/small"))[0] == 200
        for path in ("/livez", "/health-check", "/metrics"):
            assert (await (await caller(connect, tls)).ask(path))[0] == 200
        assert (await (await caller(connect, tls)).ask("/large", "POST"))[0] == 201
        for connection in list(connections):
            connection.transport.abort()
        again = await caller(connect, tls)
        assert (await again.ask("/large"))[0] == 200
        assert len(await again.reader.readexactly(LARGE)) == LARGE


async def test_a_call_that_weighs_something_is_refused_while_answers_of_others_are_unread(
    tls: ssl.SSLContext | None,
) -> None:
    async with serving(application(2 * LARGE), tls=tls) as connect:
        asking = await caller(connect, tls)
        assert (await asking.ask("/small"))[0] == 200
        await asking.reader.readexactly(1)
        unread = [await caller(connect, tls) for _ in range(3)]
        statuses = [(await one.ask("/large"))[0] for one in unread]
        assert statuses[0] == 200
        assert (await asking.ask("/small"))[0] == 503


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "more"),
    [("/large", ""), ("/large", "Connection: close\r\n"), ("/metrics", ""), ("/large", "Connection: keep-alive\r\n")],
)
async def test_a_caller_that_does_not_read_is_cut_off_and_its_memory_returned(
    path: str, more: str, tls: ssl.SSLContext | None
) -> None:
    connections: set[Any] = set()
    state: dict[str, Any] = {}
    app = application()

    async def seen(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        state.update(scope["state"])
        await app(scope, receive, send)

    async with serving(seen, connections, tls=tls, read_check_s=0.05) as connect:
        unread = await caller(connect, tls)
        unread.writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n".encode() * 5)
        await until(lambda: UNSENT in state and state[UNSENT].bytes > LARGE // 2)
        await until(lambda: not connections)
        unsent: UnsentAnswers = state[UNSENT]
        assert unsent.bytes == 0
        assert len(await closed(unread.reader)) < LARGE


def went_on(connection: LimitedProtocol, held: int) -> bool:
    return connection.transport.get_write_buffer_size() < held or not held


async def test_a_caller_that_reads_slowly_gets_all_of_its_answer(tls: ssl.SSLContext | None) -> None:
    connections: set[Any] = set()
    async with serving(application(), connections, tls=tls, min_read_bytes=1) as connect:
        slow = await caller(connect, tls)
        await slow.ask("/large")
        (connection,) = connections
        for _ in range(8):
            held = connection._unsent
            await slow.reader.readexactly(LARGE // 8)
            await until(partial(went_on, connection, held))
            if connection._unsent:
                connection._check_reading()
        assert (await slow.ask("/small"))[0] == 200


async def test_what_a_caller_has_not_read_still_counts_after_it_has_read_a_little(tls: ssl.SSLContext | None) -> None:
    connections: set[Any] = set()
    async with serving(application(), connections, tls=tls) as connect:
        slow = await caller(connect, tls)
        await slow.ask("/large")
        (connection,) = connections
        held = connection.transport.get_write_buffer_size()
        await slow.reader.readexactly(LARGE // 4)
        await until(lambda: connection.transport.get_write_buffer_size() < held)
        await slow.reader.readexactly(LARGE // 4)
        assert connection._answers.bytes > LARGE // 4
        assert connection.flow.write_paused


async def test_what_a_caller_that_has_gone_did_not_read_is_dropped_at_once(tls: ssl.SSLContext | None) -> None:
    connections: set[Any] = set()
    async with serving(application(), connections, tls=tls) as connect:
        gone = await caller(connect, tls)
        await gone.ask("/large")
        (connection,) = connections
        assert connection.transport.get_write_buffer_size() > LARGE // 2
        gone.writer.transport.abort()
        await until(lambda: not connections)
        assert connection.transport.get_write_buffer_size() == 0


async def test_an_answer_is_whole_though_its_connection_closes_behind_it(tls: ssl.SSLContext | None) -> None:
    async with serving(application(), tls=tls) as connect:
        asking = await caller(connect, tls)
        await asking.ask("/large", more="Connection: close\r\n")
        assert len(await asking.reader.read()) == LARGE


@pytest.mark.slow
async def test_a_call_is_freed_as_soon_as_it_is_answered() -> None:
    async with serving(application()) as connect:
        asking = await caller(connect)
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                assert (await asking.ask("/small"))[0] == 200
                await asking.reader.readexactly(1)
            kept = [one for one in gc.get_objects() if type(one) is RequestResponseCycle]
            assert len(kept) <= 2  # the last one of the connection, and the one before it
        finally:
            gc.enable()
