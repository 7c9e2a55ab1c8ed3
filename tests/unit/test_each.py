import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import until
from streams import Stream, numbered, policy

from apps.consumer.consuming.batch import Batch, Received, Reject
from apps.consumer.consuming.each import each
from tests.batches import batch_of
from tests.event import EVENTS, Event

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_stacks")]

Kind = str
"""What a handler does with an event: `good`, `slow`, `fail`, `reject`, `exit`, `cancel` or `answer`."""
FAILING = ("fail", "exit", "cancel", "answer")


class Work:
    """Handles single events as `kinds` says, and records what runs at once."""

    def __init__(self, kinds: dict[str, Kind] | None = None) -> None:
        self.kinds = kinds or {}
        self.is_down = False
        self.calls: list[str] = []
        self.done: list[str] = []
        self.running: Counter[object] = Counter()
        self.max_running = self.max_of_a_key = 0
        self._chance = random.Random(1)

    async def __call__(self, event: Event, record: Received[Event]) -> None:
        key = record.offset if record.key is None else (record.partition, record.key)
        self.running[key] += 1
        self.max_running = max(self.max_running, self.running.total())
        self.max_of_a_key = max(self.max_of_a_key, self.running[key])
        self.calls.append(event.id)
        try:
            return await self._handle(event)  # type: ignore[no-any-return]  # that is one of the failures
        finally:
            self.running[key] -= 1

    async def _handle(self, event: Event) -> Any:  # noqa: ANN401 - that is one of the failures
        kind = self.kinds.get(event.id, "good")
        for _ in range(20 if kind == "slow" else self._chance.randrange(3)):
            await asyncio.sleep(0)
        if kind == "fail" or self.is_down:
            raise ConnectionError(f"no database takes {event.id}")
        if kind == "reject":
            raise Reject("nobody wants it")
        if kind == "exit":
            raise SystemExit(3)
        if kind == "cancel":
            asyncio.current_task().cancel()  # type: ignore[union-attr]  # there is one
            await asyncio.sleep(0)
        self.done.append(event.id)
        return 1 if kind == "answer" else None


async def test_keys_keep_their_order_and_different_keys_run_at_once_up_to_the_limit() -> None:
    work = Work(dict.fromkeys("0123456", "slow"))
    events = [Event(f"{number % 7}", number, "") for number in range(70)]
    await each(concurrency=5)(work)(batch_of(EVENTS, *events))
    assert work.max_running == 5
    assert work.max_of_a_key == 1
    assert Counter(work.done) == dict.fromkeys("0123456", 10)


@settings(max_examples=60)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 5), st.booleans(), st.sampled_from(["good", "slow", "reject", *FAILING])), max_size=40
    ),
    concurrency=st.integers(1, 6),
)
async def test_every_record_is_handled_once_or_named_and_none_behind_a_failed_one_of_its_key(
    rows: list[tuple[int, bool, Kind]], concurrency: int
) -> None:
    events = [Event(str(number), number, "") for number in range(len(rows))]
    work = Work({str(number): kind for number, (_, _, kind) in enumerate(rows)})
    batch = batch_of(EVENTS, *events)
    for record, (key, has_key, _) in zip(batch, rows, strict=True):
        record._record.key = b"%d" % key if has_key else None
    await each(concurrency=concurrency)(work)(batch)
    named = batch.named()
    assert work.max_running <= concurrency
    assert work.max_of_a_key <= 1
    broken: set[int] = set()
    for number, (key, has_key, kind) in enumerate(rows):
        is_behind = has_key and key in broken
        error = type(named.get(number)).__name__
        expected = {"fail": "ConnectionError", "reject": "Reject", "answer": "NotDone", "exit": "Escaped"}
        expected |= {"cancel": "Escaped", "good": "NoneType", "slow": "NoneType"}
        assert error == ("NotTried" if is_behind else expected[kind])
        assert work.calls.count(str(number)) == (not is_behind)
        if has_key and kind in FAILING:
            broken.add(key)
    for key in range(6):
        of_key = [str(number) for number, (one, has_key, _) in enumerate(rows) if has_key and one == key]
        assert [one for one in work.calls if one in of_key] == [one for one in of_key if one in work.calls]


async def test_poison_is_dead_lettered_once_and_all_others_are_handled_in_the_order_of_their_key() -> None:
    chance = random.Random(4)
    ids = numbered(range(1_000))
    poison = {one: chance.choice(FAILING[:3]) for one in chance.sample(ids, 20)}
    rejected = {one: "reject" for one in chance.sample(ids, 20) if one not in poison}
    work = Work(poison | rejected)
    stream = Stream(each(concurrency=20)(work), policy(records=300))
    keys = {one: b"%d" % chance.randrange(100) for one in ids}
    for one in ids:
        stream.add(one, partition=int(keys[one]) % 3, key=keys[one])
    await stream.consume(turns=20)
    stream.add("last")
    await stream.consume(turns=20)
    assert stream.is_consumed
    lettered = sorted(one.record.value or b"" for one in stream.letters)
    assert lettered == sorted(
        record.value or b""
        for partition in stream.records.values()
        for record in partition
        if EVENTS.decode(record.value or b"").id in {*poison, *rejected}
    )
    assert sorted(work.done) == sorted({*ids, "last"} - {*poison, *rejected})
    for key in {*keys.values()}:
        handled = [one for one in work.done if keys.get(one) == key]
        assert handled == sorted(handled)
    assert all(one.tries == work.calls.count(EVENTS.decode(one.record.value or b"").id) for one in stream.letters)


