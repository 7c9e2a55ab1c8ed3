"""What a request body means to both services, whichever call it is sent to."""

import asyncio
import errno
import gzip
import threading
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any, NoReturn

import httpx
import msgspec
import pytest
from litestar import Litestar
from litestar.plugins.problem_details import ProblemDetailsException
from litestar.testing import TestClient
from litestar.types import ASGIApp
from samples import LONG, as_json, fields_of_an_event, until
from serving import answered

from apps.chassis.http.admission import Limit, Share, UnsentAnswers
from apps.chassis.http.spool import Spools
from apps.chassis.setting_reading import read_settings
from apps.producer.app import create_app
from apps.producer.publishing.lanes import Limits
from apps.producer.publishing.values import memory_of
from apps.producer.routes import MAX_RECORDS, read_in_turn
from contracts.stream import Stream
from tests.event_services import create_consumer, create_producer

JSON, NDJSON = {"content-type": "application/json"}, {"content-type": "application/x-ndjson"}
SEEK = "/consumers/seek"
EVENTS = "/producers/events"
TO_NOWHERE = b'{"to": "nowhere"}'
UTF_8_MARK = b"\xef\xbb\xbf"


def posts_of(client: TestClient[Litestar]) -> list[str]:
    """Return every path of a service that takes POST, those of calls that are added later too."""
    return [str(route.path) for route in client.app.routes if "POST" in getattr(route, "methods", ())]


