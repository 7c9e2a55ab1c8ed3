import json
from typing import Any

import pytest
from confidential import MARK, content_in
from services import Pipeline, Raw, event, wait_until

from tests.handlers import FAILING_ONCE, REFUSED

KEY = f"{MARK}-as-a-key"


def test_whatever_fails_the_logs_say_where_and_of_which_request_and_never_of_whom(pipeline: Pipeline) -> None:
    bad = [
        Raw(json.dumps(event(number=f"number {MARK}")).encode(), f"key of {MARK}".encode(), (("of", MARK.encode()),)),
        Raw(f"not json: {MARK}".encode(), MARK.encode()),
        Raw(json.dumps(event()).encode().replace(b"It rains", b"\xff"), MARK.encode()),
    ]
    with (
        pipeline.producer(LOG_FORMAT="json", API_KEY=f"of-the-test:{KEY}") as producer,
        pipeline.consumer("quoting", LOG_FORMAT="json", API_KEY=KEY, AUDIT_TOPIC=f"{pipeline.topic}-audit") as consumer,
    ):
        producer.until_healthy()
        consumer.until_healthy()
        assert producer.http.post("/producers/events", headers={"X-API-Key": f"not {MARK}"}).status_code == 401
        for service in (producer, consumer):
            service.http.headers["X-API-Key"] = KEY
        written = pipeline.write(bad, partition=3)
        consumer.until_consumed(len(bad))
        events = [event(f"{MARK}-{text}", text=text) for text in ("good", FAILING_ONCE, REFUSED)]
        producer.post("/producers/events", json=events)
        producer.http.post("/producers/events", json=[event(number=MARK)])
        producer.http.post("/producers/events", content=f"{MARK}\n", headers={"Content-Type": "application/x-ndjson"})
        consumer.until_consumed(len(bad) + len(events))
        for order in ("pause", "resume", "stop", "start"):
            consumer.post(f"/consumers/{order}", headers={"X-Request-Id": f"the-{order}"})
        consumer.until_healthy()
        for action in ("redrive", "discard", "restore"):
            headers = {"X-Request-Id": f"the-{action}"}
            consumer.post(f"/consumers/dead-letters/{action}", json={"limit": 1}, headers=headers)
        consumer.post("/consumers/seek", json={"to": "end"}, headers={"X-Request-Id": "the-seek"})
        wait_until(lambda: "the-seek" in consumer.log.read_text())
        audit = f"{pipeline.topic}-audit"
        wait_until(lambda: b"the-seek" in b"".join(record.value or b"" for record in pipeline.records(audit)))
        recorded = [json.loads(record.value or b"") for record in pipeline.records(audit)]
        lines: list[dict[str, Any]] = [json.loads(line) for line in consumer.log.read_text().splitlines()]
    orders = {line["action"]: line["request_id"] for line in lines if "action" in line}
    asked = ("pause", "resume", "stop", "start", "redrive", "discard", "restore", "seek")
    assert orders == {order: f"the-{order}" for order in asked}
    assert [(one["who"], one["action"], one["outcome"]) for one in recorded] == [
        ("default", one, "done") for one in asked
    ]
    assert content_in(json.dumps(recorded)) == []
    dead = next(line for line in lines if "dead-lettered" in line["message"])
    assert (dead["topic"], dead["partition"], dead["offset"]) == (pipeline.topic, 3, written[0].offset)
    assert dead["error"] == "ValidationError"
    (failure,) = [line for line in lines if "exception" in line]
    assert failure["error"] == "LookupError"
    assert "handlers.py" in failure["exception"]
    assert {"topic", "partition", "offset", "records"} <= failure.keys()
    for service in (producer, consumer):
        assert content_in(service.log.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        f"nobody is called Ada {MARK}",
        f"bad address ada.{MARK.lower()}@example.com",
        "cannot deliver to amy.smith@example.org",
        "unknown key 0b0d5c4e-6b3f-4a55-9a43-0c8f5d1c7f11",
        "ValidationError: {'email': ''}",
        "Event(id='1')",
    ],
)
def test_a_line_about_a_record_is_found_in_a_log(line: str) -> None:
    assert content_in(f"all is well\n{line}\nconnected to Kafka at 127.0.0.1:9092") != []
    assert content_in("2 records were dead-lettered, the first of them events-0 offset 6: ValidationError") == []
