import asyncio
import json
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from random import Random
from typing import Any, cast

import pytest
from aiokafka.errors import KafkaConnectionError
from samples import LONG, Stored, everything_else_has_run, until

from apps.chassis.background import Background
from apps.consumer import events
from apps.consumer import tail as module
from apps.consumer.log_reader import LogReader
from apps.consumer.offsets import read_offsets
from apps.consumer.search import Wanted
from apps.consumer.tail import Tail
from apps.consumer.window import Record

pytestmark = pytest.mark.anyio
PARTITIONS = 3
Place = tuple[int, int]
EVENT = re.compile(r"id: (\S+)\ndata: (.*)\n\n")


class Topic:
    """A topic, and how a copy of the service reads it: some records at a time, and late."""

    topic = "people"

    def __init__(self, chance: Random) -> None:
        self.records: dict[int, list[Record]] = {number: [] for number in range(PARTITIONS)}
        self._chance = chance

    def write(self, count: int) -> None:
        for _ in range(count):
            partition = self._chance.randrange(PARTITIONS)
            key = self._chance.choice([b"wanted", b"other"])
            self.records[partition].append(Stored(partition, len(self.records[partition]), key=key, value=b"no person"))

    async def offsets(self, partitions: int) -> tuple[dict[int, int], dict[int, int]]:
        await asyncio.sleep(0)
        return dict.fromkeys(range(partitions), 0), {number: len(self.records[number]) for number in range(partitions)}

    async def some(self, ranges: Mapping[int, Place], _: int) -> tuple[list[Record], dict[int, int]]:
        await asyncio.sleep(0)
        found, reached = [], {}
        for partition, (start, stop) in ranges.items():
            reached[partition] = self._chance.randint(min(start + 1, stop), stop)
            found += self.records[partition][start : reached[partition]]
        return found, reached

    async def follow(self, position: Mapping[int, int]) -> AsyncGenerator[list[Record], None]:
        at = dict(position)
        while True:
            await asyncio.sleep(0)
            some = []
            for partition, records in self.records.items():
                piece = records[at[partition] : at[partition] + self._chance.randrange(5)]
                at[partition] += len(piece)
                some += piece
            yield some


class Copy:
    """A copy of the service, with its live tail."""

    def __init__(self, topic: Topic, background: Background) -> None:
        self.tail = Tail(cast("LogReader", topic), lambda: len(topic.records), background)

    async def watch(self, seen: "Seen", least: int, wanted: Wanted | None = None) -> None:
        """Follow from where it was left until there are so many records."""
        start = None if seen.last is None else read_offsets(seen.last)
        beginning = await self.tail.begin(start)
        async with aclosing(self.tail.events(beginning, wanted)) as pieces, asyncio.timeout(LONG):
            async for piece in pieces:
                seen.add(piece)
                if len(seen.places) >= least:
                    return


class Seen:
    """What a caller was given; it may leave after any event."""

    def __init__(self, last: str | None = None) -> None:
        self.last = last
        self.places: list[Place] = []

    def add(self, piece: bytes) -> None:
        for last, data in EVENT.findall(piece.decode()):
            record = json.loads(data)
            self.places.append((record["partition"], record["offset"]))
            self.last = last


@pytest.fixture
async def background() -> AsyncGenerator[Background, None]:
    tasks = Background()
    async with tasks.open():
        yield tasks


def is_wanted(record: Record) -> bool:
    return record.key == b"wanted"


def all_of(topic: Topic, wanted: Wanted | None = None) -> list[Place]:
    return sorted(
        (record.partition, record.offset)
        for records in topic.records.values()
        for record in records
        if wanted is None or wanted(record)
    )


async def keep_writing(topic: Topic, times: int) -> None:
    for _ in range(times):
        topic.write(3)
        await asyncio.sleep(0)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("wanted", [None, is_wanted])
async def test_whoever_goes_from_copy_to_copy_is_given_each_record_once_and_in_order(
    background: Background, monkeypatch: pytest.MonkeyPatch, seed: int, wanted: Wanted | None
) -> None:
    chance = Random(seed)
    monkeypatch.setattr(module, "NEAR", chance.choice([0, 10, 1_000]))
    monkeypatch.setattr(module, "REST", 0.0)
    topic = Topic(chance)
    topic.write(chance.randrange(10))
    copies = [Copy(topic, background) for _ in range(3)]
    others = [asyncio.create_task(copy.watch(Seen(), 10**6)) for copy in copies]
    await until(lambda: all(copy.tail._callers for copy in copies))
    writing = asyncio.create_task(keep_writing(topic, 200))
    seen = Seen("0-0_1-0_2-0")
    while len(seen.places) < 400 * (0.5 if wanted else 1):
        await chance.choice(copies).watch(seen, len(seen.places) + chance.randrange(1, 40), wanted)
    await writing
    total = len(all_of(topic, wanted))
    await chance.choice(copies).watch(seen, total, wanted)
    assert sorted(seen.places) == all_of(topic, wanted)
    for partition in range(PARTITIONS):
        offsets = [offset for number, offset in seen.places if number == partition]
        assert offsets == sorted(offsets)
    for task in others:
        task.cancel()


