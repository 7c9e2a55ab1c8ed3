"""Contain a handler: its errors and cancellations end neither the consume loop nor the process."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from typing import Any

from apps.chassis.logs import one_line

_contained: ContextVar[bool] = ContextVar("contained", default=False)
"""Whether the current task belongs to a handler: child tasks inherit the context of the task that creates them."""


class Escaped(Exception):
    """A handler's error that is no `Exception` (like `SystemExit`), cancels it, or has no readable message."""


class BrokenOff(Exception):
    """The handler call was cancelled because its time was up; this says nothing about its records."""


class HandlerCall:
    """Calls a function in its own task, one call at a time; `break_off` cancels the running call."""

    def __init__(self) -> None:
        self._task: asyncio.Task[object] | None = None
        self._is_broken_off = False

    async def run(self, make: Callable[[], Awaitable[object]]) -> None:
        """Await what `make` returns.

        Raises its `Exception`s as they are, and `Escaped` for everything else. Raises `BrokenOff` after `break_off`,
        unless the call succeeds regardless.
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
        """Cancel the running call, if there is one."""
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
        if isinstance(error, Exception) and not isinstance(error, BrokenOff) and text is not None:
            raise
        raise Escaped(text or f"{type(error).__name__}: its message cannot be read") from error


def _text_of(error: BaseException) -> str | None:
    """Return an error as one line; None when its message, which a dead letter quotes, cannot be read."""
    try:
        return one_line(error)
    except BaseException:  # noqa: BLE001 - `__str__` may be the handler's code too
        return None


def contain_child_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Contain tasks that handlers create: otherwise `SystemExit` in any task ends the event loop."""
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
