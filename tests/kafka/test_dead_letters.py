import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from services import REDRIVE, Pipeline, Raw, Record, Service, wait_until

BAD = [
    Raw(b"not json", b"a key"),
    Raw(b"\xff\x00", b"\xfe", (("h", None), ("h", b"\xff"), ("text", b"text"))),
    Raw(None, b"a tombstone"),
    Raw(None, None),
    Raw(b"", None),
]


@pytest.fixture
def consumer(pipeline: Pipeline) -> Iterator[Service]:
    with pipeline.consumer() as consumer:
        yield consumer.until_healthy()


def place_of(letter: dict[str, Any]) -> tuple[int, int]:
    return letter["partition"], letter["offset"]


class Listed(NamedTuple):
    """A consumer whose dead letters are only looked at: those of partitions 1, 2 and 4, in this order."""

    pipeline: Pipeline
    consumer: Service
    written: list[Record]


@pytest.fixture(scope="module")
def listed(bootstrap_servers: str, logs: Path) -> Iterator[Listed]:
    with Pipeline(bootstrap_servers, logs) as pipeline, pipeline.consumer() as consumer:
        consumer.until_healthy()
        written: list[Record] = []
        for partition in (1, 2, 4):
            written += pipeline.write(BAD, partition)
            consumer.until_consumed(len(written))
        yield Listed(pipeline, consumer, written)


def test_dead_letters_show_what_they_were_where_they_came_from_and_why(listed: Listed) -> None:
    newest_first = listed.consumer.letters(partition=4)
    assert [letter["origin"] for letter in reversed(newest_first)] == [
        {"topic": listed.pipeline.topic, "partition": 4, "offset": one.offset, "timestamp": one.timestamp}
        for one in listed.written[-len(BAD) :]
    ]
    second = newest_first[-2]
    assert second["key"] == {"base64": "/g=="}
    assert second["value"] == {"base64": "/wA="}
    assert second["headers"] == [
        {"name": "h", "value": None},
        {"name": "h", "value": {"base64": "/w=="}},
        {"name": "text", "value": {"text": "text"}},
    ]
    assert (second["tries"], second["rounds"], second["held"], second["redriven"]) == (1, 0, False, False)
    assert newest_first[1]["key"] is None
    assert newest_first[1]["value"] is None
    assert "tombstone" in newest_first[1]["error"]
    assert newest_first[0]["value"] == {"text": ""}


def test_paging_back_through_the_dead_letters_shows_each_once(listed: Listed) -> None:
    shown, before = [], ""
    while True:
        page = listed.consumer.get("/consumers/dead-letters", limit=4, **({"before": before} if before else {}))
        shown += [place_of(letter) for letter in page["dead_letters"]]
        if page["next"] is None:
            break
        before = page["next"]
    assert sorted(shown) == sorted((one.partition, one.offset) for one in listed.written)


def test_dead_letters_are_found_by_partition_and_by_reason(listed: Listed) -> None:
    assert {letter["partition"] for letter in listed.consumer.letters(partition=2)} == {2}
    tombstones = listed.consumer.letters(reason="Tombstone")
    assert len(tombstones) == 6
    assert all(letter["value"] is None for letter in tombstones)
    assert listed.consumer.letters(reason="no such reason") == []


def test_what_is_sent_back_is_the_record_byte_for_byte_and_its_tries_are_counted(
    consumer: Service, pipeline: Pipeline
) -> None:
    pipeline.write(BAD, partition=5)
    consumer.until_consumed(len(BAD))
    assert consumer.redrive(limit=1_000) == len(BAD)
    consumer.until_consumed(2 * len(BAD))
    again = [record for record in pipeline.records() if record.offset >= len(BAD)]
    assert [(record.partition, record.key, record.value) for record in again] == [(5, r.key, r.value) for r in BAD]
    assert [record.headers[:-4] for record in again] == [raw.headers for raw in BAD]
    newest = consumer.letters(limit=5)
    assert {(letter["tries"], letter["rounds"], letter["redriven"]) for letter in newest} == {(2, 1, False)}
    assert [letter["headers"] for letter in newest] == [letter["headers"] for letter in consumer.letters()[5:]]
    assert all(letter["redriven"] for letter in consumer.letters()[5:])


def test_the_oldest_are_sent_back_first_and_none_twice(consumer: Service, pipeline: Pipeline) -> None:
    pipeline.write([Raw(b"bad %d" % number) for number in range(6)])
    consumer.until_consumed(6)
    assert consumer.redrive(limit=2) == 2
    consumer.until_consumed(8)
    assert [letter["redriven"] for letter in reversed(consumer.letters())][:6] == [True, True, *[False] * 4]
    assert consumer.redrive(limit=4) == 4
    consumer.until_consumed(12)
    assert [record.value for record in pipeline.records()] == [b"bad %d" % n for n in (0, 1, 2, 3, 4, 5) * 2]


