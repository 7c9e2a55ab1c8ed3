import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import pytest
from aiokafka.errors import KafkaError
from samples import LONG, Stored, stored_event, until
from streams import Handler, Stream, numbered, policy

from apps.consumer.consuming.batch import Batch, Reject
from apps.consumer.consuming.dead_letters import BadRecord
from apps.consumer.consuming.findings import Finding, Memory
from apps.consumer.consuming.policy import Batching, OutageLimit, Policy, Retry
from contracts.dead_letter import ROUNDS, TRIES
from tests.event import Event

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_stacks")]

REDRIVEN = ((TRIES, b"\x00\x00\x00\x03"), (ROUNDS, b"\x00\x00\x00\x01"))
"""The headers of a record that was sent back from the dead letters."""


async def test_a_batch_that_fails_once_is_tried_again_at_once_as_it_was() -> None:
    failures = iter([True])
    handler = Handler(lambda _: next(failures, False))
    stream = Stream(handler)
    stream.add(*"abcd")
    await stream.turn()
    assert handler.calls == [list("abcd")] * 2
    assert stream.is_consumed
    assert stream.consumption.attempts.failures == 0


async def test_poison_is_isolated_and_dead_lettered_and_all_others_are_handled_once_and_in_order() -> None:
    handler = Handler({"3", "8"}.__contains__)
    stream = Stream(handler)
    stream.add(*map(str, range(10)))
    await stream.turn()
    assert stream.lettered == ["3", "8"]
    assert handler.done == [str(number) for number in range(10) if number not in {3, 8}]
    assert stream.is_consumed
    assert stream.consumption.consumed == 8
    assert all(
        letter.tries == sum((letter.record.key or b"").decode() in call for call in handler.calls)
        for letter in stream.letters
    )


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.05])
async def test_poison_in_every_batch_holds_up_nobody_and_goes_to_the_dead_letters_alone(rate: float) -> None:
    chance = random.Random(7)
    ids = numbered(range(6_000))
    poison = {one for one in ids if chance.random() < rate}
    handler = Handler(poison.__contains__)
    stream = Stream(handler)
    for number, one in enumerate(ids):
        stream.add(one, partition=number % 6)
    stream.add("last")
    await stream.consume(turns=20)
    assert set(stream.lettered) == poison
    assert len(stream.letters) == len(poison)
    assert sorted(handler.done) == sorted({*ids, "last"} - poison)
    assert stream.is_consumed


async def test_five_that_no_database_takes_among_thousands_cost_few_calls() -> None:
    handler = Handler(lambda event_id: "\u0000" in event_id)
    stream = Stream(handler)
    stream.add(*numbered(range(3_000)), *[f"\u0000{number}" for number in range(5)], *numbered(range(3_000, 6_000)))
    await stream.consume(turns=5)
    assert len(stream.letters) == 5
    assert len(handler.done) == 6_000
    assert len(handler.calls) < 100


@pytest.mark.parametrize("names", [False, True], ids=["raising", "naming"])
async def test_a_handler_that_is_dead_from_the_start_costs_no_dead_letter_and_goes_on_by_itself(*, names: bool) -> None:
    handler = Handler(lambda _: True, names=names)
    stream = Stream(handler)
    stream.add(*numbered(range(2_500)))
    await stream.consume(turns=20)
    assert stream.letters == []
    assert stream.committed == {0: 0}
    assert "retrying" in str(stream.consumption.retrying)
    handler.fails = lambda _: False
    await stream.consume(turns=20)
    assert sorted(handler.done) == numbered(range(2_500)), "each of them once"
    assert stream.letters == []
    assert stream.consumption.retrying is None
    assert stream.consumption.attempts.failures == 0


async def test_a_dead_handler_is_called_a_few_times_between_two_pauses() -> None:
    handler = Handler(lambda _: True)
    stream = Stream(handler)
    stream.add(*numbered(range(2_000)))
    await stream.turn()
    assert len(handler.calls) <= 20
    await stream.consume(turns=3)
    before = len(handler.calls)
    await stream.consume(turns=10)
    assert len(handler.calls) - before <= 3 * 10


