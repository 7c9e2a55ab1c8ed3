import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any, cast

import msgspec
import pytest
from aiokafka.errors import KafkaConnectionError, MessageSizeTooLargeError
from litestar import Litestar
from litestar.testing import TestClient
from prometheus_client import CollectorRegistry
from samples import until
from serving import answered

from apps.chassis import audit as module
from apps.chassis.audit import BATCH, NEWEST, NEWEST_REFUSED, REFUSED_WAITING, STRANGERS, WAITING, Audit
from apps.chassis.observability.logs import key_name
from apps.chassis.setting_reading import read_settings
from apps.chassis.setting_types import WrongSetting
from apps.consumer.redriving.purge import Purged, Purger
from apps.producer import routes
from apps.producer.publishing.lanes import Limits
from apps.producer.publishing.receipts import Answer, Receipt
from contracts.stream import Stream
from tests.event import Event
from tests.event_services import create_consumer, create_producer

READER, OPERATOR = "the-key-of-the-reader", "the-key-of-the-operator"
MARK = "Muster-Person"
DELETABLE = Stream("events", Event, key=lambda event: event.id, deletes=True)


@pytest.fixture
def consumer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient[Litestar]]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"ada:{READER} roles=read\ngrace:{OPERATOR} roles=operate\n")
    with TestClient(create_consumer(read_settings({"API_KEY_FILE": str(keys), **NOBODY}))) as client:
        yield client


