import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from services import Pipeline, Raw, Record, Service, both, divided, event, value_of, wait_until

from contracts import dead_letter
from contracts.stream import encode

LARGE = 1_400_000
"""Bytes: more than Kafka's clients and topics take by default."""
MAX_BATCH_RECORDS = 2_000


@pytest.fixture(scope="module")
def services(shared: Pipeline) -> Iterator[tuple[Service, Service]]:
    with both(shared) as running:
        yield running


@pytest.fixture
def producer(services: tuple[Service, Service]) -> Service:
    return services[0]


@pytest.fixture
def consumer(services: tuple[Service, Service]) -> Service:
    """A running consumer that has nothing left to do."""
    consumer = services[1]
    consumer.post("/consumers/start")
    wait_until(lambda: consumer.status()["lag"] == 0)
    return consumer


def place(message: dict[str, Any]) -> tuple[int, int]:
    return message["partition"], message["offset"]


def test_events_that_were_produced_are_consumed_and_shown_each_partition_in_its_order(
    producer: Service, consumer: Service, shared: Pipeline
) -> None:
    before = consumer.status()["messages_consumed_count"]
    events = producer.send(500)
    consumer.until_consumed(before + 500)
    messages = consumer.messages(limit=500)
    for partition in range(6):
        offsets = [message["offset"] for message in messages if message["partition"] == partition]
        assert offsets == sorted(offsets)
    assert {m["key"]: m["value"] for m in messages} == {one["id"]: one for one in events}
    records = shared.records_by_key()
    for message in messages:
        record = records[message["key"]]
        assert message["topic"] == shared.topic
        assert (message["timestamp"], *place(message)) == (record.timestamp, record.partition, record.offset)


def test_the_newest_ten_are_shown_by_default_and_total_counts_all(producer: Service, consumer: Service) -> None:
    before = consumer.status()["messages_consumed_count"]
    producer.send(30)
    consumer.until_consumed(before + 30)
    answer = consumer.get("/consumers/messages")
    assert answer["messages"] == consumer.messages(limit=1_000)[-10:]
    assert answer["total"] == before + 30


def test_the_status_reports_where_the_consumer_stands(producer: Service, consumer: Service, shared: Pipeline) -> None:
    producer.send(10)
    wait_until(lambda: consumer.status()["lag"] == 0)
    wait_until(lambda: shared.committed() == sum(shared.end_offsets().values()))
    status = consumer.status()
    ends = shared.end_offsets()
    assert status["running"] is True
    assert status["state"] == "running"
    assert status["topic"] == shared.topic
    assert status["group_id"] == shared.group
    assert status["member_id"]
    assert status["lag_seconds"] == 0
    assert status["last_error"] is None
    assert status["started_at"]
    assert status["notes"] == []
    assert {p["partition"]: p["end"] for p in status["partitions"]} == ends
    assert all(p["lag"] == 0 and p["position"] == p["end"] for p in status["partitions"])
    assert all(p["committed"] in {p["end"], None if p["end"] == 0 else p["end"]} for p in status["partitions"])
    assert status["messages_consumed_count"] == sum(ends.values())


def test_messages_are_found_by_key_and_by_partition(producer: Service, consumer: Service) -> None:
    before = consumer.status()["messages_consumed_count"]
    producer.post("/producers/events", json=[event("wanted é", text=str(n)) for n in range(5)] + [event()])
    consumer.until_consumed(before + 6)
    found = consumer.messages(key="wanted é")
    assert [message["value"]["text"] for message in found] == ["0", "1", "2", "3", "4"]
    partition = found[0]["partition"]
    assert {message["partition"] for message in consumer.messages(partition=partition, limit=100)} == {partition}
    assert consumer.messages(key="wanted é", partition=(partition + 1) % 6) == []
    assert consumer.messages(partition=99) == []


def test_paging_back_shows_everything_once(producer: Service, consumer: Service) -> None:
    before = consumer.status()["messages_consumed_count"]
    producer.send(100)
    consumer.until_consumed(before + 100)
    everything = consumer.messages(limit=1_000)
    answer = consumer.get("/consumers/messages", limit=37)
    paged = answer["messages"]
    while answer["next"]:
        answer = consumer.get("/consumers/messages", limit=37, before=answer["next"])
        paged = answer["messages"] + paged
    assert paged[-len(everything) :] == everything
    assert len({place(message) for message in paged}) == len(paged) == before + 100


