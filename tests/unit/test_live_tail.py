import asyncio
import json
import re
import tracemalloc
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from random import Random
from typing import Any, cast
from uuid import UUID

import pytest
from aiokafka.errors import KafkaConnectionError
from samples import LONG, Stored, everything_else_has_run, until

from apps.chassis.background import Background
from apps.chassis.kafka.log_reader import LogReader
from apps.chassis.kafka.search import Wanted
from apps.consumer.browsing import live_tail as module
from apps.consumer.browsing import tail_events as events
from apps.consumer.browsing.cursors import read_offsets
from apps.consumer.browsing.live_tail import Tail
from apps.consumer.browsing.record_view import View
from apps.consumer.browsing.tail_limits import TailLimits
from contracts.record import Record
from contracts.stream import Stream
from tests.event import EVENTS, Event
from tests.fakes import StoredTopic

pytestmark = pytest.mark.anyio
PARTITIONS = 3
DELETABLE = Stream("events", Event, key=lambda event: event.id, deletes=True)
Place = tuple[int, int]
Headers = Sequence[tuple[str, bytes | None]]
Pieces = AsyncGenerator[bytes, None]
EVENT = re.compile(r"id: (\S+)\ndata: (.*)\n\n")


class Topic(StoredTopic):
    """A topic, and how an instance of the service reads it: some records at a time, and late."""

    def __init__(self, chance: Random) -> None:
        super().__init__({number: [] for number in range(PARTITIONS)})
        self._chance = chance
        self.id = UUID(int=1)
        self.asked = 0

    async def ask_id(self) -> UUID:
        self.asked += 1
        return self.id

    def recreate(self) -> None:
        self.id = UUID(int=self.id.int + 1)
        self.records = {number: [] for number in self.records}

    def write(self, count: int, value: bytes = b"no event") -> None:
        for _ in range(count):
            partition = self._chance.randrange(PARTITIONS)
            key = self._chance.choice([b"wanted", b"other"])
            self.records[partition].append(Stored(partition, len(self.records[partition]), key=key, value=value))

    async def some(self, ranges: Mapping[int, Place], max_bytes: int) -> tuple[list[Stored], dict[int, int]]:
        assert max_bytes > 0
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
            some: list[Record] = []
            for partition, records in self.records.items():
                piece = records[at[partition] : at[partition] + self._chance.randrange(5)]
                at[partition] += len(piece)
                some += piece
            yield some


class Copy:
    """An instance of the service, with its live tail."""

    def __init__(self, topic: Topic, background: Background, *, deletes: bool = False, **limits: float) -> None:
        reader, limited = cast("LogReader", topic), TailLimits(**limits)  # type: ignore[arg-type]  # some are whole numbers
        partitions, view = lambda: len(topic.records), View(DELETABLE.decode if deletes else EVENTS.decode)
        self.tail = Tail(reader, partitions, background, view, topic.ask_id, limited, deletes=deletes)

    @asynccontextmanager
    async def greeted(self, wanted: Wanted | None = None) -> AsyncIterator[Pieces]:
        """Follow from the end of the topic; the greeting is read."""
        async with aclosing(self.tail.events(await self.tail.begin(None), wanted)) as pieces:
            await anext(pieces)
            yield pieces

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


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("wanted", [None, is_wanted])
async def test_whoever_goes_from_instance_to_instance_is_given_each_record_once_and_in_order(
    background: Background, seed: int, wanted: Wanted | None
) -> None:
    chance = Random(seed)
    waiting_bytes = chance.choice([1_000, 10_000, 4_000_000])
    topic = Topic(chance)
    topic.write(chance.randrange(10))
    copies = [Copy(topic, background, waiting_bytes=waiting_bytes, rest=0.0) for _ in range(3)]
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


async def test_a_caller_that_hears_nothing_for_long_is_sent_its_position(background: Background) -> None:
    topic = Topic(Random(1))
    copy = Copy(topic, background, heartbeat_s=0.01)
    async with copy.greeted(lambda _: False) as pieces:
        topic.write(12)
        end = "_".join(f"{partition}-{len(records)}" for partition, records in topic.records.items())
        async with asyncio.timeout(LONG):
            async for piece in pieces:
                if piece.decode().endswith(f"id: {end}\n\n"):
                    break


