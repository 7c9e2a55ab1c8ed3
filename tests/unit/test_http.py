import asyncio
import errno
import re
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from http import HTTPStatus
from types import FrameType
from typing import Any

import httpx
import msgspec
import pytest
import uvicorn
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaTimeoutError,
    LeaderNotAvailableError,
    RequestTimedOutError,
    TransactionalIdAuthorizationFailed,
    UnsupportedCodecError,
)
from jsonschema import Draft202012Validator, FormatChecker
from litestar import Litestar, get
from litestar.response import Stream
from litestar.testing import TestClient
from prometheus_client import CollectorRegistry
from samples import as_json
from serving import answered, closed

from apps.chassis.http.admission import Limit
from apps.chassis.http.connection_limits import LimitedProtocol
from apps.chassis.http.problem_kinds import KINDS
from apps.chassis.http.problems import to_problem
from apps.chassis.http.request_middleware import RequestMiddleware
from apps.chassis.observability.logs import request_id, with_request
from apps.chassis.settings import Settings
from apps.consumer.operating.routes import Seek, place_of
from apps.producer.routes import MAX_BODY_BYTES
from tests.event_services import create_consumer, create_producer

FAR_TOO_LONG = 30
"""Seconds after which a test is broken off: nothing may hang while Kafka is out of reach."""
APPS: dict[str, Callable[..., Litestar]] = {"producer": create_producer, "consumer": create_consumer}
BOTH = pytest.mark.parametrize("service", APPS)


@pytest.fixture(autouse=True)
def _broken_off() -> Iterator[None]:
    if not hasattr(signal, "setitimer"):  # Windows has no timer that breaks off a test
        yield
        return

    def break_off(_: int, __: FrameType | None) -> None:
        raise TimeoutError(f"still not done after {FAR_TOO_LONG} s")

    before = signal.signal(signal.SIGALRM, break_off)
    signal.setitimer(signal.ITIMER_REAL, FAR_TOO_LONG)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def problem_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    """Return the problem that an error says it is, after a look at what every problem must have."""
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    titles = {kind.type: kind.title for kind in KINDS if kind.status == status}
    titles["about:blank"] = HTTPStatus(status).phrase
    assert problem["status"] == status
    assert problem["title"] == titles[problem["type"]]
    assert isinstance(problem["detail"], str)
    assert problem["detail"]
    assert "Traceback" not in answer.text
    return problem


def parameters_named(problem: dict[str, Any]) -> set[str]:
    return {error["parameter"] for error in problem["errors"]}


@BOTH
def test_whoever_asks_whether_the_process_lives_hears_yes_whatever_kafka_does(
    service: str, clients: dict[str, TestClient[Litestar]]
) -> None:
    answer = clients[service].get("/livez")
    assert (answer.status_code, answer.json()) == (200, {"status": "alive"})


@BOTH
def test_with_kafka_out_of_reach_a_service_says_that_it_cannot_do_its_job(
    service: str, clients: dict[str, TestClient[Litestar]]
) -> None:
    answer = clients[service].get("/health-check")
    assert answer.status_code == 503
    health = answer.json()
    assert health.keys() == {"status", "service", "version", "kafka", "detail"}
    assert (health["status"], health["service"], health["kafka"]) == ("unavailable", service, "connecting")
    assert "out of reach" in health["detail"]


@BOTH
def test_an_unknown_path_is_a_problem(service: str, clients: dict[str, TestClient[Litestar]]) -> None:
    problem_of(clients[service].get("/nowhere"), 404)


@BOTH
def test_another_method_is_a_problem_that_names_the_ones_allowed(
    service: str, clients: dict[str, TestClient[Litestar]]
) -> None:
    answer = clients[service].delete("/livez")
    problem_of(answer, 405)
    assert "GET" in answer.headers["allow"]


