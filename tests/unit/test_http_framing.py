import asyncio
import re
from collections.abc import AsyncGenerator, Iterable
from http import HTTPStatus
from typing import Any, NamedTuple
from unittest.mock import Mock

import pytest
from serving import closed, serving

from apps.chassis.http.problems import encoded, problem
from apps.chassis.http.streaming import BrokenOff, Streamed
from apps.chassis.internals.http_framing import FramedProtocol, Refused

pytestmark = pytest.mark.anyio

H2C = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"
OFFERS = {
    "none": "",
    "h2c, as curl and Java offer it": H2C,
    "a WebSocket": "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: YWJjZGVmZ2hpamtsbW5vcA==\r\n"
    "Sec-WebSocket-Version: 13\r\n",
    "an unknown protocol": "Upgrade: teapot/9\r\nConnection: upgrade\r\n",
    "in a list": "connection: keep-alive,  uPGRADE , te\r\nupgrade: h2c\r\n",
    "in two lists": "Connection: keep-alive\r\nConnection: upgrade\r\nUpgrade: h2c, websocket\r\n",
    "twice": "Upgrade: h2c\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n",
    "without its name in Connection": "Upgrade: h2c\r\nConnection: keep-alive\r\n",
    "without a protocol": "Upgrade:\r\nConnection: Upgrade\r\n",
    "only in Connection": "Connection: Upgrade\r\n",
}
HIDDEN = b"POST /hidden HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: localhost\r\n\r\n"
NEXT_OFFERING = f"GET /offering HTTP/1.1\r\nHost: localhost\r\n{H2C}\r\n".encode()
LAST = b"GET /last HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


class Ran(NamedTuple):
    """A request that reached the application."""

    method: str
    path: str
    body: bytes


class Recorder:
    """Answers each request when its body is here, and keeps what it was."""

    def __init__(self) -> None:
        self.ran: list[Ran] = []
        self.headers: dict[bytes, bytes] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                await refuse(message["why"], send)
                return
            body += message["body"]
            more = message["more_body"]
        self.headers = dict(scope["headers"])
        self.ran.append(Ran(scope["method"], scope["path"], body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


async def refuse(why: Refused, send: Any) -> None:  # noqa: ANN401 - ASGI
    """Answer a request whose body broke off, as the services do."""
    status, headers, body = encoded(problem(why.status, why.detail))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def framed(body: bytes, offer: str, version: str = "1.1") -> Iterable[tuple[bytes, bytes]]:
    """Yield a POST with its body in each way that tells where it ends, with the body that it has."""
    head = f"POST /events HTTP/{version}\r\nHost: localhost\r\n{offer}".encode()
    yield head + b"Content-Length: %d\r\n\r\n" % len(body) + body, body
    yield head + b"Content-Length: 0\r\n\r\n", b""
    yield head + b"\r\n", b""
    if version == "1.1":
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:7], body[7:]))
        yield head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n", body


def cut(sent: bytes) -> Iterable[list[bytes]]:
    """Yield what is sent in one segment, byte by byte, and cut near the end of the head."""
    end = sent.index(b"\r\n\r\n")
    yield [sent]
    yield [sent[i : i + 1] for i in range(len(sent))]
    for at in range(end, end + 6):
        yield [sent[:at], sent[at:]]


async def said_to(connect: Any, segments: Iterable[bytes]) -> bytes:  # noqa: ANN401 - of `serving`
    """Send segments, each of which is parsed by itself, and return all that is said until the connection is closed."""
    reader, writer = await connect()
    for segment in segments:
        writer.write(segment)
        await asyncio.sleep(0)
    said = await closed(reader)
    writer.close()
    return said