def detail_of(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return str(answer.json()["detail"])


def path_of(answer: httpx.Response) -> str:
    detail_of(answer, 400)
    (error,) = answer.json()["errors"]
    return str(error["path"])


def lines_of(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return [msgspec.json.decode(line) for line in answer.content.splitlines()]


@pytest.mark.parametrize("service", ["producer", "consumer"])
@pytest.mark.parametrize(
    "content_type", [None, "", "text/plain", "text/plain; x=application/json", "multipart/form-data; boundary=x"]
)
def test_no_call_takes_a_body_of_a_type_that_a_page_of_another_site_may_send_unasked(
    service: str, content_type: str | None, clients: dict[str, TestClient[Litestar]]
) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    paths = posts_of(clients[service])
    assert len(paths) >= 2
    for path in paths:
        answer = clients[service].post(path, content=b"{}", headers=headers)
        assert "application/json" in detail_of(answer, 415), path
        assert "application/json" in answer.headers["accept"]


def test_two_content_types_are_not_the_one_that_is_taken(consumer: TestClient[Litestar]) -> None:
    for both in (["application/json", "text/plain"], ["text/plain", "application/json"]):
        headers = [("content-type", one) for one in both]
        detail_of(consumer.post(SEEK, content=TO_NOWHERE, headers=headers), 415)


def test_without_a_body_no_content_type_is_needed(consumer: TestClient[Litestar]) -> None:
    for headers in ({}, {"content-type": "text/plain"}, {"content-encoding": "gzip"}):
        assert consumer.post("/consumers/pause", headers=headers).status_code == 200
        assert consumer.post("/consumers/resume", content=b"", headers=headers).status_code == 200


@pytest.mark.parametrize("body", ['{"stream":"events"}', "[]", "{", '{"limit":0}'])
def test_a_call_that_takes_no_body_ignores_none(body: str, consumer: TestClient[Litestar]) -> None:
    headers = {"content-type": "application/json"}
    for call in ("stop", "pause", "resume", "dead-letters/purge?key=ada"):
        assert "takes no body" in detail_of(consumer.post(f"/consumers/{call}", content=body, headers=headers), 400)
    for empty in ("{}\n", "{ }", "null"):
        assert consumer.post("/consumers/resume", content=empty, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "parameter", ["utf-8", "UTF-8", '"utf-8"', '"utf\\-8"', "Utf8", "", '"" ; a=";charset=latin-1"']
)
def test_utf_8_may_be_said_in_any_way(parameter: str, consumer: TestClient[Litestar]) -> None:
    for headers in (f"application/json; charset={parameter}", f"Application/JSON;charset={parameter} ; x=y"):
        answer = consumer.post(SEEK, content=TO_NOWHERE, headers={"content-type": headers})
        assert "nowhere" in detail_of(answer, 400)


@pytest.mark.parametrize("charset", ["latin-1", '"UTF-16"', "us-ascii", "utf-8; charset=latin-1", "utf-7"])
@pytest.mark.parametrize("media_type", ["application/json", "application/x-ndjson"])
def test_another_charset_is_refused_by_its_name(media_type: str, charset: str, producer: TestClient[Litestar]) -> None:
    headers = {"content-type": f"{media_type}; charset={charset}"}
    detail = detail_of(producer.post(EVENTS, content=as_json(), headers=headers), 415)
    assert charset.rpartition("=")[2].strip('"').lower() in detail


@pytest.mark.parametrize(
    "parameter",
    ["charset*=utf-8''utf-8", "charset*0=latin; charset*1=-1", "charset*0*=x''y", f"charset*{'9' * 5_000}=z"],
    ids=["extended", "in parts", "extended, in parts", "with an endless number"],
)
def test_a_charset_that_is_written_as_in_mail_is_refused(
    parameter: str, producer: TestClient[Litestar], consumer: TestClient[Litestar]
) -> None:
    headers = {"content-type": f"application/json; {parameter}"}
    assert "charset" in detail_of(producer.post(EVENTS, content=as_json(), headers=headers), 415)
    assert "charset" in detail_of(consumer.post(SEEK, content=TO_NOWHERE, headers=headers), 415)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_utf_16_and_32_are_refused_by_their_names(
    encoding: str, producer: TestClient[Litestar], consumer: TestClient[Litestar]
) -> None:
    for answer in (
        producer.post(EVENTS, content=as_json().decode().encode(encoding), headers=JSON),
        producer.post(EVENTS, content=as_json().decode().encode(encoding), headers=NDJSON),
        consumer.post(SEEK, content=TO_NOWHERE.decode().encode(encoding), headers=JSON),
    ):
        assert encoding.upper() in detail_of(answer, 415)


def test_a_byte_order_mark_of_utf_8_is_passed_over(
    producer: TestClient[Litestar], consumer: TestClient[Litestar]
) -> None:
    assert path_of(producer.post(EVENTS, content=UTF_8_MARK + as_json(number="36"), headers=JSON)) == "$.number"
    listed = UTF_8_MARK + b"[" + as_json(number="36") + b"]"
    assert path_of(producer.post(EVENTS, content=listed, headers=JSON)) == "$[0].number"
    assert "nowhere" in detail_of(consumer.post(SEEK, content=UTF_8_MARK + TO_NOWHERE, headers=JSON), 400)
    file = UTF_8_MARK + as_json(id="1") + b"\n"
    answers = lines_of(producer.post(EVENTS, content=file + file, headers=NDJSON))
    assert [answer.get("id") for answer in answers] == ["1", "1"]
    assert lines_of(producer.post(EVENTS, content=UTF_8_MARK, headers=NDJSON)) == []


def members(*texts: bytes) -> bytes:
    return b"".join(map(gzip.compress, texts))


@pytest.mark.parametrize(
    ("coding", "compress"),
    [("gzip", gzip.compress), ("x-gzip", gzip.compress), ("GZIP", gzip.compress), ("deflate", zlib.compress)],
)
def test_a_compressed_body_means_what_it_holds(
    coding: str, compress: Callable[[bytes], bytes], producer: TestClient[Litestar], consumer: TestClient[Litestar]
) -> None:
    encoded = {"content-encoding": coding}
    events = b"[" + as_json(id="1") + b"," + as_json(number="36") + b"]"
    assert path_of(producer.post(EVENTS, content=compress(events), headers=JSON | encoded)) == "$[1].number"
    assert "nowhere" in detail_of(consumer.post(SEEK, content=compress(TO_NOWHERE), headers=JSON | encoded), 400)
    lines = b"".join(as_json(id=str(n)) + b"\n" for n in range(1_000))
    answers = lines_of(producer.post(EVENTS, content=compress(lines), headers=NDJSON | encoded))
    assert [answer["id"] for answer in answers] == [str(n) for n in range(1_000)]


def test_a_body_of_several_gzip_members_is_all_of_them(producer: TestClient[Litestar]) -> None:
    encoded = NDJSON | {"content-encoding": "gzip"}
    cut = as_json(id="2")
    body = members(as_json(id="1") + b"\n", b"", cut[:40], cut[40:] + b"\n", as_json(id="3"))
    assert [answer["id"] for answer in lines_of(producer.post(EVENTS, content=body, headers=encoded))] == [
        "1",
        "2",
        "3",
    ]


def damaged(body: bytes) -> bytes:
    """Return a body whose last bytes before the check sum are not what they were."""
    return body[:-12] + bytes(byte ^ 0x55 for byte in body[-12:-8]) + body[-8:]


@pytest.mark.parametrize("headers", [JSON, NDJSON])
@pytest.mark.parametrize(
    "body",
    [
        gzip.compress(as_json())[:-1],
        gzip.compress(as_json())[:5],
        gzip.compress(as_json())[:-8],
        gzip.compress(as_json()) + b"x",
        gzip.compress(as_json()) + gzip.compress(as_json())[:12],
        gzip.compress(as_json()) + bytes(20),
        gzip.compress(as_json())[:-8] + bytes(8),
        damaged(gzip.compress(as_json())),
        zlib.compress(as_json()),
        as_json(),
    ],
    ids=[
        "without its last byte",
        "no more than its head",
        "without its check sum",
        "with a byte behind it",
        "with half a member behind it",
        "with zeros behind it",
        "with another check sum",
        "with other bytes",
        "zlib's format",
        "not compressed",
    ],
)
def test_a_damaged_gzip_is_refused_and_nothing_of_an_unfinished_line_is_taken(
    headers: dict[str, str], body: bytes, producer: TestClient[Litestar]
) -> None:
    answer = producer.post(EVENTS, content=body, headers=headers | {"content-encoding": "gzip"})
    assert "gzip" in detail_of(answer, 400)
    assert "receipts" not in answer.json()


def test_lines_before_the_damage_are_answered_and_the_call_is_refused(producer: TestClient[Litestar]) -> None:
    body = gzip.compress(as_json(id="1") + b"\nnot json\n") + b"damage"
    answer = producer.post(EVENTS, content=body, headers=NDJSON | {"content-encoding": "gzip"})
    assert "2 lines before that were taken" in detail_of(answer, 400)
    assert [receipt.get("id", receipt.get("line")) for receipt in answer.json()["receipts"]] == ["1", 2]
    assert answer.json()["delivered"] == 0


def test_bytes_behind_a_deflate_are_refused(producer: TestClient[Litestar]) -> None:
    body = zlib.compress(as_json()) + zlib.compress(as_json())
    assert "deflate" in detail_of(
        producer.post(EVENTS, content=body, headers=JSON | {"content-encoding": "deflate"}), 400
    )


@pytest.mark.parametrize("headers", [JSON, NDJSON])
@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "gzip, gzip", "gzip, br", "aes128gcm"])
def test_another_content_encoding_is_refused_with_those_that_are_taken(
    headers: dict[str, str], coding: str, producer: TestClient[Litestar]
) -> None:
    answer = producer.post(EVENTS, content=as_json(), headers=headers | {"content-encoding": coding})
    assert coding in detail_of(answer, 415)
    assert answer.headers["accept-encoding"] == "gzip, deflate"