async def test_a_handler_that_dies_in_the_middle_of_a_batch_with_poison_costs_the_poison_alone() -> None:
    handler = Handler(lambda event_id: event_id == "00100" or len(handler.done) >= 500)
    stream = Stream(handler)
    stream.add(*numbered(range(2_000)))
    await stream.consume(turns=10)
    assert set(stream.lettered) <= {"00100"}
    assert stream.consumption.retrying
    handler.fails = lambda event_id: event_id == "00100"
    await stream.consume(turns=20)
    assert stream.lettered == ["00100"]
    assert sorted(handler.done) == [one for one in numbered(range(2_000)) if one != "00100"], "each of them once"
    assert stream.is_consumed


async def test_a_bad_record_alone_is_retried_until_a_record_of_another_key_succeeds() -> None:
    began = datetime.now(UTC)
    handler = Handler(lambda event_id: event_id.startswith("bad"))
    stream = Stream(handler)
    stream.add("bad")
    await stream.consume(turns=10)
    assert (stream.letters, stream.committed) == ([], {0: 0})
    assert stream.consumption.retrying
    since = stream.consumption.failing_since
    assert since is not None
    assert began <= since <= datetime.now(UTC)
    stream.add("of the same key", key=b"bad")
    await stream.consume(turns=10)
    assert stream.consumption.failing_since == since
    assert (stream.letters, handler.done) == ([], []), "a later record of its key would overtake it"
    stream.add("good")
    await stream.consume(turns=10)
    assert stream.lettered == ["bad"]
    assert handler.done == ["good", "of the same key"]
    assert stream.is_consumed
    assert stream.consumption.retrying is None
    assert stream.consumption.failing_since is None
    stream.add("bad again")
    await stream.consume(turns=10)
    assert (stream.consumption.failing_since or since) > since


async def test_a_record_that_only_seemed_bad_is_handled_before_later_ones_of_its_key() -> None:
    handler = Handler(lambda event_id: event_id == "first" and len(handler.calls) < 5)
    stream = Stream(handler)
    stream.add("first", "second", key=b"one")
    stream.add("other")
    await stream.consume(turns=10)
    assert stream.letters == []
    assert [one for one in handler.done if one != "other"] == ["first", "second"]


@pytest.mark.parametrize("seed", range(8))
async def test_records_of_one_key_that_failed_in_an_outage_are_handled_in_their_order(seed: int) -> None:
    random.seed(seed)
    down = [True]
    handler = Handler(lambda event_id: down[0] and event_id != "other")
    stream = Stream(handler)
    stream.add("first", "second", "third", key=b"key")
    stream.add("other")
    await stream.consume(turns=3)
    assert handler.done == ["other"]
    down[0] = False
    await stream.consume(turns=5)
    assert handler.done == ["other", "first", "second", "third"]
    assert stream.is_consumed


async def test_records_without_a_key_have_no_order_to_wait_for() -> None:
    handler = Handler("bad".__eq__)
    stream = Stream(handler)
    stream.add("bad", key=None)
    await stream.consume(turns=3)
    stream.add("good", key=None)
    await stream.consume(turns=5)
    assert [letter.record.offset for letter in stream.letters] == [0]


@pytest.mark.slow
async def test_a_lucky_success_in_an_outage_dead_letters_nothing() -> None:
    chance = random.Random(3)
    handler = Handler(lambda _: chance.random() < 0.98)
    stream = Stream(handler)
    stream.add(*numbered(range(2_000)))
    await stream.consume(turns=60)
    assert stream.letters == []
    assert stream.consumption.redelivery.outage
    handler.fails = lambda _: False
    await stream.consume(turns=20)
    assert set(handler.done) == set(numbered(range(2_000)))
    assert stream.letters == []
    assert stream.consumption.retrying is None


@pytest.mark.parametrize("names", [False, True], ids=["raising", "naming"])
async def test_more_than_a_tenth_that_fail_are_an_outage_whatever_succeeds_in_between(*, names: bool) -> None:
    handler = Handler(lambda event_id: int(event_id) % 5 == 0, names=names)
    stream = Stream(handler)
    stream.add(*numbered(range(1_000)))
    await stream.consume(turns=20)
    assert stream.letters == []
    assert stream.consumption.redelivery.outage
    assert "the handler fails for too many records" in str(stream.consumption.retrying)