@pytest.mark.slow
@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS.keys())
async def test_an_offered_upgrade_is_ignored_and_a_body_is_the_body_however_it_is_framed_and_cut(offer: str) -> None:
    app = Recorder()
    async with serving(app) as connect:
        for request, body in framed(HIDDEN, offer):
            for segments in cut(request + NEXT_OFFERING + NEXT + LAST):
                app.ran.clear()
                said = await said_to(connect, segments)
                assert [one[1:] for one in app.ran] == [
                    ("/events", body), ("/offering", b""), ("/next", b""), ("/last", b"")
                ]  # fmt: skip
                assert re.findall(rb"HTTP/1.1 (\d+)", said) == [b"200"] * 4


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS.keys())
async def test_nothing_is_run_behind_the_last_request_of_a_connection(offer: str) -> None:
    app = Recorder()
    async with serving(app) as connect:
        for version, more in (("1.0", ""), ("1.0", "Connection: keep-alive\r\n"), ("1.1", "Connection: close\r\n")):
            for request, body in framed(HIDDEN, offer + more, version):
                app.ran.clear()
                said = await said_to(connect, [request + NEXT])
                assert app.ran == [("POST", "/events", body)]
                assert said.count(b"HTTP/1.1") == 1
                assert b"\r\nconnection: close\r\n" in said


async def test_many_offers_on_one_connection_are_all_ignored() -> None:
    app = Recorder()
    request, _ = next(iter(framed(HIDDEN, H2C)))
    async with serving(app) as connect:
        await said_to(connect, [request * 50 + LAST])
    assert app.ran == [("POST", "/events", HIDDEN)] * 50 + [("GET", "/last", b"")]


POST = "POST /events HTTP/1.1\r\nHost: localhost\r\n"
REFUSED = {
    "a tunnel": "CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 63\r\n\r\n",
    "a tunnel to a path": "CONNECT /events HTTP/1.1\r\nHost: localhost\r\nContent-Length: 63\r\n\r\n",
    "a length and chunks": POST + "Content-Length: 63\r\nTransfer-Encoding: chunked\r\n\r\n",
    "two lengths": POST + "Content-Length: 63\r\nContent-Length: 0\r\n\r\n",
    "an encoding instead of chunks": POST + "Transfer-Encoding: identity\r\n\r\n",
    "an encoding before chunks": POST + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunks within chunks": POST + "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunks in two headers": POST + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a header on two lines": POST + "Content-Length: 0\r\nX: a\r\n b\r\n\r\n",
    "HTTP/2.0": POST.replace("HTTP/1.1", "HTTP/2.0") + "Content-Length: 63\r\n\r\n",
    "HTTP/0.9": POST.replace("HTTP/1.1", "HTTP/0.9") + "Content-Length: 63\r\n\r\n",
    "HTTP/1.2": POST.replace("HTTP/1.1", "HTTP/1.2") + "Content-Length: 63\r\n\r\n",
}


@pytest.mark.parametrize("offer", ["", H2C], ids=["without an offer", "with an offer"])
@pytest.mark.parametrize("request_", REFUSED.values(), ids=REFUSED.keys())
async def test_a_request_whose_end_is_unclear_is_refused_and_nothing_of_it_is_run(request_: str, offer: str) -> None:
    app = Recorder()
    head = request_.replace("Host: localhost\r\n", f"Host: localhost\r\n{offer}").encode()
    async with serving(app) as connect:
        for segments in ([head + HIDDEN + LAST], [head, HIDDEN, LAST]):
            said = await said_to(connect, segments)
            assert said.startswith(b"HTTP/1.1 400 ")
            assert said.count(b"HTTP/1.1") == 1
    assert app.ran == []


async def test_trailers_do_not_count_as_headers() -> None:
    app = Recorder()
    trailers = "X-Api-Key: smuggled\r\nHost: elsewhere\r\n"
    async with serving(app) as connect:
        head = f"{POST}Transfer-Encoding: chunked\r\nTrailer: X-Api-Key\r\n\r\n2\r\n[]\r\n0\r\n"
        await said_to(connect, [f"{head}{trailers}\r\n".encode() + LAST])
        assert [one.path for one in app.ran] == ["/events", "/last"]
        reader, writer = await connect()
        writer.write(f"{head}{trailers}\r\n".encode())
        await reader.readuntil(b"ok")
        writer.close()
    assert app.headers.keys() == {b"host", b"transfer-encoding", b"trailer"}
    assert app.headers[b"host"] == b"localhost"


