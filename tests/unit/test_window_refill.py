import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import cast

import pytest
from samples import everything_else_has_run, redriven_headers, stored_event, until

from apps.chassis.background import Background
from apps.chassis.kafka.log_reader import LogReader
from apps.consumer.browsing.window import Window
from apps.consumer.browsing.window_refill import Refill, share_of_each
from tests.batches import Stored
from tests.event import EVENTS
from tests.fakes import Ranges, StoredTopic

pytestmark = pytest.mark.anyio


def topic_of(*counts: int) -> StoredTopic:
    """Return partitions that hold so many events each."""
    return StoredTopic(
        {
            partition: [replace(stored_event(offset), partition=partition) for offset in range(count)]
            for partition, count in enumerate(counts)
        }
    )


@asynccontextmanager
async def refilling(window: Window, topic: StoredTopic, committed: dict[int, int | None]) -> AsyncIterator[Refill]:
    async def read() -> dict[int, int | None]:
        return committed

    background = Background()
    async with background.open():
        yield Refill(window, cast(LogReader, topic), read, background, EVENTS.decode, "events-consumer")
    assert background.failure is None


async def fill(refill: Refill, own: Collection[int]) -> None:
    refill.begin(own)
    await until(lambda: refill._running is not None and refill._running.done())


async def refilled(topic: StoredTopic, committed: dict[int, int | None], size: int) -> Window:
    window = Window(size)
    async with refilling(window, topic, committed) as refill:
        await fill(refill, list(committed))
    return window


async def test_the_window_is_refilled_with_the_newest_that_were_committed() -> None:
    window = await refilled(topic_of(9, 9), {0: 8, 1: None}, size=6)
    assert sorted((record.partition, record.offset) for record in window) == [(0, offset) for offset in range(2, 8)]


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


@pytest.mark.parametrize(
    ("counts", "committed", "shown"),
    [
        ((9, 0, 0, 2), (9, 0, 0, 2), (6, 0, 0, 2)),
        ((9, 9, 1), (9, None, 1), (7, 0, 1)),
        ((9, 9, 9), (1, 9, 9), (0, 4, 4)),  # the one of the short partition is the oldest of nine
        ((9, 9), (9, 9), (4, 4)),
        ((1, 2), (1, 2), (1, 2)),
    ],
)
async def test_what_short_partitions_leave_of_the_window_is_refilled_from_the_others(
    counts: tuple[int, ...], committed: tuple[int | None, ...], shown: tuple[int, ...]
) -> None:
    """After a restart, 195 empty partitions of 200 left the last 1,000 records of the others at 250."""
    window = await refilled(topic_of(*counts), dict(enumerate(committed)), size=8)
    found = Counter(record.partition for record in window)
    assert tuple(found[partition] for partition in range(len(counts))) == shown


def test_records_that_were_deleted_before_they_were_consumed_make_no_refill_larger() -> None:
    assert share_of_each([-1_000_000, 50, 50], 8) == 4


async def test_what_could_be_read_is_in_the_window_though_the_rest_cannot_be() -> None:
    window, topic = Window(6), topic_of(3, 3)
    topic.damaged = {1}
    async with refilling(window, topic, {0: 3, 1: 3}) as refill:
        refill.begin([0, 1])
        await until(lambda: len(window) == 3)


def partitions_in(window: Window) -> set[int]:
    return {record.partition for record in window}


async def test_nothing_stays_of_a_partition_that_went_to_another_instance_where_records_can_be_deleted() -> None:
    window, topic = Window(9, deletes=True), topic_of(3, 3)
    async with refilling(window, topic, {0: 3, 1: 3}) as refill:
        await fill(refill, [0, 1])
        window.extend(topic.records[1][2:])
        assert partitions_in(window) == {0, 1}
        await fill(refill, [0])
        assert partitions_in(window) == {0}
        refill.stop()
        assert partitions_in(window) == set()


async def test_a_partition_that_comes_back_is_shown_as_the_topic_has_it_then() -> None:
    window, topic = Window(9, deletes=True), topic_of(2)
    committed: dict[int, int | None] = {0: 2}
    async with refilling(window, topic, committed) as refill:
        await fill(refill, [0])
        assert [record.offset for record in window] == [0, 1]
        topic.records[0] = [topic.records[0][1], replace(stored_event(5), key=b"other")]  # deleted, and compacted away
        committed[0] = 6
        await fill(refill, [0])
        assert [record.offset for record in window] == [1, 5]


class SlowTopic(StoredTopic):
    """A topic whose partition 1 is read up to its last record, and no further."""

    async def read(self, ranges: Ranges) -> AsyncIterator[list[Stored]]:
        async for records in super().read(ranges):
            yield records
        if 1 in ranges:
            await asyncio.Event().wait()


async def test_a_refill_that_a_rebalance_ends_adds_nothing_of_what_it_had_read() -> None:
    window, topic = Window(9, deletes=True), SlowTopic(topic_of(3, 3).records)
    async with refilling(window, topic, {0: 3, 1: 3}) as refill:
        refill.begin([1])
        await everything_else_has_run()
        await fill(refill, [0])
        await everything_else_has_run()
        assert partitions_in(window) == {0}