NOBODY = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What is recorded of operator actions."""
    records: list[dict[str, Any]] = []
    new = module.AuditRecord

    def note(**fields: Any) -> module.AuditRecord:  # noqa: ANN401
        record = new(**fields)
        records.append(msgspec.to_builtins(record))
        return record

    monkeypatch.setattr(module, "AuditRecord", note)
    return records


def test_each_operator_action_and_each_refused_one_is_noted_and_logged_once(
    consumer: TestClient[Litestar], noted: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for key in (OPERATOR, READER, "a-key-of-nobody-at-all", None):
        headers = {"X-Request-Id": f"by-{key}", **({"X-API-Key": key} if key else {})}
        consumer.post("/consumers/pause?stream=events", headers=headers)
        consumer.get("/consumers/status", headers=headers)
    seen = [(one["who"], one["action"], one["outcome"], one["status"], one["parameters"]) for one in noted]
    events = {"stream": "events"}
    assert seen == [
        ("grace", "pause", "done", 200, events),
        ("ada", "pause", "refused", 403, events),
        (None, "pause", "refused", 401, events),
        (None, "pause", "refused", 401, events),
    ]
    assert {one["service"] for one in noted} == {"consumer"}
    assert [one["request_id"] for one in noted] == [
        f"by-{key}" for key in (OPERATOR, READER, "a-key-of-nobody-at-all", None)
    ]
    lines = [line.getMessage() for line in caplog.records if "an operator asked for" in line.getMessage()]
    assert [line.rpartition(": ")[0] or line for line in lines] == [
        "an operator asked for pause of events",
        *["an operator asked for pause of events: refused"] * 3,
    ]


@pytest.mark.anyio
async def test_a_request_behind_one_with_a_key_on_the_same_connection_is_of_nobody(noted: list[dict[str, Any]]) -> None:
    key_name.set("grace")  # uvicorn begins a pipelined request in the context of the one before
    await answered("/consumers/pause", {}, b"", app=create_consumer(read_settings({"API_KEY": OPERATOR, **NOBODY})))
    assert [(one["who"], one["outcome"]) for one in noted] == [(None, "refused")]


@pytest.mark.slow
def test_the_last_operator_actions_are_shown_to_operators_and_strangers_cannot_push_them_out(
    consumer: TestClient[Litestar], noted: list[dict[str, Any]]
) -> None:
    for key in (OPERATOR, READER, "a-key-of-nobody-at-all", None):
        headers = {"X-API-Key": key} if key else {}
        consumer.post("/consumers/pause?stream=events", headers=headers)
        assert consumer.get("/consumers/actions", headers=headers).status_code in {200, 401, 403}
    by_operator, by_reader, *_ = noted
    shown = consumer.get("/consumers/actions", headers={"X-API-Key": OPERATOR}).json()
    assert shown == {"actions": [by_reader, by_operator]}
    assert consumer.get("/consumers/actions", headers={"X-API-Key": READER}).status_code == 403
    for _ in range(NEWEST):
        consumer.post("/consumers/resume", headers={"X-API-Key": OPERATOR})
    shown = consumer.get("/consumers/actions", headers={"X-API-Key": OPERATOR}).json()
    assert [one["action"] for one in shown["actions"]] == ["resume"] * NEWEST


def test_no_number_of_refused_calls_pushes_an_action_out_of_the_last_ones(consumer: TestClient[Litestar]) -> None:
    for action in ("pause", "resume"):
        consumer.post(f"/consumers/{action}", headers={"X-API-Key": OPERATOR})
        for _ in range(NEWEST):
            consumer.post("/consumers/stop", headers={"X-API-Key": READER})
    shown = consumer.get("/consumers/actions", headers={"X-API-Key": OPERATOR}).json()["actions"]
    assert [one["action"] for one in shown if one["outcome"] == "done"] == ["resume", "pause"]
    assert [one["outcome"] for one in shown[:NEWEST_REFUSED]] == ["refused"] * NEWEST_REFUSED
    assert len(shown) == NEWEST_REFUSED + 2


def test_a_deletion_and_a_purge_are_noted_with_a_hash_of_the_key_alone(
    consumer: TestClient[Litestar], noted: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    limits = Limits(connect_s=0.0)
    with TestClient(create_producer(read_settings(NOBODY), streams=[DELETABLE], limits=limits)) as producer:
        for key in (MARK, "generate"):
            assert producer.delete(f"/producers/events/{key}").status_code == 503
            assert producer.delete("/producers/events", params={"key": key}).status_code == 503
    headers = {"X-API-Key": OPERATOR}
    consumer.post(
        "/consumers/dead-letters/purge",
        params={"key": MARK, "dry_run": "true", "retired_group": "old"},
        headers=headers,
    )
    consumer.post("/consumers/dead-letters/purge", params={"before": "2001-01-31T12:00:00Z"}, headers=headers)
    hashes = [f"sha256:{sha256(key.encode()).hexdigest()}" for key in (MARK, "generate")]
    assert [(one["service"], one["action"], one["parameters"]) for one in noted] == [
        *(("producer", "delete", {"stream": "events", "key": one}) for one in hashes for _ in range(2)),
        ("consumer", "purge", {"key": hashes[0], "dry_run": "true", "retired_group": "old"}),
        ("consumer", "purge", {"before": "2001-01-31T12:00:00Z"}),
    ]
    assert not [line for line in caplog.records if MARK in line.getMessage() and line.name != "httpx"]


def test_a_deletion_that_is_done_has_its_own_log_line_with_a_hash_of_the_key(
    noted: list[dict[str, Any]], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def delete(_: object, key: str) -> Answer:
        return Answer(1, [Receipt(key, 0, 7)])

    monkeypatch.setattr(routes, "send_deletion", delete)
    caplog.set_level(logging.INFO)
    with TestClient(create_producer(read_settings(NOBODY), streams=[DELETABLE])) as producer:
        assert producer.delete(f"/producers/events/{MARK}").status_code == 201
        assert producer.delete("/producers/events/%FF").status_code == 400
    lines = [line.getMessage() for line in caplog.records if line.name == module.__name__]
    assert lines == [
        f"a caller asked for delete of events, key sha256:{sha256(MARK.encode()).hexdigest()}: done",
        "a caller asked for delete of events: failed: the request is invalid",
    ]
    assert [one["outcome"] for one in noted] == ["done", "failed"]


def test_the_log_line_of_a_purge_of_a_key_has_the_hash_of_it(
    consumer: TestClient[Litestar], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def purge(*_: object) -> Purged:
        return Purged(3, 0, None)

    monkeypatch.setattr(Purger, "purge", purge)
    caplog.set_level(logging.INFO)
    for query in ({"key": MARK}, {"before": "2001-01-31T12:00:00Z"}):
        answer = consumer.post("/consumers/dead-letters/purge", params=query, headers={"X-API-Key": OPERATOR})
        assert (answer.status_code, answer.json()["purged"]) == (200, 3)
    lines = [line.getMessage() for line in caplog.records if "operator asked for" in line.getMessage()]
    assert lines == [
        f"an operator asked for purge of events, key sha256:{sha256(MARK.encode()).hexdigest()}: 3 were purged",
        "an operator asked for purge of events: 3 were purged",
    ]


FOREIGN = {
    403: {"Origin": "http://evil.example"},
    421: {"Host": "evil.example"},
}


@pytest.mark.parametrize("status", FOREIGN)
def test_an_action_or_a_deletion_that_is_refused_before_its_route_is_known_is_noted_and_logged_once(
    status: int, noted: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    settings = read_settings({"API_KEY": OPERATOR, "ALLOWED_HOSTS": "testserver.local", **NOBODY})
    headers = {"X-API-Key": OPERATOR, **FOREIGN[status]}
    with (
        TestClient(create_consumer(settings)) as consumer,
        TestClient(create_producer(settings, streams=[DELETABLE])) as producer,
    ):
        for path in ("/consumers/pause", "/consumers/pause/"):
            assert consumer.post(path, params={"stream": "events"}, headers=headers).status_code == status
        for path in (f"/producers/events/{MARK}", f"/producers/events/{MARK}/"):
            assert producer.delete(path, headers=headers).status_code == status
        for unnoted in ("/consumers/status", "/nowhere"):
            consumer.get(unnoted, headers=headers)
        producer.post("/producers/events", headers=headers)
        producer.delete("/nowhere", headers=headers)
    assert [(one["who"], one["action"], one["outcome"], one["status"], one["parameters"]) for one in noted] == [
        (None, action, "refused", status, {"stream": "events"}) for action in ("pause", "pause", "delete", "delete")
    ]
    lines = [line.getMessage() for line in caplog.records if line.name == module.__name__]
    assert [line.split(":")[0] for line in lines] == [
        *2 * ["an operator asked for pause of events"],
        *2 * ["a caller asked for delete of events"],
    ]
    assert "the caller has gone" not in caplog.text


def test_an_operator_action_that_fails_is_noted_with_its_parameters_and_no_part_of_a_record(
    consumer: TestClient[Litestar], noted: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    headers = {"X-API-Key": OPERATOR}
    consumer.post("/consumers/seek", json={"partition": 3, "offset": 120}, headers=headers)
    query = {"key": MARK, "reason": f"{MARK} is no number"}
    consumer.post("/consumers/dead-letters/redrive", params=query, json={"limit": 5}, headers=headers)
    consumer.post("/consumers/seek", params={"stream": MARK}, json={"offset": 3}, headers=headers)
    assert (noted[0]["outcome"], noted[0]["parameters"]) == ("failed", {"partition": 3, "offset": 120})
    assert noted[1]["parameters"].keys() == {"key", "reason", "limit"}
    assert noted[1]["parameters"]["key"].startswith("sha256:")
    assert noted[2]["parameters"]["stream"] == "(unknown)"
    assert MARK not in str(noted)
    lines = [line.getMessage() for line in caplog.records if line.name == module.__name__]
    assert len(lines) == 3
    assert "it is not connected yet" in lines[0] or "Kafka" in lines[0]
    assert MARK not in "".join(lines)


def test_of_a_refused_or_invalid_call_nothing_is_recorded_but_the_stream_that_it_names(
    consumer: TestClient[Litestar], noted: list[dict[str, Any]]
) -> None:
    for key in ("", OPERATOR):
        names = "&".join(f"{MARK}{number}&limit={MARK}&key={MARK}" for number in range(1_000))
        consumer.post(f"/consumers/stop?{names}&stream=events", headers={"X-API-Key": key})
        consumer.post(f"/consumers/stop?{names}&stream={MARK}", headers={"X-API-Key": key})
    assert [one["status"] for one in noted] == [401, 401, 400, 400]
    assert [one["parameters"] for one in noted] == [{"stream": "events"}, {"stream": "(unknown)"}] * 2


class Writer:
    """Takes records once Kafka is there, and none that is too large."""

    topic = "audit"

    def __init__(self) -> None:
        self.written: list[dict[str, Any]] = []
        self.writes = 0
        self.is_there = False

    @asynccontextmanager
    async def open(self) -> Any:  # noqa: ANN401
        yield

    async def write_to(self, by_partition: Mapping[int, Sequence[Any]]) -> None:
        if not self.is_there:
            raise KafkaConnectionError("nobody listens")
        if any(b"too-large" in value for _, value, _ in by_partition[0]):
            raise MessageSizeTooLargeError
        self.writes += 1
        self.written += [msgspec.json.decode(value) for _, value, _ in by_partition[0]]


class Route:
    opt = {"role": "operate"}  # noqa: RUF012


def a_call(path: str) -> Any:  # noqa: ANN401
    return {"method": "POST", "path": path, "query_string": b"", "route_handler": Route()}


@pytest.mark.anyio
async def test_records_wait_for_kafka_in_order_and_their_number_is_bounded(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    registry, writer = CollectorRegistry(), Writer()
    audit = Audit("consumer", registry, cast("Any", writer), cast("Any", writer))
    most = WAITING + REFUSED_WAITING
    for number in range(most + 5):
        audit.note(a_call(f"/consumers/{number}"), 200)
    assert registry.get_sample_value("audit_records_lost_total") == 5
    async with audit.open():
        await until(lambda: "nobody listens" in caplog.text)
        assert "nobody listens" in audit.trouble
        writer.is_there = True
        await until(lambda: len(writer.written) == most)
        assert (writer.writes, audit.trouble) == (most / BATCH, "")
        audit.note(a_call("/consumers/last"), 0)
    assert [one["action"] for one in writer.written] == [*map(str, range(most)), "last"]
    assert writer.written[-1]["outcome"] == "unknown"
    assert caplog.text.count("nobody listens") == 1


@pytest.mark.anyio
async def test_a_record_that_is_too_large_is_lost_and_logged_and_those_around_it_are_written(
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry, writer = CollectorRegistry(), Writer()
    writer.is_there = True
    audit = Audit("consumer", registry, cast("Any", writer), cast("Any", writer))
    async with audit.open():
        for action in ("first", "too-large", "last"):
            audit.note(a_call(f"/consumers/{action}"), 200)
        await until(lambda: len(writer.written) == 2)
        assert audit.trouble == ""
    assert [one["action"] for one in writer.written] == ["first", "last"]
    assert registry.get_sample_value("audit_records_lost_total") == 1
    assert "an audit record is lost: it is too large for audit: too-large" in caplog.text


@pytest.mark.anyio
async def test_refused_calls_push_out_no_action_of_a_caller() -> None:
    writer = Writer()
    writer.is_there = True
    audit = Audit("consumer", CollectorRegistry(), cast("Any", writer), cast("Any", writer), 2 * WAITING)
    audit.keys_needed = True
    for _ in range(WAITING):
        audit.note(a_call("/consumers/stop"), 401)
        audit.note(a_call("/consumers/stop"), 503)  # a token whose key cannot be fetched
    assert not audit.newest
    key_name.set("ada")
    audit.note(a_call("/consumers/stop"), 403)
    key_name.set("grace")
    for _ in range(WAITING):
        audit.note(a_call("/consumers/resume"), 200)
    async with audit.open():
        await until(lambda: len(writer.written) == WAITING + REFUSED_WAITING)
    assert [one["who"] for one in writer.written] == [None] * REFUSED_WAITING + ["grace"] * WAITING


@pytest.mark.anyio
async def test_of_calls_without_an_accepted_key_the_first_of_a_minute_are_logged_and_the_others_counted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(module, "MINUTE_S", 0.01)
    writer = Writer()
    writer.is_there = True
    audit = Audit("consumer", CollectorRegistry(), cast("Any", writer), cast("Any", writer))
    for _ in range(1_000):
        audit.note(a_call("/consumers/stop"), 401)
    assert caplog.text.count("an operator asked for stop") == STRANGERS
    await until(lambda: f"neither logged nor recorded one by one: {1_000 - STRANGERS}" in caplog.text)
    audit.note(a_call("/consumers/last"), 401)
    async with audit.open():
        await until(lambda: len(writer.written) == STRANGERS + 1)
    assert writer.written[-1]["action"] == "last"


@pytest.mark.anyio
async def test_a_caller_whose_name_cannot_be_encoded_is_recorded_all_the_same() -> None:
    writer = Writer()
    writer.is_there = True
    audit = Audit("consumer", CollectorRegistry(), cast("Any", writer), cast("Any", writer))
    key_name.set("token:\ud800")
    async with audit.open():
        audit.note(a_call("/consumers/stop"), 200)
        await until(lambda: len(writer.written) == 1)
    assert [one["who"] for one in writer.written] == ["token:\\ud800"]
    assert msgspec.json.encode([*audit.newest])


@pytest.mark.anyio
async def test_health_names_an_audit_that_has_failed(
    consumer: TestClient[Litestar], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Writer()
    monkeypatch.setattr(writer, "write_to", None)
    audit = Audit("consumer", CollectorRegistry(), cast("Any", writer), cast("Any", writer))
    async with audit.open():
        audit.note(a_call("/consumers/stop"), 200)
        await until(lambda: audit.trouble != "")
    assert audit.trouble == "the writing of audit records has failed: TypeError"
    consumer.app.state[module.AUDIT] = audit
    health = consumer.get("/health-check", headers={"X-API-Key": READER}).json()
    assert audit.trouble in health["detail"]


@pytest.mark.anyio
async def test_what_could_not_be_recorded_before_the_end_is_reported(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LAST_RECORDS_S", 0.01)
    writer = Writer()
    audit = Audit("consumer", CollectorRegistry(), cast("Any", writer), cast("Any", writer))
    async with audit.open():
        audit.note(a_call("/consumers/stop"), 200)
        audit.note(a_call("/consumers/start"), 200)
        await asyncio.sleep(0)
    assert "the last audit records were not written" in caplog.text


def test_the_topic_of_audit_records_is_no_topic_of_a_stream() -> None:
    with pytest.raises(WrongSetting, match="AUDIT_TOPIC"):
        read_settings(
            {"AUDIT_TOPIC": "events-dlt", "EVENTS_TOPIC": "events", **NOBODY}, [*create_consumer.keywords["streams"]]
        )