async def test_partitions_that_the_topic_gains_are_followed_from_their_start(background: Background) -> None:
    topic = Topic(Random(1))
    seen = Seen()
    copy = Copy(topic, background)
    watching = asyncio.create_task(copy.watch(seen, 4))
    await until(lambda: copy.tail._callers)
    topic.records[PARTITIONS] = [Stored(PARTITIONS, offset) for offset in range(4)]
    await watching
    assert sorted(seen.places) == [(PARTITIONS, offset) for offset in range(4)]


async def test_a_caller_that_hears_nothing_for_long_is_told_where_it_stands(
    background: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT", 0.01)
    topic = Topic(Random(1))
    copy = Copy(topic, background)
    async with aclosing(copy.tail.events(await copy.tail.begin(None), lambda _: False)) as pieces:
        await anext(pieces)
        topic.write(12)
        end = "_".join(f"{partition}-{len(records)}" for partition, records in topic.records.items())
        async with asyncio.timeout(LONG):
            async for piece in pieces:
                if piece.decode().endswith(f"id: {end}\n\n"):
                    break


async def test_the_topic_is_read_only_while_somebody_watches(background: Background) -> None:
    topic = Topic(Random(1))
    copy = Copy(topic, background)
    async with aclosing(copy.tail.events(await copy.tail.begin(None), None)) as pieces:
        await anext(pieces)
        assert background._tasks
    await until(lambda: not background._tasks)


def read(piece: bytes) -> list[Any]:
    return EVENT.findall(piece.decode())


async def test_a_caller_that_reads_too_slowly_is_told_and_cut_off(
    background: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MOST_WAITING", 2_000)
    topic = Topic(Random(1))
    copy = Copy(topic, background)
    async with aclosing(copy.tail.events(await copy.tail.begin(None), None)) as pieces:
        await anext(pieces)
        waiting = asyncio.create_task(anext(pieces))
        await until(lambda: copy.tail._callers)
        topic.write(1)
        assert len(read(await waiting)) == 1
        topic.write(100)
        await until(lambda: any(caller.cut_off for caller in copy.tail._callers))
        assert (await anext(pieces)).startswith(b"event: cut-off\n")
        assert await anext(pieces, None) is None


class Stalling(Topic):
    """A topic that is not answered any more once it is told to stall; `fails` has its reader say so."""

    def __init__(self) -> None:
        super().__init__(Random(1))
        self.stalls = asyncio.Event()
        self.fails = asyncio.Event()

    async def follow(self, position: Mapping[int, int]) -> AsyncGenerator[list[Record], None]:
        if self.fails.is_set():
            raise KafkaConnectionError("broker 1 at gone:9092 cannot be reached")
        async for some in super().follow(position):
            if self.stalls.is_set():
                await self.fails.wait()
                raise KafkaConnectionError("broker 1 at gone:9092 cannot be reached")
            yield some


async def test_a_heartbeat_says_that_all_is_well_only_while_the_topic_is_really_read(
    background: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT", 0.05)
    monkeypatch.setattr(module, "PAUSE", 0.01)
    topic = Stalling()
    copy = Copy(topic, background)
    async with aclosing(copy.tail.events(await copy.tail.begin(None), None)) as pieces, asyncio.timeout(LONG):
        await anext(pieces)
        assert (await anext(pieces)).startswith(b": all is well\n")
        topic.stalls.set()
        await anext(pieces)  # it was read since the last one, or not
        assert b"event: stalled\n" in await anext(pieces)
        topic.fails.set()
        await until(lambda: copy.tail._trouble)
        assert b"cannot be reached" in await anext(pieces)
        topic.stalls.clear()
        topic.fails.clear()
        await until(lambda: not copy.tail._trouble)
        assert (await anext(pieces)).startswith(b": all is well\n")


async def test_a_new_caller_does_not_rely_on_a_tail_that_is_cut_off(
    background: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = Stalling()
    copy = Copy(topic, background)
    async with aclosing(copy.tail.events(await copy.tail.begin(None), None)) as pieces:
        await anext(pieces)
        topic.stalls.set()
        await everything_else_has_run()
        topic.write(5)
        monkeypatch.setattr(module, "STALE_AFTER_S", 0.0)
        beginning = await copy.tail.begin(None)
        assert beginning.position == {number: len(records) for number, records in topic.records.items()}