def test_a_redrive_sends_back_what_the_list_shows_with_the_same_filters_and_a_dry_run_nothing(
    consumer: Service, pipeline: Pipeline
) -> None:
    for partition in (1, 2):
        pipeline.write([Raw(b"bad", b"some"), Raw(b"bad", b"other"), Raw(None, b"other")], partition)
    consumer.until_consumed(6)
    consumer.post("/consumers/stop")  # so that what is sent back stays on the topic, and is not dead-lettered again
    newest = max(letter["timestamp"] for letter in consumer.letters())
    behind = datetime.fromtimestamp(newest / 1_000 + 1, UTC).isoformat()
    for filters, count in (
        ({"from": behind}, 0),
        ({"to": "2020-01-01T00:00:00Z"}, 0),
        ({"partition": 2, "key": "other", "reason": "Tombstone", "to": behind}, 1),
        ({"key": "some"}, 2),
        ({"reason": "Tombstone", "from": "2020-01-01T00:00:00Z"}, 1),
        ({}, 2),
    ):
        waiting = [place_of(letter) for letter in consumer.letters(**filters) if not letter["redriven"]]
        assert len(waiting) == count
        written = len(pipeline.records())
        answer = consumer.post(REDRIVE, params={**filters, "dry_run": "true"}, json={"limit": 10})
        nothing = {"redriven": 0, "dead_letters": [], "more": False, "refused": 0, "refused_because": None}
        assert answer == {**nothing, "would_redrive": count, "waiting_for_transaction": 0}
        assert len(pipeline.records()) == written
        answer = consumer.post(REDRIVE, params=filters, json={"limit": 10})
        assert sorted(map(place_of, answer["dead_letters"])) == sorted(waiting)
        assert (answer["redriven"], answer["would_redrive"]) == (count, None)
        assert len(pipeline.records()) == written + count


def test_a_redrive_with_a_wrong_filter_is_refused(listed: Listed) -> None:
    for parameters in (
        {"reasons": "x"},
        {"from": "yesterday"},
        {"to": "2020-01-01T00:00:00"},
        {"partition": "one"},
        {"dry_run": "perhaps"},
        {"dry_run": "1"},
    ):
        answer = listed.consumer.http.post(REDRIVE, params=parameters, json={"limit": 1})
        assert answer.status_code == 400, (parameters, answer.text)
    for parameters in ({"key": "some"}, {"dry_run": "true"}):
        answer = listed.consumer.http.post(REDRIVE, params=parameters, json={"partition": 0, "offset": 0})
        assert answer.status_code == 400, (parameters, answer.text)


def test_one_dead_letter_is_sent_back_by_its_place_and_only_once(consumer: Service, pipeline: Pipeline) -> None:
    pipeline.write([Raw(b"bad %d" % number) for number in range(3)])
    consumer.until_consumed(3)
    assert consumer.redrive(partition=0, offset=1) == 1
    assert consumer.http.post(REDRIVE, json={"partition": 0, "offset": 1}).status_code == 409
    assert consumer.http.post(REDRIVE, json={"partition": 0, "offset": 77}).status_code == 404
    assert consumer.http.post(REDRIVE, json={"partition": 77, "offset": 0}).status_code == 404
    assert consumer.http.post(REDRIVE, json={"limit": 0}).status_code == 400
    assert consumer.http.post(REDRIVE, json={}).status_code == 400
    assert consumer.redrive(limit=10) == 2 + 1  # the two others, and the one that came back


def test_what_came_back_three_times_is_held_until_it_is_asked_for(consumer: Service, pipeline: Pipeline) -> None:
    pipeline.write([Raw(b"bad")])
    for seen in range(1, 4):
        consumer.until_consumed(seen)
        assert consumer.redrive(limit=10) == 1
    consumer.until_consumed(4)
    assert consumer.redrive(limit=10) == 0
    (held, *_) = consumer.letters(limit=1)
    assert (held["held"], held["rounds"], held["tries"]) == (True, 3, 4)
    assert consumer.redrive(partition=held["partition"], offset=held["offset"]) == 1
    consumer.until_consumed(5)


