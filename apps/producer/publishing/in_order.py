"""Runs work of one call concurrently, and yields its results in order."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

CHUNKS_ON_THE_WAY = 8
"""Chunks of one call that are made or read before the first of them must be acknowledged."""


async def in_order(work: AsyncIterator[Coroutine[Any, Any, T]]) -> AsyncGenerator[T, None]:
    """Run what `work` yields, eight at a time, and yield each result in order, as soon as it is known.

    `work` is drawn on while results are awaited, so that a slow sender is answered before it has sent all.
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
