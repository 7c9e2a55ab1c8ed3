"""Callers that close their sending side behind their last request, as `nc -N` and some proxies do, and read on."""

import asyncio
import logging
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from serving import ON_UVLOOP, Connect, closed, serving
from test_http_framing import NEXT, Recorder
from test_refused_requests import BEHIND, WHOLE
from test_tls import AUTHORITY, issue

from apps.chassis.http.connection_limits import LimitedProtocol
from apps.chassis.http.streaming import Streamed
from apps.chassis.http.tls import ServerTls
from apps.chassis.internals.http_framing import NOT_HTTP

pytestmark = [pytest.mark.anyio, ON_UVLOOP]

CHUNKED = b"POST /lines HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n0\r\n\r\n"
DELETION = b"DELETE /one HTTP/1.1\r\nHost: localhost\r\n\r\n"
COMPLETE = {
    "no body": NEXT,
    "no body in either direction": NEXT.replace(b"GET", b"HEAD"),
    "a body": WHOLE,
    "chunks": CHUNKED,
    "a deletion": DELETION,
    "the last of a connection": WHOLE.replace(b"Content", b"Connection: close\r\nContent"),
    "several": WHOLE + NEXT + CHUNKED + DELETION + WHOLE,
}


@asynccontextmanager
async def half_closing(app: Any) -> AsyncIterator[tuple[Connect, asyncio.Event]]:  # noqa: ANN401 - ASGI
    """Serve an application; yield what opens connections, and the event that the caller has closed its side."""
    seen = asyncio.Event()

    class Seeing(LimitedProtocol):
        def eof_received(self) -> bool:  # type: ignore[override]  # see there
            kept = super().eof_received()
            seen.set()
            return kept

    async with serving(app, protocol=Seeing) as connect:
        yield connect, seen


class AfterwardsRecorder(Recorder):
    """Answers each request only when the caller has closed its side."""

    seen: asyncio.Event

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        async def send_afterwards(message: Any) -> None:  # noqa: ANN401 - an ASGI event
            await self.seen.wait()
            await send(message)

        await super().__call__(scope, receive, send_afterwards)


async def statuses_of(sent: bytes) -> list[bytes]:
    """Return the statuses of the answers to a caller that closes its side; they are sent after that."""
    app = AfterwardsRecorder()
    async with half_closing(app) as (connect, app.seen):
        reader, writer = await connect()
        writer.write(sent)
        writer.write_eof()
        said = await closed(reader)
    assert said.count(b"\r\nconnection: close\r\n") == 1
    return re.findall(rb"HTTP/1.1 (\d+)", said)


@pytest.mark.parametrize("sent", COMPLETE.values(), ids=COMPLETE.keys())
async def test_who_closes_its_side_behind_complete_requests_is_answered_each_of_them(sent: bytes) -> None:
    assert await statuses_of(sent) == [b"200"] * sent.count(b" HTTP/1.1\r\n")


@pytest.mark.parametrize("sent", [NEXT, WHOLE, DELETION], ids=["no body", "a body", "a deletion"])
async def test_who_closes_its_side_behind_a_request_of_http_1_0_is_answered(sent: bytes) -> None:
    assert await statuses_of(sent.replace(b"HTTP/1.1", b"HTTP/1.0")) == [b"200"]


async def test_complete_requests_are_answered_before_one_whose_body_breaks_off() -> None:
    assert await statuses_of(WHOLE + NEXT + WHOLE[:-1]) == [b"200", b"200", b"400"]


@pytest.mark.parametrize(("behind", "status"), BEHIND.values(), ids=BEHIND.keys())
async def test_who_closes_its_side_behind_what_is_refused_gets_the_answers_before_it_too(
    behind: bytes, status: int
) -> None:
    assert await statuses_of(WHOLE + behind) == [b"200", b"%d" % status]


