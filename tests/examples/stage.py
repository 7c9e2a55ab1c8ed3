"""People from a topic to a table of an example, and what must be in the table."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from databases import Database, Sqlite, postgres
from services import Pipeline, Service, wait_until

POISON = "nobody"
"""The name of people whom the database refuses in tests."""
COMMAND = str(Path(__file__).with_name("short_session_consumer.py"))


class Stage:
    """A topic of people, their producer, and consumers that write to a database."""

    def __init__(self, pipeline: Pipeline, producer: Service, database: Database) -> None:
        self.pipeline, self.producer, self.database = pipeline, producer, database
        self.sent: list[dict[str, Any]] = []

    @contextmanager
    def consumer(self) -> Iterator[Service]:
        environment = self.pipeline._environment({**self.database.environment}, "PEOPLE")
        with Service("consumer", [COMMAND, self.database.name], self.pipeline.logs, environment) as consumer:
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


@contextmanager
def staged(name: str, bootstrap_servers: str, logs: Path, folder: Path) -> Iterator[Stage]:
    """Set a stage with a database of an example."""
    with (
        Pipeline(bootstrap_servers, logs) as pipeline,
        pipeline.shipped("producer", "PEOPLE") as producer,
        postgres() if name == "postgres" else nullcontext(Sqlite(folder / "people.db")) as database,
    ):
        producer.until_healthy()
        yield Stage(pipeline, producer, database)