def test_two_instances_that_are_asked_at_once_send_each_back_once(consumer: Service, pipeline: Pipeline) -> None:
    with pipeline.consumer() as other:
        other.until_healthy()
        pipeline.write([Raw(b"bad %d" % number) for number in range(50)])
        wait_until(lambda: consumer.status()["dead_lettered_count"] + other.status()["dead_lettered_count"] == 50)
        consumer.post("/consumers/stop")  # so that what is sent back stays on the topic, and is not dead-lettered again
        other.post("/consumers/stop")
        with ThreadPoolExecutor(6) as pool:
            copies = [consumer, other] * 3
            calls = [pool.submit(c.http.post, REDRIVE, json={"limit": 1_000}) for c in copies]
            answers = [call.result() for call in calls]
        assert {answer.status_code for answer in answers} <= {200, 409}
        redriven = sum(answer.json()["redriven"] for answer in answers if answer.status_code == 200)
        assert redriven + consumer.redrive(limit=1_000) == 50  # a busy machine may not do all of them in a call's time
        sent_back = sorted(record.value or b"" for record in pipeline.records()[50:])
        assert sent_back == sorted(b"bad %d" % number for number in range(50))


def test_one_that_the_topic_would_not_take_again_is_held_and_keeps_no_other_from_being_sent_back(
    consumer: Service, pipeline: Pipeline
) -> None:
    largest = 1_048_588 - 61 - 15  # what a batch and a record without key and headers have besides the value
    pipeline.write([Raw(b"x" * largest), Raw(b"small")])
    consumer.until_consumed(2)
    assert [letter["held"] for letter in consumer.letters()] == [False, True]
    assert consumer.redrive(limit=10) == 1
    answer = consumer.http.post(REDRIVE, json={"partition": 0, "offset": 0})
    assert answer.status_code == 422
    assert f"{pipeline.topic} takes 1048588 (max.message.bytes)" in answer.json()["detail"]
    assert not consumer.letters()[-1]["redriven"]
    pipeline.alter_topic(max_message_bytes="2000000")
    assert consumer.redrive(partition=0, offset=0) == 1


def test_the_dead_letters_of_a_topic_that_was_recreated_count_as_not_sent_back(pipeline: Pipeline) -> None:
    with pipeline.consumer() as consumer:
        consumer.until_healthy()
        pipeline.write([Raw(b"bad %d" % number) for number in range(3)])
        consumer.until_consumed(3)
        assert consumer.redrive(limit=3) == 3
        consumer.until_consumed(6)
        assert sum(letter["redriven"] for letter in consumer.letters()) == 3
    pipeline.delete_topic(pipeline.dead_letter_topic)
    wait_until(lambda: pipeline.dead_letter_topic not in pipeline.ask(lambda admin: admin.list_topics()))
    with pipeline.consumer() as consumer:
        consumer.until_healthy()
        pipeline.write([Raw(b"new"), Raw(b"newer")])
        consumer.until_consumed(2)
        assert [letter["redriven"] for letter in consumer.letters()] == [False, False]
        assert consumer.redrive(limit=10) == 2
        consumer.until_consumed(4)
        assert sum(letter["redriven"] for letter in consumer.letters()) == 2


def test_what_a_smaller_dead_letter_topic_does_not_take_is_compressed(pipeline: Pipeline) -> None:
    pipeline.create_topics(1)
    with pipeline.consumer() as consumer:
        consumer.until_healthy()
        pipeline.write([Raw(b"x" * 1_048_400, b"large", (("h", None),)), Raw(b"small")])
        consumer.until_consumed(2)
    large, small = pipeline.records(pipeline.dead_letter_topic)
    assert (large.key, large.value, large.headers[0]) == (b"large", b"x" * 1_048_400, ("h", None))
    assert small.value == b"small"


def test_what_it_does_not_take_even_so_is_reported_by_its_size_and_written_when_it_does(pipeline: Pipeline) -> None:
    pipeline.create_topics(1)
    with pipeline.consumer() as consumer:
        consumer.until_healthy()
        noise = random.Random(0).randbytes(1_048_400)
        pipeline.write([Raw(b"before it"), Raw(noise), Raw(b"behind it")])
        wait_until(lambda: "(max.message.bytes)" in (consumer.status()["last_error"] or ""))
        assert f"{pipeline.topic}-0 offset 1 has 10488" in consumer.status()["last_error"]
        assert f"{pipeline.dead_letter_topic} takes 1048588" in consumer.status()["last_error"]
        pipeline.alter_topic(pipeline.dead_letter_topic, max_message_bytes="2000000")
        consumer.until_consumed(3)
    written = sorted([record.value or b"" for record in pipeline.records(pipeline.dead_letter_topic)], key=len)
    assert [len(value) for value in written] == [9, 9, len(noise)], "each once, although all were tried several times"
    assert {*written} == {b"before it", noise, b"behind it"}
