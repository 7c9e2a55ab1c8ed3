import time
from dataclasses import replace
from typing import cast
from uuid import uuid4

import msgspec
import pytest
from samples import LONG, Stored

from apps.chassis.kafka.clients import client_options
from apps.chassis.kafka.cluster import Cluster
from apps.chassis.kafka.log_reader import LogReader
from apps.chassis.setting_reading import read_settings
from apps.chassis.setting_types import WrongSetting
from apps.chassis.settings import Settings
from apps.consumer.redriving.actions import Action
from apps.consumer.redriving.marks import Marks
from apps.consumer.redriving.redrive import Redriver
from apps.consumer.redriving.schedule import DueLetters, SearchLimits
from contracts.dead_letter import POISON, REFUSED, DeadLetter, redrive_headers
from tests.event import EVENTS

pytestmark = pytest.mark.anyio

TOPIC, DEAD, GROUP = "events", "events-dlt", "group"
DELAYS_S = (10, 100)
PATIENT = SearchLimits(seconds=LONG)


class FakeDeadLetters:
    """The dead letters of a topic, by partition, read in pieces; `reads` has where each began."""

    topic = DEAD

    def __init__(self, *partitions: list[Stored]) -> None:
        self.partitions = partitions
        self.reads: list[tuple[int, int]] = []
        self.piece = 1

    async def offsets(self, partitions: int) -> tuple[dict[int, int], dict[int, int]]:
        return dict.fromkeys(range(partitions), 0), {n: len(self.partitions[n]) for n in range(partitions)}

    async def timestamps(self, ranges: dict[int, tuple[int, int]]) -> dict[int, int]:
        return {partition: self.partitions[partition][start].timestamp for partition, (start, _) in ranges.items()}

    async def some(self, ranges: dict[int, tuple[int, int]], _: int) -> tuple[list[Stored], dict[int, int]]:
        ((partition, (start, end)),) = ranges.items()
        self.reads.append((partition, start))
        reached = min(start + self.piece, end)
        return self.partitions[partition][start:reached], {partition: reached}


class Bench:
    """The letters of some partitions, and what of them is due."""

    def __init__(self, *partitions: list[Stored], limits: SearchLimits = PATIENT) -> None:
        options = client_options(Settings(), "consumer")
        cluster = Cluster(options, [])
        cluster.partitions |= {TOPIC: 1, DEAD: len(partitions)}
        self.reader = FakeDeadLetters(*partitions)
        dead = cast(LogReader, self.reader)
        redriver = Redriver(options, cluster, dead, f"{DEAD}-redriven", TOPIC, GROUP, max_rounds=len(DELAYS_S))
        self.letters = redriver.letters
        self.due = DueLetters(dead, redriver, GROUP, DELAYS_S, limits)
        self.marks = Marks()

    async def found(self) -> list[tuple[int, int]]:
        """Return the places of the letters that are due."""
        return [(record.partition, record.offset) for record in await self.due.find(self.marks)]

    def mark(self, partition: int, *offsets: int, action: Action = Action.REDRIVE) -> None:
        self.marks.apply(action, GROUP, partition, [(offset, offset + 1) for offset in offsets])


def letter(offset: int, age_s: float, rounds: int = 0, verdict: str | None = POISON, group: str = GROUP) -> Stored:
    """Return a letter that was written so many seconds ago, and whose record was sent back so often before."""
    one = DeadLetter(b"key", b"bad", (), TOPIC, 0, 7, 0, group, "ValueError", "wrong", 3, verdict)
    for _ in range(rounds):
        one = msgspec.structs.replace(one, headers=tuple(redrive_headers(one)))
    timestamp = int((time.time() - age_s) * 1_000)
    return Stored(0, offset, timestamp, b"key", b"bad", one.all_headers(), DEAD)


async def test_a_letter_is_due_after_the_delay_of_its_round_and_not_before() -> None:
    bench = Bench([letter(0, 11), letter(1, 9), letter(2, 101, rounds=1), letter(3, 99, rounds=1)])
    assert await bench.found() == [(0, 0), (0, 2)]


@pytest.mark.parametrize("piece", [1, 2, 10])
async def test_what_was_sent_back_is_not_found_again_and_what_was_not_is(piece: int) -> None:
    bench = Bench([letter(0, 11), letter(1, 101, rounds=1), letter(2, 12)])
    bench.reader.piece = piece
    assert await bench.found() == [(0, 0), (0, 1), (0, 2)]
    assert await bench.found() == [(0, 0), (0, 1), (0, 2)]
    bench.mark(0, 0, 2)
    assert await bench.found() == [(0, 1)]
    bench.mark(0, 1)
    assert await bench.found() == []


async def test_a_record_that_had_all_its_rounds_is_held() -> None:
    bench = Bench([letter(0, 1_000_000, rounds=2), letter(1, 1_000_000, rounds=3)])
    assert await bench.found() == []
    assert bench.due.next_at is None


@pytest.mark.parametrize("verdict", [REFUSED, None, "another", ""])
async def test_only_what_the_handler_failed_for_is_sent_back_by_itself(verdict: str | None) -> None:
    bench = Bench([letter(0, 1_000, verdict=verdict), letter(1, 11)])
    assert await bench.found() == [(0, 1)]