async def test_what_fails_is_dead_lettered_while_retrying_when_an_operator_accepts_that() -> None:
    handler = Handler(lambda _: True)
    stream = Stream(handler)
    stream.add(*numbered(range(150)))
    await stream.consume(turns=5)
    stream.consumption.accept()
    await stream.consume(turns=5)
    assert len(stream.letters) == 150
    assert stream.is_consumed
    handler.fails = lambda _: False
    stream.add("good")
    await stream.consume(turns=5)
    handler.fails = lambda _: True
    stream.add("bad again")
    await stream.consume(turns=5)
    assert len(stream.letters) == 150, "a batch of good ones ended that"
    assert not stream.consumption.redelivery.outage, "what was accepted does not count"
    stream.add("good again")
    handler.fails = "bad again".__eq__
    await stream.consume(turns=5)
    assert len(stream.letters) == 151


@pytest.mark.parametrize("end", [lambda stream: stream.consumption.accept(), lambda stream: stream.add("good")])
async def test_an_operator_that_accepts_or_a_newer_record_ends_a_long_pause(end: Callable[[Stream], None]) -> None:
    handler = Handler("bad".__eq__)
    stream = Stream(handler, policy(retry=Retry(first_backoff_s=600, max_backoff_s=600)))
    stream.add("bad")
    consuming = asyncio.create_task(stream.consume(turns=5))
    await until(lambda: stream.consumption.redelivery.waiting)
    end(stream)
    async with asyncio.timeout(LONG):
        await consuming
    assert stream.lettered == ["bad"]


async def test_while_a_failing_record_cannot_be_read_again_those_of_other_partitions_are_handled() -> None:
    handler = Handler("bad".__eq__)
    stream = Stream(handler)
    stream.add("bad")
    await stream.turn()
    stream.positions[0] = 1  # its partition has no leader, and nothing is fetched of it
    stream.add("good", "other", partition=1)
    await stream.turn()
    assert sorted(handler.done) == ["good", "other"]
    assert stream.committed[1] == 2
    stream.positions[0] = 0
    await stream.turn()
    assert stream.lettered == ["bad"], "others succeeded after it failed"
    assert stream.is_consumed


async def test_an_outage_ends_although_the_records_that_failed_in_it_cannot_be_read_again() -> None:
    down = [True]
    handler = Handler(lambda _: down[0])
    stream = Stream(handler, policy(outage=OutageLimit(records=2)))
    stream.add(*"abcdef")
    await stream.consume(turns=20)
    assert stream.consumption.redelivery.outage
    stream.positions[0] = 6  # its partition has no leader, and nothing is fetched of it
    stream.add("good", "other", partition=1)
    down[0] = False
    await stream.turn()
    assert sorted(handler.done) == ["good", "other"]
    assert not stream.consumption.redelivery.outage


async def test_of_records_that_kafka_deleted_while_they_were_retried_nothing_stays() -> None:
    handler = Handler("bad".__eq__)
    stream = Stream(handler)
    stream.add("bad")
    await stream.consume(turns=5)
    assert stream.consumption.retrying
    stream.consumption.redelivery.forget({("events", 1)}.__contains__)
    assert stream.consumption.retrying, "that was another partition"
    stream.consumption.redelivery.forget({("events", 0)}.__contains__)
    assert stream.consumption.retrying is None
    assert stream.consumption.attempts.failures == 0


async def test_a_redelivery_finds_newer_records_behind_the_bad_ones_however_small_the_batches_are() -> None:
    handler = Handler(lambda event_id: int(event_id) < 60)
    stream = Stream(handler, policy(records=1))
    stream.add(*numbered(range(66)))
    await stream.consume(turns=400)
    assert stream.lettered == numbered(range(60))
    assert stream.is_consumed


async def test_what_is_rejected_among_failures_is_dead_lettered_whatever_becomes_of_the_others() -> None:
    class Mixed(Handler):
        async def __call__(self, batch: Batch[Event]) -> None:
            if any(event.id == "reject" for event in batch.values):
                raise Reject("never")
            await super().__call__(batch)

    handler = Mixed(lambda event_id: event_id == "bad")
    stream = Stream(handler)
    stream.add("a", "reject", "b", "bad", "c")
    await stream.consume(turns=5)
    assert [type(letter.error).__name__ for letter in stream.letters] == ["Reject", "ConnectionError"]
    assert handler.done == ["a", "b", "c"]


