"""Run the chunks of one call concurrently, and yield their results in order."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

CHUNKS_ON_THE_WAY = 8
"""Chunks of one call that may run at a time: the first must be acknowledged before another is read or generated."""


async def in_order(work: AsyncIterator[Coroutine[Any, Any, T]]) -> AsyncGenerator[T, None]:
    """Run the coroutines that `work` yields, about eight at a time, and yield their results in order.

    A result is yielded as soon as it is known, while `work` is still read, so that a slow sender is answered early.
    """
    running: asyncio.Queue[asyncio.Task[T] | None] = asyncio.Queue(CHUNKS_ON_THE_WAY)
    started: set[asyncio.Task[T]] = set()

    async def draw() -> None:
        try:
            async for coroutine in work:
                task = asyncio.create_task(coroutine)
                started.add(task)
                task.add_done_callback(started.discard)
                await running.put(task)
        except Exception:  # the caller that waits for the next result must be woken; `await drawing` raises it there
            await running.put(None)
            raise
        await running.put(None)

    drawing = asyncio.create_task(draw())
    try:
        while task := await running.get():
            yield await task
        await drawing
    finally:
        for left in (drawing, *started):
            left.cancel()
