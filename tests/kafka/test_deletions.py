from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from confidential import MARK
from services import REDRIVE, Pipeline, Raw, Service, divided, event, wait_until

from contracts.dead_letter import POISON, DeadLetter

SERVICES = str(Path(__file__).with_name("deleting_services.py"))
ODD_KEY = "Zoë? #1 100%"


def test_a_deletion_is_a_tombstone_that_the_handler_gets_in_the_order_of_its_key(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    with (
        pipeline.running("producer", SERVICES, ROLE="producer") as producer,
        pipeline.running("consumer", SERVICES, ROLE="consumer", LEDGER=str(ledger)) as consumer,
    ):
        producer.until_healthy()
        consumer.until_healthy()
        keys = ["ada", ODD_KEY, "generate", "/x/../\ufffd"]
        for key in keys:
            written = producer.post("/producers/events", json=event(key, text="first"))
            is_for_path = "/" not in key
            deletion = producer.http.delete(
                f"/producers/events/{quote(key, safe='')}" if is_for_path else "/producers/events",
                params=None if is_for_path else {"key": key},
            )
            assert deletion.status_code == 201, deletion.text
            (receipt,) = deletion.json()["receipts"]
            assert receipt["id"] == key
            assert receipt["partition"] == written["receipts"][0]["partition"]
        producer.post("/producers/events", json=event("ada", text="again"))
        consumer.until_consumed(9)
        lines = ledger.read_text().splitlines()
        assert [line for line in lines if line.startswith("ada")] == ["ada: first", "ada: deleted", "ada: again"]
        assert {f"{key}: deleted" for key in keys} <= set(lines)
        tombstones = [record for record in pipeline.records() if record.value is None]
        assert {record.key for record in tombstones} == {key.encode() for key in keys}
        assert consumer.status()["dead_lettered_count"] == 0
        shown = [one for one in consumer.messages(limit=10) if one.get("deleted")]
        assert {one["key"] for one in shown} == set(keys)
        assert {one["value"] for one in shown} == {None}
        found = consumer.get(f"/consumers/messages/{tombstones[0].partition}/{tombstones[0].offset}")
        assert found["deleted"], found
        assert producer.http.delete("/producers/events/ada/").status_code == 404
        refused = producer.http.delete("/producers/events/%FFada")
        assert (refused.status_code, "UTF-8" in refused.json()["detail"]) == (400, True)
        wait_until(lambda: consumer.status()["lag"] == 0)


def dead_letter(
    pipeline: Pipeline, receipt: Mapping[str, Any], value: bytes | None = b"a letter", group: str | None = None
) -> int:
    """Write the dead letter of a delivered record, as a consumer of the group does; return its offset."""
    place = pipeline.topic, receipt["partition"], receipt["offset"], None, group or pipeline.group
    letter = DeadLetter(receipt["id"].encode(), value, (), *place, "ValueError", "wrong", 1, POISON)
    raw = Raw(letter.value, letter.key, (*letter.all_headers(),))
    return pipeline.write_batch(raw, topic=pipeline.dead_letter_topic)


def test_a_deleted_record_is_not_sent_back_by_any_redrive_even_of_a_consumer_that_did_not_see_the_deletion(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    pipeline.create_topics(1)
    with pipeline.running("producer", SERVICES, ROLE="producer") as producer:
        producer.until_healthy()
        written = {key: producer.post("/producers/events", json=event(key))["receipts"][0] for key in ("ada", "bob")}
        letters = {key: dead_letter(pipeline, receipt) for key, receipt in written.items()}
        producer.http.delete("/producers/events/ada").raise_for_status()
    ledger = str(tmp_path / "ledger")
    with pipeline.running("consumer", SERVICES, ROLE="consumer", LEDGER=ledger, REDRIVE_AFTER="1s") as consumer:
        consumer.until_healthy()
        refused = consumer.http.post(REDRIVE, json={"partition": 0, "offset": letters["ada"]})
        assert (refused.status_code, "older than a deletion of its key" in refused.json()["detail"]) == (409, True)
        wait_until(lambda: consumer.status()["redriven_by_schedule_count"] == 1)
        for dry_run in ("true", "false"):
            answer = consumer.post(f"{REDRIVE}?dry_run={dry_run}", json={"limit": 9})
            assert (answer["redriven"], answer["refused"]) == (0, 1)
            assert "older than a deletion of its key" in answer["refused_because"]
    assert [record.key for record in pipeline.records() if record.value == b"a letter"] == [b"bob"]


def test_a_person_who_came_back_is_there_again_once_the_deletion_and_then_the_return_were_sent_back(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    pipeline.create_topics(1)
    with pipeline.running("producer", SERVICES, ROLE="producer") as producer:
        producer.until_healthy()
        deletion = producer.http.delete("/producers/events/ada").raise_for_status().json()["receipts"][0]
        back = producer.post("/producers/events", json=event("ada", text="back"))["receipts"][0]
    (value,) = (record.value for record in pipeline.records() if record.value)
    letters = [dead_letter(pipeline, deletion, None), dead_letter(pipeline, back, value)]
    dead_letter(pipeline, deletion, None, group="retired")
    ledger = tmp_path / "ledger"
    with pipeline.running("consumer", SERVICES, ROLE="consumer", LEDGER=str(ledger)) as consumer:
        consumer.until_healthy()
        for number, letter in enumerate(letters):
            answer = consumer.post(REDRIVE, json={"limit": 1})
            assert (answer["redriven"], answer["dead_letters"][0]["offset"], answer["refused"]) == (1, letter, 0)
            consumer.until_consumed(3 + number)
        assert ledger.read_text().splitlines() == ["ada: deleted", "ada: back"] * 2
        purge = "/consumers/dead-letters/purge"
        for given, purged, kept in (({}, 2, 1), ({"retired_group": "retired"}, 1, 0)):
            answer = consumer.post(purge, params={"key": "ada", **given})
            assert (answer["purged"], answer["kept_deletions"]) == (purged, kept)
    assert pipeline.records(pipeline.dead_letter_topic) == []


def test_of_a_forgotten_person_nothing_is_left_but_the_key(pipeline: Pipeline, tmp_path: Path) -> None:
    compacted = {"segment_ms": "100", "min_cleanable_dirty_ratio": "0.01", "max_compaction_lag_ms": "100"}
    pipeline.create_topic(1, cleanup_policy="compact", **compacted)
    topics = pipeline.topic, pipeline.dead_letter_topic, f"{pipeline.dead_letter_topic}-redriven"
    environment = {"EVENTS_PARTITIONS": "1", "LEDGER": str(tmp_path / "ledger")}
    with (
        pipeline.running("producer", SERVICES, ROLE="producer", **environment) as producer,
        pipeline.running("consumer", SERVICES, ROLE="consumer", **environment) as consumer,
    ):
        producer.until_healthy()
        consumer.until_healthy()
        producer.post("/producers/events", json=event("ada", text=f"{MARK} of Ada"))
        pipeline.write([Raw(f"{MARK} of Ada".encode(), b"ada"), Raw(b"not JSON", b"bob")])
        consumer.until_consumed(3)
        (letter,) = consumer.letters(key="ada")
        consumer.post("/consumers/dead-letters/discard", json={"partition": 0, "offset": letter["offset"]})
        assert f"{MARK} of Ada" in str(consumer.messages(key="ada"))
        producer.http.delete("/producers/events/ada").raise_for_status()
        consumer.until_consumed(4)
        purged = consumer.post("/consumers/dead-letters/purge", params={"key": "ada"})
        assert (purged["purged"], purged["next"]) == (1, None)

        def is_compacted() -> bool:
            producer.post("/producers/events", json=event("bob", text="closes the segment"))
            return not any(record.key == b"ada" and record.value for record in pipeline.records())

        wait_until(is_compacted, what="for Kafka to compact the topic")
        left = {topic: pipeline.records(topic) for topic in topics}
        assert [record.value for record in left[pipeline.topic] if record.key == b"ada"] == [None]
        assert [record.value for record in left[pipeline.dead_letter_topic]] == [b"not JSON"]
        told = {"topics": str(left)}
        for service in (producer, consumer):
            told |= {f"{service.log.name} metrics": service.http.get("/metrics").text}
            told |= {service.log.name: service.log.read_text()}
        for path in ("messages", "messages?scope=topic", "dead-letters", "dead-letters?discarded=true", "status"):
            told[path] = consumer.http.get(f"/consumers/{path}").text
        assert [where for where, text in told.items() if MARK in text] == []
        assert {one["deleted"] for one in consumer.messages(key="ada")} == {True}


def shown(consumer: Service) -> set[str]:
    """Return the keys of the records that a consumer shows."""
    return {one["key"] for one in consumer.messages(limit=100)}


def test_an_instance_shows_no_record_whose_deletion_another_one_consumed(pipeline: Pipeline, tmp_path: Path) -> None:
    keys = [f"person-{number}" for number in range(30)]
    consumer = {"ROLE": "consumer", "LEDGER": str(tmp_path / "ledger")}
    with (
        pipeline.running("producer", SERVICES, ROLE="producer") as producer,
        pipeline.running("consumer", SERVICES, **consumer) as staying,
    ):
        producer.until_healthy()
        staying.until_healthy()
        producer.post("/producers/events", json=[event(key) for key in keys])
        staying.until_consumed(len(keys))
        assert shown(staying) == {*keys}
        with pipeline.running("consumer", SERVICES, **consumer) as joining:
            joining.until_healthy()
            wait_until(lambda: divided(staying, joining), what="for both to have partitions")
            wait_until(lambda: shown(staying) ^ shown(joining) == {*keys}, what="for each to show its own")
            lost = min(shown(joining))
            producer.http.delete(f"/producers/events/{lost}").raise_for_status()
            wait_until(lambda: {one.get("deleted") for one in joining.messages(key=lost)} == {True})
            assert staying.messages(key=lost) == []
        wait_until(lambda: len(staying.messages(key=lost)) == 2, what="for the partition to come back")
        assert {one.get("deleted") for one in staying.messages(key=lost)} == {True}
        assert staying.post("/consumers/stop")["messages_consumed_count"] == len(keys)
        assert staying.messages() == []
