"""Discarded dead letters are neither sent back nor listed, whichever instance is asked, until they are restored."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from services import Pipeline, Raw, Service, wait_until

from contracts.dead_letter import DeadLetter

PATH = "/consumers/dead-letters"
keys = itertools.count()


class Lettered(Pipeline):
    """A pipeline with dead letters of its group that no consumer wrote."""

    def letters(self, count: int) -> tuple[str, list[int]]:
        """Write dead letters with a key of their own; return it, and their offsets."""
        key = f"key-{next(keys)}"
        place = (self.topic, 0, 7, 1_700_000_000_000, self.group)
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
    with pipeline.consumer() as one, pipeline.consumer() as other:
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
    assert dry == {"discarded": 0, "dead_letters": [], "more": False, "would_discard": 6}
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
