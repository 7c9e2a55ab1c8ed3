import asyncio
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaProducer
from services import REDRIVE, Pipeline, Raw, Service, event, value_of, wait_until

from apps.consumer.redriving.marks import DATED_UP_TO, MarkKey
from contracts.dead_letter import DeadLetter
from contracts.partitioning import partitions_of
from tests.handlers import REFUSED

LETTERS = "/consumers/dead-letters"


class Sharing(Pipeline):
    """A pipeline whose dead-letter topic two groups share; both are stopped, so that what is sent back stays there."""

    @property
    def groups(self) -> list[str]:
        return [self.group, f"{self.group}-2"]

    def letters(self, count: int, consumer: Service) -> list[dict[str, Any]]:
        """Write dead letters of both groups by turns, so many of each; return them as they are listed."""
        letters = [
            DeadLetter(b"key", b"bad %d" % n, (), self.topic, 0, n, 1_700_000_000_000, group, "ValueError", "wrong", 1)
            for n in range(count)
            for group in self.groups
        ]
        raws = [Raw(letter.value, letter.key, tuple(letter.all_headers())) for letter in letters]
        return self.listed(consumer, *raws)

    def listed(self, consumer: Service, *raws: Raw) -> list[dict[str, Any]]:
        """Write records to the dead-letter topic; return them as they are listed."""
        last = self.write_batch(*raws, topic=self.dead_letter_topic)
        wait_until(lambda: [one["offset"] for one in newest(consumer, 1)] == [last])
        return newest(consumer, len(raws))


@pytest.fixture(scope="module")
def pipeline(bootstrap_servers: str, logs: Path) -> Iterator[Sharing]:
    with Sharing(bootstrap_servers, logs) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def consumers(pipeline: Sharing) -> Iterator[tuple[Service, Service]]:
    with ExitStack() as stack:
        one, other = (stack.enter_context(pipeline.consumer(EVENTS_GROUP_ID=group)) for group in pipeline.groups)
        for consumer in (one, other):
            consumer.until_healthy().post("/consumers/stop")
        yield one, other


def newest(consumer: Service, limit: int, **parameters: str) -> list[dict[str, Any]]:
    """Return the newest dead letters, the oldest of them first."""
    return consumer.letters(limit=limit, **parameters)[::-1]


def redrive(consumer: Service) -> int:
    answer = consumer.http.post(REDRIVE, json={"limit": 1_000})
    assert answer.status_code in {200, 409}, answer.text
    return int(answer.json()["redriven"]) if answer.status_code == 200 else 0


def at_once(consumers: tuple[Service, ...], times: int = 3) -> int:
    """Ask all consumers for a redrive at the same time, and then each once more; return how many were sent back."""
    with ThreadPoolExecutor(len(consumers) * times) as pool:
        sent = sum(pool.map(redrive, consumers * times))
    return sent + sum(map(redrive, consumers))


def of_spring(topic: str, partition: int = 3, **more: bytes) -> tuple[tuple[str, bytes | None], ...]:
    """Return the headers of a dead letter in the order in which Spring writes them, without a group."""
    return (
        ("own", None),
        ("kafka_dlt-exception-fqcn", b"org.springframework.kafka.listener.ListenerExecutionFailedException"),
        ("kafka_dlt-exception-cause-fqcn", b"java.lang.IllegalStateException"),
        ("kafka_dlt-exception-message", b"Listener failed"),
        ("kafka_dlt-exception-stacktrace", b"at org.example..."),
        ("kafka_dlt-original-topic", topic.encode()),
        ("kafka_dlt-original-partition", struct.pack(">i", partition)),
        ("kafka_dlt-original-offset", struct.pack(">q", 12)),
        ("kafka_dlt-original-timestamp", struct.pack(">q", 1_700_000_000_000)),
        ("kafka_dlt-original-timestamp-type", b"CreateTime"),
        *((f"kafka_dlt-{name.replace('_', '-')}", value) for name, value in more.items()),
    )


def test_each_group_sends_back_its_own_letters_and_each_once_whoever_asks_at_the_same_time(
    pipeline: Sharing, consumers: tuple[Service, Service]
) -> None:
    letters = pipeline.letters(20, consumers[0])
    assert [letter["group"] for letter in letters] == pipeline.groups * 20
    assert {letter["group"] for letter in letters if letter["redrivable"]} == {pipeline.group}
    before = len(pipeline.records())
    assert redrive(consumers[0]) == 20
    assert {letter["group"] for letter in newest(consumers[1], 40) if letter["redriven"]} == {pipeline.group}
    assert at_once(consumers) == 20
    assert len(pipeline.records()) == before + 40
    assert all(letter["redriven"] for letter in newest(consumers[0], 40))