@pytest.mark.parametrize("path", ["?key=one", "/", "/one", "/one/two", "/generate"])
def test_a_deletion_of_a_stream_that_takes_none_is_refused_with_the_reason(
    path: str, producer: TestClient[Litestar]
) -> None:
    answer = producer.delete(f"/producers/events{path}")
    problem = problem_of(answer, 405)
    assert problem["type"] == "/problems/no-deletions"
    assert problem["detail"] == "events takes no deletions: declare it with deletes=True"
    assert answer.headers["allow"] in {"", "POST, OPTIONS", "OPTIONS, POST"}


@pytest.mark.parametrize(("method", "path"), [("DELETE", "/producers/others/one"), ("GET", "/producers/events/one")])
def test_other_calls_of_an_unknown_path_are_still_not_found(
    method: str, path: str, producer: TestClient[Litestar]
) -> None:
    assert problem_of(producer.request(method, path), 404)["type"] == "about:blank"


@BOTH
def test_a_parameter_that_no_call_knows_is_refused_and_named(
    service: str, clients: dict[str, TestClient[Litestar]]
) -> None:
    problem = problem_of(clients[service].get("/livez?verbose=1"), 400)
    assert parameters_named(problem) == {"verbose"}


@pytest.mark.parametrize(("service", "path"), [("producer", "/metrics"), ("consumer", "/consumers/group")])
@pytest.mark.parametrize("name", ["served", "served_stream", "served_streams"])
def test_what_a_call_is_given_by_the_service_itself_is_no_parameter(
    service: str, path: str, name: str, clients: dict[str, TestClient[Litestar]]
) -> None:
    problem = problem_of(clients[service].get(f"{path}?{name}=1"), 400)
    assert parameters_named(problem) == {name}
    assert "served" not in problem["detail"].partition("this call knows")[2]


@pytest.mark.parametrize(
    "value", ["1e3", "1.0", "+1", "-1", " 1", "0x10", "", "ten", "\u0661", "1_000", "007", "9" * 30]
)
def test_a_number_that_is_not_plain_digits_is_refused_and_named(
    value: str, producer: TestClient[Litestar], consumer: TestClient[Litestar]
) -> None:
    for answer, name in [
        (producer.post("/producers/basic_producer", params={"number_of_people": value}), "number_of_people"),
        (consumer.get("/consumers/messages", params={"limit": value}), "limit"),
        (consumer.get("/consumers/messages", params={"partition": value}), "partition"),
    ]:
        problem = problem_of(answer, 400)
        assert parameters_named(problem) == {name}
        assert name in problem["detail"]


def test_a_number_of_too_many_digits_is_reported_as_too_large(producer: TestClient[Litestar]) -> None:
    answer = producer.post("/producers/basic_producer", params={"number_of_people": "9" * 30})
    detail = problem_of(answer, 400)["detail"]
    assert detail == "number_of_people: a number of 30 digits is too large; at most 100000"


@pytest.mark.parametrize(
    ("call", "name", "values"),
    [
        (("producer", "POST", "/producers/basic_producer"), "number_of_people", ("0", "100001")),
        (("consumer", "GET", "/consumers/messages"), "limit", ("0", "1001")),
    ],
)
def test_a_number_out_of_range_is_refused(
    call: tuple[str, str, str], name: str, values: tuple[str, str], clients: dict[str, TestClient[Litestar]]
) -> None:
    service, method, path = call
    for value in values:
        answer = clients[service].request(method, path, params={name: value})
        assert parameters_named(problem_of(answer, 400)) == {name}


def test_every_wrong_parameter_is_named_at_once(consumer: TestClient[Litestar]) -> None:
    answer = consumer.get("/consumers/messages?limit=1&limit=2&partition=x&limits=3")
    assert parameters_named(problem_of(answer, 400)) == {"limit", "partition", "limits"}