def test_identity_is_no_encoding(producer: TestClient[Litestar]) -> None:
    answer = producer.post(EVENTS, content=as_json(number=-1), headers=JSON | {"content-encoding": "identity, gzip"})
    detail_of(answer, 400)
    answer = producer.post(EVENTS, content=as_json(number=-1), headers=JSON | {"content-encoding": "Identity"})
    assert path_of(answer) == "$.number"


def bomb(megabytes: int) -> bytes:
    compressor = zlib.compressobj(9, wbits=31)
    blanks = b" " * 2**20
    return b"".join([*(compressor.compress(blanks) for _ in range(megabytes)), compressor.flush()])


@pytest.mark.slow
def test_a_body_that_decodes_to_too_much_is_refused(
    producer: TestClient[Litestar], consumer: TestClient[Litestar]
) -> None:
    encoded = {"content-encoding": "gzip"}
    assert "larger than 16777216" in detail_of(producer.post(EVENTS, content=bomb(17), headers=JSON | encoded), 413)
    assert "200 times" in detail_of(producer.post(EVENTS, content=bomb(70), headers=NDJSON | encoded), 413)
    assert "larger than 65536" in detail_of(consumer.post(SEEK, content=bomb(1), headers=JSON | encoded), 413)


@pytest.mark.anyio
async def test_a_body_whose_length_is_too_large_is_refused_before_any_of_it_is_here() -> None:
    async with asyncio.timeout(LONG):
        sent = await answered(EVENTS, JSON | {"content-length": "99999999999"}, silent=True)
    assert sent[0]["status"] == 413


