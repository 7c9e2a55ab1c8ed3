"""Handlers that fail for good records too: a rate limit, a backend that restarts again and again."""

import random
from collections.abc import Callable, Sequence

import pytest
from streams import Handler, Stream, numbered, policy

from apps.consumer.consuming.batch import Batch, Received
from apps.consumer.consuming.each import each
from apps.consumer.consuming.findings import RECENT_SUCCESSES, Finding, Recoveries
from tests.batches import Stored
from tests.event import Event

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_stacks")]

IsUp = Callable[[int], bool]
"""Returns whether the backend takes its n-th call."""


class Backend:
    """Takes calls when it is up, and never takes what is poison for it."""

    def __init__(self, is_up: IsUp, poison: Sequence[str] = ()) -> None:
        self.is_up, self.poison = is_up, {*poison}
        self.calls = 0
        self.done: list[str] = []

    def take(self, *events: Event) -> None:
        self.calls += 1
        if not self.is_up(self.calls) or any(event.id in self.poison for event in events):
            raise ConnectionError("too many calls")
        self.done += [event.id for event in events]

    async def raising(self, batch: Batch[Event]) -> None:
        self.take(*batch.values)

    async def naming(self, batch: Batch[Event]) -> None:
        for record in batch:
            try:
                self.take(record.value)
            except ConnectionError as error:
                batch.fail(record, error)

    async def one(self, event: Event, _: Received[Event]) -> None:
        self.take(event)

    def stream(self, way: str, records: int = 2_000) -> Stream:
        ways = {"raise": self.raising, "name": self.naming, "each": each(concurrency=10)(self.one)}
        return Stream(ways[way], policy(records=records))


def one_of(number: int) -> IsUp:
    return lambda call: call % number == 0


def at_random(share: float) -> IsUp:
    chance = random.Random(11)
    return lambda _: chance.random() < share


def in_turns(up: int, down: int) -> IsUp:
    return lambda call: call % (up + down) >= down


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(8)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["raise", "name", "each"])
@pytest.mark.parametrize(
    "is_up", [one_of(4), one_of(5), at_random(0.2), at_random(0.5), in_turns(1, 10), in_turns(5, 5), in_turns(3, 60)]
)
async def test_a_handler_that_refuses_most_calls_costs_no_good_record(way: str, is_up: IsUp) -> None:
    backend = Backend(is_up)
    stream = backend.stream(way)
    stream.add(*numbered(range(84)))
    await stream.consume(turns=1_000)
    assert stream.letters == []
    assert sorted(backend.done) == numbered(range(84)), "each of them once"


@pytest.mark.parametrize("way", ["raise", "name", "each"])
async def test_many_poison_records_of_a_handler_that_works_are_found_at_once(way: str) -> None:
    poison = random.sample(numbered(range(84)), 20)
    backend = Backend(lambda _: True, poison)
    stream = backend.stream(way)
    stream.add(*numbered(range(84)))
    await stream.turn()
    stream.add("good", "better")
    await stream.consume(turns=5)
    assert sorted(stream.lettered) == sorted(poison)
    assert all(letter.tries >= 4 for letter in stream.letters)
    assert stream.is_consumed


@pytest.mark.parametrize("way", ["raise", "name", "each"])
async def test_poison_of_a_handler_that_refuses_many_calls_is_dead_lettered_among_others(way: str) -> None:
    poison = ["00003", "00050", "00051"]
    backend = Backend(at_random(0.7), poison)
    stream = backend.stream(way)
    for first in range(0, 600, 20):
        stream.add(*numbered(range(first, first + 20)))
        await stream.consume(turns=5)
    assert sorted(stream.lettered) == poison
    assert {*backend.done} == {*numbered(range(600))} - {*poison}


async def test_single_successes_in_an_outage_cost_no_record_of_those_that_wait() -> None:
    lucky = {"lucky", "happy"}
    handler = Handler(lambda event_id: event_id not in lucky)
    stream = Stream(handler)
    stream.add(*numbered(range(40)))
    await stream.consume(turns=5)
    for one in sorted(lucky):
        stream.add(one)
        await stream.consume(turns=5)
    assert handler.done == ["happy", "lucky"]
    assert stream.letters == []
    handler.fails = lambda _: False
    await stream.consume(turns=20)
    assert sorted(handler.done) == sorted([*numbered(range(40)), *lucky])
    assert stream.letters == []


async def test_more_than_two_that_waited_are_poison_only_after_a_second_success() -> None:
    handler = Handler(lambda event_id: event_id.startswith("bad"))
    stream = Stream(handler)
    stream.add("bad 1", "bad 2", "bad 3")
    await stream.consume(turns=5)
    stream.add("good")
    await stream.consume(turns=5)
    assert stream.letters == []
    stream.add("better")
    await stream.consume(turns=5)
    assert stream.lettered == ["bad 1", "bad 2", "bad 3"]
    assert stream.is_consumed


async def test_after_an_outage_that_is_over_one_judgement_is_enough_again() -> None:
    handler = Handler(lambda _: True)
    stream = Stream(handler)
    stream.add(*numbered(range(50)))
    await stream.consume(turns=10)
    handler.fails = "bad".__eq__
    await stream.consume(turns=20)
    assert sorted(handler.done) == numbered(range(50))
    stream.add("bad")
    await stream.consume(turns=5)
    stream.add("good")
    await stream.consume(turns=5)
    assert stream.lettered == ["bad"]
    assert stream.is_consumed


def test_the_more_suspects_recover_late_the_more_judgements_are_needed_for_a_while() -> None:
    recoveries = Recoveries()
    assert recoveries.judgements_needed(0) == 1
    recoveries.note(Finding(Stored(), tries=2), 1)
    assert recoveries.judgements_needed(1) == 1, "it succeeded at its first retry"
    for number in range(20):
        recoveries.note(Finding(Stored(), tries=6), number)
    assert recoveries.judgements_needed(20) == 3
    for number in range(20):
        recoveries.note(Finding(Stored(), tries=9, judged=2), number)
    assert recoveries.judgements_needed(20) > 12
    assert recoveries.judgements_needed(20 + RECENT_SUCCESSES) == 1


async def test_records_of_one_key_that_failed_in_an_outage_are_retried_though_no_other_key_comes() -> None:
    backend = Backend(lambda _: False)

    async def handle(batch: Batch[Event]) -> None:
        for record in batch:
            try:
                if record.value.id != "other":
                    backend.take(record.value)
            except ConnectionError as error:
                batch.fail(record, error)

    stream = Stream(handle)
    stream.add(*numbered(range(12)), key=b"one")
    stream.add("other")
    await stream.consume(turns=10)
    backend.is_up = lambda _: True
    await stream.consume(turns=50)
    assert (stream.is_consumed, stream.letters, backend.done) == (True, [], numbered(range(12)))


async def test_poison_is_not_handled_after_all_once_a_later_record_of_its_key_is_done() -> None:
    done: list[str] = []
    is_up = False

    async def handle(batch: Batch[Event]) -> None:
        ids = [event.id for event in batch.values]
        if not (is_up or ids in (["b1"], ["a2"], ["b1", "a2"])):
            raise ConnectionError
        done.extend(ids)

    stream = Stream(handle)
    for event_id in ("a1", "b1", "a2"):
        stream.add(event_id, key=event_id[:1].encode())
    stream.add(*numbered(range(60)))
    await stream.consume(turns=3)
    is_up = True
    await stream.consume(turns=30)
    assert (stream.is_consumed, stream.lettered) == (True, ["a"])
    assert [event_id for event_id in done if event_id[0] == "a"] == ["a2"]