async def test_a_rejected_batch_is_not_tried_again_as_it_is() -> None:
    handler = Handler("0".__eq__, Reject("never"))
    stream = Stream(handler)
    stream.add("0", "1")
    await stream.turn()
    assert handler.calls == [["0", "1"], ["0"], ["1"]]
    assert stream.letters[0].tries == 2


async def test_a_handler_that_rejects_everything_is_not_asked_for_each_record() -> None:
    handler = Handler(lambda _: True, Reject("never"))
    stream = Stream(handler)
    stream.add(*numbered(range(2_000)))
    turn = asyncio.create_task(stream.turn())
    await until(lambda: stream.consumption.halted)
    assert stream.letters == []
    assert len(handler.calls) < 300
    turn.cancel()


async def test_records_that_were_redriven_are_expected_to_fail_and_make_no_outage() -> None:
    handler = Handler(lambda event_id: event_id.startswith("bad"))
    stream = Stream(handler)
    for number in range(300):
        record = stored_event(0, id=f"bad-{number}")
        record.headers = REDRIVEN
        stream.append(record, key=str(number).encode())
    stream.add("good")
    await stream.consume(turns=20)
    assert len(stream.letters) == 300
    assert stream.is_consumed


Mischief = Callable[[Batch[Event]], None]


@pytest.mark.parametrize(
    "mischief",
    [
        lambda batch: setattr(batch, "values", batch.values[::-1]),
        lambda batch: setattr(batch, "values", ()),
        lambda batch: setattr(batch, "values", batch.values[:1] * len(batch)),
    ],
)
async def test_nothing_that_a_handler_does_to_its_batch_changes_what_is_handled_and_dead_lettered(
    mischief: Mischief,
) -> None:
    handler = Handler("20".__eq__)

    async def handle(batch: Batch[Event]) -> None:
        try:
            await handler(batch)
        finally:
            mischief(batch)

    stream = Stream(handle)
    stream.add(*map(str, range(40)))
    await stream.consume(turns=3)
    assert stream.lettered == ["20"]
    assert stream.letters[0].record is stream.records[0][20]
    assert sorted(handler.done) == sorted(str(number) for number in range(40) if number != 20)
    assert len(stream.window) == 39


async def test_each_attempt_gets_values_of_its_own() -> None:
    given: list[Sequence[Event]] = []

    async def handle(batch: Batch[Event]) -> None:
        given.append(batch.values)
        if len(given) == 1:
            raise ConnectionError

    stream = Stream(handle)
    stream.add("a")
    await stream.turn()
    first, second = given
    assert first == second
    assert first is not second
    assert first[0] is not second[0]


async def test_a_batch_that_is_abandoned_commits_what_stands_before_its_first_unfinished_record() -> None:
    handler = Handler(lambda event_id: event_id in {"0-05", "1-70"})
    stream = Stream(handler)
    for partition in (0, 1):
        stream.add(*[f"{partition}-{number:02}" for number in range(100)], partition=partition)
    stop_at = "1-60"

    async def handle(batch: Batch[Event]) -> None:
        if batch.values[-1].id >= stop_at and len(batch.values) < 20:
            stream.consumption.abandonment.ask("rebalance")
        await handler(batch)

    stream.consumption.attempts._handle = handle
    await stream.turn()
    assert stream.lettered == ["0-05"]
    assert stream.committed[0] == 100
    assert 0 < stream.committed[1] < 100
    stream.consumption.abandonment.withdraw("rebalance")
    stop_at = "~"
    await stream.consume(turns=5)
    assert stream.lettered == ["0-05", "1-70"]
    assert sorted(handler.done) == sorted({f"{p}-{n:02}" for p in (0, 1) for n in range(100)} - {"0-05", "1-70"})


