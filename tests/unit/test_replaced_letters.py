"""Dead letters at the offsets of others that their partition has lost: its log (a replaced disk) or its tail."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from random import Random
from typing import Any, cast
from unittest.mock import Mock

import msgspec
import pytest
from aiokafka import TopicPartition
from aiokafka.structs import RecordMetadata
from samples import Stored

from apps.chassis.kafka.clients import client_options
from apps.chassis.kafka.cluster import Cluster
from apps.chassis.kafka.log_reader import LogReader
from apps.chassis.settings import Settings
from apps.consumer.browsing.record_view import View
from apps.consumer.browsing.topic_search import Filter
from apps.consumer.redriving.actions import Action
from apps.consumer.redriving.letter_view import show_letter
from apps.consumer.redriving.marks import DATED_UP_TO, Marks
from apps.consumer.redriving.purge import Doomed
from apps.consumer.redriving.redrive import Redriver
from apps.consumer.redriving.refusals import DoneBefore
from apps.consumer.redriving.schedule import DueLetters, SearchLimits
from contracts.dead_letter import POISON, DeadLetter
from tests.event import EVENTS
from tests.fakes import StoredTopic

pytestmark = pytest.mark.anyio

TOPIC, DEAD, GROUP = "events", "events-dlt", "group"
MARKS = f"{DEAD}-redriven"
NOW = time.time_ns() // 1_000_000
BEFORE, LATER = NOW - 60_000, NOW + 3_600_000
"""When letters were written that are marked now, and when those in their place are."""


class Batch:
    """A batch that a producer sends."""

    def append(self, *, key: bytes | None, value: bytes | None, headers: Any, **_: object) -> bool:  # noqa: ANN401 - aiokafka's
        self.content = key, value, headers
        return True


class Producer:
    """Writes at once to topics in memory; its transactions are always committed."""

    create_batch = Batch

    def __init__(self, *topics: StoredTopic) -> None:
        self._topics = {topic.topic: topic for topic in topics}

    async def begin_transaction(self) -> None: ...
    async def commit_transaction(self) -> None: ...

    async def send_batch(self, batch: Batch, topic: str, *, partition: int) -> "asyncio.Future[RecordMetadata]":
        key, value, headers = batch.content
        return await self.send(topic, value, key=key, partition=partition, headers=headers)

    async def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None,
        partition: int,
        headers: Any,  # noqa: ANN401 - aiokafka's
    ) -> "asyncio.Future[RecordMetadata]":
        offset, now = self._topics[topic].end(partition), time.time_ns() // 1_000_000
        self._topics[topic].records[partition].append(Stored(partition, offset, now, key, value, headers, topic))
        written: asyncio.Future[RecordMetadata] = asyncio.get_running_loop().create_future()
        written.set_result(RecordMetadata(topic, partition, TopicPartition(topic, partition), offset, now, 0, 0))
        return written


class Bench:
    """Dead letters of one partition in memory, their marks, and what is sent back. Instances share them."""

    def __init__(self, letters: Sequence[Stored], monkeypatch: pytest.MonkeyPatch) -> None:
        self.dead, self.marks = StoredTopic({0: letters}, topic=DEAD), StoredTopic({0: []}, topic=MARKS)
        self.topic = StoredTopic({0: []}, topic=TOPIC)
        self.monkeypatch = monkeypatch
        self.instance = self.new_instance()

    def new_instance(self) -> Redriver:
        options = client_options(Settings(), "consumer")
        cluster = Cluster(options, [])
        cluster.partitions |= {TOPIC: 1, DEAD: 1}
        cluster.configs[DEAD] = {"cleanup.policy": "delete"}
        topics = {one.topic: one for one in (self.dead, self.marks)}

        def reader(_: object, topic: str, **__: object) -> LogReader:
            return cast(LogReader, topics[topic])

        dead = cast(LogReader, self.dead)
        self.instance = redriver = Redriver(options, cluster, dead, MARKS, TOPIC, GROUP, reader)

        @asynccontextmanager
        async def fenced(*_: object) -> AsyncIterator[tuple[Any, Marks]]:
            yield Producer(self.topic, self.marks, self.dead), await redriver.marks()

        async def nothing(*_: object) -> None: ...

        async def no_topic_id(_: str) -> None: ...

        self.monkeypatch.setattr(cluster, "topic_id", no_topic_id)
        self.monkeypatch.setattr(redriver._fences, "fenced", fenced)
        self.monkeypatch.setattr(redriver._marks_topic, "check", nothing)
        self.monkeypatch.setattr(redriver.purger, "_delete_before", nothing)
        return redriver

    def lose(self, offset: int, *then: Stored) -> None:
        """Lose all letters from an offset on; others are written from there on."""
        letters = self.dead.records[0]
        letters[:] = [one for one in letters if one.offset < offset]
        letters += [replace(one, offset=offset + number) for number, one in enumerate(then)]

    async def wanted(self, action: Action = Action.REDRIVE) -> list[int]:
        """Return the offsets of the letters that an action is about now."""
        return [one.offset for one in (await self.instance.count(action, 100)).letters]

    async def listed(self) -> list[int]:
        """Return the offsets of the letters that are listed as not dealt with."""
        marks = await self.instance.marks()
        shown = [show_letter(View(EVENTS.decode), one, marks, self.instance) for one in self.dead.records[0]]
        assert all(one.redrivable is not (one.redriven or one.discarded) for one in shown)
        return [one.offset for one in shown if one.redrivable]

    @property
    def sent(self) -> list[bytes | None]:
        """The values that were sent back."""
        return [record.value for record in self.topic.records[0]]


def letter(offset: int, timestamp: int = BEFORE, value: str = "", group: str = GROUP) -> Stored:
    one = DeadLetter(b"key", b"", (), TOPIC, 0, 7, 0, group, "ValueError", "wrong", 3, POISON)
    return Stored(0, offset, timestamp, b"key", (value or f"first {offset}").encode(), one.all_headers(), DEAD)


def letters(count: int, timestamp: int = BEFORE, of: str = "first", group: str = GROUP) -> list[Stored]:
    return [letter(offset, timestamp + offset, f"{of} {offset}", group) for offset in range(count)]


CUTS = pytest.mark.parametrize("cut", [0, 2], ids=["lost its log", "lost its tail"])


@CUTS
@pytest.mark.parametrize("count", [1, 9], ids=["fewer than were lost", "more than were lost"])
async def test_letters_in_place_of_lost_ones_are_sent_back_and_those_that_are_left_are_not(
    cut: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(letters(5), monkeypatch)
    await bench.instance.perform(Action.REDRIVE, 100)
    assert (await bench.listed(), await bench.wanted()) == ([], [])
    bench.lose(cut, *letters(count, LATER, "new"))
    new = [*range(cut, cut + count)]
    for _ in ("the same instance", "another one"):
        assert await bench.listed() == await bench.wanted() == await bench.wanted(Action.DISCARD) == new
        bench.new_instance()
    assert [one.offset for one in (await bench.instance.perform(Action.REDRIVE, 100)).letters] == new
    assert bench.sent[5:] == [b"new %d" % number for number in range(count)]
    for _ in ("the same instance", "another one"):
        assert (await bench.listed(), await bench.wanted()) == ([], []), "each is sent back once"
        bench.new_instance()


@CUTS
async def test_a_letter_in_place_of_a_lost_one_is_dealt_with_by_its_place_and_takes_no_other_with_it(
    cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(letters(5), monkeypatch)
    await bench.instance.perform(Action.DISCARD, 100)
    bench.lose(cut, *letters(5, LATER, "new"))
    assert await bench.wanted(Action.RESTORE) == [*range(cut)]
    with pytest.raises(DoneBefore, match="is not discarded"):
        await bench.instance.perform_one(Action.RESTORE, 0, 4)
    await bench.instance.perform_one(Action.DISCARD, 0, 4)
    await bench.instance.perform_one(Action.REDRIVE, 0, 3)
    left = [*range(cut, 3), *range(5, cut + 5)]
    assert await bench.listed() == await bench.wanted() == left
    assert await bench.wanted(Action.RESTORE) == [*range(cut), 4]
    await bench.instance.perform_one(Action.RESTORE, 0, 4)
    assert await bench.wanted() == sorted([*left, 4])


@CUTS
async def test_letters_in_place_of_purged_ones_count(cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(letters(5), monkeypatch)
    await bench.instance.perform(Action.DISCARD, 2)
    by_age = Doomed(before=LATER)
    assert (await bench.instance.purger.purge(by_age, {})).letters == 5
    assert await bench.wanted() == []
    bench.lose(cut, *letters(5, LATER, "new"))
    assert await bench.wanted() == [*range(cut, cut + 5)]
    assert (await bench.instance.purger.count(Doomed(key=b"key"), {})).letters == 5


async def test_letters_that_a_purge_wrote_again_keep_their_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    stays, goes = letter(0), replace(letter(1), key=b"gone")
    bench = Bench([stays, goes], monkeypatch)
    await bench.instance.perform(Action.REDRIVE, 1)
    assert (await bench.instance.purger.purge(Doomed(key=b"gone"), {})).written_again == 1
    bench.new_instance()
    assert await bench.wanted() == []
    bench.lose(2, letter(0, LATER))
    assert await bench.wanted() == [2]


@CUTS
async def test_what_an_instance_knows_of_lost_letters_of_others_hides_none_of_its_own(
    cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench([*letters(5, group="another"), letter(5)], monkeypatch)
    assert await bench.wanted() == [5]
    bench.lose(cut, *letters(6, LATER, "new"))
    await bench.instance.perform_one(Action.DISCARD, 0, 5)
    new = [one for one in range(cut, cut + 6) if one != 5]
    assert await bench.wanted() == new
    bench.new_instance()
    assert await bench.wanted() == new, "nor is it written into the marks"


@pytest.mark.parametrize("cut", [0, 2])
async def test_letters_in_place_of_lost_ones_are_sent_back_by_schedule(
    cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench([replace(one, timestamp=BEFORE) for one in letters(5)], monkeypatch)
    redriver = bench.instance
    due = DueLetters(redriver.letters._reader, redriver, GROUP, [30], SearchLimits(seconds=30))
    assert await redriver.redrive_found(due.find) == 5
    assert await due.find(await redriver.marks()) == []
    bench.lose(cut, *letters(5, LATER))
    found = await due.find(await redriver.marks())
    assert [one.offset for one in found] == [*range(cut, cut + 5)]


async def test_letters_of_before_any_was_sent_back_that_are_replaced_are_found_by_schedule(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(letters(5, group="another"), monkeypatch)
    due = DueLetters(bench.instance.letters._reader, bench.instance, GROUP, [30], SearchLimits(seconds=30))
    assert await due.find(Marks()) == []
    bench.lose(0, *letters(9, LATER))
    assert len(await due.find(Marks())) == 9


@pytest.mark.parametrize("seed", range(20))
async def test_however_much_clocks_differ_each_letter_is_sent_back_once(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = Random(seed)

    def dated(offset: int) -> Stored:
        off = random.choice([0, 10, 10_000, 10_000_000, 10**14]) * random.choice([-1, 1])
        return letter(offset, max(0, NOW + off), group=random.choice([GROUP, GROUP, "", "another"]))

    bench = Bench([dated(offset) for offset in range(10)], monkeypatch)
    for offset in range(10, 50, 2):
        await bench.instance.perform(Action.REDRIVE, random.randrange(1, 4))
        bench.dead.records[0] += [dated(offset), dated(offset + 1)]
        if random.random() < 0.5:
            bench.new_instance()
    await bench.instance.perform(Action.REDRIVE, 100)
    own = [one.value for one in bench.dead.records[0] if b"another" not in dict(one.headers).values()]
    assert Counter(bench.sent) == Counter(own)


async def test_marks_have_no_time_where_clocks_differ_by_ever_more(monkeypatch: pytest.MonkeyPatch) -> None:
    days = 86_400_000
    ahead = [letter(offset, NOW + 10 * offset * days, group="another") for offset in range(1, 12)]
    bench = Bench([letter(0), *ahead, letter(12)], monkeypatch)
    await bench.instance.perform(Action.REDRIVE, 100)
    bench.new_instance()
    assert await bench.wanted() == [], "each is sent back once"


@pytest.mark.parametrize("cut_off", [letter(0, group="another"), replace(letter(0), value=None)])
async def test_a_letter_in_place_of_the_lost_end_of_a_transaction_is_sent_back(
    cut_off: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench([cut_off], monkeypatch)
    bench.dead._end = 3
    only = Filter(also=lambda record: record.value == b"new")
    assert not (await bench.instance.count(Action.REDRIVE, 100, only)).letters
    bench.dead.records[0] += [letter(1, LATER, "new"), letter(2, LATER, "new")]
    assert [one.offset for one in (await bench.instance.count(Action.REDRIVE, 100, only)).letters] == [1, 2]


@pytest.mark.parametrize("timestamp", [10**18, 2**63 - 1])
async def test_a_record_whose_date_is_absurd_leaves_marks_as_they_were(
    timestamp: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench([letter(0, timestamp, group="another"), letter(1)], monkeypatch)
    await bench.instance.perform(Action.REDRIVE, 100)
    (mark,) = bench.marks.records[0]
    assert DATED_UP_TO not in dict(mark.headers)
    bench.lose(0, *letters(2, LATER))
    assert await bench.wanted() == [], "what is there counts as marked, as in earlier versions"


@pytest.mark.parametrize("value", [None, b"", b"-1", b"soon", b"9" * 19, b"9" * 5_000])
async def test_a_mark_without_a_time_marks_whatever_is_there(
    value: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(letters(3), monkeypatch)
    await bench.instance.perform(Action.REDRIVE, 2)
    for mark in bench.marks.records[0]:
        mark.headers = [] if value is None else [(DATED_UP_TO, value)]
    bench.lose(0, *letters(3, LATER))
    assert await bench.wanted() == [2]


async def test_marks_that_an_earlier_version_has_added_to_are_replaced_once_this_one_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(letters(6), monkeypatch)
    await bench.instance.perform(Action.REDRIVE, 2)
    (mark,) = bench.marks.records[0]
    assert msgspec.json.decode(mark.value or b"") == [[0, 2]], "which an earlier version reads"
    bench.marks.records[0].append(replace(mark, offset=1, value=b"[[0,4]]", headers=()))
    assert await bench.wanted() == [4, 5]
    await bench.instance.perform(Action.REDRIVE, 1)
    bench.lose(0, *letters(6, LATER))
    assert await bench.wanted() == [*range(6)]


async def test_the_marks_of_a_partition_that_is_gone_ask_nothing_of_kafka(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(letters(1), monkeypatch)
    await bench.instance.perform(Action.REDRIVE, 1)
    bench.monkeypatch.setattr(bench.dead, "dated_after", Mock(side_effect=AssertionError))
    bench.instance._marks_topic._cluster.partitions[DEAD] = 0
    assert (await bench.instance.marks()).contains(GROUP, 0, 0)


async def test_marks_of_many_partitions_are_looked_at_together(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench([], monkeypatch)
    bench.dead.records = {number: [replace(letter(0), partition=number)] for number in range(64)}
    bench.instance._marks_topic._cluster.partitions[DEAD] = 64
    looks = Mock()

    async def dated_after(times: dict[int, int]) -> dict[int, tuple[int, int]]:
        looks()
        return await StoredTopic.dated_after(bench.dead, times)

    monkeypatch.setattr(bench.dead, "dated_after", dated_after)
    assert len((await bench.instance.perform(Action.DISCARD, 100)).letters) == 64
    assert not (await bench.instance.perform(Action.DISCARD, 100)).letters
    assert looks.call_count < 10
