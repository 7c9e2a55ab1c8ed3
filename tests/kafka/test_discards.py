"""Discarded dead letters are neither sent back nor listed, whichever instance is asked, until they are restored.

Purged ones are gone for good.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
from aiokafka.errors import KafkaConnectionError
from services import REDRIVE, Pipeline, Raw, Service, wait_until

from apps.chassis.kafka.clients import client_options, size_in_gzip
from apps.chassis.kafka.cluster import Cluster
from apps.chassis.kafka.log_reader import LogReader
from apps.chassis.kafka.topics import dead_letter_topic, marks_topic, record_topic
from apps.chassis.settings import Settings, StreamSettings
from apps.consumer.redriving.purge import Doomed, Purged, PurgedInPart
from apps.consumer.redriving.redrive import Redriver
from contracts.dead_letter import DeadLetter

PATH = "/consumers/dead-letters"
keys = itertools.count()
AGAIN = {200, 409, 503}
"""Statuses of an action that others fence at any moment: it was done, or may be asked for again."""


class Lettered(Pipeline):
    """A pipeline with dead letters of its group that no consumer wrote."""

    def letters(self, count: int, key: str = "", group: str | None = None) -> tuple[str, list[int]]:
        """Write dead letters with a key of their own; return it, and their offsets."""
        key = key or f"key-{next(keys)}"
        place = (self.topic, 0, 7, 1_700_000_000_000, self.group if group is None else group)
        letters = [DeadLetter(key.encode(), b"%d" % n, (), *place, "ValueError", "wrong", 1) for n in range(count)]
        raws = [Raw(one.value, one.key, (*one.all_headers(),)) for one in letters]
        last = self.write_batch(*raws, topic=self.dead_letter_topic, max_batch_size=2**20)
        return key, [*range(last + 1 - count, last + 1)]

    def sent_back(self, key: str) -> list[int]:
        """Return the numbers of the letters with a key that were sent back."""
        return [int(record.value or b"") for record in self.records() if record.key == key.encode()]


@pytest.fixture(scope="module")
def pipeline(bootstrap_servers: str, logs: Path) -> Iterator[Lettered]:
    with Lettered(bootstrap_servers, logs) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def consumers(pipeline: Lettered) -> Iterator[tuple[Service, Service]]:
    """Two instances of one group, stopped, so that what is sent back stays on the topic."""
    with pipeline.consumer() as one, pipeline.consumer(DEAD_LETTER_RETENTION="30d") as other:
        for consumer in (one, other):
            consumer.until_healthy().post("/consumers/stop")
        yield one, other


def offsets(consumer: Service, key: str, **parameters: str) -> list[int]:
    """Return the offsets of the listed letters with a key, the oldest first."""
    return [letter["offset"] for letter in reversed(consumer.letters(limit=1_000, key=key, **parameters))]


def counts(consumer: Service, key: str, **parameters: str) -> tuple[int, int]:
    """Return how many letters with a key are counted by reason, and how many of them can be sent back."""
    reasons = consumer.get(f"{PATH}/reasons", key=key, **parameters)
    return reasons["letters"], reasons["redrivable"]


def act(consumer: Service, action: str, body: dict[str, int], **parameters: str) -> dict[str, Any]:
    answer: dict[str, Any] = consumer.post(f"{PATH}/{action}", params=parameters, json=body)
    return answer


def refusal(consumer: Service, action: str, body: dict[str, Any], **parameters: str) -> tuple[int, str]:
    answer = consumer.http.post(f"{PATH}/{action}", params=parameters, json=body)
    return answer.status_code, answer.json()["detail"]


def at(offset: int) -> dict[str, int]:
    return {"partition": 0, "offset": offset}


def test_a_discarded_letter_is_neither_listed_nor_sent_back_by_any_instance_until_it_is_restored(
    consumers: tuple[Service, Service], pipeline: Lettered
) -> None:
    one, other = consumers
    key, places = pipeline.letters(6)
    dry = act(one, "discard", {"limit": 100}, key=key, dry_run="true")
    assert dry == {"discarded": 0, "dead_letters": [], "more": False, "waiting_for_transaction": 0, "would_discard": 6}
    assert offsets(other, key) == places
    answer = act(one, "discard", {"limit": 3}, key=key)
    assert (answer["discarded"], answer["more"], answer["would_discard"]) == (3, True, None)
    assert [letter["offset"] for letter in answer["dead_letters"]] == places[:3]
    assert act(other, "discard", at(places[5]))["discarded"] == 1
    for consumer in consumers:
        assert offsets(consumer, key) == places[3:5]
        assert offsets(consumer, key, discarded="true") == [*places[:3], places[5]]
        assert (counts(consumer, key), counts(consumer, key, discarded="true")) == ((2, 2), (4, 0))
        assert act(consumer, "redrive", {"limit": 100}, key=key, dry_run="true")["would_redrive"] == 2
        assert act(consumer, "restore", {"limit": 100}, key=key, dry_run="true")["would_restore"] == 4
        for place in places[:3]:
            status, detail = refusal(consumer, "redrive", at(place))
            assert (status, detail) == (409, f"dead letter 0/{place} was discarded: restore it before it is sent back")
    assert act(other, "redrive", {"limit": 100}, key=key)["redriven"] == 2
    assert act(other, "restore", {"limit": 2}, key=key)["restored"] == 2
    assert act(one, "restore", at(places[5]))["restored"] == 1
    for consumer in consumers:
        assert offsets(consumer, key, discarded="true") == [places[2]]
        assert counts(consumer, key) == (5, 3)
    assert act(one, "redrive", {"limit": 100}, key=key)["redriven"] == 3
    assert pipeline.sent_back(key) == [3, 4, 0, 1, 5]


def test_a_discard_outlives_every_instance(pipeline: Lettered, consumers: tuple[Service, Service]) -> None:
    key, places = pipeline.letters(3)
    with pipeline.consumer() as third:
        third.until_answers("/health-check", 200)
        assert act(third, "discard", {"limit": 2}, key=key)["discarded"] == 2
        third.kill()
    assert offsets(consumers[0], key) == places[2:]
    with pipeline.consumer() as fourth:
        fourth.until_answers("/health-check", 200)
        fourth.post("/consumers/stop")
        assert offsets(fourth, key, discarded="true") == places[:2]
        assert act(fourth, "redrive", {"limit": 100}, key=key)["redriven"] == 1
    assert pipeline.sent_back(key) == [2]


@pytest.mark.parametrize(
    ("action", "body", "parameters", "status", "detail"),
    [
        ("discard", {"partition": 0, "offset": 99_999}, {}, 404, "there is no dead letter 0/99999"),
        ("restore", {"partition": 77, "offset": 1}, {}, 404, "there is no dead letter 77/1"),
        ("discard", {"limit": 0}, {}, 400, "$.limit"),
        ("discard", {"limit": 1_001}, {}, 400, "$.limit"),
        ("restore", {"partition": -1, "offset": 1}, {}, 400, "$.partition"),
        ("discard", {}, {}, 400, "give either `limit`, or `partition` and `offset`"),
        ("restore", {"limit": 1, "offset": 1}, {}, 400, "give either `limit`, or `partition` and `offset`"),
        ("discard", {"limit": 1, "reason": "x"}, {}, 400, "reason"),
        ("discard", {"partition": 0, "offset": 0}, {"key": "some"}, 400, "without filters"),
        ("discard", {"partition": 0, "offset": 0}, {"dry_run": "true"}, 400, "dry_run: only with `limit`"),
        ("discard", {"limit": 1}, {"discarded": "true"}, 400, "discarded: no such parameter"),
        ("redrive", {"limit": 1}, {"discarded": "true"}, 400, "discarded: no such parameter"),
        ("restore", {"limit": 1}, {"from": "yesterday"}, 400, "from"),
        ("discard", {"limit": 1}, {"stream": "nothing"}, 400, "stream"),
        ("discard", {"limit": 1}, {"dry_run": "yes"}, 400, "dry_run"),
    ],
)
def test_a_wrong_call_is_refused_and_told_what_is_wrong(  # noqa: PLR0913, PLR0917 - a table
    action: str,
    body: dict[str, int],
    parameters: dict[str, str],
    status: int,
    detail: str,
    consumers: tuple[Service, Service],
) -> None:
    answered, told = refusal(consumers[0], action, body, **parameters)
    assert answered == status, told
    assert detail in told


def test_what_was_done_before_is_refused_by_its_place(consumers: tuple[Service, Service], pipeline: Lettered) -> None:
    one, other = consumers
    key, (sent, discarded, untouched) = pipeline.letters(3)
    assert act(one, "redrive", at(sent))["redriven"] == 1
    assert act(one, "discard", at(discarded))["discarded"] == 1
    assert refusal(other, "discard", at(sent)) == (409, f"dead letter 0/{sent} was sent back before")
    assert refusal(other, "discard", at(discarded)) == (409, f"dead letter 0/{discarded} was discarded before")
    for place in (sent, untouched):
        assert refusal(other, "restore", at(place)) == (
            409,
            f"dead letter 0/{place} is not discarded: there is nothing to restore",
        )
    assert act(other, "discard", {"limit": 100}, key=key)["discarded"] == 1
    assert act(other, "restore", {"limit": 100}, key=key)["restored"] == 2
    assert act(other, "redrive", {"limit": 100}, key=key)["redriven"] == 2
    assert sorted(pipeline.sent_back(key)) == [0, 1, 2]


def test_a_letter_that_kafka_deleted_can_neither_be_discarded_nor_restored(
    consumers: tuple[Service, Service], pipeline: Lettered
) -> None:
    key, places = pipeline.letters(4)
    assert act(consumers[0], "discard", {"limit": 2}, key=key)["discarded"] == 2
    pipeline.delete_before({0: places[1]}, pipeline.dead_letter_topic)
    wait_until(lambda: offsets(consumers[0], key, discarded="true") == places[1:2])
    assert refusal(consumers[0], "restore", at(places[0])) == (404, f"there is no dead letter 0/{places[0]}")
    assert refusal(consumers[0], "discard", at(places[0])) == (404, f"there is no dead letter 0/{places[0]}")
    assert act(consumers[1], "restore", {"limit": 100}, key=key)["restored"] == 1
    assert act(consumers[1], "redrive", {"limit": 100}, key=key)["redriven"] == 3


def test_nothing_is_discarded_while_kafka_may_forget_it(consumers: tuple[Service, Service], pipeline: Lettered) -> None:
    key, places = pipeline.letters(1)
    marks = f"{pipeline.dead_letter_topic}-redriven"
    pipeline.alter_topic(marks, cleanup_policy="compact,delete", retention_ms="604800000")
    status, detail = refusal(consumers[0], "discard", {"limit": 1}, key=key)
    assert (status, "retention.ms 604800000, wanted -1" in detail) == (409, True)
    pipeline.alter_topic(marks, cleanup_policy="compact", retention_ms="-1")
    assert act(consumers[0], "discard", at(places[0]))["discarded"] == 1


def test_of_a_redrive_and_a_discard_at_once_one_alone_gets_each_letter_even_when_an_instance_is_killed(
    consumers: tuple[Service, Service], pipeline: Lettered
) -> None:
    key, places = pipeline.letters(120)
    done: dict[str, list[int]] = {"redrive": [], "discard": []}

    def repeat(consumer: Service, action: str) -> None:
        """Repeat an action until nothing is left to do, or the instance is gone."""
        while True:
            try:
                answer = consumer.http.post(f"{PATH}/{action}", params={"key": key}, json={"limit": 7})
            except httpx.TransportError:
                return
            assert answer.status_code in {200, 409}, answer.text
            letters = answer.json().get("dead_letters", [])
            done[action] += [letter["offset"] for letter in letters]
            if answer.status_code == 200 and not letters:
                return

    with pipeline.consumer() as victim, ThreadPoolExecutor(4) as pool:
        victim.until_answers("/health-check", 200)
        victim.post("/consumers/stop")
        calls = [
            pool.submit(repeat, *call)
            for call in ((victim, "discard"), (victim, "redrive"), (consumers[0], "redrive"), (consumers[1], "discard"))
        ]
        wait_until(lambda: len(done["redrive"]) + len(done["discard"]) > 30)
        victim.kill()
        for call in calls:
            call.result()
    numbers = dict(zip(places, range(120), strict=True))
    sent, discarded = pipeline.sent_back(key), offsets(consumers[0], key, discarded="true")
    assert len(sent) == len(set(sent)), "none was sent back twice"
    assert sorted([*sent, *(numbers[place] for place in discarded)]) == [*range(120)]
    assert {numbers[place] for place in done["redrive"]} <= set(sent)
    assert set(done["discard"]) <= set(discarded)
    assert offsets(consumers[1], key) == sorted(set(places) - set(discarded))
    assert counts(consumers[1], key) == (len(sent), 0)


def test_the_letters_of_a_recreated_topic_are_not_discarded(bootstrap_servers: str, logs: Path) -> None:
    with Lettered(bootstrap_servers, logs) as pipeline:
        with pipeline.consumer() as consumer:
            consumer.until_healthy()
            key, places = pipeline.letters(2)
            assert act(consumer, "discard", {"limit": 2}, key=key)["discarded"] == 2
        pipeline.delete_topic(pipeline.dead_letter_topic)
        with pipeline.consumer() as consumer:
            consumer.until_healthy().post("/consumers/stop")
            key, again = pipeline.letters(2)
            assert again == places
            assert (offsets(consumer, key), offsets(consumer, key, discarded="true")) == (places, [])
            assert act(consumer, "redrive", {"limit": 2}, key=key)["redriven"] == 2


def purge(consumer: Service, **parameters: str) -> dict[str, Any]:
    """Purge until all letters were searched; return the last answer, with the sums of all."""
    answer = act(consumer, "purge", {}, **parameters)
    while answer["next"] is not None:
        following = act(consumer, "purge", {}, after=answer["next"], **parameters)
        answer = following | {"purged": answer["purged"] + following["purged"]}
    return answer


def key_letters(pipeline: Lettered, key: str) -> list[int]:
    """Return the numbers of the letters with a key that a client can read from the dead-letter topic."""
    letters = [one for one in pipeline.records(pipeline.dead_letter_topic) if one.key == key.encode()]
    return [int(one.value or b"") for one in letters]


def test_a_purge_by_key_deletes_all_letters_of_a_key_and_leaves_the_others_as_they_were(
    consumers: tuple[Service, Service], pipeline: Lettered
) -> None:
    one, other = consumers
    kept, (sent, discarded, *_) = pipeline.letters(5)
    gone, _ = pipeline.letters(3)
    pipeline.letters(1, kept, group="another")
    pipeline.letters(1, kept, group="")
    pipeline.letters(2, gone, group="another")
    later, _ = pipeline.letters(1)
    for action, place in (("redrive", sent), ("discard", discarded)):
        act(one, action, at(place))
    before = {letter["offset"]: letter for letter in one.letters(limit=1_000, key=kept)}
    nothing_done = {"purged": 0, "written_again": 0, "next": None, "waiting_for_transaction": 0}
    assert purge(other, key=gone, dry_run="true") == nothing_done | {"would_purge": 5, "kept_deletions": 0}
    answer = purge(other, key=gone)
    assert (answer["purged"], answer["next"]) == (5, None)
    assert answer["written_again"] >= 7
    assert purge(one, key=gone)["purged"] == 0
    assert key_letters(pipeline, gone) == []
    assert key_letters(pipeline, kept) == [0, 1, 2, 3, 4, 0, 0]
    assert key_letters(pipeline, later) == [0]
    for consumer in consumers:
        assert [letter["value"] for letter in consumer.letters(key=kept, discarded="true")] == [{"text": "1"}]
        after = consumer.letters(limit=1_000, key=kept)
        assert len(after) == len(before) == 6
        changed = {"offset": 0, "timestamp": 0}
        listed = [letter | changed for letter in before.values()]
        assert [letter | changed for letter in after] == listed, "marks, headers and order are as they were"
        assert act(consumer, "redrive", {"limit": 100}, key=kept, dry_run="true")["would_redrive"] == 4
    assert refusal(one, "redrive", at(sent)) == (404, f"there is no dead letter 0/{sent}")
    assert act(one, "restore", {"limit": 1}, key=kept)["restored"] == 1
    assert act(other, "redrive", {"limit": 100}, key=kept)["redriven"] == 5
    assert sorted(pipeline.sent_back(kept)) == [0, 0, 1, 2, 3, 4]


def test_a_purge_that_dies_before_kafka_deletes_leaves_each_letter_once(
    consumers: tuple[Service, Service], pipeline: Lettered
) -> None:
    kept, (sent, discarded, *_) = pipeline.letters(4)
    gone, places = pipeline.letters(2)
    act(consumers[0], "redrive", at(sent))
    act(consumers[0], "discard", at(discarded))
    asyncio.run(purge_without_deletion(pipeline, gone))
    assert key_letters(pipeline, gone) == [0, 1], "Kafka has deleted nothing"
    assert key_letters(pipeline, kept) == [0, 1, 2, 3, 0, 1, 2, 3]
    for consumer in consumers:
        assert offsets(consumer, gone) == []
        assert len(offsets(consumer, kept)) == 3
        assert len(offsets(consumer, kept, discarded="true")) == 1
        assert refusal(consumer, "redrive", at(places[0]))[0] == 404
        assert act(consumer, "redrive", {"limit": 100}, key=gone)["redriven"] == 0
    assert act(consumers[1], "redrive", {"limit": 100}, key=kept)["redriven"] == 2
    assert act(consumers[0], "restore", {"limit": 100}, key=kept)["restored"] == 1
    assert act(consumers[0], "redrive", {"limit": 100}, key=kept)["redriven"] == 1
    assert purge(consumers[1], key=gone)["purged"] == 0, "they were purged before, and are deleted now"
    assert (key_letters(pipeline, gone), key_letters(pipeline, kept)) == ([], [0, 1, 2, 3])
    assert sorted(pipeline.sent_back(kept)) == [0, 1, 2, 3]


async def purge_without_deletion(pipeline: Lettered, key: str) -> None:
    """Purge as an instance does that dies once its transactions are committed."""

    async def die(_: object) -> None:
        raise KafkaConnectionError("killed")

    async with redriving(pipeline) as redriver:
        redriver.purger._delete_before = die  # type: ignore[assignment,method-assign]  # the crash
        with pytest.raises(KafkaConnectionError):
            await redriver.purger.purge(Doomed(key.encode()), {})


@asynccontextmanager
async def redriving(pipeline: Pipeline) -> AsyncIterator[Redriver]:
    """Redrive as an instance of the consumer does."""
    settings = Settings(kafka_bootstrap_servers=pipeline.bootstrap_servers)
    options = client_options(settings, "purge")
    own = StreamSettings(topic=pipeline.topic, dead_letter_topic=pipeline.dead_letter_topic, group_id=pipeline.group)
    cluster = Cluster(options, [record_topic(own), dead_letter_topic(own), marks_topic(own)])
    dead = LogReader(options, own.dead_letter_topic)
    redriver = Redriver(options, cluster, dead, own.marks_topic, own.topic, own.group_id)
    async with cluster.open(), redriver.open():
        await cluster.ensure_topics()
        yield redriver


def test_a_purge_writes_letters_again_that_just_fit_and_says_which_one_does_not(
    bootstrap_servers: str, logs: Path
) -> None:
    async def purge_key(pipeline: Pipeline, max_message_bytes: str | None = None) -> Purged:
        async with redriving(pipeline) as redriver:
            if max_message_bytes:
                alter = partial(pipeline.alter_topic, max_message_bytes=max_message_bytes)
                await asyncio.to_thread(alter, pipeline.dead_letter_topic)
            return await redriver.purger.purge(Doomed(b"gone"), {})

    with Pipeline(bootstrap_servers, logs) as pipeline:
        pipeline.create_topics(1)
        pipeline.alter_topic(pipeline.dead_letter_topic, max_message_bytes="20000")
        place = (pipeline.topic, 0, 7, 1_700_000_000_000, pipeline.group)
        headers = DeadLetter(b"", b"", (), *place, "ValueError", "wrong", 1).all_headers()
        random = Random(1).randbytes(20_000)
        around = size_in_gzip(b"noise", random, headers) - len(random)
        noise = random[around + 4 :]
        for key, value in ((b"noise", noise), (b"gzip", b" " * 40_000), (b"gone", b"")):
            raw = Raw(value, key, (*headers,))
            pipeline.write_batch(raw, topic=pipeline.dead_letter_topic, compression_type="gzip")
        assert asyncio.run(purge_key(pipeline)) == Purged(1, 2, None)
        left = pipeline.records(pipeline.dead_letter_topic)
        assert [(one.key, one.value) for one in left] == [(b"noise", noise), (b"gzip", b" " * 40_000)]
        assert [[name for name, _ in one.headers].count("kafka_dlt-written") for one in left] == [0, 1]

        pipeline.write_batch(Raw(b"", b"gone", (*headers,)), topic=pipeline.dead_letter_topic)
        named = rf"0/{left[0].offset} is before .* 199.. bytes, and .* takes"
        with pytest.raises(PurgedInPart, match=f"{named} 15000"):  # a purge goes by what the topic takes now
            asyncio.run(purge_key(pipeline, max_message_bytes="15000"))


def test_a_purge_and_redrives_at_once_send_each_letter_back_once_and_none_that_is_purged_after(
    consumers: tuple[Service, Service], pipeline: Lettered
) -> None:
    kept, _ = pipeline.letters(25)
    gone, _ = pipeline.letters(1)
    pipeline.letters(25, kept)
    pipeline.letters(1, gone)

    def repeat(consumer: Service) -> None:
        """Send back until nothing is left."""
        while True:
            answer = consumer.http.post(REDRIVE, params={"key": kept}, json={"limit": 7})
            assert answer.status_code in AGAIN, answer.text
            if answer.status_code == 200 and not answer.json()["dead_letters"]:
                return

    def purged(consumer: Service) -> bool:
        answer = consumer.http.post(f"{PATH}/purge", params={"key": gone})
        assert answer.status_code in AGAIN, answer.text
        return answer.status_code == 200 and answer.json()["next"] is None

    def purge_until_dead(consumer: Service) -> None:
        with suppress(httpx.TransportError):
            wait_until(lambda: purged(consumer) and None)

    with pipeline.consumer() as victim, ThreadPoolExecutor(2) as pool:
        victim.until_answers("/health-check", 200)
        victim.post("/consumers/stop")
        calls = [pool.submit(repeat, consumers[0]), pool.submit(purge_until_dead, victim)]
        wait_until(lambda: pipeline.sent_back(kept))
        victim.kill()
        wait_until(lambda: purged(consumers[1]))
        for call in calls:
            call.result()
    assert sorted(pipeline.sent_back(kept)) == sorted([*range(25)] * 2)
    assert key_letters(pipeline, gone) == []
    assert pipeline.sent_back(gone) == []
    assert counts(consumers[1], kept) == (50, 0)


def test_a_purge_by_time_deletes_older_letters_also_those_that_were_written_again(
    consumers: tuple[Service, Service], pipeline: Lettered
) -> None:
    old, _ = pipeline.letters(2)
    gone, _ = pipeline.letters(1)
    (newest, *_) = consumers[0].letters(key=gone)
    after = newest["timestamp"] + 1
    wait_until(lambda: datetime.now(UTC).timestamp() * 1_000 > after + 1)
    young, _ = pipeline.letters(1)
    assert purge(consumers[0], key=gone)["purged"] == 1
    time = datetime.fromtimestamp(after / 1_000, UTC).isoformat()
    assert purge(consumers[0], before=time, dry_run="true")["would_purge"] >= 2
    answer = purge(consumers[1], before=time)
    assert (answer["purged"] >= 2, answer["written_again"]) == (True, 1)
    assert (key_letters(pipeline, old), key_letters(pipeline, young)) == ([], [0])
    assert purge(consumers[1], before=time)["purged"] == 0


@pytest.mark.parametrize(
    ("parameters", "detail"),
    [
        ({}, "give either `key` or `before`"),
        ({"key": "some", "before": "2026-01-31T12:00:00Z"}, "give either `key` or `before`"),
        ({"before": "2999-01-31T12:00:00Z"}, "a time that has passed"),
        ({"before": "yesterday"}, "before"),
        ({"key": "some", "after": "x"}, "not a cursor"),
        ({"key": "some", "limit": "1"}, "limit: no such parameter"),
    ],
)
def test_a_wrong_purge_is_refused_and_told_what_is_wrong(
    parameters: dict[str, str], detail: str, consumers: tuple[Service, Service]
) -> None:
    status, told = refusal(consumers[0], "purge", {}, **parameters)
    assert (status, detail in told) == (400, True), told