@pytest.mark.parametrize("offer", ["", H2C], ids=["without an offer", "with an offer"])
async def test_a_connection_ends_with_the_answer_to_a_request_that_asks_for_it_behind_its_body(offer: str) -> None:
    app = Recorder()
    request = f"{POST}{offer}Transfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n0\r\nConnection: close\r\n\r\n".encode()
    async with serving(app) as connect:
        for segments in ([NEXT + request + HIDDEN], *cut(NEXT + request)):
            app.ran.clear()
            said = await said_to(connect, segments)
            assert app.ran == [("GET", "/next", b""), ("POST", "/events", b"[]")]
            assert said.endswith(b"\r\nconnection: close\r\n\r\nok")


async def test_a_connection_whose_end_is_asked_for_behind_a_body_is_closed_when_the_answer_came_before() -> None:
    async with serving(refusing) as connect:
        reader, writer = await connect()
        writer.write(f"{POST}Transfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n".encode())
        assert b"connection: close" not in await reader.readuntil(b"\r\n\r\nno")
        writer.write(b"0\r\nConnection: close\r\n\r\n" + HIDDEN)
        assert await closed(reader) == b""


async def refusing(_: Any, __: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
    """Answer without reading the body."""
    await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"no"})


EXPECTING = b"POST /events HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(
    HIDDEN
)


async def test_a_caller_that_is_refused_before_it_sends_its_body_cannot_have_its_next_request_taken_for_it() -> None:
    async with serving(refusing) as connect:
        said = await said_to(connect, [EXPECTING])
        assert said.startswith(b"HTTP/1.1 401 ")
        assert b"\r\nconnection: close\r\n" in said


@pytest.mark.parametrize("sent", [HIDDEN, HIDDEN[:10]], ids=["all of it", "some of it"])
async def test_a_refused_caller_that_sends_its_body_unasked_keeps_its_connection(sent: bytes) -> None:
    async with serving(refusing) as connect:
        reader, writer = await connect()
        writer.write(EXPECTING + sent)
        assert b"connection: close" not in await reader.readuntil(b"\r\n\r\nno")
        writer.write(HIDDEN[len(sent) :] + NEXT)
        assert b" 401 " in await reader.readuntil(b"\r\n\r\nno")