@pytest.mark.parametrize(("query", "wrong"), [("&number_of_people=2", "number_of_people"), ("&people=2", "people")])
def test_a_number_given_twice_or_with_an_unknown_one_is_refused_each_time(
    query: str, wrong: str, producer: TestClient[Litestar]
) -> None:
    for _ in range(2):
        answer = producer.post(f"/producers/basic_producer?number_of_people=1{query}")
        assert parameters_named(problem_of(answer, 400)) == {wrong}


@pytest.mark.parametrize("before", ["x", "1-2", "1-2-3-4", "9" * 5_000])
def test_a_cursor_that_is_none_is_refused_and_named(before: str, consumer: TestClient[Litestar]) -> None:
    answer = consumer.get("/consumers/messages", params={"before": before})
    assert parameters_named(problem_of(answer, 400)) == {"before"}
    assert len(answer.content) < 1_000


def test_a_query_that_is_not_utf_8_is_bad(consumer: TestClient[Litestar]) -> None:
    problem_of(consumer.get("/consumers/messages?limit=%FF"), 400)
    for key in ("%FF", "ada%EF%BF%BD%FF"):  # both would look for a key that has U+FFFD, and find none left
        for call in (consumer.get, consumer.head):
            assert call(f"/consumers/messages?key={key}").status_code == 400
        purged = problem_of(consumer.post(f"/consumers/dead-letters/purge?key={key}"), 400)
        assert parameters_named(purged) == {"key"}


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (b"", "$"),
        (b"[" + as_json() + b"," + as_json(id="") + b"]", "$[1].id"),
        (b"\xff", "$"),
        (b"[" * 100_000, "$[0]"),
        (b'{"unknown":' + b"[" * 100_000, "$"),
    ],
)
def test_a_body_that_holds_no_events_is_refused_at_the_place_that_is_wrong(
    body: bytes, path: str, producer: TestClient[Litestar]
) -> None:
    answer = producer.post("/producers/events", content=body, headers={"content-type": "application/json"})
    problem = problem_of(answer, 400)
    assert [error["path"] for error in problem["errors"]] == [path]


def test_a_body_that_is_too_large_is_refused(producer: TestClient[Litestar]) -> None:
    large = b" " * (MAX_BODY_BYTES + 1)
    answer = producer.post(
        "/producers/events", content=large, headers={"content-type": "application/json; charset=utf-8"}
    )
    assert f"{MAX_BODY_BYTES} bytes" in problem_of(answer, 413)["detail"]
    answer = producer.post("/producers/events", content=large[1:], headers={"content-type": "application/json"})
    problem_of(answer, 400)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/producers/basic_producer", b""),
        ("/producers/events/generate?number=5000", b""),
        ("/producers/events", as_json()),
        ("/producers/events", b"[" + as_json(id="1") + b"," + as_json(id="2") + b"]"),
    ],
)
def test_with_kafka_out_of_reach_a_caller_is_asked_to_retry(
    path: str, body: bytes, producer: TestClient[Litestar]
) -> None:
    answer = producer.post(path, content=body, headers={"content-type": "application/json"})
    assert "out of reach" in problem_of(answer, 503)["detail"]
    assert int(answer.headers["retry-after"]) >= 1


def test_with_kafka_out_of_reach_every_line_is_answered_by_what_became_of_it(producer: TestClient[Litestar]) -> None:
    body = as_json(id="1") + b"\nnot json\n" + as_json(id="3")
    answer = producer.post("/producers/events", content=body, headers={"content-type": "application/x-ndjson"})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    answers = [msgspec.json.decode(line) for line in answer.content.splitlines()]
    assert [line["outcome"] for line in answers] == ["not_written"] * 3
    assert (answers[0]["id"], answers[1]["line"], answers[2]["id"]) == ("1", 2, "3")
    assert "out of reach" in answers[0]["error"]


