import asyncio
import logging
import sys
from typing import Any

import pytest
from samples import until
from serving import ON_UVLOOP, answer_to, closed, hello, serving

from apps.chassis.http.connection_limits import (
    ALL_HERE,
    MAX_HEAD_BYTES,
    MAX_PIPELINED,
    LimitedProtocol,
)
from apps.chassis.open_files import raise_limit
from apps.chassis.service import server_config
from apps.chassis.settings import Settings

pytestmark = [pytest.mark.anyio, ON_UVLOOP]

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
ENDLESS = {
    "an address": b"GET /" + b"a" * 1_000_000,
    "a header": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 1_000_000,
    "many headers": b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: a\r\n" * 200_000,
    "an extension of a chunk": b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1;"
    + b"a" * 1_000_000,
    "trailers": b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n"
    + b"X: a\r\n" * 200_000,
}


@pytest.mark.parametrize("begun", [b"", b"GET / HT", GET[:-2], GET + b"GET /"], ids=["nothing", "some", "half", "next"])
async def test_a_connection_that_sends_no_whole_request_in_time_is_closed(begun: bytes) -> None:
    async with serving(hello, request_within_s=0.05) as connect:
        reader, writer = await connect()
        writer.write(begun)
        assert (await closed(reader)).endswith(b"hello" if GET in begun else b"")


async def test_a_connection_that_was_answered_may_be_idle_until_it_begins_the_next_request() -> None:
    connections: set[Any] = set()
    async with serving(hello, connections, request_within_s=0.05) as connect:
        reader, writer = await connect()
        for _ in range(2):
            writer.write(GET)
            assert b" 200 " in await answer_to(reader)
            await until(lambda: all(one.waits and one._timer is None for one in connections))
        writer.write(b"GET")
        assert await closed(reader) == b""


async def test_idle_connections_live_longer_than_the_pools_of_proxies_keep_them() -> None:
    config = server_config(hello, Settings())
    assert config.http is LimitedProtocol
    assert config.timeout_keep_alive > 60  # nginx and the load balancers of AWS keep them so long
    assert server_config(hello, Settings(keep_alive_s=620)).timeout_keep_alive == 620


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of open files")
async def test_where_few_files_may_be_open_fewer_connections_wait_and_the_start_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import resource  # noqa: PLC0415 - Windows has no such module

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1_000))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    http: Any = server_config(hello, Settings()).http
    assert http.keywords["limits"].max_without_request == 200
    raise_limit()
    assert "only 1000 files may be open" in caplog.text


async def test_who_sends_a_byte_now_and_then_gains_no_time() -> None:
    async with serving(hello, request_within_s=0.05) as connect:
        reader, writer = await connect()
        end = asyncio.create_task(closed(reader))
        while not end.done():
            writer.write(b"G")
            await asyncio.wait([end], timeout=0.005)


async def test_an_answer_may_take_longer_than_a_request() -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        begun.set()
        await may_end.wait()
        await hello(scope, receive, send)

    async with serving(slow, request_within_s=0.01) as connect:
        reader, writer = await connect()
        writer.write(GET)
        await begun.wait()
        asyncio.get_running_loop().call_later(0.05, may_end.set)
        assert (await answer_to(reader)).endswith(b"hello")