async def echoing(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
    """Stream the body back while it is read, as lines are answered."""

    async def pieces() -> AsyncGenerator[bytes, None]:
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise BrokenOff
            more = message.get("more_body", False)
            yield message.get("body", b"")

    answer: Any = Streamed(pieces(), "text/plain", HTTPStatus.OK, reads_body=True).to_asgi_response()
    await answer(scope, receive, send)


@pytest.mark.parametrize("app", [Recorder(), echoing], ids=["whole", "streamed"])
async def test_a_caller_is_asked_to_send_its_body_before_an_answer_begins_that_is_sent_while_the_body_is_read(
    app: Any,  # noqa: ANN401 - ASGI
) -> None:
    async with serving(app) as connect:
        reader, writer = await connect()
        for _ in range(2):
            writer.write(EXPECTING)
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(HIDDEN)
            said = await reader.readuntil(b"\r\n0\r\n\r\n" if app is echoing else b"\r\n\r\nok")
            assert said.startswith(b"HTTP/1.1 200 ")
            assert app is not echoing or HIDDEN in said


async def test_white_space_around_the_value_of_a_header_is_no_part_of_it() -> None:
    app = Recorder()
    async with serving(app) as connect:
        reader, writer = await connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: \t localhost \t\r\nX-API-Key:a \tb \r\nX: \r\n\r\n")
        await reader.readuntil(b"ok")
    assert app.headers == {b"host": b"localhost", b"x-api-key": b"a \tb", b"x": b""}


BROKEN_BODIES = {
    "a size that is none": b"no size\r\n",
    "a piece that is longer than its size": b"2\r\nabc\r\n",
    "a size that overflows": b"FFFFFFFFFFFFFFFFF\r\n",
    "a length among the trailers": b"1\r\na\r\n0\r\nContent-Length: 1\r\n\r\n",
}
CHUNKED = b"POST /events HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("body", BROKEN_BODIES.values(), ids=BROKEN_BODIES.keys())
async def test_a_request_whose_chunks_are_no_http_is_answered_so(body: bytes) -> None:
    app = Recorder()
    async with serving(app) as connect:
        for segments in ([CHUNKED + body], [CHUNKED, body], [NEXT, CHUNKED, body]):
            said = await said_to(connect, segments)
            assert said[said.rindex(b"HTTP/1.1") :].startswith(b"HTTP/1.1 400 ")
            assert said.endswith(b'"detail":"what was sent is not a valid HTTP request"}')


async def test_chunks_that_are_no_http_break_an_answer_off_that_has_begun() -> None:
    async with serving(echoing) as connect:
        reader, writer = await connect()
        writer.write(CHUNKED + b"1\r\na\r\n")
        assert (await reader.readuntil(b"1\r\na\r\n")).startswith(b"HTTP/1.1 200 ")
        writer.write(b"no size\r\n")
        assert await closed(reader) == b""


async def test_a_refused_caller_without_a_body_keeps_its_connection() -> None:
    async with serving(refusing) as connect:
        reader, writer = await connect()
        for _ in range(2):
            writer.write(EXPECTING.replace(b"Content-Length: %d" % len(HIDDEN), b"Content-Length: 0"))
            assert b"connection: close" not in await reader.readuntil(b"\r\n\r\nno")


async def pieces(_: Any, __: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
    """Answer with a body whose length is not known beforehand."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    for piece in (b"first", b"", b"second"):
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


@pytest.mark.parametrize("more", [b"", b"Connection: keep-alive\r\n", b"Expect: 100-continue\r\n", H2C.encode()])
async def test_a_caller_with_http_1_0_gets_a_streamed_answer_without_chunks_that_ends_with_the_connection(
    more: bytes,
) -> None:
    async with serving(pieces) as connect:
        head, _, body = (await said_to(connect, [b"GET / HTTP/1.0\r\n" + more + b"\r\n"])).partition(b"\r\n\r\n")
    assert body == b"firstsecond"
    assert b"transfer-encoding" not in head
    assert head.count(b"connection: close") == 1
    assert head.count(b"HTTP/1.1") == 1


async def test_a_caller_with_http_1_0_gets_the_length_of_an_answer_that_has_one() -> None:
    async with serving(Recorder()) as connect:
        for method, body in ((b"GET", b"ok"), (b"HEAD", b"")):
            said = await said_to(connect, [method + b" / HTTP/1.0\r\n\r\n"])
            assert said.endswith(b"\r\n\r\n" + body)
            assert b"content-length: 2\r\n" in said


@pytest.mark.parametrize("app", [Recorder(), echoing], ids=["whole", "streamed"])
async def test_a_caller_with_http_1_0_is_not_asked_to_go_on_for_it_would_take_that_for_its_answer(app: Any) -> None:  # noqa: ANN401 - ASGI
    async with serving(app) as connect:
        said = await said_to(connect, [EXPECTING.replace(b"HTTP/1.1", b"HTTP/1.0") + HIDDEN])
    assert said.startswith(b"HTTP/1.1 200 ")
    assert said.endswith(b"\r\n\r\n" + (HIDDEN if app is echoing else b"ok"))
    assert app is echoing or app.ran == [("POST", "/events", HIDDEN)]


async def test_a_caller_with_http_1_0_sees_that_a_streamed_answer_broke_off() -> None:
    async def broken(_: Any, __: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})

    async with serving(broken) as connect:
        reader, writer = await connect()
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        await reader.readuntil(b"\r\n\r\nfirst")
        with pytest.raises(ConnectionResetError):
            await reader.read()


async def test_a_caller_with_http_1_1_gets_chunks() -> None:
    async with serving(pieces) as connect:
        said = await said_to(connect, [LAST])
    assert said.endswith(b"5\r\nfirst\r\n6\r\nsecond\r\n0\r\n\r\n")


def test_a_refused_caller_that_has_gone_is_not_waited_for() -> None:
    transport = Mock(is_closing=lambda: True, write_eof=Mock(side_effect=RuntimeError("as uvloop")))
    FramedProtocol.close_later(Mock(transport=transport))