def test_with_kafka_out_of_reach_the_consumer_shows_what_it_has_and_what_it_does(
    consumer: TestClient[Litestar],
) -> None:
    assert consumer.get("/consumers/messages").json() == {"total": 0, "messages": [], "next": None}
    status = consumer.get("/consumers/status").json()
    assert (status["running"], status["state"], status["messages_consumed_count"]) == (False, "starting", 0)
    assert (status["topic"], status["group_id"]) == ("events", "events-consumer")
    assert "out of reach" in status["last_error"]
    assert status["last_error_at"] > status["started_at"]


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (b"{", "$"),
        (b'{"to": 5}', "$.to"),
        (b'{"where": "end"}', "$"),
        (b'{"partition": -1, "offset": 0}', "$.partition"),
    ],
)
def test_a_place_to_seek_that_is_none_is_refused(body: bytes, path: str, consumer: TestClient[Litestar]) -> None:
    answer = consumer.post("/consumers/seek", content=body, headers={"content-type": "application/json"})
    assert [error["path"] for error in problem_of(answer, 400)["errors"]] == [path]


def test_a_consumer_that_holds_no_partition_cannot_be_sought(consumer: TestClient[Litestar]) -> None:
    problem_of(consumer.post("/consumers/seek", json={"to": "beginning"}), 409)


@pytest.mark.parametrize("to", ["1969-12-31T23:59:59Z", "0001-01-01T00:00:00+14:00", "1970-01-01T00:00:00Z"])
def test_a_time_before_there_was_kafka_means_the_first_of_all_records(to: str) -> None:
    assert place_of(Seek(to=to)) == datetime.fromtimestamp(0, UTC)


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (TimeoutError(), "Kafka did not answer in time"),
        (TimeoutError("broker 1 is silent"), "Kafka did not answer in time: broker 1 is silent"),
        (KafkaTimeoutError(), "Kafka did not answer in time"),
        (RequestTimedOutError(), "Kafka did not answer in time"),
        (ConnectionRefusedError("no"), "Kafka is out of reach: ConnectionRefusedError: no"),
        (
            KafkaConnectionError("No connection to broker at b:1"),
            "Kafka is out of reach: No connection to broker at b:1",
        ),
        (TransactionalIdAuthorizationFailed("a"), "no permission for the transactional id"),
        (LeaderNotAvailableError(), "Kafka answers with an error: LeaderNotAvailableError"),
        (UnsupportedCodecError("zstd"), "Kafka cannot be used: UnsupportedCodecError: zstd"),
        (OSError(errno.EMFILE, "Too many open files"), "Kafka cannot be used: OSError: [Errno 24] Too many open files"),
    ],
)
def test_a_caller_reads_in_words_that_kafka_cannot_be_asked(error: Exception, detail: str) -> None:
    problem = to_problem(error)
    assert (problem.status_code, problem.type_) == (503, "/problems/out-of-reach")
    assert problem.detail.startswith(detail)


@pytest.mark.parametrize("error", [FileNotFoundError(2, "No such file", "page.html"), KeyError("x"), RuntimeError()])
def test_an_error_of_the_service_itself_is_not_blamed_on_kafka_and_reports_no_details(error: Exception) -> None:
    problem = to_problem(error)
    assert (problem.status_code, problem.type_) == (500, "about:blank")
    assert str(error) not in problem.detail or not str(error)


@BOTH
@pytest.mark.parametrize("path", ["/livez", "/health-check", "/schema", "/asyncapi.json", "/livez?x=1", "/nowhere"])
def test_head_answers_what_get_does_without_the_body(
    path: str, service: str, clients: dict[str, TestClient[Litestar]]
) -> None:
    full, head = clients[service].get(path), clients[service].head(path)
    assert (head.status_code, head.content) == (full.status_code, b"")
    assert head.headers.keys() == full.headers.keys()


def test_head_of_a_call_that_only_posts_is_refused(consumer: TestClient[Litestar]) -> None:
    assert consumer.head("/consumers/stop").status_code == 405


