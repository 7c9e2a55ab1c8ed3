"""Bodies that are announced and do not arrive: their calls give way where others find no room."""

import asyncio
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest
from litestar import get, post
from litestar.connection import Request
from litestar.response import Response
from litestar.types import Scope
from samples import until
from serving import ON_UVLOOP, Connect, limited, serving

from apps.chassis.http.admission import Limit, UnsentAnswers, share_of
from apps.chassis.http.request_body import JSON, read_whole

pytestmark = [pytest.mark.anyio, ON_UVLOOP]

ROOM = 1_000_000
MAX_CALLS = 3
HEAD = b"POST /send HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


class Served:
    """An application with a limit; `begun` calls, and the bytes held and taken when each body had been `read`."""

    def __init__(self, weights: Mapping[str, int] = MappingProxyType({}), max_calls: int = MAX_CALLS) -> None:
        self.limit = Limit(ROOM, max_calls)
        self.begun = 0
        self.read: list[tuple[int, int]] = []

        @post(["/send", "/heavy"])
        async def send(request: Request[Any, Any, Any]) -> Response[bytes]:
            share_of(request.scope).require(weights.get(request.scope["path"], 0))
            self.begun += 1
            body = await read_whole(request, [JSON], ROOM)
            self.read.append((self.limit.arriving_bytes, self.limit.taken_bytes))
            return Response(body, media_type=JSON)

        @get("/large")
        async def large(request: Request[Any, Any, Any]) -> Response[bytes]:
            share_of(request.scope).take(ROOM // 2)
            return Response(b"a" * 100_000)

        self.app = limited([send, large], self.limit)


async def begin(connect: Connect, sent: bytes) -> asyncio.StreamReader:
    reader, writer = await connect()
    writer.write(sent)
    reader.writer = writer  # kept open as long as what is read from it
    return reader  # type: ignore[no-any-return]  # asyncio's own


async def status_of(reader: asyncio.StreamReader) -> int:
    head = await reader.readuntil(b"\r\n\r\n")
    return int(head.split()[1])


async def test_calls_whose_bodies_have_stalled_give_way_to_others_the_longest_first() -> None:
    served = Served()
    async with serving(served.app) as connect:
        stalled = []
        for count in range(1, MAX_CALLS + 1):
            stalled.append(await begin(connect, HEAD % 10 + b"["))
            await until(lambda count=count: served.begun == count)  # type: ignore[misc]  # the default is the count
        assert await status_of(await begin(connect, HEAD % 2 + b"[]")) == 503
        served.limit.stalled_after_s = 0.0
        assert await status_of(await begin(connect, HEAD % 2 + b"[]")) == 201
        assert await status_of(stalled[0]) == 503
        stalled[1].writer.write(b"        ]")  # type: ignore[attr-defined]  # see `begin`
        assert await status_of(stalled[1]) == 201
        stalled[2].writer.write(b"        ]")  # type: ignore[attr-defined]
        assert await status_of(stalled[2]) == 201
        assert not served.limit.dismiss_stalled()  # nobody waits any longer
    assert served.limit.described(UnsentAnswers()).endswith("busy with 0 calls, which take 0 MiB of memory")


async def test_calls_that_hang_leave_room_for_those_of_other_routes() -> None:
    served = Served(max_calls=10)
    async with serving(served.app) as connect:
        hanging = [await begin(connect, HEAD % 10 + b"[") for _ in range(8)]
        await until(lambda: served.begun == 8)
        assert await status_of(await begin(connect, HEAD % 2 + b"[]")) == 503
        assert await status_of(await begin(connect, HEAD.replace(b"/send", b"/heavy") % 2 + b"[]")) == 201
        served.limit.stalled_after_s = 0.0
        assert await status_of(await begin(connect, HEAD % 2 + b"[]")) == 201
        assert await status_of(hanging[0]) == 503


async def test_a_stalled_call_that_takes_bytes_gives_them_to_others() -> None:
    served = Served({"/heavy": ROOM - 1, "/send": 100})
    async with serving(served.app) as connect:
        stalled = await begin(connect, HEAD.replace(b"/send", b"/heavy") % 10 + b"[")
        await until(lambda: served.begun == 1)
        assert await status_of(await begin(connect, HEAD % 2 + b"[]")) == 503
        served.limit.stalled_after_s = 0.0
        assert await status_of(await begin(connect, HEAD % 2 + b"[]")) == 201
        assert await status_of(stalled) == 503
    assert served.limit.taken_bytes == 0


async def test_a_large_body_that_has_stalled_gives_way_to_one_that_arrives() -> None:
    served = Served()
    part = b"[" + b" " * 450_000
    async with serving(served.app) as connect:
        stalled = await begin(connect, HEAD % 900_000 + part)
        await until(lambda: served.limit.arriving_bytes > 300_000)
        assert await status_of(await begin(connect, HEAD % 900_000 + part)) == 503
        served.limit.stalled_after_s = 0.0
        arriving = await begin(connect, HEAD % (len(part) + 1) + part)
        assert await status_of(stalled) == 503
        arriving.writer.write(b"]")  # type: ignore[attr-defined]  # see `begin`
        assert await status_of(arriving) == 201
    assert served.limit.arriving_bytes == 0


async def test_a_body_that_has_arrived_counts_once_and_no_longer_as_one_that_arrives() -> None:
    served = Served()
    async with serving(served.app) as connect:
        arriving = await begin(connect, HEAD % 400_000 + b"[" + b" " * 300_000)
        await until(lambda: served.limit.arriving_bytes > 200_000)
        arriving.writer.write(b" " * 99_998 + b"]")  # type: ignore[attr-defined]  # see `begin`
        assert await status_of(arriving) == 201
    assert served.read == [(0, 400_000)]


async def test_what_a_dismissed_call_still_gives_back_is_counted_once() -> None:
    limit = Limit(ROOM, 1)
    scope: Any = {"path": "/send", "state": {}}
    limit.let_in(scope)
    share = share_of(scope)
    assert share.take(1_000)
    with share.waiting(lambda: None):
        share.dismiss()
        assert limit.taken_bytes == 0
    share.give_back(1_000)
    limit.let_out(scope)
    assert (limit.taken_bytes, limit.arriving_bytes) == (0, 0)


async def test_an_answer_counts_for_its_own_size_once_its_call_is_done() -> None:
    served = Served()
    async with serving(served.app) as connect:
        seen = []
        count_answer = served.limit.count_answer

        def count(scope: Scope, size: int, *, refusable: bool) -> bool:
            counted = count_answer(scope, size, refusable=refusable)
            seen.append(served.limit.taken_bytes)
            return counted

        served.limit.count_answer = count  # type: ignore[method-assign]
        assert await status_of(await begin(connect, b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")) == 200
        assert seen == [100_000]
