"""A topic that is deleted and created again while a consumer runs: each record of the new topic is consumed."""

from collections import Counter
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from services import Pipeline, Raw, Service, event, value_of, wait_until

WATCHING_CONSUMER = str(Path(__file__).with_name("watching_consumer.py"))
PARTITIONS = 3


class Recreated:
    """A topic and its consumers, which record what they handle in one file, and in another each look at the topic."""

    def __init__(self, pipeline: Pipeline, folder: Path) -> None:
        self.pipeline = pipeline
        self._ledger, self._looks = folder / "ledger", folder / "looks"
        self._ledger.touch()
        self._looks.touch()
        self._topics = 0

    def instance(self) -> Service:
        """Start a consumer."""
        files = {"LEDGER": str(self._ledger), "LOOKS": str(self._looks)}
        return self.pipeline.running("consumer", WATCHING_CONSUMER, EVENTS_PARTITIONS=str(PARTITIONS), **files)

    def write(self, count: int) -> set[str]:
        """Write so many events to each partition; return their ids."""
        self._topics += 1
        ids = [f"{self._topics}-{partition}-{n}" for partition in range(PARTITIONS) for n in range(count)]
        for partition in range(PARTITIONS):
            mine = [one for one in ids if one.split("-")[1] == str(partition)]
            self.pipeline.write([Raw(value_of(event(one))) for one in mine], partition=partition)
        return set(ids)

    def recreate(self) -> None:
        """Delete the topic, and create it again at once."""

        async def recreate(admin: AIOKafkaAdminClient) -> None:
            await admin.delete_topics([self.pipeline.topic])
            new, code = NewTopic(self.pipeline.topic, PARTITIONS, 1), 36  # exists: until the deletion is known
            while code:
                ((_, code, *_),) = (await admin.create_topics([new])).topic_errors

        self.pipeline.ask(recreate)

    def handled(self) -> Counter[str]:
        """Return how many times each event was handled."""
        return Counter(line for line in self._ledger.read_text().splitlines() if line != "begin")

    def until_handled(self, ids: set[str]) -> None:
        """Wait until each of them was handled."""
        wait_until(lambda: ids <= self.handled().keys(), what=f"for {len(ids)} events")

    def until_looked_at(self) -> None:
        """Wait for a look at the topic that begins from now on."""
        seen = len(self._looks.read_text())
        wait_until(lambda: "begin\nend\n" in self._looks.read_text()[seen:], what="for a look at the topic")


@pytest.fixture
def recreated(pipeline: Pipeline, tmp_path: Path) -> Recreated:
    pipeline.create_topic(PARTITIONS)
    return Recreated(pipeline, tmp_path)


def test_a_topic_that_is_recreated_while_it_is_consumed_is_consumed_once_from_its_beginning(
    recreated: Recreated,
) -> None:
    with recreated.instance().until_healthy() as service:
        recreated.until_handled(recreated.write(40))
        recreated.recreate()
        new = recreated.write(20)
        recreated.until_handled(new)
        recreated.until_looked_at()  # which must move nothing
        new |= (last := recreated.write(1))
        recreated.until_handled(last)
        handled = recreated.handled()
        assert {one: handled[one] for one in new if handled[one] != 1} == {}
        reported = [move for move in service.status()["moves"] if move["reason"] == "recreated"]
        assert {move["partition"] for move in reported} >= set(range(PARTITIONS))
        assert [(move["after"], move["skipped"]) for move in reported] == [(0, 0)] * len(reported)
        assert service.status()["skipped_count"] == 0