@BOTH
@pytest.mark.anyio
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_the_server_logs_of_which_request_the_answer_broke_off(method: str, service: str) -> None:
    @get("/broken")
    async def broken() -> Stream:
        async def pieces() -> AsyncIterator[bytes]:
            raise ZeroDivisionError
            yield b""

        return Stream(pieces())

    app = APPS[service](Settings())
    app.register(broken)
    token = request_id.set(None)
    try:
        with pytest.raises(Exception):  # noqa: B017, PT011 - the error that Litestar makes of it
            await answered("/broken", {"x-request-id": "the-broken"}, app=app, method=method)
        assert request_id.get() == "the-broken"
    finally:
        request_id.reset(token)


@pytest.mark.anyio
async def test_head_does_not_wait_for_an_answer_without_end() -> None:
    @get("/endless")
    async def endless() -> Stream:
        async def pieces() -> AsyncIterator[bytes]:
            while True:
                yield b"more"
                await asyncio.sleep(0)

        return Stream(pieces())

    app = RequestMiddleware(
        Litestar([endless], logging_config=None), CollectorRegistry(), Limit(1_000), Settings(), asyncio.Event()
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:  # type: ignore[arg-type]  # an ASGI application
        answer = await client.head("/endless")
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.anyio
@pytest.mark.parametrize(("kind", "status"), [("application/json", 400), ("application/x-ndjson", 200)])
async def test_a_body_that_its_caller_breaks_off_is_no_fault_of_the_service(kind: str, status: int) -> None:
    sent = await answered("/producers/events", {"content-type": kind}, b"{", None)
    assert sent[0]["status"] == status


def references(node: object) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [reference for value in node.values() for reference in references(value)]
    if isinstance(node, list):
        return [reference for value in node for reference in references(value)]
    return []


def body_schema(client: TestClient[Litestar], path: str) -> Any:  # noqa: ANN401 - JSON
    body = client.get("/schema/openapi.json").json()["paths"][path]["post"]["requestBody"]
    assert body["required"] is True
    return body["content"]["application/json"]["schema"]


@pytest.mark.parametrize(
    ("path", "right", "wrong"),
    [
        (
            "/consumers/seek",
            [
                {"to": "end"},
                {"to": "end", "offset": None},
                {"partition": 0, "offset": 3},
                {"to": "end", "partition": 0},
            ],
            [{}, {"to": None}, {"partition": 0}, {"offset": 3}, {"to": "end", "offset": 3}, {"to": "soon"}],
        ),
        *(
            (
                f"/consumers/dead-letters/{action}",
                [{"limit": 1}, {"limit": 1, "partition": None}, {"partition": 0, "offset": 3}],
                [{}, {"limit": None}, {"partition": 0}, {"limit": 1, "offset": 3}, {"limit": 0}, {"limit": 1, "x": 1}],
            )
            for action in ("redrive", "discard", "restore")
        ),
    ],
)
def test_the_document_refuses_the_orders_that_the_service_refuses(
    path: str, right: list[Any], wrong: list[Any], consumer: TestClient[Litestar]
) -> None:
    schema = body_schema(consumer, path)
    assert [order for order in right if not validates(order, schema)] == []
    assert [order for order in wrong if validates(order, schema)] == []
    assert [order for order in right if consumer.post(path, json=order).status_code == 400] == []
    assert [order for order in wrong if consumer.post(path, json=order).status_code != 400] == []


def validates(value: object, schema: Any) -> bool:  # noqa: ANN401 - JSON
    formats = FormatChecker()
    formats.checks("date-time", ValueError)(lambda it: not isinstance(it, str) or datetime.fromisoformat(it))
    return bool(Draft202012Validator(schema, format_checker=formats).is_valid(value))


@BOTH
def test_an_answer_has_the_name_that_its_request_was_given(
    service: str, clients: dict[str, TestClient[Litestar]]
) -> None:
    for path in ("/livez", "/nowhere", "/livez?verbose=1", "/schema-ui/swagger_style.css"):
        answer = clients[service].get(path, headers={"X-Request-Id": "Order-17.b_3"})
        assert answer.headers.get_list("x-request-id") == ["Order-17.b_3"]


@BOTH
@pytest.mark.parametrize("given", [None, "", "a b", "x" * 65, "caf\xe9", 'a"b', "a,b"])
def test_a_request_without_a_sane_name_is_given_one_of_its_own(
    given: str | None, service: str, clients: dict[str, TestClient[Litestar]]
) -> None:
    headers = {} if given is None else {b"X-Request-Id": given.encode("latin-1")}
    names = [clients[service].get("/livez", headers=headers).headers["x-request-id"] for _ in range(2)]
    assert names[0] != names[1]
    assert all(re.fullmatch(r"[0-9a-f]{16}", name) for name in names)


def test_what_is_logged_for_a_request_has_its_name(
    consumer: TestClient[Litestar], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "apps.consumer.operating.routes")
    caplog.handler.addFilter(with_request)
    consumer.post("/consumers/pause", headers={"X-Request-Id": "the-pause"})
    consumer.post("/consumers/resume", headers={"X-Request-Id": "the-resume"})
    reported = [
        (record.getMessage(), vars(record)["request_id"])
        for record in caplog.records
        if record.name == "apps.consumer.operating.routes"
    ]
    assert reported == [
        ("an operator asked for pause of events: it is starting", "the-pause"),
        ("an operator asked for resume of events: it is starting", "the-resume"),
    ]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("create_app", "path"),
    [
        (create_producer, "/producers/events"),
        (create_consumer, "/consumers/seek"),
        (create_consumer, "/consumers/start"),
        (create_consumer, "/consumers/dead-letters/redrive"),
    ],
)
async def test_a_body_that_never_ends_is_not_waited_for_for_ever(
    create_app: Callable[..., Litestar], path: str
) -> None:
    app = create_app(Settings(), admission=Limit(1_000_000, slow_body_s=0.01))
    sent = await answered(path, {}, silent=True, app=app)
    assert sent[0]["status"] == 408
    assert "within 0.01 s" in sent[1]["body"].decode()