def test_a_body_of_very_many_gzip_members_without_content_is_refused_for_it_would_never_reach_a_limit(
    producer: TestClient[Litestar], consumer: TestClient[Litestar]
) -> None:
    encoded, empty = {"content-encoding": "gzip"}, gzip.compress(b"")
    for client, call, kind in ((producer, EVENTS, JSON), (producer, EVENTS, NDJSON), (consumer, SEEK, JSON)):
        for content in (empty * 1_001, gzip.compress(b" ") + empty * 1_001):
            answer = client.post(call, content=content, headers=kind | encoded)
            assert "over 1000 gzip members" in detail_of(answer, 400)
    of_many = b"".join(map(gzip.compress, (bytes([byte]) for byte in b" " * 1_001 + TO_NOWHERE)))
    answer = consumer.post(SEEK, content=empty * 1_000 + of_many, headers=JSON | encoded)
    assert "nowhere" in detail_of(answer, 400)


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (b'{"to": "end", "to": "beginning"}', "$.to"),
        (b'{"partition": 0, "offset": 1, "\\u006fffset": 2}', "$.offset"),
    ],
)
def test_a_field_of_an_operators_call_that_is_given_twice_is_refused(
    body: bytes, path: str, consumer: TestClient[Litestar]
) -> None:
    assert path_of(consumer.post(SEEK, content=body, headers=JSON)) == path
    assert (
        path_of(consumer.post("/consumers/start", content=b'{"accept":true,"accept":false}', headers=JSON))
        == "$.accept"
    )


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-Infinity", "1e999", "36e0", "9" * 5_000, "-0.5", "0x24", "036"]
)
def test_a_number_that_is_no_age_is_refused_by_its_place(number: str, producer: TestClient[Litestar]) -> None:
    body = as_json().replace(b":36", b":" + number.encode())
    for content in (body, b"[" + body + b"]"):
        assert "$" in path_of(producer.post(EVENTS, content=content, headers=JSON))
    (answer,) = lines_of(producer.post(EVENTS, content=body, headers=NDJSON))
    assert answer["line"] == 1


@pytest.mark.parametrize("text", [rb"\ud800", rb"\udc00\ud800", b"\xed\xa0\x80", b"\x00", b"\xff", rb"\x41"])
def test_text_that_is_none_is_refused_by_its_place(
    text: bytes, producer: TestClient[Litestar], consumer: TestClient[Litestar]
) -> None:
    body = as_json(text="NAME").replace(b"NAME", text)
    assert path_of(producer.post(EVENTS, content=body, headers=JSON)).startswith("$")
    (answer,) = lines_of(producer.post(EVENTS, content=body, headers=NDJSON))
    assert answer["line"] == 1
    assert path_of(consumer.post(SEEK, content=b'{"to":"' + text + b'"}', headers=JSON)).startswith("$")


def test_a_name_with_a_quotation_mark_is_no_repeated_field(producer: TestClient[Litestar]) -> None:
    for name in ('Ada "Countess" Lovelace', "back\\slash", '\\"', "\\", '"'):
        answer = producer.post(EVENTS, json=fields_of_an_event(text=name))
        assert "out of reach" in detail_of(answer, 503)


def test_the_status_of_lines_that_are_answered_at_the_end_says_what_became_of_them(
    producer: TestClient[Litestar],
) -> None:
    at_end = EVENTS + "?receipts=at-end"
    assert lines_of(producer.post(at_end, content=b"\n \r\n", headers=NDJSON)) == []
    answer = producer.post(at_end, content=b"not json\n[]", headers=NDJSON)
    assert "none of 2 lines" in detail_of(answer, 400)
    assert [receipt["line"] for receipt in answer.json()["receipts"]] == [1, 2]
    answer = producer.post(at_end, content=as_json(id="1") + b"\nnot json\n", headers=NDJSON)
    assert "none of 1 records was acknowledged" in detail_of(answer, 503)
    assert int(answer.headers["retry-after"]) > 0
    assert [receipt["outcome"] for receipt in answer.json()["receipts"]] == ["not_written"] * 2
    detail_of(producer.post(EVENTS + "?receipts=soon", content=b"", headers=NDJSON), 400)


