import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from services import Pipeline, Raw, Service, both, divided, event, value_of, wait_until


@pytest.fixture(scope="module")
def running(shared: Pipeline) -> Iterator[tuple[Service, Service]]:
    with both(shared) as running:
        yield running


@pytest.fixture
def services(running: tuple[Service, Service]) -> tuple[Service, Service]:
    """A producer, and a consumer that runs and has nothing left to do."""
    _, consumer = running
    consumer.post("/consumers/start")
    consumer.post("/consumers/resume")
    until_caught_up(consumer)
    return running


def consumed(consumer: Service) -> int:
    return int(consumer.status()["messages_consumed_count"])


def make(producer: Service, number: int) -> list[str]:
    return [one["id"] for one in producer.send(number)]


def until_caught_up(consumer: Service) -> None:
    wait_until(lambda: consumer.status()["lag"] == 0, what="for lag 0")


def test_a_paused_consumer_keeps_its_partitions_reads_nothing_and_goes_on_where_it_stopped(
    services: tuple[Service, Service],
) -> None:
    producer, consumer = services
    member, before = consumer.status()["member_id"], consumed(consumer)
    paused = consumer.post("/consumers/pause")
    assert (paused["state"], paused["running"]) == ("paused", False)
    assert paused["paused_partitions"] == [0, 1, 2, 3, 4, 5]
    make(producer, 300)
    wait_until(lambda: consumer.status()["lag"] == 300)
    assert consumed(consumer) == before
    assert consumer.status()["member_id"] == member
    assert consumer.get("/health-check")["detail"] == "paused by an operator"
    assert consumer.post("/consumers/resume")["state"] == "running"
    consumer.until_consumed(before + 300)


def test_a_pause_holds_when_a_rebalance_gives_out_the_partitions_again(
    services: tuple[Service, Service], shared: Pipeline
) -> None:
    producer, consumer = services
    before = consumed(consumer)
    consumer.post("/consumers/pause")
    with shared.consumer() as other:
        other.until_healthy()
        wait_until(lambda: divided(consumer, other))
        made = len(make(producer, 600))
        wait_until(lambda: consumer.status()["lag"] + consumed(other) == made)
        seen = consumed(other)
        assert consumed(consumer) == before
    wait_until(lambda: consumer.status()["paused_partitions"] == [0, 1, 2, 3, 4, 5])
    assert consumed(consumer) == before
    consumer.post("/consumers/resume")
    consumer.until_consumed(before + made - seen)


def test_a_pause_holds_over_a_stop_and_a_start(services: tuple[Service, Service]) -> None:
    producer, consumer = services
    before = consumed(consumer)
    consumer.post("/consumers/pause")
    consumer.post("/consumers/stop")
    consumer.post("/consumers/start")
    make(producer, 50)
    wait_until(lambda: consumer.status()["lag"] == 50)
    assert consumer.status()["state"] == "paused"
    assert consumed(consumer) == before


def test_a_dry_run_of_a_seek_counts_what_waits_in_partitions_that_were_not_polled_yet(
    services: tuple[Service, Service],
) -> None:
    producer, consumer = services
    consumer.post("/consumers/pause")
    consumer.post("/consumers/stop")
    consumer.post("/consumers/start")
    make(producer, 50)
    wait_until(lambda: consumer.status()["lag"] == 50)
    counted = consumer.post("/consumers/seek?dry_run=true", json={"to": "end"})
    assert (counted["would_handle_again"], counted["would_skip"]) == (0, 50)


def test_seeking_to_the_beginning_consumes_all_again_and_is_not_undone_by_a_restart(
    services: tuple[Service, Service], shared: Pipeline
) -> None:
    producer, consumer = services
    before = consumed(consumer)
    make(producer, 400)
    consumer.until_consumed(before + 400)
    everything = sum(shared.end_offsets().values())
    consumer.post("/consumers/pause")
    sought = consumer.post("/consumers/seek", json={"to": "beginning"})
    assert sought["partitions"] == {str(partition): 0 for partition in range(6)}
    consumer.post("/consumers/stop")
    consumer.post("/consumers/start")
    wait_until(lambda: consumer.status()["lag"] == everything)
    consumer.post("/consumers/resume")
    consumer.until_consumed(before + 400 + everything)
    until_caught_up(consumer)


def test_seeking_to_the_end_passes_over_what_waits(services: tuple[Service, Service]) -> None:
    producer, consumer = services
    before = consumed(consumer)
    consumer.post("/consumers/pause")
    passed_over = make(producer, 100)
    wait_until(lambda: consumer.status()["lag"] == 100)
    consumer.post("/consumers/seek", json={"to": "end"})
    consumer.post("/consumers/resume")
    later = make(producer, 10)
    consumer.until_consumed(before + 10)
    shown = {message["key"] for message in consumer.messages(limit=1_000)}
    assert shown >= set(later)
    assert shown.isdisjoint(passed_over)