async def test_a_call_that_takes_longer_than_there_is_time_is_cancelled_and_its_records_are_redelivered() -> None:
    calls: list[list[str]] = []

    async def handle(batch: Batch[Event]) -> None:
        calls.append([event.id for event in batch.values])
        if len(calls) == 1:
            await asyncio.Event().wait()

    stream = Stream(handle)
    stream.add(*"abc")
    turn = asyncio.create_task(stream.turn())
    await until(lambda: calls)
    stream.consumption.abandonment.ask("rebalance", cancel_after_s=0)
    await turn
    assert stream.committed == {0: 0}
    stream.consumption.abandonment.withdraw("rebalance")
    await stream.turn()
    assert calls == [list("abc")] * 2
    assert stream.is_consumed


@pytest.mark.parametrize("size", [2_000, 40])
async def test_what_was_found_out_is_kept_when_a_batch_is_abandoned_and_redelivered(size: int) -> None:
    handler = Handler(lambda event_id: event_id == "00010")
    stream = Stream(handler)

    def abandon() -> None:
        stream.consumption.abandonment.ask("rebalance")
        raise TimeoutError

    stream.write_with(abandon)
    stream.add(*numbered(range(100)))
    await stream.turn()
    assert (stream.letters, stream.committed) == ([], {0: 10})
    calls = len(handler.calls)
    stream.consumption.abandonment.withdraw("rebalance")
    stream.write_with(lambda: None)
    stream.consumption.batch_records = size  # a poll may return a part of what is redelivered
    await stream.consume()
    assert len(handler.calls) == calls, "nobody is handled twice, and nothing is isolated again"
    assert stream.lettered == ["00010"]
    assert stream.is_consumed


async def test_a_batch_whose_commit_was_refused_does_not_count_with_one_that_is_abandoned_behind_it() -> None:
    stream = Stream(Handler())
    for _ in range(60):
        stream.append(Stored(value=b"bad"))
    batch = stream.poll()
    await stream.consumption.consume(batch)  # its commit is refused during a rebalance: it is not settled
    stream.consumption.abandonment.ask("rebalance")
    stream.consumption.settle(await stream.consumption.consume(batch))
    stream.consumption.abandonment.withdraw("rebalance")
    consuming = asyncio.create_task(stream.consumption.consume(batch))
    await until(lambda: consuming.done() or stream.consumption.halted is not None)
    assert stream.consumption.halted is None, "60 records were refused, and not 120"
    assert len((await consuming).bad) == 60


async def test_dead_letters_are_written_as_often_as_it_takes_and_no_one_is_handled_twice() -> None:
    failures = iter([OSError("gone")] * 12)

    def write() -> None:
        for failure in failures:
            raise failure

    handler = Handler("b".__eq__)
    stream = Stream(handler)
    stream.write_with(write)
    stream.add(*"abc")
    await stream.turn()
    assert next(failures, None) is None
    assert (stream.lettered, handler.done) == (["b"], ["a", "c"])
    assert stream.consumption.retrying is None
    assert stream.consumption.failing_since is None


async def test_dead_letters_that_cannot_be_written_are_reported() -> None:
    def write() -> None:
        raise OSError("gone")

    stream = Stream(Handler())
    stream.write_with(write)
    stream.append(Stored(value=b"no event"))
    turn = asyncio.create_task(stream.turn())
    await until(lambda: stream.consumption.retrying)
    assert "dead letters cannot be written: OSError" in str(stream.consumption.retrying)
    assert stream.consumption.failing_since is not None
    assert stream.consumption.letters.retry_at is not None
    stream.consumption.abandonment.ask("rebalance")
    await turn
    assert stream.committed == {0: 0}


async def test_it_is_known_when_what_fails_is_tried_again() -> None:
    stream = Stream(Handler("b".__eq__), policy(retry=Retry(first_backoff_s=LONG, max_backoff_s=LONG)))
    stream.add("b")
    began, turns = datetime.now(UTC), asyncio.create_task(stream.consume(turns=10))
    await until(lambda: stream.consumption.next_retry_at)
    due = stream.consumption.next_retry_at
    assert due is not None
    assert 0.7 * LONG < (due - began).total_seconds() < 2 * LONG
    stream.consumption.abandonment.ask("stop")
    await turns
    stream.consumption.forget()
    assert stream.consumption.next_retry_at is None


