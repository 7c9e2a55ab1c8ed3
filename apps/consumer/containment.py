"""Contain a handler: whatever it raises or cancels is an exception of its call, and ends neither loop nor process."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from typing import Any

from apps.chassis.logs import one_line

_contained: ContextVar[bool] = ContextVar("contained", default=False)
"""Whether the current task belongs to a handler: child tasks inherit the context of the task that creates them."""


class Escaped(Exception):
    """What a handler let out that is no `Exception` (like `SystemExit`), that cancelled it, or that has no message."""


class BrokenOff(Exception):
    """The call of the handler was cancelled from outside because its time was up; it says nothing about its records."""


class HandlerCall:
    """Calls a function as a task of its own, one call at a time; `break_off` cancels the one that runs."""

    def __init__(self) -> None:
        self._task: asyncio.Task[object] | None = None
        self._is_broken_off = False

    async def run(self, make: Callable[[], Awaitable[object]]) -> None:
        """Await what `make` returns. Raises what it raises, but an `Escaped` for all that is no `Exception`.

        Raises `BrokenOff` after `break_off`, unless the call succeeds all the same.
        """
        self._is_broken_off = False
        task = self._task = asyncio.create_task(_contain(make, _contained.set), name="handler")
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:  # the consume loop itself ends
            task.cancel()
            await asyncio.wait([task])
            raise
        finally:
            self._task = None
        if task.cancelled():
            raise BrokenOff if self._is_broken_off else Escaped("CancelledError: the handler cancelled its own task")
        if (error := task.exception()) is not None:
            if self._is_broken_off:
                raise BrokenOff from error
            raise error

    def break_off(self) -> None:
        """Cancel the call that runs, if one does."""
        if self._task is not None:
            self._is_broken_off = True
            self._task.cancel()


async def _contain(make: Callable[[], Awaitable[object]], mark: Callable[[bool], object]) -> object:
    mark(True)  # noqa: FBT003 - of a task of its own, so that it needs no reset
    try:
        return await make()
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        text = _text_of(error)
        if isinstance(error, Exception) and text is not None:
            raise
        raise Escaped(text or f"{type(error).__name__}: its message cannot be read") from error


def _text_of(error: BaseException) -> str | None:
    """Return an error as one line; None when its message cannot be read, which a dead letter has to quote."""
    try:
        return one_line(error)
    except BaseException:  # noqa: BLE001 - `__str__` is code of the handler too
        return None


def contain_child_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Contain also the tasks that handlers create: `SystemExit` in any task ends an event loop otherwise."""
    inner = loop.get_task_factory() or _new_task

    def new_task(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **options: Any) -> Any:  # noqa: ANN401 - as asyncio calls it
        return inner(loop, _contain_child(work) if _contained.get() else work, **options)

    loop.set_task_factory(new_task)  # type: ignore[arg-type]  # the options differ between versions of Python


def _new_task(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:  # noqa: ANN401 - as asyncio calls it
    return asyncio.Task(work, loop=loop, **options)


async def _contain_child(work: Awaitable[Any]) -> Any:  # noqa: ANN401 - of any task
    try:
        return await work
    except (SystemExit, KeyboardInterrupt) as error:
        raise Escaped(_text_of(error) or type(error).__name__) from error