def test_a_letter_of_another_group_is_not_sent_back_when_it_is_asked_for_by_its_place(
    pipeline: Sharing, consumers: tuple[Service, Service]
) -> None:
    _, others = pipeline.letters(1, consumers[0])
    place = {"partition": others["partition"], "offset": others["offset"]}
    answer = consumers[0].http.post(REDRIVE, json=place)
    assert answer.status_code == 409
    assert f"is of the group {pipeline.group}-2" in answer.json()["detail"]
    assert consumers[1].redrive(**place) == 1
    assert at_once(consumers) == 1


def test_dead_letters_of_spring_are_listed_and_sent_back_once_by_whichever_group_is_asked(
    pipeline: Sharing, consumers: tuple[Service, Service]
) -> None:
    before = len(pipeline.records())
    of_events = Raw(b"of Spring", b"key", of_spring(pipeline.topic))
    letters = pipeline.listed(consumers[0], *[of_events] * 30, Raw(b"of nobody", b"key", (("own", b"1"),)))
    *_, letter, unknown = letters
    assert letter["origin"] == {
        "topic": pipeline.topic,
        "partition": 3,
        "offset": 12,
        "timestamp": 1_700_000_000_000,
    }
    assert (letter["group"], letter["error"], letter["tries"]) == (None, "Listener failed", None)
    assert letter["error_type"].endswith("ListenerExecutionFailedException")
    assert letter["headers"] == [{"name": "own", "value": None}]
    assert (letter["redrivable"], unknown["redrivable"]) == (True, False)
    assert unknown["origin"] == {"topic": None, "partition": None, "offset": None, "timestamp": None}
    assert (unknown["error_type"], unknown["headers"]) == (None, [{"name": "own", "value": {"text": "1"}}])
    assert at_once(consumers) == 30
    sent = [record for record in pipeline.records() if record.value == b"of Spring"]
    assert len(pipeline.records()) == before + 30
    assert {(record.partition, record.key, record.headers[0]) for record in sent} == {(3, b"key", ("own", None))}
    assert {name for record in sent for name, _ in record.headers} == {
        "own",
        "dead-letter-origin",
        "kafka_deliveryAttempt",
        "dead-letter-rounds",
    }
    place = {"partition": unknown["partition"], "offset": unknown["offset"]}
    answer = consumers[0].http.post(REDRIVE, json=place)
    assert (answer.status_code, "does not say" in answer.json()["detail"]) == (404, True)


def test_each_group_discards_its_own_letters_which_no_group_lists_then(
    pipeline: Sharing, consumers: tuple[Service, Service]
) -> None:
    own, others = pipeline.letters(1, consumers[0])
    place = {"partition": others["partition"], "offset": others["offset"]}
    for action in ("discard", "restore"):
        answer = consumers[0].http.post(f"{LETTERS}/{action}", json=place)
        assert (answer.status_code, f"is of the group {pipeline.group}-2" in answer.json()["detail"]) == (409, True)
    assert consumers[0].post(f"{LETTERS}/discard", json={"limit": 10})["discarded"] == 1
    for consumer in consumers:
        assert [one["offset"] for one in newest(consumer, 1)] == [others["offset"]]
        assert [one["offset"] for one in newest(consumer, 1, discarded="true")] == [own["offset"]]
    assert consumers[1].post(f"{LETTERS}/restore", json={"limit": 10})["restored"] == 0
    assert at_once(consumers) == 1
    assert consumers[0].post(f"{LETTERS}/restore", json={"limit": 10})["restored"] == 1
    assert at_once(consumers) == 1


def test_a_letter_of_no_group_that_one_group_discarded_is_sent_back_by_none(
    pipeline: Sharing, consumers: tuple[Service, Service]
) -> None:
    (letter,) = pipeline.listed(consumers[0], Raw(b"of nobody", b"key", of_spring(pipeline.topic)))
    assert consumers[0].post(f"{LETTERS}/discard", json={"limit": 10})["discarded"] == 1
    assert at_once(consumers) == 0
    place = {"partition": letter["partition"], "offset": letter["offset"]}
    assert consumers[1].http.post(REDRIVE, json=place).status_code == 409
    assert consumers[1].post(f"{LETTERS}/restore", json=place)["restored"] == 1
    assert at_once(consumers) == 1


