"""Contain a handler: its errors and cancellations end neither the consume loop nor the process."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Collection, Coroutine
from contextvars import ContextVar
from functools import lru_cache, partial
from typing import Any

from apps.chassis.observability.logs import MAX_CHAINED_ERRORS, one_line
from apps.consumer.consuming.error_stacks import Stack

_contained: ContextVar[bool] = ContextVar("contained", default=False)
"""Whether the current task belongs to a handler: child tasks inherit the context of the task that creates them."""


MAX_COPIED_CHARACTERS = 2_000
"""Characters of a handler's error that are kept: more than a dead letter shows, of up to 10,000 undecided records."""
CLASSES_KEPT = 256
"""Classes of handlers' errors that are kept for the next error of their kind."""


class HandlerError(Exception):
    """A copy of a handler's error: its text, read once, in a class of the same name and module.

    The copy runs no code of the handler, whose methods might raise when the error is logged or dead-lettered.
    `stack` is what is kept of its traceback, as `keep_stack` returns it.
    """

    stack: Stack = ()

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return self.text


class Escaped(HandlerError):
    """A handler's error that is no `Exception` (like `SystemExit`), or that cancels the handler."""


Contained = asyncio.Task[HandlerError | None]
"""A task of a handler; its result is a copy of its error, if it failed."""


class NotDone(TypeError):
    """A handler returned something: it may have forgotten to await its work."""


class BrokenOff(Exception):
    """The handler call was cancelled because its time was up; this says nothing about its records."""


class HandlerCall:
    """Calls a function in its own task, one call at a time; `break_off` cancels the running call.

    A call whose caller was cancelled may ignore its own cancellation: the next call begins once it has ended. Copies of
    errors keep those of the `bases` that the error has: classes that the caller distinguishes.
    """

    def __init__(self, *bases: type[Exception]) -> None:
        self._bases = bases
        self._task: Contained | None = None
        self._is_broken_off = False
        self._left_behind: set[Contained] = set()

    async def run(self, make: Callable[[], Awaitable[object]]) -> Exception | None:
        """Await what `make` returns; return why that failed, or None. Anything but None is a failure (`NotDone`).

        Returns a copy (`HandlerError`) of an `Exception`, and `Escaped` for everything else. Returns `BrokenOff` after
        `break_off`, also if the call succeeds.
        """
        self._is_broken_off = False
        if self._left_behind:
            make = partial(_call_after, self._left_behind.copy(), make)
        task = self._task = start_contained(make, "handler", self._bases)
        try:
            await asyncio.sleep(0)  # a handler that awaits nothing is done then, and `wait` costs more than such a call
            if not task.done():
                await asyncio.wait([task])
        except asyncio.CancelledError:  # the consume loop itself ends
            task.cancel()
            self._left_behind.add(task)
            task.add_done_callback(self._left_behind.discard)
            await asyncio.wait([task])
            raise
        finally:
            if self._task is task:  # not the call after one that was left behind
                self._task = None
        if self._is_broken_off:  # what it returns or raises then says nothing: it may have swallowed its cancellation
            return BrokenOff()
        if task.cancelled():
            return Escaped("CancelledError: the handler cancelled its own task")
        return task.result()

    def break_off(self) -> None:
        """Cancel the running call, if there is one."""
        if self._task is not None:
            self._is_broken_off = True
            self._task.cancel()


async def _call_after(others: Collection[Contained], make: Callable[[], Awaitable[object]]) -> object:
    await asyncio.wait(others)
    return await make()


def start_contained(
    make: Callable[[], Awaitable[object]], name: str, bases: tuple[type[Exception], ...] = ()
) -> Contained:
    """Start a task of a handler: its result is a copy of its error, `Escaped` for what is no `Exception`, or None."""
    return asyncio.create_task(_contain(make, _contained.set, bases), name=name)


async def _contain(
    make: Callable[[], Awaitable[object]], mark: Callable[[bool], object], bases: tuple[type[Exception], ...]
) -> HandlerError | None:
    mark(True)  # noqa: FBT003 - of a task of its own, so that it needs no reset
    try:
        _require_none(await make())
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # noqa: BLE001 - an error of any kind is a failure of the handler alone
        copied = copy_of(error, bases)
        # an error object that is raised in each call collects the frames of all calls, and the values in them
        _defined_by(BaseException, "with_traceback", error)(None)
        if issubclass(type(error), Exception):
            return copied
        escaped = Escaped(one_line(copied))
        escaped.__cause__ = copied
        return escaped
    return None


def _require_none(result: object) -> None:
    if result is not None:
        if inspect.iscoroutine(result):
            result.close()  # otherwise Python warns of it a second time
        raise NotDone(f"the handler returned {type(result).__name__}, not None: its work may not be done")


def copy_of(
    error: BaseException, bases: tuple[type[Exception], ...] = (), max_errors: int = MAX_CHAINED_ERRORS
) -> HandlerError:
    """Return a copy of an error and of the errors that led to it, `max_errors` in all, with their tracebacks."""
    kind = type(error)
    names = (_plain_name(kind, name) for name in ("__name__", "__module__", "__qualname__"))
    copied = _class_named(*names, tuple(base for base in bases if issubclass(kind, base)))(_text_of(error))
    copied.__traceback__ = _defined_by(BaseException, "__traceback__", error)
    cause = _defined_by(BaseException, "__cause__", error)
    if cause is None and not _defined_by(BaseException, "__suppress_context__", error):
        cause = _defined_by(BaseException, "__context__", error)
    if cause is not None and max_errors > 1:
        copied.__cause__ = copy_of(cause, bases, max_errors - 1)
    return copied


@lru_cache(CLASSES_KEPT)
def _class_named(name: str, module: str, qualname: str, bases: tuple[type[Exception], ...]) -> type[HandlerError]:
    return type(name, (HandlerError, *bases), {"__module__": module, "__qualname__": qualname})


def _plain_name(kind: type, attribute: str) -> str:
    try:
        name = _defined_by(type, attribute, kind)
    except AttributeError:  # a class of `exec` or `type` may have no module
        return "?"
    return str.__str__(name) if issubclass(type(name), str) else "?"


def _defined_by(owner: type, attribute: str, thing: object) -> Any:  # noqa: ANN401 - of any attribute
    """Return an attribute as `owner` defines it, though a subclass or a metaclass may redefine it."""
    return vars(owner)[attribute].__get__(thing)


def _text_of(error: BaseException) -> str:
    """Return the message of an error, shortened, as a `str` and never as a subclass of it."""
    try:
        return str.__str__(str(error))[:MAX_COPIED_CHARACTERS]
    except BaseException:  # noqa: BLE001 - `__str__` may be the handler's code too
        return "its message cannot be read"


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
        raise Escaped(one_line(copy_of(error))) from error
