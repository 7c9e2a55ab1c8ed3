import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence

import pytest
from samples import LONG, until
from streams import Stream

from apps.consumer.containment import BrokenOff, Escaped, HandlerCall, contain_child_tasks
from contracts.person import Person


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no message")


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

    async def handle(people: Sequence[Person]) -> None:
        if any(person.id == "bad" for person in people):
            await escape()
        else:
            done.extend(person.id for person in people)

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
    assert str(stream.letters[0].error) is not None
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
async def test_a_call_that_is_broken_off_says_nothing_of_its_records_unless_it_succeeds_all_the_same() -> None:
    call, began = HandlerCall(), asyncio.Event()

    async def stop_with(error: BaseException | None) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if error is not None:
                raise error from None

    async def break_off(error: BaseException | None) -> None:
        began.clear()
        running = asyncio.create_task(call.run(lambda: stop_with(error)))
        await began.wait()
        call.break_off()
        await running

    for error in (asyncio.CancelledError(), ValueError("while cleaning up"), SystemExit()):
        with pytest.raises(BrokenOff):
            await break_off(error)
    await break_off(None)
    call.break_off()  # nothing runs
    await call.run(lambda: asyncio.sleep(0))


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
async def test_what_is_no_exception_is_told_by_its_name() -> None:
    with pytest.raises(Escaped, match="SystemExit: 3"):
        await HandlerCall().run(raising(SystemExit(3)))
    with pytest.raises(Escaped, match="Unprintable: its message cannot be read"):
        await HandlerCall().run(raising(Unprintable()))
