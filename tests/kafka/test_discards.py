"""Discarded dead letters are neither sent back nor listed, whichever instance is asked, until they are restored."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from services import Pipeline, Raw, Service

PATH = "/consumers/dead-letters"


@pytest.fixture
def pipeline(bootstrap_servers: str, logs: Path) -> Iterator[Pipeline]:
    with Pipeline(bootstrap_servers, logs) as pipeline:
        yield pipeline


@pytest.fixture
def consumer(pipeline: Pipeline) -> Iterator[Service]:
    with pipeline.consumer() as consumer:
        yield consumer.until_healthy()


def with_letters(pipeline: Pipeline, consumer: Service, *raws: Raw) -> None:
    """Dead-letter some records, and stop, so that what is sent back stays on the topic."""
    pipeline.write(list(raws))
    consumer.until_consumed(len(raws))
    consumer.post("/consumers/stop")


def offsets(consumer: Service, **parameters: str | int | bool) -> list[int]:
    """Return the offsets of the listed letters, the oldest first."""
    letters = consumer.get(PATH, limit=100, **parameters)["dead_letters"]
    return [letter["offset"] for letter in reversed(letters)]


def counts(consumer: Service, **parameters: str) -> tuple[int, int]:
    """Return how many letters are counted by reason, and how many of them can be sent back."""
    reasons = consumer.get(f"{PATH}/reasons", **parameters)
    return reasons["letters"], reasons["redrivable"]


def act(consumer: Service, action: str, body: dict[str, int], **parameters: str) -> dict[str, Any]:
    answer: dict[str, Any] = consumer.post(f"{PATH}/{action}", params=parameters, json=body)
    return answer


BAD = [Raw(b"bad %d" % number, b"even" if number % 2 == 0 else b"odd") for number in range(6)]


def test_a_discarded_letter_is_neither_listed_nor_sent_back_until_it_is_restored(
    consumer: Service, pipeline: Pipeline
) -> None:
    with_letters(pipeline, consumer, *BAD)
    dry = act(consumer, "discard", {"limit": 100}, key="even", dry_run="true")
    assert dry == {"discarded": 0, "dead_letters": [], "more": False, "would_discard": 3}
    assert offsets(consumer) == [0, 1, 2, 3, 4, 5]
    answer = act(consumer, "discard", {"limit": 100}, key="even")
    assert [one["offset"] for one in answer["dead_letters"]] == [0, 2, 4]
    assert (answer["discarded"], answer["more"], answer["would_discard"]) == (3, False, None)
    assert act(consumer, "discard", {"partition": 0, "offset": 3})["discarded"] == 1
    assert (offsets(consumer), offsets(consumer, discarded="true")) == ([1, 5], [0, 2, 3, 4])
    assert (counts(consumer), counts(consumer, discarded="true")) == ((2, 2), (4, 0))
    assert act(consumer, "redrive", {"limit": 100}, dry_run="true")["would_redrive"] == 2
    assert act(consumer, "redrive", {"limit": 1})["redriven"] == 1
    assert act(consumer, "restore", {"limit": 100}, key="even", dry_run="true")["would_restore"] == 3
    assert act(consumer, "restore", {"limit": 2})["restored"] == 2
    assert (offsets(consumer), offsets(consumer, discarded="true")) == ([0, 1, 2, 5], [3, 4])
    assert act(consumer, "restore", {"partition": 0, "offset": 4})["restored"] == 1
    assert act(consumer, "redrive", {"limit": 100})["redriven"] == 4
    assert [record.value for record in pipeline.records()[6:]] == [b"bad %d" % n for n in (1, 0, 2, 4, 5)]
    assert counts(consumer) == (5, 0)
    assert [letter["discarded"] for letter in consumer.get(PATH, discarded="true")["dead_letters"]] == [True]
