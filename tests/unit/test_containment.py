import asyncio
import gc
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Self

import pytest
from aiokafka.errors import KafkaError
from samples import LONG, until
from streams import Stream

from apps.chassis.observability.logs import stack_of
from apps.consumer.consuming.batch import Batch, Reject
from apps.consumer.consuming.containment import BrokenOff, Escaped, HandlerCall, HandlerError, contain_child_tasks
from contracts.dead_letter import describe
from tests.event import Event


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no message")


class PrintableOnce(Exception):
    printed = 0

    def __str__(self) -> str:
        self.printed += 1
        if self.printed > 1:
            raise RuntimeError("no second message")
        return "once"


class KeepsItsTraceback(Exception):
    def with_traceback(self, _: object) -> Self:
        raise RuntimeError("no other traceback")


class NeitherTrueNorFalse(Exception):
    def __bool__(self) -> bool:
        raise RuntimeError("neither")


class Unmeasurable(str):
    __slots__ = ()

    def __len__(self) -> int:
        raise RuntimeError("no length")

    def encode(self, *_: object) -> bytes:
        raise RuntimeError("no bytes")


class WithUnmeasurableText(Exception):
    def __str__(self) -> str:
        return Unmeasurable("long")


class WithoutClass(Exception):
    @property  # type: ignore[misc]  # as a hostile class has it
    def __class__(self) -> type:
        raise RuntimeError("no class")


class Nameless(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]  # likewise
        raise RuntimeError("no name")


class OfNamelessClass(Exception, metaclass=Nameless):
    __module__ = 5  # type: ignore[assignment]  # as a hostile class has it


OfNoModule = eval("make('OfNoModule', (Exception,), {})", {"make": type})  # noqa: S307 - as code without a module has it


class RejectPrintableOnce(PrintableOnce, Reject):
    pass


async def fail_because_of_one_that_cannot_be_told() -> None:
    try:
        await raising(OfNamelessClass())()
    except OfNamelessClass:
        raise ValueError from NeitherTrueNorFalse()


def raising(error: BaseException) -> Callable[[], Awaitable[None]]:
    async def work() -> None:
        raise error

    return work


async def cancel_own_task() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def cancel_own_task_and_return() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


async def exit_in_a_child() -> None:
    await asyncio.create_task(raising(SystemExit(3))())  # type: ignore[arg-type]  # a coroutine


async def exit_in_a_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(raising(SystemExit(3))())  # type: ignore[arg-type]  # a coroutine
        group.create_task(asyncio.sleep(3_600))


async def exit_in_a_grandchild() -> None:
    await asyncio.create_task(exit_in_a_child())


async def interrupt_in_a_gathered_child() -> None:
    await asyncio.gather(asyncio.sleep(0), raising(KeyboardInterrupt())())


async def generator_exit_in_a_child() -> None:
    await asyncio.create_task(raising(GeneratorExit())())  # type: ignore[arg-type]  # a coroutine


async def exit_in_a_thread() -> None:
    await asyncio.to_thread(sys.exit, 3)


async def cancel_a_child() -> None:
    child = asyncio.create_task(asyncio.sleep(3_600))
    await asyncio.sleep(0)
    child.cancel()
    await child


ESCAPES: dict[str, Callable[[], Awaitable[None]]] = {
    "SystemExit": raising(SystemExit("exit")),
    "KeyboardInterrupt": raising(KeyboardInterrupt()),
    "GeneratorExit": raising(GeneratorExit()),
    "CancelledError": raising(asyncio.CancelledError()),
    "BaseException": raising(BaseException("x")),
    "a group of them": raising(BaseExceptionGroup("all", [SystemExit(1), ValueError()])),
    "StopIteration": raising(StopIteration()),
    "StopAsyncIteration": raising(StopAsyncIteration()),
    "an error without a message": raising(Unprintable()),
    "an error with one message": raising(PrintableOnce()),
    "a rejection with one message": raising(RejectPrintableOnce()),
    "an error that keeps its traceback": raising(KeepsItsTraceback()),
    "an error that is neither true nor false": raising(NeitherTrueNorFalse()),
    "an error whose text has no length": raising(WithUnmeasurableText()),
    "an error that hides its class": raising(WithoutClass()),
    "an error whose class hides its name": raising(OfNamelessClass()),
    "an error because of such errors": fail_because_of_one_that_cannot_be_told,
    "what breaks a call off": raising(BrokenOff()),
    "the cancellation of its own task": cancel_own_task,
    "a late cancellation of its own task": cancel_own_task_and_return,
    "the cancellation of a child": cancel_a_child,
    "SystemExit in a child": exit_in_a_child,
    "SystemExit in a task group": exit_in_a_group,
    "SystemExit in a grandchild": exit_in_a_grandchild,
    "SystemExit in a thread": exit_in_a_thread,
    "KeyboardInterrupt in a gathered child": interrupt_in_a_gathered_child,
    "GeneratorExit in a child": generator_exit_in_a_child,
}