async def producer_with_spools() -> tuple[ASGIApp, Spools]:
    """Return a producer, and where it keeps the answers to lines."""
    app = create_producer(read_settings({}))
    provided = app.dependencies["served"]
    return app, (await provided())["events"].spools


BROKEN_LINES = [b"not json\nno\n" + as_json(), None]
"""Two whole lines, and one that looks like one; then the caller is gone."""


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("headers", "version"), [({}, "1.0"), ({"content-length": "1000"}, "1.1"), ({"content-length": "1000"}, "1.0")]
)
async def test_lines_whose_length_is_announced_are_answered_by_an_error_when_they_break_off(
    headers: dict[str, str], version: str
) -> None:
    sent = await answered(EVENTS, NDJSON | headers, *BROKEN_LINES, http_version=version)
    assert sent[0]["status"] == 400
    assert dict(sent[0]["headers"])[b"content-type"] == b"application/problem+json"
    answer = msgspec.json.decode(b"".join(message["body"] for message in sent[1:]))
    assert "2 lines before that were taken" in answer["detail"]
    assert [receipt["line"] for receipt in answer["receipts"]] == [1, 2]
    assert sent[-1]["more_body"] is False


@pytest.mark.anyio
@pytest.mark.parametrize("headers", [{}, {"content-length": "1000"}])
async def test_lines_that_pause_for_too_long_are_never_answered_as_if_that_was_their_end(
    headers: dict[str, str],
) -> None:
    app = create_producer(read_settings({}), admission=Limit(1_000_000, slow_body_s=0.05))
    sent = await answered(EVENTS, NDJSON | headers, b"not json\n{", silent=True, app=app)
    last = msgspec.json.decode(sent[-1]["body"] if not headers else b"".join(m["body"] for m in sent[1:]))
    assert "within 0.05 s; 1 lines before that" in (last["detail"] if headers else last["error"])
    assert sent[0]["status"] == (408 if headers else 200)
    assert sent[-1]["more_body"] is not bool(headers)


@pytest.mark.anyio
async def test_an_answer_that_has_outgrown_its_spool_is_sent_while_the_rest_is_read() -> None:
    app, spools = await producer_with_spools()
    spools.max_bytes_each = 200
    pieces = [b"no\n" * 3] * 20
    sent = await answered(EVENTS, NDJSON | {"content-length": "180"}, *pieces, app=app)
    assert sent[0]["status"] == 200
    answers = [msgspec.json.decode(line) for line in b"".join(m["body"] for m in sent[1:]).splitlines()]
    assert [answer["line"] for answer in answers] == list(range(1, 61))
    assert sent[-1]["more_body"] is False
    sent = await answered(EVENTS, NDJSON | {"content-length": "1000"}, *pieces, None, app=app)
    assert msgspec.json.decode(sent[-1]["body"].splitlines()[-1])["lines"] == 60
    assert sent[-1]["more_body"] is True
    assert spools.used_bytes == 0


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("reason", "status"), [("too many lines for one answer", 413), ("the answers of others", 503), ("a full disk", 503)]
)
async def test_lines_whose_answer_finds_no_room_are_refused_with_receipts_of_those_taken(
    reason: str, status: int
) -> None:
    app, spools = await producer_with_spools()
    match status, reason:
        case 413, _:
            spools.max_bytes_each = 2_000
        case _, "a full disk":
            spools.buffer_bytes = 100
            spools.open_file = full_disk
        case _:
            spools.max_bytes = 5_000
            await spools.open().write(b"x" * 4_000)
    used_bytes = spools.used_bytes
    sent = await answered(EVENTS + "?receipts=at-end", NDJSON, *[b"no\n" * 10] * 100, app=app)
    assert sent[0]["status"] == status
    assert (b"retry-after" in dict(sent[0]["headers"])) == (status == 503)
    answer = msgspec.json.decode(b"".join(message["body"] for message in sent[1:]))
    assert 0 < len(answer["receipts"]) < 1_000
    assert f"{len(answer['receipts'])} lines before that" in answer["detail"]
    assert (reason if status == 413 else "no room on the disk for more receipts") in answer["detail"]
    assert spools.used_bytes == used_bytes


def full_disk() -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device")


class Watched(msgspec.Struct, frozen=True):
    """Tells the thread in which it is read."""

    id: str
    text: str = ""

    def __post_init__(self) -> None:
        read_in.add(threading.current_thread().name)


read_in: set[str] = set()
WATCHED = Stream("watched", Watched, key=lambda one: one.id)