async def test_it_is_known_when_the_last_error_happened() -> None:
    stream = Stream(Handler())
    stream.append(Stored(value=b"no event"))
    began = datetime.now(UTC)
    await stream.consume()
    assert stream.consumption.last_error_at is not None
    assert began <= stream.consumption.last_error_at <= datetime.now(UTC)


async def test_the_last_error_is_the_newest_also_of_a_call_that_was_repeated_with_success() -> None:
    failures = iter([True])
    stream = Stream(Handler(lambda _: next(failures, False)))
    stream.append(Stored(value=b"no event"))
    await stream.consume()
    dead_lettered_at = stream.consumption.last_error_at
    assert "offset 0: DecodeError" in str(stream.consumption.last_error)
    stream.add(*"abcd")
    await stream.turn()
    assert stream.is_consumed
    assert stream.consumption.handler_error() is None
    assert str(stream.consumption.last_error).startswith("ConnectionError: ")
    assert str(stream.consumption.last_trouble) == "ConnectionError"
    assert dead_lettered_at is not None
    assert stream.consumption.last_error_at is not None
    assert stream.consumption.last_error_at > dead_lettered_at


async def test_an_error_of_kafkas_client_that_a_handler_raises_is_told_without_its_message(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def publishing(_: Batch[Event]) -> None:
        raise KafkaError("cannot publish ada@example.com")

    caplog.set_level(logging.WARNING)
    stream = Stream(publishing)
    stream.add("ada")
    await stream.turn()
    (logged,) = caplog.messages
    assert logged.endswith("retrying: KafkaError")
    assert "ada@example.com" not in str(stream.consumption.last_trouble)
    assert "ada@example.com" not in str(stream.consumption.handler_error(quotes=False))


async def test_letters_that_are_refused_hold_up_no_other_partition_even_at_their_first_attempt() -> None:
    class Refusing(Stream):
        async def _write(self, bad: Sequence[BadRecord]) -> None:
            if any(one.record.partition == 0 for one in bad):
                raise OSError("refused")
            await super()._write(bad)

    stream = Refusing(Handler(), give_way_s=LONG)
    for partition in (0, 1):
        stream.append(Stored(value=b"no event"), partition)
    async with asyncio.timeout(LONG / 4):
        await stream.turn()
    assert stream.committed == {0: 0, 1: 1}
    assert [letter.record.partition for letter in stream.letters] == [1]


class WithoutLeader(Stream):
    """The dead-letter topic has no leader for partition 0: what is written there waits, until `has_leader`."""

    def __init__(self, handler: Handler, give_way_s: float) -> None:
        super().__init__(handler, give_way_s=give_way_s)
        self.has_leader, self.waiting = asyncio.Event(), 0

    async def _write(self, bad: Sequence[BadRecord]) -> None:
        if any(one.record.partition == 0 for one in bad):
            self.waiting += 1
            await self.has_leader.wait()
        await super()._write(bad)


async def test_while_dead_letters_cannot_be_written_other_partitions_go_on_and_it_is_still_told() -> None:
    """Each batch waited 15 s for the letters of a partition without a leader, and all other partitions with it."""
    handler = Handler({"poison", "fatal"}.__contains__)
    stream = WithoutLeader(handler, give_way_s=0.01)
    stream.append(Stored(value=b"no event"))
    stream.add("poison")
    stream.add("good", "fatal", "last", partition=1)
    await stream.turn()
    assert stream.committed == {0: 0, 1: 3}
    assert stream.lettered == ["fatal"]
    assert "dead letters cannot be written: no acknowledgement" in str(stream.consumption.retrying)
    of_handler, of_letters = stream.consumption.attempts.failing_since, stream.consumption.letters.failing_since
    assert of_letters is not None
    earliest = min(of_letters, of_handler or of_letters)
    assert stream.consumption.failing_since == datetime.fromtimestamp(earliest, UTC)
    handler.fails = lambda _: False
    for number in range(10):
        stream.add(f"another {number}", partition=1)
        await stream.turn()
    assert stream.consumption.letters.failing_since == of_letters
    assert stream.committed == {0: 0, 1: 13}
    assert stream.waiting == 1
    stream.has_leader.set()
    await stream.consume(turns=5)
    assert stream.is_consumed
    assert [letter.record.offset for letter in stream.letters if letter.record.partition == 0] == [0, 1]
    assert "poison" not in handler.done, "its letter was being written"
    assert stream.consumption.retrying is None


async def test_dead_letters_of_a_partition_that_was_revoked_are_written_no_further() -> None:
    stream = WithoutLeader(Handler(), give_way_s=0.01)
    stream.append(Stored(value=b"no event"))
    await stream.turn()
    stream.consumption.assigned([("events", 1)])
    assert stream.consumption.retrying is None
    stream.has_leader.set()
    await asyncio.sleep(0)
    assert stream.letters == []
    stream.consumption.assigned([("events", 0)])
    await stream.turn()
    assert len(stream.letters) == 1


async def test_what_is_sought_again_is_handled_again() -> None:
    handler = Handler("b".__eq__)
    stream = Stream(handler)
    stream.add("b", "a", key=None)

    def abandon() -> None:
        stream.consumption.abandonment.ask("rebalance")
        raise TimeoutError

    stream.write_with(abandon)
    await stream.turn()
    stream.consumption.abandonment.withdraw("rebalance")
    stream.write_with(lambda: None)
    stream.consumption.forget()
    await stream.turn()
    assert handler.done == ["a", "a"]


async def test_partitions_that_went_to_other_members_are_not_retried_any_more() -> None:
    stream = Stream(Handler(lambda _: True))
    stream.add("bad")
    await stream.consume(turns=4)
    assert stream.consumption.retrying
    stream.consumption.assigned([("events", 1)])
    assert stream.consumption.retrying is None


def test_of_a_recreated_topic_nothing_is_known() -> None:
    memory, record = Memory(), stored_event(3)
    memory.keep([record], [Finding(record, "done", tries=1)])
    assert memory.recall([record])
    assert not memory.recall([stored_event(3, text="Another")])


def test_memory_is_bounded() -> None:
    memory, records = Memory(max_records=10), [stored_event(number) for number in range(50)]
    memory.keep(records, [Finding(record, "done", tries=1) for record in records])
    assert len(memory) == 10
    assert memory.recall([records[-1]])


def test_backoff_grows_up_to_half_a_minute() -> None:
    assert [Retry().backoff_s(waits) for waits in (1, 2, 3, 4, 9, 10, 99)] == [0, 0.2, 0.4, 0.8, 25.6, 30, 30]


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Retry(retries=0), "retries: expected at least 1, got 0"),
        (lambda: Retry(first_backoff_s=60), "first_backoff_s: expected above 0 and up to 30.0, got 60"),
        (lambda: Retry(max_backoff_s=3_600), "max_backoff_s: expected at most 600, got 3600"),
        (lambda: Batching(records=0), "records: expected at least 1, got 0"),
        (lambda: Batching(partition_bytes=0), "partition_bytes: expected at least 1, got 0"),
        (lambda: Batching(seconds=0), "seconds: expected above 0, or None, got 0"),
    ],
)
def test_a_policy_that_cannot_be_kept_is_refused(make: Callable[[], object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        make()


async def test_batches_become_smaller_when_the_handler_takes_longer_than_the_policy_allows() -> None:
    sizes: list[int] = []

    async def handle(batch: Batch[Event]) -> None:
        sizes.append(len(batch.values))
        await asyncio.sleep(0.001 * len(batch.values))

    stream = Stream(handle, Policy(batching=Batching(records=100, seconds=0.02)))
    stream.add(*numbered(range(400)))
    await stream.consume()
    assert sizes[0] == 100
    assert max(sizes[1:]) <= 40


async def test_the_limits_of_an_outage_are_a_policy() -> None:
    stream = Stream(Handler(lambda event_id: event_id < "00003"), policy(outage=OutageLimit(records=2)))
    stream.add(*numbered(range(20)))
    await stream.consume(turns=10)
    assert stream.letters == []
    assert stream.consumption.redelivery.outage


async def test_records_of_other_keys_are_found_behind_many_of_one_key() -> None:
    handler = Handler("0".__eq__)
    stream = Stream(handler, policy(records=10))
    stream.add(*map(str, range(35)), key=b"one")
    stream.add("other")
    await stream.consume(turns=100)
    assert [letter.record.offset for letter in stream.letters] == [0]
    assert handler.done == ["other", *map(str, range(1, 35))]