@pytest.mark.parametrize("reads_body", [True, False], ids=["while the body is read", "after the body"])
async def test_a_streamed_answer_goes_on_when_the_caller_closes_its_side(reads_body: bool) -> None:  # noqa: FBT001 - a parameter of the test
    async def streaming(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        async def two() -> AsyncGenerator[bytes, None]:
            yield b"before"
            await seen.wait()
            if reads_body:
                assert (await receive())["type"] == "http.request"
            yield b"after"

        answer: Any = Streamed(two(), "text/plain", HTTPStatus.OK, reads_body=reads_body).to_asgi_response()
        await answer(scope, receive, send)

    async with half_closing(streaming) as (connect, seen):
        reader, writer = await connect()
        writer.write(CHUNKED)
        await reader.readuntil(b"before\r\n")
        writer.write_eof()
        assert await closed(reader) == b"5\r\nafter\r\n0\r\n\r\n"


@pytest.mark.parametrize("begins", [True, False], ids=["begun", "asked for"])
async def test_an_answer_without_an_end_ends_when_the_caller_closes_its_side(
    begins: bool,  # noqa: FBT001 - a parameter of the test
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)  # tests that ran before may have set another
    ended = asyncio.Event()

    async def tail(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        async def endless() -> AsyncGenerator[bytes, None]:
            yield b"first"
            await asyncio.Event().wait()

        if not begins:
            await seen.wait()
        options: Any = {"reads_body": False, "endless": True}
        answer: Any = Streamed(endless(), "text/plain", HTTPStatus.OK, **options).to_asgi_response()
        await answer(scope, receive, send)
        ended.set()

    async with half_closing(tail) as (connect, seen):
        reader, writer = await connect()
        writer.write(NEXT)
        if begins:
            await reader.readuntil(b"first\r\n")
        writer.write_eof()
        await ended.wait()
        assert not (await closed(reader)).endswith(b"0\r\n\r\n")
    assert not caplog.records


def close_as_the_caller_did(connection: LimitedProtocol) -> None:
    if not connection.eof_received():
        connection.transport.close()  # as the loop does then


END_OF_CONNECTION: dict[str, Callable[[LimitedProtocol], object]] = {
    "the caller closes its side": close_as_the_caller_did,
    "the service ends": LimitedProtocol.shutdown,
    "the connection is idle for too long": LimitedProtocol.timeout_keep_alive_handler,
    "what follows is refused": lambda connection: connection.refuse(NOT_HTTP),
}


@pytest.mark.parametrize("end", END_OF_CONNECTION.values(), ids=END_OF_CONNECTION.keys())
async def test_an_answer_without_a_body_comes_before_the_end_of_its_connection(
    end: Callable[[LimitedProtocol], object],
) -> None:
    connections: set[Any] = set()

    async def answering(_: Any, __: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})  # none is written for HEAD
        end(*connections)

    async with serving(answering, connections) as connect:
        reader, writer = await connect()
        writer.write(NEXT.replace(b"GET", b"HEAD"))
        assert (await closed(reader)).startswith(b"HTTP/1.1 204 ")


async def test_who_closes_both_sides_is_noticed_when_its_answer_is_written() -> None:
    ended = asyncio.Event()

    async def long(_: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await seen.wait()
        listening = asyncio.create_task(disconnected(receive))
        while not listening.done():
            await send({"type": "http.response.body", "body": b"a", "more_body": True})
            await asyncio.sleep(0)
        ended.set()

    async with half_closing(long) as (connect, seen):
        _, writer = await connect()
        writer.write(NEXT)
        writer.close()
        await ended.wait()


async def disconnected(receive: Any) -> None:  # noqa: ANN401 - ASGI
    while (await receive())["type"] != "http.disconnect":
        pass


async def test_who_leaves_over_tls_is_noticed_at_once_and_not_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)  # tests that ran before may have set another
    begun, left = asyncio.Event(), asyncio.Event()

    async def waiting(_: Any, receive: Any, __: Any) -> None:  # noqa: ANN401 - ASGI
        begun.set()
        await disconnected(receive)
        left.set()

    trusted = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    AUTHORITY.configure_trust(trusted)
    async with serving(waiting, tls=ServerTls(*map(str, issue(tmp_path, "localhost")))) as connect:
        for sent in (WHOLE, WHOLE[:-1]):
            begun.clear()
            left.clear()
            _, writer = await connect(ssl=trusted, server_hostname="localhost")
            writer.write(sent)
            await begun.wait()
            writer.close()
            await left.wait()
    assert not caplog.records