def test_seeking_to_an_offset_consumes_one_partition_from_there(services: tuple[Service, Service]) -> None:
    producer, consumer = services
    before = consumed(consumer)
    receipts = producer.post("/producers/events", json=[event("one key") for _ in range(20)])["receipts"]
    consumer.until_consumed(before + 20)
    at = receipts[12]
    place = {"partition": at["partition"], "offset": at["offset"]}
    assert consumer.post("/consumers/seek", json=place)["partitions"] == {str(at["partition"]): at["offset"]}
    consumer.until_consumed(before + 28)
    until_caught_up(consumer)


def test_seeking_to_a_time_consumes_what_was_written_since(services: tuple[Service, Service]) -> None:
    producer, consumer = services
    before = consumed(consumer)
    make(producer, 100)
    consumer.until_consumed(before + 100)
    latest = max(message["timestamp"] for message in consumer.messages(limit=1_000))
    since = datetime.fromtimestamp((latest + 1) / 1_000, UTC)
    wait_until(lambda: datetime.now(UTC) > since)
    make(producer, 30)
    consumer.until_consumed(before + 130)
    consumer.post("/consumers/seek", json={"to": since.isoformat()})
    consumer.until_consumed(before + 160)
    until_caught_up(consumer)


def test_seeking_to_a_time_in_one_partition_leaves_the_others_where_they_are(services: tuple[Service, Service]) -> None:
    producer, consumer = services
    make(producer, 100)
    receipts = producer.post("/producers/events", json=[event("one key") for _ in range(20)])["receipts"]
    at = receipts[0]
    until_caught_up(consumer)
    since = datetime.fromtimestamp(at["timestamp"] / 1_000, UTC)
    place = {"to": since.isoformat(), "partition": at["partition"]}
    before = consumed(consumer)
    assert consumer.post("/consumers/seek?dry_run=true", json=place)["would_handle_again"] >= 20
    sought = consumer.post("/consumers/seek", json=place)["partitions"]
    assert sought.keys() == {str(at["partition"])}
    assert sought[str(at["partition"])] <= at["offset"]
    consumer.until_consumed(before + 20)
    until_caught_up(consumer)


def test_one_partition_can_be_sought_while_the_others_are_read(services: tuple[Service, Service]) -> None:
    producer, consumer = services
    make(producer, 100)
    offset = max(one["end"] for one in consumer.status()["partitions"] if one["partition"] == 0) - 1
    with ThreadPoolExecutor(1) as pool:
        making = pool.submit(make, producer, 30_000)
        while not making.done():
            assert consumer.post("/consumers/seek", json={"partition": 0, "offset": offset})["partitions"]
    until_caught_up(consumer)
    assert consumer.status()["paused_partitions"] == []


def test_seeking_is_refused_for_a_partition_that_this_instance_does_not_hold_and_while_it_is_stopped(
    services: tuple[Service, Service],
) -> None:
    consumer = services[1]
    assert consumer.http.post("/consumers/seek", json={"partition": 6, "offset": 0}).status_code == 409
    consumer.post("/consumers/stop")
    assert consumer.http.post("/consumers/seek", json={"to": "beginning"}).status_code == 409


def test_the_consumer_halts_before_it_dead_letters_everything_and_goes_on_when_asked_to(pipeline: Pipeline) -> None:
    with both(pipeline) as (producer, consumer):
        consumer.post("/consumers/stop")
        pipeline.write_to([(Raw(b"not json %d" % number), number % 6) for number in range(240)])
        consumer.post("/consumers/start")
        wait_until(lambda: consumer.status()["state"] == "halted")
        assert (
            f"100 consecutive records were refused of the stream: {pipeline.topic}-" in consumer.status()["last_error"]
        )
        health = consumer.http.get("/health-check")
        assert (health.status_code, health.json()["status"]) == (503, "unavailable")
        assert pipeline.records(pipeline.dead_letter_topic) == []
        consumer.post("/consumers/start")
        wait_until(lambda: consumer.status()["state"] == "halted")
        assert pipeline.records(pipeline.dead_letter_topic) == []
        consumer.post("/consumers/start", json={"accept": True})
        make(producer, 200)
        consumer.until_consumed(440)
        assert len(pipeline.records(pipeline.dead_letter_topic)) == 240
        consumer.until_healthy()


def test_a_topic_that_is_recreated_while_the_consumer_is_cut_off_is_consumed_from_its_beginning(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    def handled() -> set[str]:
        return set(ledger.read_text().split()) if ledger.exists() else set()

    ledger = tmp_path / "handled"
    pipeline.create_topic(1)
    with pipeline.recording_consumer(ledger) as consumer:
        consumer.until_healthy()
        pipeline.write([Raw(value_of(event(f"old{number}"))) for number in range(20)])
        consumer.until_consumed(20)
        consumer.process.send_signal(signal.SIGSTOP)
        pipeline.delete_topic(pipeline.topic)
        pipeline.create_topic(1)
        pipeline.write([Raw(value_of(event(f"new{number}"))) for number in range(60)])
        consumer.process.send_signal(signal.SIGCONT)
        wait_until(lambda: {f"new{number}" for number in range(60)} <= handled(), what="for all of the new topic")
