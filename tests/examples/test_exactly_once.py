"""The examples on a real Kafka: whatever breaks, each record has one effect."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from databases import Database, Sqlite, postgres
from services import Pipeline, Service, wait_until

POISON = "nobody"


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        yield Sqlite(tmp_path / "people.db")
    else:
        with postgres() as server:
            yield server


class Stage:
    """A topic of people, their producer, and consumers that write to a database."""

    def __init__(self, pipeline: Pipeline, producer: Service, database: Database) -> None:
        self.pipeline, self.producer, self.database = pipeline, producer, database
        self.sent: list[dict[str, Any]] = []

    @contextmanager
    def consumer(self) -> Iterator[Service]:
        environment = self.pipeline._environment({**self.database.environment}, "PEOPLE")
        with Service("consumer", ["-m", "examples", self.database.name], self.pipeline.logs, environment) as consumer:
            yield consumer.until_healthy()

    def send(self, count: int) -> None:
        """Send people, some of them again with another city."""
        numbers = range(len(self.sent), len(self.sent) + count)
        self.send_these([person(f"id-{number % 700}", f"city {number % 13}") for number in numbers])

    def send_these(self, people: list[dict[str, Any]]) -> None:
        self.producer.post("/producers/people", json=people)
        self.sent += people

    def origins(self) -> int:
        return int(self.database.rows("SELECT count(*) FROM origins")[0][0])

    def dead_letters(self) -> set[bytes | None]:
        return {record.key for record in self.pipeline.records(self.pipeline.dead_letter_topic)}

    def until_consumed(self, consumer: Service) -> None:
        wait_until(lambda: consumer.status()["lag"] == 0, what=f"for no lag, {consumer.status()}")

    def expect_one_effect_each(self) -> None:
        assert self.origins() == len(self.sent)
        cities = Counter(one["city"] for one in self.sent)
        assert dict(self.database.rows("SELECT city, records FROM cities")) == cities
        people = {one["id"]: (one["name"], one["city"]) for one in self.sent}
        found = self.database.rows("SELECT id, name, city FROM people")
        assert {key: (name, city) for key, name, city in found} == people


def person(key: str, city: str, name: str = "Ada Lovelace") -> dict[str, Any]:
    where = {"address": "12 St James Square", "city": city, "state": "NY", "zip": "10001", "country": "United States"}
    return {"id": key, "name": name, "age": 36, "email": "ada@example.com", "phone": "+1-202-555-0143", **where}


@pytest.fixture
def stage(database: Database, bootstrap_servers: str, logs: Path) -> Iterator[Stage]:
    with Pipeline(bootstrap_servers, logs) as pipeline, pipeline.shipped("producer", "PEOPLE") as producer:
        producer.until_healthy()
        yield Stage(pipeline, producer, database)


def test_each_record_has_one_effect_whatever_is_killed_refused_redriven_and_read_again(stage: Stage) -> None:
    with stage.consumer() as first:
        stage.database.refuse(POISON)
        stage.send(2_000)
        wait_until(stage.origins)
        first.kill()  # some of what has its effect is not committed
    with stage.consumer() as second:
        with stage.consumer():  # a rebalance when it joins, and another one when it leaves
            stage.send(500)
            stage.send_these([person(f"poison-{n}", "refused city", POISON) for n in range(3)])
            stage.send_these([person(f"poison-{n}", "a later city") for n in range(3)])
            stage.send(500)
        wait_until(lambda: len(stage.dead_letters()) + stage.origins() == len(stage.sent))
        with stage.database.outage():
            stage.send(1_000)
            wait_until(lambda: second.status()["state"] == "retrying", what="for an outage to be noticed")
            assert second.http.get("/health-check").status_code == 503
        stage.until_consumed(second)
        second.until_healthy()
        assert stage.dead_letters() == {b"poison-0", b"poison-1", b"poison-2"}
        assert stage.origins() == len(stage.sent) - 3

        stage.database.accept()
        assert second.post("/consumers/dead-letters/redrive", json={"limit": 10})["redriven"] == 3
        wait_until(lambda: stage.origins() == len(stage.sent), what="for what was redriven")
        stage.expect_one_effect_each()

        consumed = second.status()["messages_consumed_count"]
        second.post("/consumers/seek", json={"to": "beginning"})  # all of it is redelivered
        wait_until(lambda: second.status()["messages_consumed_count"] >= consumed + len(stage.sent))
        stage.until_consumed(second)
        stage.expect_one_effect_each()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "DATABASE_URL: is missing; the handler needs it"),
        (
            {"DATABASE_URL": "mysql://me:secret@localhost"},
            "DATABASE_URL: expected an address like postgresql://localhost/x, got 'mysql://***@localhost'",
        ),
    ],
)
def test_a_setting_of_a_handler_that_is_missing_or_wrong_stops_the_start_with_one_line(
    given: dict[str, str], said: str, logs: Path
) -> None:
    with Service("consumer", ["-m", "examples", "postgres"], logs, given) as consumer:
        assert consumer.exit_status(60) == 1
        assert consumer.log.read_text().splitlines() == [said]
