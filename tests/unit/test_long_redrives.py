"""Redrives and discards behind more dead letters than a call can read: the next call reads on."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest
from samples import Stored
from test_redrive import DEAD, TOPIC, Bench, SlowTopic, a_letter, stored_letter

from apps.consumer.browsing.topic_search import Filter
from apps.consumer.redriving import routes
from apps.consumer.redriving.actions import Action
from apps.consumer.redriving.beginnings import MAX_SEARCHES, Beginning, Beginnings, remember
from apps.consumer.redriving.marks import Marks
from apps.consumer.redriving.redrive import ALL
from apps.consumer.redriving.routes import HasReason, letter_filter
from contracts.dead_letter import DeadLetter, redrive_headers
from contracts.record import Record
from tests.fakes import Ranges

pytestmark = pytest.mark.anyio

MANY = 40
"""Letters that take several calls to read: a second each."""
BEHIND = [*range(MANY, MANY + 5)]
ALIKE, DELETED = stored_letter(0), replace(stored_letter(0), key=b"gone")
NEW, OLD = Filter(also=lambda record: record.timestamp == 1), Filter(also=lambda record: record.timestamp == 0)


def held() -> Stored:
    letter = a_letter()
    for _ in range(3):
        letter = msgspec.structs.replace(letter, headers=tuple(redrive_headers(letter)))
    return replace(ALIKE, headers=letter.all_headers())


class WholeTopic(SlowTopic):
    """A topic that is read as a whole at once."""

    async def some(self, ranges: Ranges, _: int) -> tuple[list[Stored], dict[int, int]]:
        found = [record for partition, places in ranges.items() for record in self._between(partition, *places)]
        return found, {partition: stop for partition, (_, stop) in ranges.items()}


class LongBench(Bench):
    """A redriver with a clock, whose letters stand behind many others; what it marks is known to its next call.

    `gone` are the deleted keys. Of a topic that is read as a whole, it takes a second to learn that of a letter.
    """

    def __init__(
        self, in_front: Stored, monkeypatch: pytest.MonkeyPatch, topic: type[SlowTopic] = SlowTopic, behind: int = 5
    ) -> None:
        front = [replace(in_front, offset=offset) for offset in range(MANY)]
        self.letters = [*front, *(stored_letter(MANY + number, timestamp=1) for number in range(behind))]
        super().__init__(self.letters, monkeypatch=monkeypatch)
        self.topic, self.gone = topic({0: self.letters}, topic=DEAD), {b"gone"}
        monkeypatch.setattr(self.redriver.letters, "_reader", self.topic)
        monkeypatch.setattr(self.redriver.letters._last_read, "_log", self.topic)
        monkeypatch.setattr(self.redriver.letters, "is_deleted", self._is_deleted)
        for module in ("letters", "redrive"):
            clock = Mock(get_running_loop=Mock(return_value=self.topic))
            monkeypatch.setattr(f"apps.consumer.redriving.{module}.asyncio", clock)

    async def _is_deleted(self, letter: DeadLetter) -> bool:
        self.topic.now += isinstance(self.topic, WholeTopic)
        return letter.key in self.gone

    async def _commit(
        self, action: Action, producer: object, owner: str | None, chosen: Sequence[Record], marks: Marks
    ) -> list[None]:
        for record in chosen:
            self.known.apply(action, owner, record.partition, [(record.offset, record.offset + 1)])
        return await super()._commit(action, producer, owner, chosen, marks)  # type: ignore[arg-type]  # they are stored

    async def offsets(self, only: Filter = ALL, action: Action = Action.REDRIVE, limit: int = 2) -> list[int]:
        """Repeat a call until it says that nothing is left; return the offsets of the letters that it was about."""
        offsets, more, begun = list[int](), True, self.topic.now
        while more:
            done, more, _ = await self.redriver.perform(action, limit, only)
            offsets += [one.offset for one in done]
            assert self.topic.now < begun + 5 * MANY, "it is answered for ever that there is more"
        return offsets


@pytest.mark.parametrize(
    ("in_front", "topic", "action", "only"),
    [
        (ALIKE, SlowTopic, Action.REDRIVE, NEW),
        (ALIKE, SlowTopic, Action.DISCARD, NEW),
        (held(), SlowTopic, Action.REDRIVE, ALL),
        (DELETED, SlowTopic, Action.REDRIVE, ALL),
        (DELETED, WholeTopic, Action.REDRIVE, ALL),
    ],
    ids=["not selected", "not selected for a discard", "held", "deleted", "deleted, which takes long to learn"],
)
async def test_a_call_that_is_repeated_comes_to_the_letters_behind_those_that_it_leaves_out(
    in_front: Stored, topic: type[SlowTopic], action: Action, only: Filter, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = LongBench(in_front, monkeypatch, topic)
    assert await bench.offsets(only, action) == BEHIND
    assert await bench.offsets(only, action) == []
    bench.topic.records[0].append(stored_letter(99, timestamp=1))
    assert await bench.offsets(only, action) == [99]


async def test_a_dry_run_that_is_repeated_reads_on_too_and_takes_no_letter_from_the_redrive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = LongBench(ALIKE, monkeypatch)
    while not (counted := await bench.redriver.count(Action.REDRIVE, 2, NEW)).letters:
        assert bench.topic.now < 5 * MANY
    assert [one.offset for one in counted.letters] == BEHIND[: len(counted.letters)]
    assert await bench.offsets(NEW) == BEHIND


async def test_letters_of_another_filter_or_for_another_action_are_not_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = LongBench(held(), monkeypatch)
    assert await bench.offsets(NEW) == BEHIND
    assert await bench.offsets(OLD) == []
    assert await bench.offsets(OLD, Action.DISCARD, limit=100) == [*range(MANY)]


@pytest.mark.parametrize("action", [Action.REDRIVE, Action.DISCARD])
async def test_a_letter_that_is_restored_is_not_left_out(action: Action, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = LongBench(ALIKE, monkeypatch)
    bench.known.apply(Action.DISCARD, "group", 0, [(7, 8)])
    assert await bench.offsets(NEW, action) == BEHIND
    assert await bench.offsets(OLD, Action.RESTORE) == [7]
    bench.known.apply(Action.DISCARD, "group", 0, [(3, 4), (9, 10)])
    assert await bench.offsets(OLD, Action.RESTORE) == [3, 9]
    assert await bench.offsets(OLD, action, limit=100) == [*range(MANY)]


async def test_a_held_letter_is_sent_back_once_its_topic_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = LongBench(replace(ALIKE, value=b"x" * 2_000), monkeypatch)
    bench.cluster.configs[TOPIC] = {"max.message.bytes": "1000"}
    assert await bench.offsets() == BEHIND
    bench.cluster.configs[TOPIC] = {"max.message.bytes": "10000"}
    assert await bench.offsets(limit=100) == [*range(MANY)]


async def test_a_letter_whose_key_is_not_deleted_any_more_is_sent_back(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = LongBench(DELETED, monkeypatch)
    assert await bench.offsets() == BEHIND
    bench.gone.clear()
    assert await bench.offsets(limit=100) == [*range(MANY)]


async def test_letters_of_a_recreated_topic_are_not_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = LongBench(ALIKE, monkeypatch)
    assert await bench.offsets(NEW) == BEHIND
    bench.topic.records[0][:] = [stored_letter(0, timestamp=1)]
    bench.known = Marks()
    assert await bench.offsets(NEW) == [0]


async def test_a_filter_by_time_does_not_read_what_is_older(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = LongBench(ALIKE, monkeypatch)
    assert (await bench.redriver.count(Action.REDRIVE, 10, Filter(since=1))).letters
    assert bench.topic.now < MANY


async def test_the_same_filter_is_known_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "access_of", Mock())
    request: Any = Mock(query_params={})
    asked = [await letter_filter(request=request, served={}, reason=reason) for reason in ("a\nb", "a b", "ab")]
    assert asked[0] == asked[1] != asked[2]
    assert HasReason("a", sees_errors=True) != HasReason("a", sees_errors=False)


def test_a_search_that_ends_after_marks_were_taken_back_hides_nothing() -> None:
    beginnings = Beginnings()
    earlier = beginnings.of(0, [(0, 9)])
    beginnings.of(0, [])
    remember(earlier, ALL, Beginning(9))
    assert ALL not in beginnings.of(0, [])


async def test_what_is_remembered_of_filters_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = LongBench(ALIKE, monkeypatch, WholeTopic, behind=0)
    for number in range(2 * MAX_SEARCHES):
        assert await bench.offsets(Filter(key=b"%d" % number)) == []
    kept = bench.redriver.letters._beginnings._of.values()
    assert {len(beginnings) for beginnings in kept} == {MAX_SEARCHES}