def test_a_letter_whose_partition_does_not_exist_goes_where_its_key_belongs(
    pipeline: Sharing, consumers: tuple[Service, Service]
) -> None:
    headers = of_spring(pipeline.topic, 77, original_consumer_group=pipeline.group.encode())
    pipeline.listed(consumers[0], Raw(b"of a gone partition", b"key", headers))
    assert at_once(consumers) == 1
    (sent,) = (record for record in pipeline.records() if record.value == b"of a gone partition")
    assert sent.partition == partitions_of([b"key"], 6)[0]


def test_what_an_earlier_version_marked_was_sent_back_for_every_group(
    pipeline: Sharing, consumers: tuple[Service, Service]
) -> None:
    offsets = [letter["offset"] for letter in pipeline.letters(3, consumers[0])]
    mark = b"[[%d,%d]]" % (offsets[0], offsets[-1])
    pipeline.write_batch(Raw(mark, b"0"), topic=f"{pipeline.dead_letter_topic}-redriven")
    wait_until(lambda: newest(consumers[0], 6)[0]["redriven"])
    assert [letter["redriven"] for letter in newest(consumers[1], 6)] == [*[True] * 5, False]
    assert at_once(consumers) == 1


def test_letters_that_are_dated_later_than_a_mark_have_replaced_those_that_were_sent_back(
    pipeline: Sharing, consumers: tuple[Service, Service]
) -> None:
    letter = DeadLetter(b"key", b"bad", (), pipeline.topic, 0, 7, 1_700_000_000_000, pipeline.group, "E", "wrong", 1)
    raw = Raw(letter.value, letter.key, tuple(letter.all_headers()))
    first, _, last = (pipeline.listed(consumers[0], raw)[0] for _ in range(3))
    mark = msgspec.json.encode([(0, last["offset"] + 1)])
    key, dated = msgspec.json.encode(MarkKey(pipeline.group, 0)), (DATED_UP_TO, b"%d" % first["timestamp"])
    pipeline.write_batch(Raw(mark, key, (dated,)), topic=f"{pipeline.dead_letter_topic}-redriven")
    wait_until(lambda: newest(consumers[0], 3)[0]["redriven"])
    assert [letter["redriven"] for letter in newest(consumers[1], 3)] == [True, False, False]
    assert at_once(consumers) == 2
    assert all(letter["redriven"] for letter in newest(consumers[0], 3))


def test_a_redrive_does_not_go_on_while_another_groups_transaction_hides_what_was_sent_back(
    pipeline: Sharing, consumers: tuple[Service, Service]
) -> None:
    pipeline.letters(2, consumers[0])
    marks = f"{pipeline.dead_letter_topic}-redriven"

    async def during_a_transaction() -> tuple[int, int]:
        options = {"bootstrap_servers": pipeline.bootstrap_servers, "transactional_id": f"{pipeline.name}-another"}
        async with AIOKafkaProducer(**options) as producer:
            await producer.begin_transaction()
            await producer.send_and_wait(marks, b"[]", key=b'{"group":"another","partition":0}', partition=0)
            answers = [await asyncio.to_thread(redrive, consumers[0]) for _ in range(2)]
            await producer.abort_transaction()
        return answers[0], answers[1]

    during = sum(asyncio.run(during_a_transaction()))
    assert during + at_once(consumers) == 4


def test_dead_letters_behind_another_clients_transaction_are_counted_and_named_until_it_ends(
    pipeline: Sharing, consumers: tuple[Service, Service]
) -> None:
    pipeline.letters(1, consumers[0])
    one, topic = consumers[0], pipeline.dead_letter_topic

    def looked_at() -> tuple[int, dict[str, Any], dict[str, Any]]:
        redriven = one.post(REDRIVE, json={"limit": 10})
        return redriven["waiting_for_transaction"], one.get(LETTERS), one.status()

    async def during_a_transaction() -> tuple[int, dict[str, Any], dict[str, Any]]:
        options = {"bootstrap_servers": pipeline.bootstrap_servers, "transactional_id": f"{pipeline.name}-letters"}
        async with AIOKafkaProducer(**options) as producer:
            await producer.begin_transaction()
            await producer.send_and_wait(topic, b"uncommitted", partition=0)
            await asyncio.to_thread(pipeline.write_batch, *[Raw(b"behind")] * 2, topic=topic)
            seen = await asyncio.to_thread(looked_at)
            await producer.commit_transaction()
        return seen

    waiting, listed, status = asyncio.run(during_a_transaction())
    said = f"{topic}: 3 records wait behind another client's open transaction, unseen until that ends"
    assert (waiting, listed["waiting_for_transaction"], listed["notes"]) == (3, 3, [said])
    assert (status["dead_letters_waiting_for_transaction"], said in status["notes"]) == (3, True)
    wait_until(lambda: one.get(LETTERS)["waiting_for_transaction"] == 0)
    assert [letter["value"]["text"] for letter in newest(one, 3)] == ["uncommitted", "behind", "behind"]
    assert at_once(consumers) == 1


