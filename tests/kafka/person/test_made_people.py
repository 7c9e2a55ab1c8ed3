"""People as the producer makes them: many at once, each of them on the topic when the call is answered."""

from collections.abc import Iterator
from typing import Any

import pytest
from aiokafka.partitioner import DefaultPartitioner
from services import Pipeline, Record, Service

from contracts.person import Person
from contracts.stream import encode

PARTITIONS = list(range(6))
PERSONAL = ("@example.", "-555-", "Person(", '"email"', '"phone"', '"address"')


@pytest.fixture(scope="module")
def producer(shared: Pipeline) -> Iterator[Service]:
    with shared.shipped("producer", "PEOPLE") as service:
        yield service.until_healthy()
        assert not any(reported in service.log.read_text() for reported in PERSONAL)


def assert_written(people: list[dict[str, Any]], found: dict[str, Record]) -> None:
    assert all(found[one["id"]].value == encode(Person(**one)) for one in people)


def test_ten_people_are_made_and_stand_on_the_topic_in_order(producer: Service, shared: Pipeline) -> None:
    answer = producer.http.post("/producers/basic_producer")
    assert answer.status_code == 201
    people = answer.json()
    assert len(people) == 10
    found = shared.records_by_key()
    assert_written(people, found)
    for partition in PARTITIONS:
        mine = [
            one["id"] for one in people if DefaultPartitioner()(one["id"].encode(), PARTITIONS, PARTITIONS) == partition
        ]
        assert {found[one].partition for one in mine} <= {partition}
        offsets = [found[one].offset for one in mine]
        assert offsets == sorted(offsets)


def test_as_many_people_are_made_as_were_asked_for(producer: Service, shared: Pipeline) -> None:
    people = producer.post("/producers/basic_producer?number_of_people=12345")
    assert len({one["id"] for one in people}) == 12_345
    assert_written(people, shared.records_by_key())