def test_what_is_produced_while_it_is_stopped_is_lag_and_is_consumed_after_the_start(
    producer: Service, consumer: Service
) -> None:
    stopped = consumer.post("/consumers/stop")
    assert stopped["state"] == "stopped"
    assert stopped["running"] is False
    assert consumer.answers("/health-check", 200), "a stop by an operator is no illness"
    before = stopped["messages_consumed_count"]
    events = producer.send(300)
    status = wait_until(lambda: (s := consumer.status())["lag"] == 300 and s)
    assert status["lag_seconds"] > 0
    assert len(status["partitions"]) == 6
    assert status["messages_consumed_count"] == before
    assert consumer.messages(), "the window can still be looked at"

    assert consumer.post("/consumers/start")["state"] == "running"
    status = consumer.until_consumed(before + 300)
    wait_until(lambda: consumer.status()["lag"] == 0)
    assert status["messages_consumed_count"] == before + 300
    assert {one["id"] for one in events} == {message["key"] for message in consumer.messages(limit=300)}


def test_stop_and_start_may_come_twice_and_together(producer: Service, consumer: Service) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert {s["state"] for s in pool.map(consumer.post, ["/consumers/stop"] * 4)} == {"stopped"}
        assert {s["state"] for s in pool.map(consumer.post, ["/consumers/start"] * 4)} == {"running"}
        assert len(list(pool.map(consumer.post, ["/consumers/stop", "/consumers/start"] * 4))) == 8
    consumer.post("/consumers/start")
    before = consumer.status()["messages_consumed_count"]
    producer.send(50)
    assert consumer.until_consumed(before + 50)["messages_consumed_count"] == before + 50


def records_of_every_kind() -> tuple[list[Raw], list[Raw]]:
    """Return good and bad records; the bad ones in every way that one can be."""
    odd = (("null", None), ("binary", b"\x00\xff\xfe"), ("twice", b"1"), ("twice", b"2"), ("", b""), ("é", b"\xc3\xa9"))
    bad = [
        Raw(b"not json", b"k1"),
        Raw(b'{"id": 1}', b"k2"),
        Raw(value_of(event(text="ADA")).replace(b"ADA", b"\xff\xfe"), b"k3"),
        Raw(b"", b"k4"),
        Raw(None, b"k5"),
        Raw(b"null", None),
        Raw(None, None),
        Raw(b"[" * 100_000, b"\xff\x00"),
        Raw(b"neither json nor alone", b"", odd),
        Raw(None, b"k6", odd),
        Raw(b"\x00" * LARGE, b"k7"),
        Raw(json.dumps(event(number=999)).encode(), b"k8", odd),
        Raw(json.dumps(event(number="36")).encode(), b"k9"),
    ]
    good = [
        *(Raw(value_of(one := event()), one["id"].encode()) for _ in range(10)),
        Raw(value_of(event()), None),
        Raw(value_of(event()), b"\xff\xfe"),
        Raw(value_of(event()), b"headed", odd),
        Raw(value_of(event(text="x" * LARGE)), b"large"),
        Raw(json.dumps(event(no_field_of_anyone="a field of the future")).encode(), b"future"),
    ]
    return good, bad


def interleaved(good: list[Raw], bad: list[Raw]) -> list[Raw]:
    return [record for n in range(max(len(good), len(bad))) for record in good[n : n + 1] + bad[n : n + 1]]


def test_a_bad_record_of_any_kind_is_dead_lettered_whole_and_its_neighbours_are_consumed(pipeline: Pipeline) -> None:
    pipeline.create_topic(2, max_message_bytes="1500000")
    good, bad = records_of_every_kind()
    written = pipeline.write(interleaved(good, bad), partition=0) + pipeline.write(interleaved(good, bad), partition=1)
    with pipeline.consumer() as consumer:
        status = consumer.until_healthy().until_consumed(2 * len(good + bad))
        assert status["messages_consumed_count"] == 2 * len(good)
        assert status["dead_lettered_count"] == 2 * len(bad)
        assert status["lag"] == 0
        assert status["last_error"]
        messages = consumer.messages(limit=1_000)
        assert consumer.answers("/health-check", 200)
    bad_values = Counter((raw.key, raw.value, raw.headers) for raw in bad)
    expected = [record for record in written if (record.key, record.value, record.headers) in bad_values]
    good_places = {(record.partition, record.offset) for record in written} - {e[:2] for e in expected}
    assert {(message["partition"], message["offset"]) for message in messages} == good_places
    assert_dead_letters(pipeline, expected)


