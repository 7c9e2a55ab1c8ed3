from collections.abc import AsyncIterator, Mapping
from typing import cast

import pytest
from aiokafka.errors import CorruptRecordException
from samples import Stored, redriven_headers, stored_event, until

from apps.chassis.background import Background
from apps.chassis.kafka.log_reader import LogReader
from apps.consumer.browsing.window import Window
from apps.consumer.browsing.window_refill import Refill
from contracts.dead_letter import Header
from tests.event import EVENTS

pytestmark = pytest.mark.anyio


class Topic:
    """Partitions of a topic that hold so many events each."""

    def __init__(self, *records: int) -> None:
        self.records = records
        self.headers: dict[int, list[Header]] = {}

    async def offsets(self, partitions: int) -> tuple[dict[int, int], dict[int, int]]:
        return dict.fromkeys(range(partitions), 0), dict(enumerate(self.records[:partitions]))

    async def read(self, ranges: Mapping[int, tuple[int, int]]) -> AsyncIterator[list[Stored]]:
        for partition, (start, stop) in ranges.items():
            assert stop <= self.records[partition], "nothing ever comes from behind the end of a partition"
            for offset in range(start, stop):
                record = stored_event(offset)
                record.partition = partition
                record.headers = self.headers.get(offset, ())
                yield [record]


class Damaged(Topic):
    """A topic whose last partition cannot be read."""

    async def read(self, ranges: Mapping[int, tuple[int, int]]) -> AsyncIterator[list[Stored]]:
        *readable, _ = ranges.items()
        async for records in super().read(dict(readable)):
            yield records
        raise CorruptRecordException


async def refilled(topic: Topic, committed: dict[int, int | None], size: int) -> Window:
    async def told() -> dict[int, int | None]:
        return committed

    window, background = Window(size), Background()
    async with background.open():
        refill = Refill(window, cast(LogReader, topic), told, background, EVENTS.decode, "events-consumer")
        refill.begin(list(committed))
        await until(lambda: refill._running is not None and refill._running.done())
    assert background.failure is None
    return window


async def test_the_window_is_refilled_with_the_newest_that_were_committed() -> None:
    window = await refilled(Topic(9, 9), {0: 8, 1: None}, size=6)
    assert sorted((record.partition, record.offset) for record in window) == [(0, offset) for offset in range(5, 8)]


async def test_what_was_sent_back_for_another_group_is_not_refilled() -> None:
    topic = Topic(4)
    topic.headers = {1: redriven_headers("events-consumer"), 2: redriven_headers("another")}
    window = await refilled(topic, {0: 4}, size=6)
    assert [record.offset for record in window] == [0, 1, 3]


async def test_partitions_are_refilled_though_more_of_one_is_committed_than_there_is() -> None:
    window = await refilled(Topic(3, 4), {0: 500, 1: 4}, size=6)
    assert {record.partition for record in window} == {0, 1}
    assert len(window) == 6


async def test_what_could_be_read_is_in_the_window_though_the_rest_cannot_be() -> None:
    async def told() -> dict[int, int | None]:
        return {0: 3, 1: 3}

    window, background = Window(6), Background()
    async with background.open():
        Refill(window, cast(LogReader, Damaged(3, 3)), told, background, EVENTS.decode, "events-consumer").begin([0, 1])
        await until(lambda: len(window) == 3)
