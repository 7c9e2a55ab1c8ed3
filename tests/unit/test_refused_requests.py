"""What the server answers to requests that it refuses itself, on real connections."""

import asyncio
import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec
import pytest
from samples import LONG
from serving import LINES, closed, noting_reads, serving
from test_http_framing import CHUNKED, HIDDEN, LAST, NEXT, Ran, Recorder, said_to
from test_http_limits import ENDLESS

from apps.chassis.http.connection_limits import MAX_HEAD_BYTES, MAX_PIPELINED
from apps.chassis.http.problems import MEDIA_TYPE
from apps.chassis.internals.http_framing import MAX_HEADERS
from apps.chassis.setting_reading import read_settings
from tests.event_services import create_consumer, create_producer

pytestmark = pytest.mark.anyio

KEY, OTHER_KEY = "s3cret-of-operators", "and-another-key-4"
Answer = tuple[int, Mapping[bytes, bytes], bytes]
"""Status, headers and body."""
CLOSE = "Connection: close\r\n\r\n"
GARBAGE = b"no HTTP\r\n\r\n"


def answers_in(said: bytes) -> list[Answer]:
    """Return the answers on a connection; each of them has a length."""
    found: list[Answer] = []
    while said:
        head, _, said = said.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(b": ") for line in lines)}
        length = int(headers.get(b"content-length", b"0"))
        found.append((int(first.split()[1]), headers, said[:length]))
        said = said[length:]
    return found


def assert_problem(answer: Answer, status: int) -> str:
    """Check that an answer is a problem of this status; return its detail."""
    found, headers, body = answer
    assert found == status
    assert headers[b"content-type"] == MEDIA_TYPE.encode()
    problem: dict[str, Any] = msgspec.json.decode(body)
    assert problem["status"] == status
    assert problem["title"] == HTTPStatus(status).phrase
    return str(problem["detail"])


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /" + b"a" * 66_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
        (b"GET /livez?a=" + b"a" * 66_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
        *((sent, 414 if name == "an address" else 431) for name, sent in ENDLESS.items()),
        (b"GET http://localhost:99999/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nno size\r\n", 400),
        (b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"DELETE /producers/events/a#b HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"POST http://localhost/purge?key=a#b HTTP/1.0\r\n\r\n", 400),
        (b"POST /stop# HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", 400),
        (GARBAGE, 400),
    ],
    ids=[
        "path",
        "query",
        *ENDLESS,
        "port",
        "chunk",
        "tunnel",
        "fragment",
        "fragment of an address",
        "empty fragment",
        "no HTTP",
    ],
)
async def test_what_the_server_refuses_itself_is_a_problem_document_too(sent: bytes, status: int) -> None:
    app = Recorder()
    async with serving(app, close_after_s=LONG) as connect:
        (answer,) = answers_in(await said_to(connect, [sent]))
    assert_problem(answer, status)
    assert answer[1][b"connection"] == b"close"
    assert app.ran == []


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("media_type", ["application/x-ndjson", "Application/X-NDJSON ; charset=utf-8"])
async def test_lines_whose_length_is_unclear_are_refused_and_not_taken_for_none(version: str, media_type: str) -> None:
    app = Recorder()
    head = f"POST /events HTTP/{version}\r\nHost: localhost\r\nContent-Type: {media_type}\r\n"
    async with serving(app, close_after_s=LONG) as connect:
        for more in (
            "",
            "Connection: close\r\n",
            "Upgrade: h2c\r\nConnection: Upgrade\r\n",
            "Expect: 100-continue\r\n",
        ):
            reader, writer = await connect()
            writer.write(f"{head}{more}\r\n".encode() + HIDDEN)
            for _ in range(50):
                writer.write(b"{}\n" * 30_000)
                await writer.drain()
            (answer,) = answers_in(await reader.read())
            assert_problem(answer, 411)
    assert app.ran == []


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_request_without_a_length_has_no_body_unless_it_announces_lines(version: str) -> None:
    app = Recorder()
    async with serving(app) as connect:
        first = f" HTTP/{version}\r\nHost: localhost\r\n"
        await asked(connect, f"POST /pause{first}")
        await asked(connect, f"POST /pause{first}Content-Type: application/json\r\n")
        await asked(connect, f"GET /{first}Content-Type: application/x-ndjson\r\n")
        await asked(connect, f"POST /events{first}Content-Type: application/x-ndjson\r\nContent-Length: 0\r\n")
    assert [one.path for one in app.ran] == ["/pause", "/pause", "/", "/events"]