def assert_dead_letters(shared: Pipeline, expected: list[Record]) -> None:
    """The dead-letter topic has these records, byte for byte and in order, each with what became of it."""
    letters = shared.records(shared.dead_letter_topic)
    read = [dead_letter.read(record.key, record.value, record.headers) for record in letters]
    for partition in {record.partition for record in expected}:
        whole = [
            (letter.offset, letter.timestamp, letter.key, letter.value, letter.headers)
            for letter in read
            if letter.partition == partition
        ]
        assert whole == [record[1:] for record in expected if record.partition == partition]
    assert len(read) == len(expected)
    for letter in read:
        assert letter.topic == shared.topic
        assert letter.group == shared.group
        assert letter.tries == 1
        assert letter.error
        assert letter.error_type


def test_a_restarted_consumer_still_shows_what_it_consumed(pipeline: Pipeline) -> None:
    with pipeline.producer() as producer, pipeline.consumer() as consumer:
        producer.until_healthy()
        consumer.until_healthy()
        producer.send(200)
        pipeline.write([Raw(b"bad", b"k")])
        consumer.until_consumed(201)
        before = consumer.messages(limit=1_000)
    with pipeline.consumer() as consumer:
        consumer.until_healthy()
        wait_until(lambda: len(consumer.messages(limit=1_000)) == 200, what="for the window to be refilled")
        answer = consumer.get("/consumers/messages", limit=1_000)
        assert sorted(answer["messages"], key=place) == sorted(before, key=place)
        assert answer["total"] == 0
    assert len(pipeline.records(pipeline.dead_letter_topic)) == 1


def test_two_consumers_divide_the_partitions_and_consume_each_record_once(pipeline: Pipeline) -> None:
    with pipeline.producer() as p1, pipeline.producer() as p2, pipeline.consumer() as c1, pipeline.consumer() as c2:
        for service in (p1, p2, c1, c2):
            service.until_healthy()
        wait_until(lambda: divided(c1, c2), what="for both to have partitions")
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda p: p.send(4_000), [p1, p2] * 2))
        wait_until(lambda: sum(c.status()["messages_consumed_count"] for c in (c1, c2)) >= 16_000)
        wait_until(lambda: all(c.status()["lag"] == 0 for c in (c1, c2)))
        counts = [c.status()["messages_consumed_count"] for c in (c1, c2)]
        assert sum(counts) == 16_000
        assert min(counts) > 1_000
        wait_until(lambda: pipeline.committed() == 16_000)

        c1.post("/consumers/stop")
        wait_until(lambda: divided(c2))
        p1.send(100)
        c2.until_consumed(counts[1] + 100)


def handled(ledger: Path) -> list[str]:
    return [line for line in ledger.read_text().splitlines() if line != "begin"] if ledger.exists() else []


def test_a_consumer_killed_in_the_middle_of_50000_records_loses_none(pipeline: Pipeline, tmp_path: Path) -> None:
    ledgers = [tmp_path / "killed", tmp_path / "survivor"]
    with (
        pipeline.producer() as producer,
        pipeline.recording_consumer(ledgers[0], LEDGER_SECONDS="0.1") as killed,
        pipeline.recording_consumer(ledgers[1], LEDGER_SECONDS="0.02") as survivor,
        ThreadPoolExecutor() as pool,
    ):
        producer.until_healthy()
        wait_until(lambda: divided(killed, survivor), what="for both to have partitions")
        making = pool.submit(producer.send, 50_000)
        wait_until(lambda: len(handled(ledgers[0])) > 3_000, what="for some records to be handled")
        killed.kill()
        ids = {one["id"] for one in making.result()}
        wait_until(lambda: set().union(*map(handled, ledgers)) >= ids, what="for the survivor to handle the rest")
        wait_until(lambda: pipeline.committed() == 50_000)
    times = Counter(handled(ledgers[0]) + handled(ledgers[1]))
    assert set(times) == ids
    assert sum(times.values()) <= 50_000 + 2 * MAX_BATCH_RECORDS, "only in-flight batches are handled again"