async def test_letters_of_deleted_keys_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench([letter(0, 11), letter(1, 11), letter(2, 11)])

    async def is_deleted(one: DeadLetter) -> bool:
        return one.key == b"deleted"

    monkeypatch.setattr(bench.letters, "is_deleted", is_deleted)
    bench.reader.partitions[0][0] = replace(letter(0, 11), key=b"deleted")
    assert await bench.found() == [(0, 1), (0, 2)]
    bench.mark(0, 1, 2)
    assert await bench.found() == []


async def test_letters_of_other_groups_are_left_alone() -> None:
    assert await Bench([letter(0, 1_000, group="another"), letter(1, 1_000, group="")]).found() == []


async def test_the_next_letter_that_is_due_is_known_and_no_letter_is_read_again_until_then() -> None:
    first = letter(0, 4)
    bench = Bench([first, letter(1, 3), letter(2, 50, rounds=1)], [replace(letter(0, 2), partition=1)])
    assert await bench.found() == []
    assert bench.due.next_at == first.timestamp / 1_000 + DELAYS_S[0]
    bench.reader.reads.clear()
    assert await bench.found() == []
    assert bench.reader.reads == []
    bench.reader.partitions[0].append(letter(3, 0))
    assert await bench.found() == []
    assert bench.reader.reads == []


async def test_a_letter_that_waits_and_was_sent_back_by_an_operator_is_not_waited_for() -> None:
    second = letter(1, 2)
    bench = Bench([letter(0, 4), second])
    assert await bench.found() == []
    bench.mark(0, 0)
    assert await bench.found() == []
    assert bench.due.next_at == second.timestamp / 1_000 + DELAYS_S[0]


async def test_a_discarded_letter_is_not_sent_back_by_itself_and_is_again_once_it_is_restored() -> None:
    bench = Bench([letter(0, 11), letter(1, 11), letter(2, 11)])
    bench.mark(0, 0, action=Action.DISCARD)
    assert await bench.found() == [(0, 1), (0, 2)]
    bench.mark(0, 1, 2)
    assert await bench.found() == []
    bench.mark(0, 0, action=Action.RESTORE)
    assert await bench.found() == [(0, 0)]
    bench.mark(0, 0)
    assert await bench.found() == []


async def test_each_letter_is_read_once_whatever_stands_between() -> None:
    refused = [letter(offset, 1_000, verdict=REFUSED) for offset in range(5)]
    bench = Bench(refused)
    await bench.found()
    refused.append(letter(5, 11))
    bench.reader.reads.clear()
    assert await bench.found() == [(0, 5)]
    assert bench.reader.reads == [(0, 5)]


async def test_a_transaction_is_bounded_and_what_is_left_is_found_next() -> None:
    bench = Bench([letter(offset, 11) for offset in range(5)], limits=SearchLimits(letters=1))
    assert await bench.found() == [(0, 0)]
    bench.mark(0, 0)
    assert await bench.found() == [(0, 1)]


async def test_a_search_that_ran_out_of_time_says_so() -> None:
    bench = Bench([letter(0, 11)], limits=SearchLimits(seconds=0))
    assert (await bench.found(), bench.due.is_cut_off) == ([], True)
    bench = Bench([letter(0, 11)])
    assert (await bench.found(), bench.due.is_cut_off) == ([(0, 0)], False)


async def test_a_letter_dated_far_ahead_holds_up_none_behind_it() -> None:
    bench = Bench([letter(0, -1_000_000), letter(1, 11)])
    assert await bench.found() == [(0, 0), (0, 1)]


async def test_the_letters_of_a_recreated_topic_are_found_from_its_beginning() -> None:
    letters = [letter(0, 11), letter(1, 11)]
    bench = Bench(letters)
    bench.mark(0, 0, 1)
    assert await bench.found() == []
    bench.marks = Marks(uuid4())
    assert await bench.found() == [(0, 0), (0, 1)]
    bench = Bench(letters)
    bench.mark(0, 0, 1)
    assert await bench.found() == []
    del letters[1]  # a Kafka that gives topics no ids
    bench.marks = Marks()
    assert await bench.found() == [(0, 0)]


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("", []), ("10m,1h,6h", [600, 3_600, 21_600]), (" 30s , 2d", [30, 172_800])],
)
def test_delays_are_read_with_their_units(given: str, seconds: list[int]) -> None:
    assert read_settings({"REDRIVE_AFTER": given}, [EVENTS]).redrive_after_s == seconds


@pytest.mark.parametrize("given", ["10", "10 m", "m", "0s", "-1m", "1.5h", "10m,", "1w", "10M", "100000s", "10m;1h"])
def test_a_wrong_delay_stops_the_start_with_one_line_that_names_the_variable(given: str) -> None:
    with pytest.raises(WrongSetting, match=r"^REDRIVE_AFTER: expected a delay like 30s, 10m, 6h or 1d, several .*'$"):
        read_settings({"REDRIVE_AFTER": given}, [EVENTS])