async def test_an_address_that_the_server_can_read_is_served() -> None:
    app = Recorder()
    path = "/" + "a" * (MAX_HEAD_BYTES - 100)
    async with serving(app, close_after_s=LONG) as connect:
        await said_to(connect, [f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()])
    assert app.ran == [Ran("GET", path, b"")]


HEAD = b"POST /events HTTP/1.1\r\nHost: localhost\r\n"
TRAILERS_FOLLOW = b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n"
MANY = {
    "a head": (HEAD, 1),
    "the head of an offered upgrade": (HEAD + b"Connection: upgrade\r\nUpgrade: h2c\r\n", 3),
    "trailers": (HEAD + TRAILERS_FOLLOW, 0),
    "trailers behind a head with as many headers": (HEAD + b"X:\r\n" * (MAX_HEADERS - 2) + TRAILERS_FOLLOW, 0),
}


@pytest.mark.parametrize(("begun", "given"), MANY.values(), ids=MANY.keys())
async def test_as_many_headers_are_taken_as_usual_servers_take_and_one_more_is_refused_before_the_head_ends(
    begun: bytes, given: int
) -> None:
    app = Recorder()
    async with serving(app, close_after_s=LONG) as connect:
        most = begun + b"X:\r\n" * (MAX_HEADERS - given)
        assert [one[0] for one in answers_in(await said_to(connect, [most + b"\r\n" + LAST]))] == [200, 200]
        app.ran.clear()
        reader, writer = await connect()
        writer.write(most + b"X:\r\nX")
        (answer,) = answers_in(await closed(reader))
    assert_problem(answer, 431)
    assert app.ran == []


WHOLE = b"POST /whole HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n[]"
BEHIND = {
    "no HTTP": (GARBAGE, 400),
    "an address that is too long": (b"GET /" + b"a" * 70_000, 414),
    "a head that is too large": (b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000, 431),
    "a body that is no HTTP": (CHUNKED + b"no size\r\n", 400),
    "a request without a host and with two ends": (
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400
    ),
}  # fmt: skip


def packets(first: bytes, second: bytes) -> Iterable[list[bytes]]:
    yield [first + second]
    yield [first, second]


@pytest.mark.parametrize(("behind", "status"), BEHIND.values(), ids=BEHIND.keys())
@pytest.mark.parametrize("before", [NEXT, WHOLE, NEXT + WHOLE], ids=["no body", "a body", "two"])
async def test_a_valid_request_is_answered_before_what_stands_behind_it_is_refused(
    before: bytes, behind: bytes, status: int
) -> None:
    app = Recorder()
    async with serving(app, close_after_s=LONG) as connect:
        for segments in packets(before, behind):
            app.ran.clear()
            *answered, refused = answers_in(await said_to(connect, segments))
            assert [one[0] for one in answered] == [200] * before.count(b" HTTP/1.1\r\n")
            assert len(app.ran) == len(answered)
            assert_problem(refused, status)