def test_a_batch_that_comes_damaged_is_read_again_and_nothing_that_was_read_with_it_is_left_out(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    pipeline.create_topic(6)
    events = [event() for _ in range(600)]
    for partition in range(6):
        pipeline.write([Raw(value_of(one), one["id"].encode()) for one in events[partition::6]], partition=partition)
    misreading = str(Path(__file__).with_name("misreading_consumer.py"))
    with pipeline.running("consumer", misreading, LEDGER=str(ledger)) as consumer:
        consumer.until_healthy()
        wait_until(lambda: pipeline.committed() == 600)
        assert sorted(handled(ledger)) == sorted(one["id"] for one in events)
        assert consumer.status()["restarts"] == 0


def test_a_batch_that_cannot_be_read_holds_up_its_own_partition_alone_until_somebody_seeks_past_it(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    pipeline.create_topic(3)
    events = [event() for _ in range(60)]
    for partition in range(3):
        of_partition = [Raw(value_of(one), one["id"].encode()) for one in events[partition::3]]
        pipeline.write(of_partition[:10], partition=partition)
        if partition == 1:
            pipeline.write_what_only_java_decompresses(value_of(event()), partition)
        pipeline.write(of_partition[10:], partition=partition)
    with pipeline.recording_consumer(ledger) as consumer:
        wait_until(lambda: pipeline.committed() == 50)
        pipeline.fill(30_000, partition=2)
        wait_until(lambda: pipeline.committed() == 30_050)
        assert consumer.status()["restarts"] == 0
        wait_until(lambda: f"{pipeline.topic}-1 offset 10 cannot be read" in consumer.http.get("/health-check").text)
        assert consumer.get("/consumers/messages/1/9")["key"]
        wait_until(lambda: consumer.http.post("/consumers/seek", json={"partition": 1, "offset": 11}).is_success)
        wait_until(lambda: pipeline.committed() == 30_061)
        wait_until(lambda: consumer.answers("/health-check", 200))
    assert sorted(set(handled(ledger)) - {"one of many"}) == sorted(one["id"] for one in events)


def test_a_topic_with_other_partitions_is_used_as_it_is_and_reported(pipeline: Pipeline) -> None:
    pipeline.create_topic(3)
    with both(pipeline) as (producer, consumer):
        events = producer.send(90)
        status = consumer.until_consumed(90)
        assert {p["partition"] for p in status["partitions"]} == {0, 1, 2}
        assert any("partitions 3, wanted 6" in note for note in status["notes"])
        assert {message["key"] for message in consumer.messages(limit=90)} == {one["id"] for one in events}
        assert {record.partition for record in pipeline.records()} == {0, 1, 2}
        assert {m["value"]["id"]: encode(m["value"]) for m in consumer.messages(limit=90)} == {
            one["id"]: encode(one) for one in events
        }


def test_a_header_name_that_is_no_utf_8_stops_nobody(pipeline: Pipeline) -> None:
    with pipeline.consumer() as consumer:
        consumer.until_healthy()
        for value in (value_of(event("before")), b"no event", value_of(event("after"))):
            pipeline.write_with_a_wrong_header_name(value)
        assert consumer.until_consumed(3)["messages_consumed_count"] == 2
        assert consumer.answers("/health-check", 200)
        assert [message["key"] for message in consumer.messages()] == ["key", "key"]
        (letter,) = consumer.letters()
        headers = [{"name": "right", "value": None}, {"name": "\\xffZ", "value": {"base64": "/w=="}}]
        assert letter["headers"] == headers
        assert letter["value"] == {"text": "no event"}
        assert consumer.get("/consumers/messages/0/1")["headers"] == headers


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_compressed_events_are_consumed(codec: str, consumer: Service, shared: Pipeline) -> None:
    shared.write_batch(Raw(value_of(event(codec))), compression_type=codec)
    wait_until(lambda: [message["value"]["id"] for message in consumer.messages(limit=1)] == [codec])
