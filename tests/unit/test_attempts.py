import asyncio
from collections.abc import Callable, Sequence

import pytest
from samples import Stored, stored_person, until

from apps.consumer import attempts as module
from apps.consumer.attempts import Attempts, GivenUp, Halted, Reject
from contracts.person import Person, decode

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.0001)
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.001)


class Handler:
    """Fails as often as it is told, or whenever someone unlucky is among the people; remembers every call."""

    def __init__(
        self, *, times: int = 0, unlucky: Callable[[str], bool] = lambda _: False, error: Exception | None = None
    ) -> None:
        self.calls: list[list[str]] = []
        self.done: list[str] = []
        self._times = times
        self._unlucky = unlucky
        self._error = error or ConnectionError("no database")

    async def __call__(self, people: Sequence[Person]) -> None:
        ids = [person.id for person in people]
        self.calls.append(ids)
        if len(self.calls) <= self._times or any(map(self._unlucky, ids)):
            raise self._error
        self.done += ids


def batch(size: int) -> tuple[list[Stored], list[Person]]:
    records = [stored_person(offset) for offset in range(size)]
    return records, [decode(record.value or b"") for record in records]


def attempts(*, most: int = 3, in_a_row: int = 100) -> Attempts:
    return Attempts(asyncio.Event(), in_a_row, most)


async def test_a_batch_that_fails_now_and_then_comes_again_as_it_was() -> None:
    handler, trying = Handler(times=2), attempts(most=3)
    assert await trying.handle(handler, *batch(4)) == []
    assert handler.calls == [["person-0", "person-1", "person-2", "person-3"]] * 3
    assert trying.failures == 0


async def test_failures_and_error_tell_of_a_batch_while_it_is_tried() -> None:
    handler, trying = Handler(unlucky=lambda _: True), attempts(most=1_000_000)
    task = asyncio.create_task(trying.handle(handler, *batch(2)))
    await until(lambda: trying.failures >= 2)
    assert trying.error == "ConnectionError: no database"
    task.cancel()


async def test_those_that_cannot_be_handled_stand_alone_in_the_end_and_all_others_are_handled_in_order() -> None:
    unlucky = {"person-3", "person-8"}
    handler = Handler(unlucky=unlucky.__contains__)
    refused = await attempts().handle(handler, *batch(10))
    assert [(bad.record.offset, str(bad.error)) for bad in refused] == [(3, "no database"), (8, "no database")]
    assert handler.done == [f"person-{at}" for at in range(10) if at not in {3, 8}]


async def test_the_tries_of_a_refused_record_are_the_calls_that_it_was_in() -> None:
    handler = Handler(unlucky=lambda person_id: person_id == "person-5")
    (refused,) = await attempts(most=3).handle(handler, *batch(8))
    assert refused.tries == sum("person-5" in call for call in handler.calls) == 3 + 2 + 3


async def test_one_person_alone_is_tried_as_often_as_a_batch() -> None:
    (refused,) = await attempts(most=3).handle(Handler(unlucky=lambda _: True), *batch(1))
    assert refused.tries == 3


async def test_a_rejected_batch_is_not_tried_again_as_it_is() -> None:
    handler = Handler(unlucky=lambda person_id: person_id == "person-0", error=Reject("never"))
    (refused,) = await attempts(most=1_000).handle(handler, *batch(2))
    assert (refused.record.offset, refused.tries) == (0, 2)
    assert handler.calls == [["person-0", "person-1"], ["person-0"], ["person-1"]]


async def test_a_handler_that_fails_while_a_neighbour_is_set_apart_costs_nobody_else() -> None:
    calls: list[list[str]] = []

    async def handle(people: Sequence[Person]) -> None:
        ids = [person.id for person in people]
        calls.append(ids)
        if "person-0" in ids:
            raise Reject("never")
        if ids == ["person-1"] and calls.count(ids) < 3:
            raise ConnectionError("fails now and then")

    refused = await attempts(most=3).handle(handle, *batch(2))
    assert [bad.record.offset for bad in refused] == [0]
    assert calls[-1] == ["person-1"]