@pytest.mark.parametrize("written", [0, 1])
async def test_a_caller_that_is_given_nothing_is_looked_at_again_and_again_however_much_others_are_given(
    background: Background, written: int
) -> None:
    topic = Topic(Random(1))
    copy = Copy(topic, background, idle_s=0.05, rest=0.0)
    async with copy.greeted(lambda _: False) as pieces:

        async def keep_writing() -> None:
            while True:
                topic.write(written)
                await asyncio.sleep(0)

        writing = asyncio.create_task(keep_writing())
        async with asyncio.timeout(LONG):
            assert [await anext(pieces) for _ in range(3)] == [b""] * 3
        writing.cancel()


async def test_the_topic_is_read_only_while_somebody_watches(background: Background) -> None:
    topic = Topic(Random(1))
    copy = Copy(topic, background)
    async with copy.greeted():
        assert background._tasks
    await until(lambda: not background._tasks)


def read(piece: bytes) -> list[Any]:
    return EVENT.findall(piece.decode())


async def test_a_caller_that_reads_too_slowly_gets_a_last_event_and_is_cut_off(background: Background) -> None:
    topic = Topic(Random(1))
    copy = Copy(topic, background, waiting_bytes=2_000)
    async with copy.greeted() as pieces:
        waiting = asyncio.create_task(anext(pieces))
        await until(lambda: copy.tail._callers)
        topic.write(1)
        assert len(read(await waiting)) == 1
        topic.write(100)
        await until(lambda: sum(copy.tail._position.values()) == 101)
        assert (await anext(pieces)).startswith(b"event: cut-off\n")
        assert await anext(pieces, None) is None


class Stalling(Topic):
    """A topic that is not answered any more once it stalls; `fails` has its reader say so."""

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


async def test_a_heartbeat_says_that_all_is_well_only_while_the_topic_is_really_read(background: Background) -> None:
    topic = Stalling()
    copy = Copy(topic, background, heartbeat_s=0.2, retry_s=0.01)
    async with copy.greeted() as pieces, asyncio.timeout(LONG):
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


async def test_a_new_caller_does_not_rely_on_a_tail_that_is_cut_off(background: Background) -> None:
    topic = Stalling()
    copy = Copy(topic, background, stale_after_s=0.0)
    async with copy.greeted():
        topic.stalls.set()
        await everything_else_has_run()
        topic.write(5)
        beginning = await copy.tail.begin(None)
        assert beginning.position == {number: len(records) for number, records in topic.records.items()}


async def watchers(copy: Copy, count: int, start: Mapping[int, int] | None, wanted: Wanted | None) -> list[Pieces]:
    """Return callers that have been greeted and read nothing after that."""
    callers = [copy.tail.events(await copy.tail.begin(start), wanted) for _ in range(count)]
    for caller in callers:
        await anext(caller)
    return callers


async def read_places(caller: Pieces, count: int, first: bytes = b"") -> tuple[list[Place], int]:
    """Return the places of so many records, and the size of the largest piece."""
    text, largest = first, len(first)
    async with asyncio.timeout(LONG):
        while len(found := EVENT.findall(text.decode())) < count:
            piece = await anext(caller)
            text, largest = text + piece, max(largest, len(piece))
    return [(record["partition"], record["offset"]) for _, data in found for record in [json.loads(data)]], largest


@pytest.mark.parametrize("wanted", [None, is_wanted])
async def test_what_waits_for_callers_that_do_not_read_is_kept_once_and_given_in_small_pieces(
    background: Background, wanted: Wanted | None
) -> None:
    topic = Topic(Random(1))
    copy = Copy(topic, background)
    async with AsyncExitStack() as stack:
        callers = await watchers(copy, 30, None, wanted)
        for caller in callers:
            stack.push_async_callback(caller.aclose)
        waiting = [asyncio.create_task(anext(caller)) for caller in callers]
        await until(lambda: len(copy.tail._callers) == len(callers))
        topic.write(30)
        firsts = await asyncio.gather(*waiting)
        tracemalloc.start()
        topic.write(100, value=b"x" * 30_000)
        await until(lambda: sum(copy.tail._position.values()) == 130)
        pieces = [await anext(caller) for caller in callers]
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kept < 20_000_000  # thirty times 3 MB wait
        places, largest = await read_places(callers[0], len(all_of(topic, wanted)), firsts[0] + pieces[0])
        assert sorted(places) == all_of(topic, wanted)
        assert largest <= 2 * events.PIECE_BYTES


