"""Limit how long a caller waits, even for work that needs time to clean up after its cancellation."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

CALL_S = 9.0
"""Seconds after which an HTTP call is answered; callers are promised 10."""

_ending: set[asyncio.Task[Any]] = set()
"""Running and cancelled work. The event loop holds only weak references, so it could be garbage-collected."""


async def within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`, or cancel it after `seconds` and raise `TimeoutError` at once.

    `asyncio.timeout` would wait until the cancelled work has cleaned up. Here the cleanup runs in the background.
    Raises `ConnectionAbortedError` when something else cancelled the work: a client of Kafka cancels what waits for it.
    """
    task = asyncio.create_task(work)
    _ending.add(task)
    task.add_done_callback(_ended)
    try:
        await asyncio.wait([task], timeout=seconds)
    finally:
        task.cancel()  # no effect on a finished task
    if not task.done():
        raise TimeoutError(f"not done within {seconds:g} s")
    if task.cancelled():  # raised as it is, it would look like a cancellation of the caller
        raise ConnectionAbortedError("the client of Kafka has given up")
    try:
        return task.result()
    finally:
        del task  # with its error it would form a reference cycle, which keeps all that the work had in memory


def _ended(task: asyncio.Task[Any]) -> None:
    _ending.discard(task)
    if not task.cancelled():
        task.exception()  # retrieves the exception, or asyncio logs a warning