@pytest.mark.parametrize(
    ("behind", "status"), [(GARBAGE, 400), (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 500_000, 431)]
)
async def test_an_answer_that_takes_its_time_comes_before_the_refusal_and_nothing_behind_that_is_run(
    behind: bytes, status: int
) -> None:
    may_end, app = asyncio.Event(), Recorder()

    async def waiting(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        await may_end.wait()
        await app(scope, receive, send)

    async with serving(waiting, close_after_s=LONG) as connect:
        reader, writer = await connect()
        for segment in (NEXT, behind, b"\r\n\r\n", HIDDEN):
            writer.write(segment)
            await writer.drain()
        asyncio.get_running_loop().call_later(0.05, may_end.set)
        answered, refused = answers_in(await closed(reader))
    assert answered[0] == 200
    assert_problem(refused, status)
    assert len(app.ran) == 1


async def test_an_answer_without_its_body_comes_before_the_refusal_too() -> None:
    async with serving(Recorder(), close_after_s=LONG) as connect:
        said = await said_to(connect, [NEXT.replace(b"GET", b"HEAD") + GARBAGE])
    assert re.findall(rb"HTTP/1.1 (\d+)", said) == [b"200", b"400"]


async def test_who_still_sends_while_it_is_refused_can_read_why() -> None:
    async with serving(Recorder(), close_after_s=LONG) as connect:
        reader, writer = await connect()
        for _ in range(50):
            writer.write(b"GET /" + b"a" * 100_000)
            await writer.drain()
        (answer,) = answers_in(await reader.read())
        assert_problem(answer, 414)


async def test_too_many_requests_in_advance_are_refused_behind_the_answers_to_the_others() -> None:
    async with serving(Recorder(), close_after_s=LONG) as connect:
        *answered, refused = answers_in(await said_to(connect, [NEXT * 1_000]))
    assert {one[0] for one in answered} == {200}
    assert len(answered) == MAX_PIPELINED + 1
    assert_problem(refused, 400)


async def test_who_closes_its_side_in_the_middle_of_a_body_learns_that_it_broke_off() -> None:
    head = b"POST /producers/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    async with serving(create_producer(read_settings({}))) as connect:
        for body in (
            b"Content-Length: 50\r\n\r\n",
            b"Content-Length: 50\r\n\r\n[",
            b"Transfer-Encoding: chunked\r\n\r\n1\r\n[\r\n",
        ):
            reader, writer = await connect()
            writer.write(head + body)
            writer.write_eof()
            (answer,) = answers_in(await closed(reader))
            assert "broke off" in assert_problem(answer, 400)


ENDS = {
    "the caller closes its side": (b"", 400, "the body broke off"),
    "a chunk is no HTTP": (b"no size\r\n", 400, "what was sent is not a valid HTTP request"),
    "a trailer is no HTTP": (b"0\r\nno trailer\0\r\n", 400, "what was sent is not a valid HTTP request"),
    "a chunk has too much beside its size": (b"5;" + b"a" * 200_000, 431, "the head of the request is larger than"),
}


@pytest.mark.parametrize(("end", "status", "reason"), ENDS.values(), ids=ENDS.keys())
@pytest.mark.parametrize("query", [b"", b"?receipts=at-end"], ids=["streamed", "at the end"])
async def test_lines_before_the_place_where_a_body_breaks_off_are_answered_and_it_is_said_that_it_did(
    query: bytes, end: bytes, status: int, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    has_read = asyncio.Event()
    app = noting_reads(create_producer(read_settings({})), has_read)
    async with serving(app, close_after_s=LONG) as connect:
        reader, writer = await connect()
        writer.write(LINES % query + b"Transfer-Encoding: chunked\r\n\r\n9\r\nno event\n\r\n")
        await has_read.wait()
        writer.write(end)
        if not end:
            writer.write_eof()
        said = await closed(reader)
    assert said.count(b"HTTP/1.1 ") == 1
    assert b"\r\nconnection: close\r\n" in said or not query
    assert reason.encode() in said
    assert b"; 1 lines before that were taken" in said
    assert b'"line":1' in said
    assert said.startswith(b"HTTP/1.1 %d " % (status if query else 200))
    assert (b'"outcome":"broken_off"' in said) is (not query)
    assert said.endswith(b"0\r\n\r\n") is (query != b"")
    assert "Traceback" not in caplog.text


async def test_who_still_sends_what_is_no_body_can_read_the_one_answer_of_the_call() -> None:
    async with serving(create_producer(read_settings({})), close_after_s=LONG) as connect:
        reader, writer = await connect()
        writer.write(CHUNKED.replace(b"/events", b"/producers/events") + b"1\r\n \r\n")
        for _ in range(50):
            writer.write(b"5;" + b"a" * 100_000)
            await writer.drain()
        (answer,) = answers_in(await reader.read())
    assert_problem(answer, 431)


@pytest.mark.slow
@pytest.mark.parametrize("create_app", [create_consumer, create_producer], ids=["consumer", "producer"])
@pytest.mark.parametrize("path", ["/health-check", "/metrics", "/livez", "/nowhere", "/problems/busy"])
async def test_a_query_changes_nothing_about_the_options_of_a_path(create_app: Any, path: str) -> None:  # noqa: ANN401 - of either service
    async with serving(create_app(read_settings({}))) as connect:
        sent = [f"OPTIONS {target} HTTP/1.1\r\nHost: localhost\r\n" for target in (path, f"{path}?stream=events&b=")]
        without, with_query = answers_in(await said_to(connect, [f"{sent[0]}\r\n{sent[1]}{CLOSE}".encode()]))
    assert without[0] == (404 if path == "/nowhere" else 204)
    assert (with_query[0], with_query[1].get(b"allow")) == (without[0], without[1].get(b"allow"))


async def asked(connect: Any, head: str, body: str = "") -> Answer:  # noqa: ANN401 - of `serving`
    """Return the answer to a request; its connection is closed behind it."""
    (answer,) = answers_in(await said_to(connect, [f"{head}{CLOSE}{body}".encode()]))
    return answer


async def test_a_request_names_one_host_unless_it_is_of_http_1_0() -> None:
    async with serving(create_producer(read_settings({}))) as connect:
        one = "Host: localhost\r\n"
        assert "missing" in assert_problem(await asked(connect, "GET /livez HTTP/1.1\r\n"), 400)
        for version in ("1.0", "1.1"):
            for hosts in (one * 2, f"{one}Host: elsewhere\r\n", f"{one}X: a\r\nhost:\r\n"):
                assert "Host" in assert_problem(await asked(connect, f"GET /livez HTTP/{version}\r\n{hosts}"), 400)
            assert (await asked(connect, f"GET /livez HTTP/{version}\r\n{one}"))[0] == 200
        assert (await asked(connect, "GET /livez HTTP/1.0\r\n"))[0] == 200


ONCE = {
    "X-API-Key": (KEY, OTHER_KEY),
    "Authorization": ("Basic YTpi", "Basic Yzpk"),
    "Content-Type": ("application/json", "application/x-ndjson"),
    "Origin": ("http://localhost", "http://elsewhere"),
    "Sec-Fetch-Site": ("same-origin", "cross-site"),
    "traceparent": (f"00-{'1' * 32}-{'2' * 16}-01", f"00-{'3' * 32}-{'4' * 16}-01"),
    "Last-Event-ID": ("0:1", "0:2"),
    "Content-Length": ("2", "1"),
}


@pytest.mark.parametrize(("name", "values"), ONCE.items(), ids=ONCE.keys())
async def test_of_two_values_for_one_header_none_is_chosen(name: str, values: tuple[str, str]) -> None:
    head = "POST /producers/events HTTP/1.1\r\nHost: localhost\r\n"
    own = {"X-API-Key": KEY, "Content-Type": "application/json", "Content-Length": "2"}
    own.pop(name, None)
    head += "".join(f"{one}: {value}\r\n" for one, value in own.items())
    async with serving(create_producer(read_settings({"API_KEY": KEY}))) as connect:
        for first, second in (values, values[::-1]):
            answer = await asked(connect, f"{head}{name}: {first}\r\n{name.lower()}: {second}\r\n", "[]")
            assert_problem(answer, 400)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/livez/", 200),
        ("/%6Civez", 200),
        ("//livez", 404),
        ("/livez//", 404),
        ("/%2flivez", 404),
        ("/livez%2F", 404),
        ("http://localhost//livez", 404),
        ("/livez%", 400),
        ("/%6Xivez", 400),
        ("/livez%256", 404),
    ],
)
async def test_a_path_with_an_empty_segment_an_encoded_slash_or_a_broken_escape_is_none(path: str, status: int) -> None:
    async with serving(create_producer(read_settings({}))) as connect:
        answer = await asked(connect, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n")
        assert answer[0] == status
        if status != HTTPStatus.OK:
            assert_problem(answer, status)


async def test_a_header_that_is_a_list_may_be_given_in_parts() -> None:
    parts = "Content-Encoding: identity\r\n" * 2 + "Expect: 100-continue\r\n" * 2 + "Accept: */*\r\nAccept: a/b\r\n"
    head = f"POST /producers/nowhere HTTP/1.1\r\nHost: localhost\r\n{parts}Content-Length: 2\r\n"
    async with serving(create_producer(read_settings({}))) as connect:
        assert (await asked(connect, head, "[]"))[0] == 404
