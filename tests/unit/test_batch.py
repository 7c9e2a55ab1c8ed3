import asyncio
import gc
import logging
import os
import pickle
import threading
import weakref
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import pytest
from samples import until
from streams import Stream, numbered

from apps.consumer.consuming.batch import Batch, Handler, Reject
from apps.consumer.consuming.containment import MAX_COPIED_CHARACTERS
from apps.consumer.consuming.handler_thread import as_async
from contracts.dead_letter import DeadLetter, redrive_headers
from contracts.record import Place
from tests.batches import Stored, batch_of
from tests.event import EVENTS, Event

pytestmark = pytest.mark.anyio


class Naming:
    """A handler that names records by their ids, and finishes all others."""

    def __init__(self, *failing: str, rejected: str = "") -> None:
        self.failing, self.rejected = {*failing}, rejected
        self.done: list[str] = []
        self.attempts: dict[str, list[int]] = {}

    async def __call__(self, batch: Batch[Event]) -> None:
        for record in batch:
            self.attempts.setdefault(record.value.id, []).append(record.attempt)
            if record.value.id in self.failing:
                batch.fail(record, ConnectionError(f"no database takes {record.value.id}"))
            elif record.value.id == self.rejected:
                batch.reject(record, "nobody wants it")
            else:
                self.done.append(record.value.id)


async def test_what_is_behind_a_failed_record_of_its_key_is_handled_again_behind_it() -> None:
    done, failing = [], {"ada 1"}

    async def handle(batch: Batch[Event]) -> None:
        for record in batch:
            if record.value.id in failing:
                failing.remove(record.value.id)
                batch.fail(record, "the database is busy")
            else:
                done.append(record.value.id)

    stream = Stream(handle)
    stream.add("ada 0", "ada 1", "ada 2", "ada 3", key=b"ada")
    stream.add("bob 0", key=b"bob")
    stream.add("ada of another partition", key=b"ada", partition=1)
    await stream.consume(turns=3)
    assert stream.is_consumed
    too_early = ["ada 2", "ada 3"]
    assert done == ["ada 0", *too_early, "bob 0", "ada of another partition", "ada 1", "ada 2", "ada 3"]


async def test_what_is_behind_poison_of_its_key_is_handled_again_and_behind_a_rejected_record_once() -> None:
    handler = Naming("ada 0", rejected="ada 2")
    stream = Stream(handler)
    stream.add("ada 0", "ada 1", "ada 2", "ada 3", key=b"ada")
    stream.add("bob 0", key=b"bob")
    await stream.consume()
    assert handler.done == ["ada 1", "ada 3", "bob 0", "ada 1", "ada 3"]
    assert len(stream.letters) == 2


async def test_a_record_says_all_that_is_known_of_it() -> None:
    (record,) = batch_of(EVENTS, Event("event-1", 36, "It rains."), tries=2)
    assert (record.value.text, record.key, record.headers, record.attempt) == ("It rains.", b"event-1", (), 3)
    assert (record.topic, record.partition, record.offset, record.timestamp) == ("events", 0, 0, 1_700_000_000_000)
    assert "rains" not in repr(record)


async def test_a_record_that_was_redriven_says_where_it_stood_first() -> None:
    (record,) = batch_of(EVENTS, Event("event-1", 36, "It rains."))
    assert record.origin == Place("events", 0, 0)
    letter = DeadLetter(b"event-1", b"{}", (), "events", 3, 42, 0, "group", None, None, 1)
    stored = Stored(partition=3, offset=99, headers=tuple(redrive_headers(letter)))
    (record,) = Batch([stored], [Event("event-1", 36, "It rains.")])
    assert record.origin == Place("events", 3, 42)
    assert (record.partition, record.offset) == (3, 99)


async def test_records_that_are_named_cost_themselves_and_all_others_are_handled_once() -> None:
    handler = Naming("00003", "00700", rejected="00500")
    stream = Stream(handler)
    stream.add(*numbered(range(1_000)))
    await stream.consume(turns=3)
    stream.add("later")
    await stream.consume(turns=5)
    assert sorted(stream.lettered) == ["00003", "00500", "00700"]
    assert sorted(handler.done) == sorted({*numbered(range(1_000)), "later"} - {*stream.lettered})
    assert stream.is_consumed
    assert {str(letter.error) for letter in stream.letters} == {
        "no database takes 00003",
        "no database takes 00700",
        "nobody wants it",
    }
    assert all(letter.tries == len(handler.attempts[(letter.record.key or b"").decode()]) for letter in stream.letters)
    assert handler.attempts["00500"] == [1]
    assert handler.attempts["00003"] == [*range(1, len(handler.attempts["00003"]) + 1)]


async def test_a_named_record_waits_for_no_newer_one_when_a_later_one_of_its_call_was_done() -> None:
    handler = Naming("bad")
    stream = Stream(handler)
    stream.add("good", "bad", "other")
    await stream.turn()
    assert stream.lettered == ["bad"]
    assert handler.done == ["good", "other"]
    assert stream.is_consumed
    assert stream.consumption.retrying is None