async def test_the_head_of_an_answer_is_written_together_with_the_body_that_follows_at_once() -> None:
    written: list[bytes] = []

    class Seen:
        def __init__(self, transport: asyncio.Transport) -> None:
            self._transport = transport

        def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the transport's own
            return getattr(self._transport, name)

        def write(self, data: bytes) -> None:
            written.append(data)
            self._transport.write(data)

    class Watched(LimitedProtocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(Seen(transport))  # type: ignore[arg-type]

    async with serving(hello, protocol=Watched) as connect:
        reader, writer = await connect()
        for _ in range(3):
            writer.write(GET)
            await answer_to(reader)
    assert len(written) == 3
    assert all(one.startswith(b"HTTP/1.1 200 ") and one.endswith(b"\r\n\r\nhello") for one in written)


async def test_the_head_of_an_answer_does_not_wait_for_a_body_that_takes_its_time() -> None:
    seen = asyncio.Event()

    async def slow(_: Any, __: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await seen.wait()
        await send({"type": "http.response.body", "body": b"hello"})

    async with serving(slow) as connect:
        reader, writer = await connect()
        writer.write(GET)
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        seen.set()
        assert await reader.readexactly(5) == b"hello"


async def test_a_request_is_known_to_be_all_here_as_soon_as_it_is_and_no_sooner() -> None:
    known: asyncio.Queue[bool] = asyncio.Queue()

    async def look(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        known.put_nowait(scope.get(ALL_HERE, False))
        await hello(scope, receive, send)
        known.put_nowait(scope.get(ALL_HERE, False))

    async with serving(look) as connect:
        reader, writer = await connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\na")
        assert await known.get() is False
        writer.write(b"b")
        await answer_to(reader)
        assert await known.get() is True
        writer.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nab")
        assert await known.get() is True


async def test_requests_on_one_connection_are_answered_one_after_the_other() -> None:
    async with serving(hello) as connect:
        reader, writer = await connect()
        for _ in range(3):
            writer.write(GET)
            assert b" 200 " in await answer_to(reader)
        writer.write(GET * (MAX_PIPELINED // 2))
        for _ in range(MAX_PIPELINED // 2):
            assert b" 200 " in await answer_to(reader)


async def test_a_head_that_is_large_but_ends_is_answered() -> None:
    async with serving(hello) as connect:
        reader, writer = await connect()
        for piece in (GET[:-2], b"X: ", b"a" * (MAX_HEAD_BYTES - 1_000), b"\r\n\r\n"):
            writer.write(piece)
            await writer.drain()
        assert b" 200 " in await answer_to(reader)


async def test_a_large_body_is_taken_however_it_comes() -> None:
    async with serving(hello) as connect:
        reader, writer = await connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(b"40000\r\n" + b"a" * 0x40000 + b"\r\n" + b"1\r\na\r\n" * 20_000 + b"0\r\n\r\n")
        assert b" 200 " in await answer_to(reader)


async def test_of_too_many_that_wait_the_longest_waiting_goes_and_the_newest_is_answered() -> None:
    async with serving(hello, max_without_request=3) as connect:
        connections = [await connect() for _ in range(3)]
        for longest_waiting in range(3):
            reader, writer = await connect()
            connections.append((reader, writer))
            writer.write(GET)
            assert b" 200 " in await answer_to(reader)
            assert await closed(connections[longest_waiting][0]) == b""


async def test_very_many_that_only_connect_keep_nobody_waiting() -> None:
    looks = 0

    class Counting(LimitedProtocol):
        @property
        def waits(self) -> bool:
            nonlocal looks
            looks += 1
            return super().waits

    async with serving(hello, protocol=Counting, max_without_request=100) as connect:
        idle = [await connect() for _ in range(1_000)]
        assert looks < 30_000  # not each of the thousand looks at the hundred others
        reader, writer = await connect()
        writer.write(GET)
        assert b" 200 " in await answer_to(reader)
        assert await closed(idle[0][0]) == b""


async def test_no_caller_can_write_a_traceback_into_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        async with serving(hello) as connect:
            for request in (b"\x00\xff\r\n\r\n", b"GET /\xff HTTP/1.1\r\n\r\n", GET * 10_000, *ENDLESS.values()):
                reader, writer = await connect()
                writer.write(request)
                writer.write_eof()
                await closed(reader)
    assert not [record for record in caplog.records if record.exc_info]


async def test_who_goes_while_several_requests_wait_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    begun = asyncio.Event()
    connections: set[Any] = set()
    ended = asyncio.Event()

    async def long(_: Any, __: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        await send({"type": "http.response.start", "status": 200, "headers": []})
        begun.set()
        while connections:
            await send({"type": "http.response.body", "body": b"a", "more_body": True})
            await asyncio.sleep(0)
        ended.set()
        await send({"type": "http.response.body", "body": b"a"})

    async with serving(long, connections) as connect:
        _, writer = await connect()
        writer.write(GET * 3)
        await begun.wait()
        writer.transport.abort()
        await ended.wait()
    assert not [record for record in caplog.records if record.exc_info]
