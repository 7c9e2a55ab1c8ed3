"""Run a plain function as a handler: in a worker thread, so that a blocking driver does not block the event loop."""

import asyncio
import inspect
import threading
from contextlib import suppress
from contextvars import copy_context
from typing import Any, cast

from apps.consumer.consuming.batch import Batch, Handle, Handler


def as_async(handler: Handler[Any]) -> Handle:
    """Return a handler that can be awaited. A plain function runs in a thread, one call at a time.

    A thread cannot be cancelled: a cancelled call ends when the function returns, and counts as in flight until then.
    """
    if is_asynchronous(handler):
        return cast("Handle", handler)

    async def in_thread(batch: Batch[Any]) -> object:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[tuple[object, BaseException | None]] = loop.create_future()
        context = copy_context()

        def run() -> None:
            outcome: tuple[object, BaseException | None]
            try:
                outcome = context.run(handler, batch), None
            except BaseException as error:  # noqa: BLE001 - raised again in the task that waits for it
                outcome = None, error
            with suppress(RuntimeError):  # the process ends, and the loop is closed
                loop.call_soon_threadsafe(ended.set_result, outcome)

        # a daemon: a function that never returns must not keep the process from ending
        threading.Thread(target=run, name="handler", daemon=True).start()
        try:
            result, error = await asyncio.shield(ended)
        except asyncio.CancelledError:
            while not ended.done():  # it may be cancelled again, for another reason
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([ended])
            raise
        if error is not None:
            raise error
        return result

    return in_thread


def is_asynchronous(handler: object) -> bool:
    """Return whether a function, or the call of an object, is `async def`."""
    return any(map(inspect.iscoroutinefunction, (handler, getattr(handler, "__call__", None))))  # noqa: B004 - is it asynchronous, not is it callable