async def test_named_records_behind_which_nothing_was_done_wait_for_another_success() -> None:
    handler = Naming("bad")
    stream = Stream(handler)
    stream.add("good", "bad")
    await stream.consume(turns=5)
    assert (stream.letters, handler.done) == ([], ["good"])
    stream.add("later")
    await stream.consume(turns=5)
    assert (stream.lettered, handler.done) == (["bad"], ["good", "later"])


async def test_a_database_that_is_back_for_one_record_of_a_call_costs_no_other_a_dead_letter() -> None:
    handler = Naming(*"abcdefgh")
    stream = Stream(handler)
    stream.add(*"abcdefgh", "lucky")
    await stream.consume(turns=5)
    assert (stream.letters, handler.done) == ([], ["lucky"])
    handler.failing.clear()
    await stream.consume(turns=5)
    assert stream.letters == []
    assert sorted(handler.done) == sorted([*"abcdefgh", "lucky"])


async def test_the_log_says_how_many_records_of_a_call_failed(caplog: pytest.LogCaptureFixture) -> None:
    stream = Stream(Naming("b"))
    stream.add(*"abc")
    await stream.turn()
    (line,) = [record for record in caplog.records if "retrying" in record.message]
    assert line.message == "1 of 3 records failed, the first of them events-0 offset 1, retrying: ConnectionError"
    assert (line.exc_info, vars(line)["offset"]) == (None, 1)


async def test_a_record_that_was_named_and_is_handled_later_is_no_dead_letter() -> None:
    handler = Naming("bad")
    stream = Stream(handler)
    stream.add("good", "bad")
    await stream.turn()
    assert stream.consumption.attempts.failures
    handler.failing.clear()
    await stream.consume(turns=5)
    assert (stream.letters, handler.done) == ([], ["good", "bad"])
    assert stream.is_consumed


async def test_what_was_rejected_stays_rejected_though_the_handler_raises_then() -> None:
    calls = []

    async def handle(batch: Batch[Event]) -> None:
        calls.append([record.value.id for record in batch])
        for record in batch:
            if record.value.id == "bad":
                batch.reject(record, "nobody wants it")
            if record.value.id == "named" and len(calls) == 1:
                batch.fail(record, "this does not count")
        if len(calls) == 1:
            raise ConnectionError("no database")

    stream = Stream(handle)
    stream.add("bad", "named", "good")
    await stream.turn()
    assert calls[:2] == [["bad", "named", "good"], ["named", "good"]]
    assert stream.lettered == ["bad"]


async def test_a_record_of_another_batch_cannot_be_named() -> None:
    (other,) = batch_of(EVENTS, Event("event-1", 36, "It rains."))
    batch = batch_of(EVENTS, Event("event-1", 36, "It rains."))
    with pytest.raises(ValueError, match=r"<record of events-0 offset 0> is not of this batch"):
        batch.fail(other, "wrong")
    assert batch.named() == {}


@pytest.mark.parametrize("raises", [False, True])
async def test_a_record_that_is_named_after_the_handler_has_returned_is_an_error(*, raises: bool) -> None:
    kept: list[Batch[Event]] = []

    async def handle(batch: Batch[Event]) -> None:
        kept.append(batch)
        if raises and len(kept) == 1:
            raise ConnectionError("no database")

    stream = Stream(handle)
    stream.add("late")
    await stream.turn()
    for batch in kept:
        (late,) = batch
        with pytest.raises(RuntimeError, match=r"offset 0> is named too late: its handler has returned"):
            batch.fail(late, "wrong")
        with pytest.raises(RuntimeError, match="too late"):
            batch.reject(late, "wrong")
    assert stream.lettered == []
    assert stream.is_consumed


async def test_a_record_that_is_named_too_late_is_reported_though_nobody_looks_at_its_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    threads: list[threading.Thread] = []
    returned = threading.Event()

    async def handle(batch: Batch[Event]) -> None:
        def name() -> None:
            returned.wait()
            for record in batch:
                with suppress(RuntimeError):
                    batch.fail(record, ValueError("a private text"))

        threads.append(threading.Thread(target=name))
        threads[0].start()

    stream = Stream(handle)
    stream.add("late", "later")
    await stream.turn()
    returned.set()
    threads[0].join()
    late = (
        "events-0 offset 0 failed after its handler had returned: it is neither retried nor dead-lettered: ValueError"
    )
    assert [line.getMessage() for line in caplog.records] == [late], "once a batch"
    assert stream.consumption.last_error == f"{late}: a private text"
    assert stream.consumption.last_trouble == late


async def test_what_a_thread_names_while_its_handler_returns_counts_or_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    named = Batch.named
    refused = []

    def name_then(batch: Batch[Event]) -> Any:  # noqa: ANN401 - as `named` returns it
        found = named(batch)
        with pytest.raises(RuntimeError, match="too late"):
            batch.fail(next(iter(batch)), "wrong")
        refused.append(batch)
        return found

    async def handle(_: Batch[Event]) -> None: ...

    monkeypatch.setattr(Batch, "named", name_then)
    stream = Stream(handle)
    stream.add("late")
    await stream.turn()
    assert refused