@pytest.mark.parametrize("fails", [lambda _: True, lambda number: number % 2 == 0])
async def test_an_outage_costs_no_dead_letter_and_ends_by_itself_and_keys_keep_their_order(
    fails: Callable[[int], bool],
) -> None:
    ids = numbered(range(1_500))
    work = Work({one: "fail" for one in ids if fails(int(one))})
    stream = Stream(each(concurrency=50)(work))
    for one in ids:
        stream.add(one, key=b"%d" % (int(one) % 300))
    await stream.consume(turns=20)
    assert stream.letters == []
    assert stream.consumption.redelivery.outage
    assert stream.consumption.retrying
    work.kinds.clear()
    await stream.consume(turns=50)
    assert stream.is_consumed
    assert stream.letters == []
    assert sorted(work.done) == ids, "each of them once"
    for key in range(300):
        handled = [one for one in work.done if int(one) % 300 == key]
        assert handled == sorted(handled)
    assert stream.consumption.retrying is None


@pytest.mark.parametrize("records", [60, 2_000])
async def test_a_database_that_dies_in_the_middle_of_a_batch_and_comes_back_costs_no_dead_letter(records: int) -> None:
    ids = numbered(range(records))
    work = Work()

    async def dies(event: Event, record: Received[Event]) -> None:
        work.is_down = work.is_down or len(work.done) >= records // 3
        await work(event, record)

    handle = each(concurrency=10)(dies)
    stream = Stream(handle)
    for one in ids:
        stream.add(one, key=b"%d" % (int(one) % 20))
    await stream.consume(turns=15)
    assert stream.letters == []
    assert stream.consumption.retrying
    work.is_down, records = False, 1_000_000
    await stream.consume(turns=50)
    assert stream.is_consumed
    assert stream.letters == []
    assert sorted(work.done) == ids
    for key in range(20):
        handled = [one for one in work.done if int(one) % 20 == key]
        assert handled == sorted(handled)


async def test_a_call_that_is_broken_off_cancels_all_records_and_is_redelivered() -> None:
    cancelled: list[str] = []
    started: list[str] = []

    @each(concurrency=10)
    async def handle(event: Event, _: Received[Event]) -> None:
        started.append(event.id)
        try:
            await asyncio.sleep(3_600)
        except asyncio.CancelledError:
            cancelled.append(event.id)
            raise

    stream = Stream(handle)
    stream.add(*numbered(range(30)))
    turn = asyncio.create_task(stream.turn())
    await until(lambda: len(started) == 10)
    stream.consumption.abandonment.ask("rebalance", cancel_after_s=0)
    await turn
    assert sorted(cancelled) == numbered(range(10))
    assert (stream.letters, stream.committed) == ([], {0: 0})


async def test_a_record_function_that_cancels_all_tasks_around_it_leaves_no_record_out() -> None:
    tasks: list[asyncio.Task[Any] | None] = []

    @each(concurrency=1)
    async def handle(event: Event, _: Received[Event]) -> None:
        if not tasks:
            tasks.append(asyncio.current_task())
            for task in asyncio.all_tasks():
                if "_handle_chains" in repr(task.get_coro()) or "_contain_child" in repr(task.get_coro()):
                    task.cancel()
        await asyncio.sleep(0)
        done.append(event.id)

    done: list[str] = []
    stream = Stream(handle)
    stream.add(*"abc")
    await stream.consume(turns=5)
    assert stream.letters == []
    assert {*done} == {*"abc"}


async def test_a_record_that_was_not_tried_waits_behind_the_failed_one_of_its_key() -> None:
    work = Work({"0": "fail"})
    stream = Stream(each()(work))
    stream.add("0", "1", "2", key=b"one")
    await stream.consume(turns=5)
    assert (work.done, stream.letters) == ([], [])
    stream.add("other", "another")
    await stream.consume(turns=10)
    assert [one for one in work.done if one in "012"] == ["1", "2"]
    assert [letter.tries for letter in stream.letters] == [work.calls.count("0")]


def plain(_: Event, __: Received[Event]) -> None:
    """Block."""


def test_a_plain_function_or_a_concurrency_below_one_is_refused_where_it_stands() -> None:
    with pytest.raises(TypeError, match="@each: expected an `async def`, got <function plain"):
        each()(plain)  # type: ignore[arg-type]  # that is the test
    with pytest.raises(ValueError, match="concurrency: expected at least 1, got 0"):
        each(concurrency=0)


async def test_the_handler_has_the_name_of_the_function_and_is_asynchronous() -> None:
    @each()
    async def handle_event(_: Event, __: Received[Event]) -> None:
        """Do nothing."""

    handle: Callable[[Batch[Event]], Awaitable[None]] = handle_event
    assert handle.__name__ == "handle_event"
    assert asyncio.iscoroutinefunction(handle)