@pytest.mark.parametrize("escape", ESCAPES.values(), ids=ESCAPES.keys())
def test_whatever_a_handler_raises_or_cancels_is_a_failure_of_its_record_alone(
    escape: Callable[[], Awaitable[None]],
) -> None:
    done: list[str] = []

    async def handle(batch: Batch[Event]) -> None:
        if any(event.id == "bad" for event in batch.values):
            await escape()
        else:
            done.extend(event.id for event in batch.values)

    async def consume() -> Stream:
        contain_child_tasks(asyncio.get_running_loop())
        stream = Stream(handle)
        stream.add("a", "bad", "b")
        async with asyncio.timeout(LONG):
            await stream.consume(turns=5)
        return stream

    stream = asyncio.run(consume())  # in a loop of its own, as a process has: it would end by some of these
    assert done == ["a", "b"]
    assert stream.lettered == ["bad"]
    assert describe(stream.letters[0].error)[0]
    assert stream.is_consumed


@pytest.mark.anyio
async def test_tasks_of_others_are_left_as_they_are() -> None:
    contain_child_tasks(asyncio.get_running_loop())
    work = asyncio.sleep(0)
    task = asyncio.create_task(work)
    asyncio.get_running_loop().set_task_factory(None)
    await task
    assert task.get_coro() is work


@pytest.mark.anyio
async def test_a_factory_of_tasks_that_was_there_is_kept() -> None:
    loop = asyncio.get_running_loop()
    made: list[object] = []

    def factory(loop: asyncio.AbstractEventLoop, work: object, **options: object) -> object:
        made.append(work)
        return asyncio.Task(work, loop=loop, **options)  # type: ignore[arg-type]  # as asyncio calls it

    loop.set_task_factory(factory)  # type: ignore[arg-type]  # likewise
    contain_child_tasks(loop)
    await asyncio.create_task(asyncio.sleep(0))
    loop.set_task_factory(None)
    assert len(made) == 1


@pytest.mark.anyio
async def test_a_call_that_is_broken_off_says_nothing_of_its_records_even_if_it_returns() -> None:
    call, began = HandlerCall(), asyncio.Event()

    async def stop_with(error: BaseException | None) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if error is not None:
                raise error from None

    async def break_off(error: BaseException | None) -> Exception | None:
        began.clear()
        running = asyncio.create_task(call.run(lambda: stop_with(error)))
        await began.wait()
        call.break_off()
        return await running

    for error in (asyncio.CancelledError(), ValueError("while cleaning up"), SystemExit(), None):
        assert isinstance(await break_off(error), BrokenOff)
    call.break_off()  # nothing runs
    assert await call.run(lambda: asyncio.sleep(0)) is None


@pytest.mark.anyio
async def test_a_handler_that_is_cancelled_from_without_ends_before_the_loop_does() -> None:
    call, events = HandlerCall(), []

    async def handle() -> None:
        events.append("began")
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            events.append("ended")

    running = asyncio.create_task(call.run(handle))
    await until(lambda: events)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert events == ["began", "ended"]


@pytest.mark.anyio
async def test_while_a_call_ignores_that_consumption_was_stopped_the_next_one_waits_and_can_be_broken_off() -> None:
    """As after a stop and a start: two calls at once would handle the same records, and later ones of a key first."""
    call, events, may_end = HandlerCall(), list[str](), asyncio.Event()

    async def handle(number: int) -> None:
        events.append(f"call {number} began")
        while number == 1 and not may_end.is_set():
            with suppress(asyncio.CancelledError):
                await may_end.wait()
        await may_end.wait()
        events.append(f"call {number} ended")
        raise ValueError("quotes a record")

    def begin(number: int) -> asyncio.Task[Exception | None]:
        return asyncio.create_task(call.run(lambda: handle(number)))

    async def leave_behind(running: asyncio.Task[Exception | None]) -> None:
        while not running.done():
            running.cancel()
            await asyncio.sleep(0)

    first = begin(1)
    await until(lambda: events)
    try:
        await leave_behind(first)
        second = begin(2)
        await until(lambda: call._task is not None)
        call.break_off()
        assert isinstance(await asyncio.wait_for(second, LONG), BrokenOff)
        third = begin(3)
        await asyncio.sleep(0.01)
        assert events == ["call 1 began"]
    finally:
        may_end.set()
    assert str(await asyncio.wait_for(third, LONG)) == "quotes a record"
    assert events == ["call 1 began", "call 1 ended", "call 3 began", "call 3 ended"]