def test_a_record_cannot_be_named_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of(EVENTS, Event("event-1", 36, "It rains."))
    copied = pickle.loads(pickle.dumps(batch))  # noqa: S301 - as a pool of processes does
    assert copied.values == batch.values
    monkeypatch.setattr(os, "getpid", lambda: 1)
    for there in (batch, copied):  # a process that was forked, or started
        (record,) = there
        with pytest.raises(RuntimeError, match=r"offset 0> is named in another process, which does not count"):
            there.fail(record, "wrong")
        assert there.named() == {}


@pytest.mark.slow
async def test_of_a_named_error_neither_a_long_text_nor_what_it_refers_to_is_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.ERROR)  # pytest would keep the stack of the warning
    references: list[weakref.ref[Naming]] = []

    async def naming(batch: Batch[Event]) -> None:
        holder = Naming()
        references.append(weakref.ref(holder))
        for record in batch:
            try:
                try:
                    raise KeyError(holder)  # noqa: TRY301 - its traceback holds this frame
                except KeyError as error:
                    raise ConnectionError("x" * 100_000) from error
            except ConnectionError as error:
                batch.fail(record, error)

    stream = Stream(naming)
    stream.add("bad", "rejected")
    await stream.consume(turns=3)
    gc.collect()
    assert references
    assert not any(reference() for reference in references)
    batch = batch_of(EVENTS, Event("a", 1, ""))
    (record,) = batch
    for name in (batch.fail, batch.reject):
        name(record, "x" * 100_000)
        assert len(str(batch.named()[0])) == MAX_COPIED_CHARACTERS


async def test_the_values_cannot_be_changed_by_a_handler() -> None:
    batch = batch_of(EVENTS, Event("a", 1, ""), Event("b", 2, ""))
    with pytest.raises(AttributeError):
        batch.values.sort()  # type: ignore[attr-defined]  # that is the test
    assert [record.value.id for record in batch] == ["a", "b"]


async def unawaited(batch: Batch[Event]) -> Coroutine[Any, Any, None]:
    return asyncio.sleep(len(batch), None)


async def counting(batch: Batch[Event]) -> int:
    return len(batch)


def forgotten(batch: Batch[Event]) -> Coroutine[Any, Any, int]:
    return counting(batch)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("handler", "returned"), [(unawaited, "coroutine"), (counting, "int"), (forgotten, "coroutine")]
)
async def test_a_handler_that_returns_something_has_failed(handler: Handler[Event], returned: str) -> None:
    stream = Stream(as_async(handler))
    stream.add("a", "b")
    await stream.consume(turns=2)
    assert (stream.letters, stream.committed) == ([], {0: 0})
    assert f"the handler returned {returned}, not None" in str(stream.consumption.attempts.error)


async def test_a_plain_function_runs_in_a_thread_in_order_and_never_twice_at_once() -> None:
    seen: list[str] = []
    running = threading.Lock()

    def handle(batch: Batch[Event]) -> None:
        assert running.acquire(blocking=False)
        assert threading.current_thread() is not threading.main_thread()
        seen.extend(event.id for event in batch.values)
        running.release()

    stream = Stream(as_async(handle))
    for first in range(0, 500, 100):
        stream.add(*numbered(range(first, first + 100)))
        await stream.turn()
    assert seen == numbered(range(500))
    assert stream.is_consumed


async def test_what_a_plain_function_raises_is_a_failure_like_any_other() -> None:
    def handle(batch: Batch[Event]) -> None:
        if any(event.id == "bad" for event in batch.values):
            raise SystemExit(3)

    stream = Stream(as_async(handle))
    stream.add("a", "bad", "b")
    await stream.consume(turns=5)
    assert stream.lettered == ["bad"]


async def test_a_plain_function_that_is_cancelled_counts_as_in_flight_until_it_returns() -> None:
    may_return = threading.Event()
    calls: list[int] = []

    def handle(batch: Batch[Event]) -> None:
        calls.append(len(batch))
        may_return.wait(10)

    stream = Stream(as_async(handle))
    stream.add("a")
    turn = asyncio.create_task(stream.turn())
    await until(lambda: bool(calls))
    stream.consumption.abandonment.ask("rebalance", 0.001)
    stream.consumption.abandonment.ask("stop", 0.01)  # cancels it again
    await asyncio.sleep(0.05)  # the time that a second call would need to begin
    assert not turn.done()
    assert calls == [1]
    assert "handler" in [thread.name for thread in threading.enumerate()]
    may_return.set()
    await turn
    assert stream.committed == {0: 0}, "an abandoned batch is redelivered"


async def test_records_that_are_rejected_one_by_one_are_no_sign_of_an_outage() -> None:
    async def handle(batch: Batch[Event]) -> None:
        if len(batch) > 1:
            raise Reject("one at a time, please")
        for record in batch:
            batch.reject(record, "nobody wants it")

    stream = Stream(handle)
    stream.add(*numbered(range(60)))
    await stream.turn()
    assert stream.lettered == numbered(range(60))