async def test_an_event_that_is_larger_than_a_piece_arrives_whole_also_before_a_cut_off(background: Background) -> None:
    topic = Topic(Random(1))
    copy = Copy(topic, background, waiting_bytes=500_000)
    (caller,) = await watchers(copy, 1, None, None)
    async with aclosing(caller):
        waiting = asyncio.create_task(anext(caller))
        await until(lambda: copy.tail._callers)
        topic.write(1, value=b"x" * 300_000)
        text = await waiting
        assert len(text) <= events.PIECE_BYTES
        for reached in (2, 3):
            topic.write(1, value=b"x" * 300_000)
            await until(lambda: sum(copy.tail._position.values()) == reached)  # noqa: B023 - it is awaited at once
        async for piece in caller:
            assert len(piece) <= events.PIECE_BYTES
            text += piece
    assert [json.loads(data)["offset"] for _, data in EVENT.findall(text.decode())] == [0]
    assert b"\n\nevent: cut-off\n" in text


async def test_a_caller_that_reads_what_comes_is_never_cut_off(background: Background) -> None:
    topic = Topic(Random(1))
    copy = Copy(topic, background, waiting_bytes=150_000)
    (caller,) = await watchers(copy, 1, None, None)
    async with aclosing(caller):
        text = b""
        for count in range(1, 10):
            waiting = asyncio.create_task(anext(caller))
            await until(lambda: copy.tail._callers)
            topic.write(1, value=b"x" * 200_000)
            text += await waiting
            while len(EVENT.findall(text.decode())) < count:
                text += await anext(caller)


async def test_callers_that_catch_up_and_do_not_read_hold_only_so_much_together(background: Background) -> None:
    topic = Topic(Random(1))
    topic.write(20, value=b"x" * 100_000)
    copy = Copy(topic, background, catch_up_bytes=3 * module.CATCH_UP_READ_BYTES, retry_s=0.01)
    async with AsyncExitStack() as stack:
        callers = await watchers(copy, 8, dict.fromkeys(range(PARTITIONS), 0), None)
        for caller in callers:
            stack.push_async_callback(caller.aclose)
        pieces = [await anext(caller) for caller in callers]
        waits = [piece.startswith(b":") for piece in pieces]
        assert any(waits)
        assert not all(waits)
        for caller, waited in zip(callers, waits, strict=True):
            if not waited:
                await caller.aclose()
        left = next(caller for caller, waited in zip(callers, waits, strict=True) if waited)
        places, _ = await read_places(left, len(all_of(topic)))
        assert sorted(places) == all_of(topic)


def add(topic: Topic, key: bytes, value: bytes | None, partition: int = 0, headers: Headers = ()) -> None:
    stored = topic.records[partition]
    stored.append(Stored(partition, len(stored), key=key, value=value, headers=headers))


@pytest.mark.parametrize("start", [None, dict.fromkeys(range(PARTITIONS), 0)], ids=["live", "catching up"])
async def test_of_a_topic_that_is_recreated_longer_than_before_a_caller_is_given_all_records_and_told_so(
    background: Background, start: Mapping[int, int] | None
) -> None:
    topic, told = Topic(Random(1)), b""
    topic.write(60)
    copy, seen = Copy(topic, background, look_s=0.0, rest=0.0), Seen()
    pieces = copy.tail.events(await copy.tail.begin(start), None)
    async with asyncio.timeout(LONG), aclosing(pieces), copy.greeted():
        await anext(pieces)
        topic.write(30)
        while len(seen.places) < 30:
            seen.add(await anext(pieces))
        await until(lambda: copy.tail._topic_ids)
        seen.places.clear()
        topic.recreate()
        topic.write(120)
        await until(lambda: copy.tail._recreations)
        while not {*all_of(topic)} <= {*seen.places}:
            seen.add(piece := await anext(pieces))
            told += piece
    gaps = [json.loads(data) for data in re.findall(rb"event: gap\ndata: (.*)\n", told)]
    why = "the topic was recreated"
    assert [(gap["partition"], gap["to"], gap["reason"]) for gap in gaps] == [(n, 0, why) for n in range(PARTITIONS)]