@pytest.mark.anyio
async def test_what_a_call_raises_that_was_left_behind_is_not_logged_with_what_it_quotes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    call, may_end, ended = HandlerCall(), asyncio.Event(), asyncio.Event()

    async def stubborn() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await may_end.wait()
        ended.set()
        raise ValueError("quotes a record")

    stopped = asyncio.create_task(call.run(stubborn))
    await asyncio.sleep(0.01)
    while not stopped.done():
        stopped.cancel()
        await asyncio.sleep(0)
    del stopped
    may_end.set()
    await ended.wait()
    await asyncio.sleep(0.01)
    gc.collect()
    assert not caplog.records


@pytest.mark.anyio
async def test_the_end_of_a_call_that_was_left_behind_leaves_the_next_one_to_be_broken_off() -> None:
    call, began, may_end = HandlerCall(), asyncio.Event(), asyncio.Event()

    async def stubborn() -> None:
        began.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await may_end.wait()

    stopped = asyncio.create_task(call.run(stubborn))
    await began.wait()
    stopped.cancel()
    await asyncio.sleep(0)
    began.clear()

    async def endless() -> None:
        began.set()
        await asyncio.Event().wait()

    following = asyncio.create_task(call.run(endless))
    await asyncio.sleep(0)
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await stopped
    await asyncio.wait_for(began.wait(), LONG)
    call.break_off()
    assert isinstance(await asyncio.wait_for(following, LONG), BrokenOff)


@pytest.mark.anyio
async def test_what_is_no_exception_is_reported_by_its_name() -> None:
    escaped = await HandlerCall().run(raising(SystemExit(3)))
    assert (type(escaped), str(escaped)) == (Escaped, "SystemExit: 3")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("error", "described"),
    [
        (ValueError("x"), ("builtins.ValueError", "x")),
        (Unprintable(), (f"{__name__}.Unprintable", "its message cannot be read")),
        (PrintableOnce(), (f"{__name__}.PrintableOnce", "once")),
        (RejectPrintableOnce(), (f"{__name__}.RejectPrintableOnce", "once")),
        (WithUnmeasurableText(), (f"{__name__}.WithUnmeasurableText", "long")),
        (OfNamelessClass("x"), ("?.OfNamelessClass", "x")),
        (OfNoModule("x"), ("?.OfNoModule", "x")),
    ],
)
async def test_the_copy_of_an_error_has_its_class_path_and_text_and_runs_none_of_its_code(
    error: Exception, described: tuple[str, str]
) -> None:
    copied = await HandlerCall(Reject).run(raising(error))
    assert isinstance(copied, HandlerError)
    for _ in range(2):
        assert describe(copied) == described
    assert isinstance(copied, Reject) == issubclass(type(error), Reject)
    assert "await make()" in stack_of(copied)


@pytest.mark.anyio
async def test_an_error_that_is_raised_in_each_call_has_the_stack_of_one_call() -> None:
    error = ValueError("the only one")
    copies = [await HandlerCall().run(raising(error)) for _ in range(3)]
    first, *others = [stack_of(one) for one in copies if one is not None]
    assert others == [first, first]
    assert error.__traceback__ is None


@pytest.mark.anyio
async def test_the_stack_of_a_copy_has_the_errors_that_led_to_it_and_quotes_only_those_of_kafka() -> None:
    async def fail() -> None:
        try:
            try:
                raise ValueError("Ada")  # noqa: TRY301 - as a handler does
            except ValueError as error:
                raise KafkaError("no broker") from error
        except KafkaError:
            raise LookupError("Ada")  # noqa: B904 - as a handler does

    copied = await HandlerCall(KafkaError).run(fail)
    assert copied is not None
    ends = [line for line in stack_of(copied).splitlines() if line[0] not in " T"]
    assert ends == ["ValueError", "KafkaError: no broker", "LookupError"]
