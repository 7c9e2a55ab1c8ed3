import asyncio
import gc
import weakref

import pytest
from samples import LONG

from apps.chassis.deadline import within

pytestmark = pytest.mark.anyio


async def test_work_that_ends_in_time_returns_or_raises_as_by_itself() -> None:
    async def returns() -> int:
        return 7

    async def raises() -> int:
        raise ValueError("wrong")

    assert await within(LONG, returns()) == 7
    with pytest.raises(ValueError, match="wrong"):
        await within(LONG, raises())


async def test_nothing_is_kept_of_work_that_has_failed() -> None:
    """It may have found megabytes, and garbage is collected seldom."""

    class Found:
        pass

    kept: list[weakref.ref[Found]] = []

    async def raises() -> None:
        found = Found()
        kept.append(weakref.ref(found))
        raise ValueError("wrong")

    gc.disable()
    try:
        with pytest.raises(ValueError, match="wrong") as raised:
            await within(LONG, raises())
        del raised
        await asyncio.sleep(0)
        assert kept[0]() is None
    finally:
        gc.enable()


async def test_work_that_something_else_cancels_is_an_error_and_no_cancellation_of_the_caller() -> None:
    answer = asyncio.get_running_loop().create_future()
    answer.cancel()

    async def waits_for_a_client() -> None:
        await answer

    with pytest.raises(ConnectionAbortedError):
        await within(LONG, waits_for_a_client())


async def test_a_caller_does_not_wait_for_work_that_cleans_up_after_its_time() -> None:
    may_end, ended = asyncio.Event(), asyncio.Event()

    async def cleans_up() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await may_end.wait()
            ended.set()

    with pytest.raises(TimeoutError):
        await within(0.01, cleans_up())
    assert not ended.is_set()
    may_end.set()
    async with asyncio.timeout(LONG):
        await ended.wait()


async def test_a_caller_that_is_cancelled_cancels_the_work() -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def works() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    calling = asyncio.create_task(within(LONG, works()))
    await begun.wait()
    calling.cancel()
    async with asyncio.timeout(LONG):
        await cancelled.wait()
    with pytest.raises(asyncio.CancelledError):
        await calling