def test_a_large_body_is_read_while_other_calls_go_on() -> None:
    settings = read_settings({"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}, [WATCHED])
    with TestClient(create_app(settings, streams=[WATCHED], limits=Limits(connect_s=0.01))) as client:
        read_in.clear()  # the documents have an example
        assert client.post("/producers/watched", json=[{"id": "small"}]).status_code == 503
        (of_the_loop,) = read_in
        read_in.clear()
        assert client.post("/producers/watched", json=[{"id": "large", "text": "a" * 2_000_000}]).status_code != 500
    assert read_in
    assert of_the_loop not in read_in


@pytest.mark.anyio
async def test_large_bodies_are_read_one_after_the_other_and_one_that_waits_too_long_is_refused() -> None:
    turn, may_end = asyncio.Semaphore(), threading.Event()
    first = asyncio.create_task(read_in_turn(turn, lambda: may_end.wait(LONG)))
    await until(turn.locked)
    with pytest.raises(ProblemDetailsException, match="too many large bodies") as raised:
        await read_in_turn(turn, int, within_s=0.01)
    second = asyncio.create_task(read_in_turn(turn, int, within_s=LONG))
    may_end.set()
    assert (raised.value.status_code, await first, await second) == (503, True, 0)


@pytest.mark.anyio
async def test_a_body_that_finds_no_room_is_not_copied() -> None:
    limit = Limit(40_000_000)
    Share(limit, UnsentAnswers()).require(30_000_000)
    app = create_producer(read_settings({}), admission=limit)
    pieces = [b" " * 65_536] * 64
    tracemalloc.start()
    sent = await answered(EVENTS, JSON, *pieces, app=app)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (sent[0]["status"], peak // 2**20 < 6) == (503, True)


def test_an_operators_call_is_answered_while_readers_take_all_the_memory() -> None:
    """Six searches took all of it: the twelve bytes of a seek or a redrive found no room, as long as they went on."""
    limit = Limit(1_000)
    Share(limit, UnsentAnswers()).require(1_000)
    with TestClient(create_consumer(read_settings({"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}), admission=limit)) as one:
        assert path_of(one.post(SEEK, content=TO_NOWHERE, headers=JSON)) == "$"
        assert "takes no body" in detail_of(one.post("/consumers/pause", content=b"[1]", headers=JSON), 400)


def test_more_records_than_memory_is_counted_for_are_refused(producer: TestClient[Litestar]) -> None:
    record = msgspec.json.encode(fields_of_an_event(id="a", text=""))
    body = b"[" + b",".join([record] * (MAX_RECORDS + 1)) + b"]"
    detail = detail_of(producer.post(EVENTS, content=body, headers=JSON), 413)
    assert (
        detail == f"the body has 200001 records, expected at most 200000; send more records as {NDJSON['content-type']}"
    )


class Loose(msgspec.Struct, frozen=True):
    id: str
    payload: Any


LOOSE = Stream("loose", Loose, key=lambda one: one.id)


@pytest.mark.slow
@pytest.mark.parametrize("item", [b"[]", b'{"a":1}', b"[[[]]]"])
def test_a_body_whose_values_would_take_more_memory_than_there_is_is_refused(item: bytes) -> None:
    settings = read_settings({"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}, [LOOSE])
    with TestClient(create_app(settings, streams=[LOOSE], limits=Limits(connect_s=0.01))) as client:

        def refusal(size: int, status: int) -> str:
            body = b'{"id":"a","payload":[' + b",".join([item] * (size // len(item))) + b"]}"
            return detail_of(client.post("/producers/loose", content=body, headers=JSON), status)

        assert refusal(10_000_000, 413).startswith("the body has so many values that they take ")
        assert refusal(1_000_000, 400).startswith("the record has ")


@pytest.mark.slow
@pytest.mark.parametrize("item", [b"[]", b'{"a":1}', b"[[[]]]", b"1234", b'"ab"', b"1.5", b"{}", b'{"a":{"b":[2]}}'])
def test_the_values_of_a_body_take_no_more_memory_than_is_counted(item: bytes) -> None:
    body = b'[{"id":"a","payload":[' + b",".join([item] * (200_000 // len(item))) + b"]}]"
    tracemalloc.start()
    try:
        values = LOOSE.decode_all_strictly(body)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(values) == 1
    assert taken < memory_of(body)
