"""A bound on how long a caller waits, also for work that takes its time to clean up after it was cancelled."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

CALL_S = 9.0
"""Seconds after which a call over HTTP is answered: callers are promised 10."""

_ending: set[asyncio.Task[Any]] = set()
"""Work that was cancelled and still cleans up: the event loop alone would let it be collected."""


async def within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns, or cancel it after `seconds` and raise `TimeoutError` at once.

    `asyncio.timeout` would wait until the cancelled work has cleaned up; here it does so in the background.
    """
    task = asyncio.create_task(work)
    _ending.add(task)
    task.add_done_callback(_ended)
    try:
        await asyncio.wait([task], timeout=seconds)
    finally:
        task.cancel()  # does nothing to one that is done
    if not task.done():
        raise TimeoutError(f"not done within {seconds:g} s")
    return task.result()


def _ended(task: asyncio.Task[Any]) -> None:
    _ending.discard(task)
    if not task.cancelled():
        task.exception()  # or asyncio would complain that nobody looked