def test_a_redrive_refuses_while_kafka_may_forget_what_was_sent_back_and_health_says_so(
    pipeline: Sharing, consumers: tuple[Service, Service]
) -> None:
    pipeline.letters(2, consumers[0])
    marks = f"{pipeline.dead_letter_topic}-redriven"
    before = len(pipeline.records())
    pipeline.alter_topic(marks, cleanup_policy="compact,delete", retention_ms="604800000")
    answers = [consumer.http.post(REDRIVE, json={"limit": 10}) for consumer in consumers]
    assert [answer.status_code for answer in answers] == [409, 409]
    assert "retention.ms 604800000, wanted -1" in answers[0].json()["detail"]
    assert "what was sent back is forgotten" in consumers[0].get("/health-check")["detail"]
    assert any("what was sent back is forgotten" in note for note in consumers[0].status()["notes"])
    assert len(pipeline.records()) == before
    pipeline.alter_topic(marks, cleanup_policy="compact", retention_ms="-1")
    assert at_once(consumers) == 4
    assert "forgotten" not in consumers[0].get("/health-check")["detail"]


class Refusing(Sharing):
    """A pipeline of two groups whose handlers refuse some events while a file exists."""

    def refusing(self, path: Path, group: str) -> Service:
        files = {"REFUSING": str(path / "refusing"), "LEDGER": str(path / group)}
        return self.consumer("refusing", EVENTS_GROUP_ID=group, **files)

    def until_lettered(self, consumers: Sequence[Service], count: int) -> list[dict[str, Any]]:
        """Wait until each consumer has consumed its topic, so many dead letters among it; return their status."""
        end = sum(self.end_offsets().values())
        for consumer in consumers:
            wait_until(lambda one=consumer: one.status()["dead_lettered_count"] >= count)  # type: ignore[misc]  # mypy cannot infer it
            wait_until(lambda one=consumer: sum(p["committed"] or 0 for p in one.status()["partitions"]) >= end)  # type: ignore[misc]  # as above
        return [consumer.status() for consumer in consumers]


def test_copies_of_a_record_that_two_groups_refuse_grow_by_one_with_each_redrive_of_a_letter(
    bootstrap_servers: str, logs: Path, tmp_path: Path
) -> None:
    refusing = tmp_path / "refusing"
    refusing.touch()
    with Refusing(bootstrap_servers, logs) as pipeline, ExitStack() as stack:
        groups = pipeline.groups
        consumers = [stack.enter_context(pipeline.refusing(tmp_path, group)) for group in groups]
        for consumer in consumers:
            consumer.until_healthy()
        pipeline.write([Raw(b"not json", b"key"), Raw(value_of(event("old", text=REFUSED)), b"old")])
        for redrives in range(3):
            pipeline.until_lettered(consumers, 2 + 2 * redrives)
            assert [redrive(consumer) for consumer in consumers] == [2, 2]
            assert Counter(record.key for record in pipeline.records()) == dict.fromkeys(
                [b"key", b"old"], 1 + 2 * (redrives + 1)
            )
        reported = pipeline.until_lettered(consumers, 8)
        assert [one["dead_lettered_count"] for one in reported] == [8, 8]
        assert [one["passed_over_count"] for one in reported] == [6, 6]
        held = {letter["group"]: letter for letter in newest(consumers[0], 16) if letter["key"] == {"text": "old"}}
        refusing.unlink()
        for consumer, group in zip(consumers, groups, strict=True):
            place = {"partition": held[group]["partition"], "offset": held[group]["offset"]}
            assert consumer.redrive(**place) == 1
        reported = pipeline.until_lettered(consumers, 8)
        assert [(tmp_path / group).read_text().split() for group in groups] == [["old"], ["old"]]
        assert [len(consumer.messages()) for consumer in consumers] == [1, 1]
        assert [(one["messages_consumed_count"], one["passed_over_count"]) for one in reported] == [(1, 7), (1, 7)]
        passed_over = 'consumer_records_passed_over_total{reason="for_another_group",stream="events"} 7.0'
        assert all(passed_over in consumer.http.get("/metrics").text for consumer in consumers)
        assert {len(record.headers) for record in pipeline.records()[2:]} == {4}