@pytest.mark.anyio
@pytest.mark.parametrize("begun", [b"", b"begun"])
async def test_a_call_that_the_end_of_the_service_cuts_off_learns_why_and_leaves_no_traceback(
    begun: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    ending, waiting = asyncio.Event(), asyncio.Event()

    async def never_done(_: Any, __: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": begun, "more_body": True})
        waiting.set()
        await asyncio.Event().wait()

    app = RequestMiddleware(never_done, CollectorRegistry(), Limit(1_000), Settings(), ending)
    config = uvicorn.Config(app, http=LimitedProtocol, log_config=None, lifespan="off", timeout_graceful_shutdown=0)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        running = asyncio.create_task(server._serve([listening]))
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        writer.write(b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await waiting.wait()
        ending.set()
        server.should_exit = True
        answer = await closed(reader)
        await running
        writer.close()
    if begun:
        assert answer.endswith(b"5\r\nbegun\r\n")
    else:
        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"application/problem+json" in answer
        assert b"the service has ended before the call was done" in answer
    assert "Traceback" not in caplog.text


@pytest.mark.anyio
async def test_an_answer_to_lines_whose_caller_has_gone_says_so_and_does_not_end_as_if_it_were_whole() -> None:
    sent = await answered("/producers/events", {"content-type": "application/x-ndjson"}, b"no event\n", None)
    assert sent[0]["status"] == 200
    assert b"error" in sent[1]["body"]
    cut = msgspec.json.decode(sent[-1]["body"])
    assert (cut["outcome"], cut["lines"]) == ("broken_off", 1)
    assert "the body broke off; 1 lines before that were taken" in cut["error"]
    assert sent[-1]["more_body"] is True