async def test_a_broker_that_learns_late_that_a_topic_was_recreated_has_no_caller_begin_again(
    background: Background,
) -> None:
    topic = Topic(Random(1))
    copy = Copy(topic, background, look_s=0.0, rest=0.0)
    async with copy.greeted():
        for number in (1, 2, 1, 2):
            topic.id, asked = UUID(int=number), topic.asked
            await until(lambda asked=asked: topic.asked > asked + 1)  # type: ignore[misc]  # mypy infers no such lambda
    assert copy.tail._recreations == 1


async def test_of_a_record_whose_key_was_deleted_later_nothing_is_kept_or_given_out_but_its_place_and_key(
    background: Background,
) -> None:
    topic = Topic(Random(1))
    copy = Copy(topic, background, deletes=True)
    async with copy.greeted():
        first = copy.tail._position.copy()
        watching = asyncio.create_task(copy.watch(seen := Seen(), 3))
        await until(lambda: copy.tail._callers)
        add(topic, b"ada", b"of Ada", headers=[("mail", b"of Ada")])
        add(topic, b"bob", b"of Bob")
        add(topic, b"ada", b"also of Ada")
        await watching
        add(topic, b"ada", None)
        await until(lambda: copy.tail._position[0] == 4)
        assert "of Ada" not in repr(copy.tail._batches)
        assert copy.tail._kept_bytes == sum(len(batch.whole) for batch in copy.tail._batches)
        add(topic, b"ada", b"new of Ada")
        topic.records[0][:3] = [replace(record, value=b"compacted away") for record in topic.records[0][:3]]
        (late,) = await watchers(copy, 1, first, None)
        async with aclosing(late):
            text = b""
            while len(given := read(text)) < 5:
                text += await anext(late)
    records = [json.loads(data) for _, data in given]
    assert [record.get("content") for record in records] == [
        None,
        {"text": "of Bob"},
        None,
        None,
        {"text": "new of Ada"},
    ]
    assert [record["headers"] for record in records] == [[]] * 5
    assert [position for position, _ in given] == [f"0-{offset}_1-0_2-0" for offset in range(1, 6)]
    assert seen.places == [(0, 0), (0, 1), (0, 2)]


async def test_of_a_record_that_is_read_together_with_its_deletion_nothing_is_given_out_but_its_place_and_key(
    background: Background,
) -> None:
    copy = Copy(Topic(Random(1)), background, deletes=True)
    async with copy.greeted() as pieces:
        waiting = asyncio.create_task(anext(pieces))
        await until(lambda: copy.tail._callers)
        await copy.tail._hand_out([Stored(offset=0, value=b"of Ada"), Stored(offset=1, value=None)])
        piece = (await waiting).decode()
    assert [json.loads(data)["offset"] for _, data in EVENT.findall(piece)] == [0, 1]
    assert "of Ada" not in piece


async def test_a_record_without_a_value_deletes_nothing_in_the_tail_where_the_stream_takes_no_deletions(
    background: Background,
) -> None:
    topic = Topic(Random(1))
    copy = Copy(topic, background)
    async with copy.greeted():
        add(topic, b"ada", b"of Ada")
        add(topic, b"ada", None)
        await until(lambda: copy.tail._position[0] == 2)
        assert "of Ada" in repr(copy.tail._batches)


def test_no_record_breaks_out_of_its_event() -> None:
    trick = b"\r\rdata: 1\n\nevent: gap\ndata: {}\r\n\r\n"
    record = Stored(0, 7, key=trick, value=trick, headers=((trick.decode(), trick),))
    framed = events.event_of(View(EVENTS.decode), record, {0: 8})
    begin, data, *rest = re.split(rb"\r\n|\r|\n", framed)
    assert (begin[:4], data[:6], rest) == (b"id: ", b"data: ", [b"", b""])