async def test_five_that_fail_one_after_the_other_though_each_was_tried_to_the_last_are_an_outage() -> None:
    handler = Handler(unlucky=lambda person_id: int(person_id[7:]) < 5)
    with pytest.raises(Halted, match="refuses 5 records in a row: ConnectionError"):
        await attempts().handle(handler, *batch(64))
    four = Handler(unlucky=lambda person_id: int(person_id[7:]) < 4)
    assert len(await attempts().handle(four, *batch(64))) == 4


async def test_a_handler_that_refuses_too_many_in_a_row_halts_the_consumer() -> None:
    handler = Handler(unlucky=lambda _: True, error=Reject("never"))
    with pytest.raises(Halted, match="refuses 7 records in a row: Reject: never"):
        await attempts(in_a_row=7).handle(handler, *batch(64))


async def test_a_success_between_refusals_ends_the_row() -> None:
    handler = Handler(unlucky=lambda person_id: int(person_id[7:]) % 4 != 0)
    assert len(await attempts(in_a_row=4).handle(handler, *batch(64))) == 48


async def test_too_many_in_a_row_pass_when_they_are_accepted() -> None:
    handler = Handler(unlucky=lambda _: True)
    assert len(await attempts(in_a_row=4).handle(handler, *batch(64), accept=True)) == 64


async def test_a_pause_ends_at_once_when_the_partitions_are_to_be_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 3600)
    monkeypatch.setattr(module, "LONGEST_PAUSE", 3600)
    leaving = asyncio.Event()
    trying = Attempts(leaving, 100)
    task = asyncio.create_task(trying.handle(Handler(unlucky=lambda _: True), *batch(2)))
    await until(lambda: trying.failures == 1)
    leaving.set()
    with pytest.raises(GivenUp):
        await task


async def test_halving_ends_when_the_partitions_are_to_be_given_up() -> None:
    leaving = asyncio.Event()

    async def handle(_: Sequence[Person]) -> None:
        leaving.set()
        raise Reject

    with pytest.raises(GivenUp):
        await Attempts(leaving, 100).handle(handle, *batch(8))


async def test_dead_letters_are_written_as_often_as_it_takes() -> None:
    failures = iter([OSError("gone")] * 30)

    async def write() -> None:
        for failure in failures:
            raise failure

    await attempts(most=3).insist(write)
    assert next(failures, None) is None


async def test_a_failure_among_rejections_is_told_with_its_stack_once_and_no_rejection_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def handle(people: Sequence[Person]) -> None:
        if "person-0" in {person.id for person in people}:
            raise Reject("never")
        raise ConnectionError("no database")

    refused = await attempts(most=3).handle(handle, *batch(4))
    assert len(refused) == 4
    (line,) = caplog.records
    assert line.exc_info is not None
    assert isinstance(line.exc_info[1], ConnectionError)


async def test_what_was_given_up_is_not_counted_as_failing_any_more() -> None:
    handler, leaving = Handler(unlucky=lambda _: True), asyncio.Event()
    trying = Attempts(leaving, 100, most=1_000_000)
    task = asyncio.create_task(trying.handle(handler, *batch(2)))
    await until(lambda: trying.failures >= 4)
    leaving.set()
    with pytest.raises(GivenUp):
        await task
    assert trying.failures == 0


@pytest.mark.parametrize(
    "escaping", [SystemExit("exit"), KeyboardInterrupt(), asyncio.CancelledError(), BaseException("x")]
)
async def test_whatever_comes_out_of_a_handler_is_a_failure_of_its_record_alone(escaping: BaseException) -> None:
    done: list[str] = []

    async def handle(people: Sequence[Person]) -> None:
        if any(person.id == "person-1" for person in people):
            raise escaping
        done.extend(person.id for person in people)

    (refused,) = await attempts().handle(handle, *batch(3))
    assert done == ["person-0", "person-2"]
    assert refused.record.offset == 1
    assert type(escaping).__name__ in str(refused.error)


async def test_a_handler_that_is_cancelled_from_without_ends_with_the_loop() -> None:
    begun = asyncio.Event()

    async def handle(_: Sequence[Person]) -> None:
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(attempts().handle(handle, *batch(1)))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
