from dataclasses import replace
from typing import cast

import pytest
from samples import redriven_headers, stored_event, until

from apps.chassis.background import Background
from apps.chassis.kafka.log_reader import LogReader
from apps.consumer.browsing.window import Window
from apps.consumer.browsing.window_refill import Refill
from tests.event import EVENTS
from tests.fakes import StoredTopic

pytestmark = pytest.mark.anyio


def topic_of(*counts: int) -> StoredTopic:
    """Return partitions that hold so many events each."""
    return StoredTopic(
        {
            partition: [replace(stored_event(offset), partition=partition) for offset in range(count)]
            for partition, count in enumerate(counts)
        }
    )


async def refilled(topic: StoredTopic, committed: dict[int, int | None], size: int) -> Window:
    async def read() -> dict[int, int | None]:
        return committed

    window, background = Window(size), Background()
    async with background.open():
        refill = Refill(window, cast(LogReader, topic), read, background, EVENTS.decode, "events-consumer")
        refill.begin(list(committed))
        await until(lambda: refill._running is not None and refill._running.done())
    assert background.failure is None
    return window


async def test_the_window_is_refilled_with_the_newest_that_were_committed() -> None:
    window = await refilled(topic_of(9, 9), {0: 8, 1: None}, size=6)
    assert sorted((record.partition, record.offset) for record in window) == [(0, offset) for offset in range(5, 8)]


async def test_what_was_sent_back_for_another_group_is_not_refilled() -> None:
    topic = topic_of(4)
    topic.records[0][1].headers = redriven_headers("events-consumer")
    topic.records[0][2].headers = redriven_headers("another")
    window = await refilled(topic, {0: 4}, size=6)
    assert [record.offset for record in window] == [0, 1, 3]


async def test_partitions_are_refilled_though_more_of_one_is_committed_than_there_is() -> None:
    window = await refilled(topic_of(3, 4), {0: 500, 1: 4}, size=6)
    assert {record.partition for record in window} == {0, 1}
    assert len(window) == 6


async def test_what_could_be_read_is_in_the_window_though_the_rest_cannot_be() -> None:
    async def read() -> dict[int, int | None]:
        return {0: 3, 1: 3}

    window, background, topic = Window(6), Background(), topic_of(3, 3)
    topic.damaged = {1}
    async with background.open():
        Refill(window, cast(LogReader, topic), read, background, EVENTS.decode, "events-consumer").begin([0, 1])
        await until(lambda: len(window) == 3)
