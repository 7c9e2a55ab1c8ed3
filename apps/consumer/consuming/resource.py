"""Open what a handler needs, keep it open, and replace it while nothing succeeds.

A resource is open from the start of the service to its end: a stop, a pause, a seek and a rebalance keep it. As long as
it cannot be opened, batches wait, and none of their records counts as tried.
"""

import asyncio
import inspect
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from apps.chassis.observability.logs import one_line, without_values
from apps.chassis.setting_reading import read_own_settings
from apps.chassis.settings import Settings
from apps.consumer.consuming.abandonment import Abandonment
from apps.consumer.consuming.attempts import MAX_ERROR_CHARACTERS, NoteError, ignore_error
from apps.consumer.consuming.batch import Batch, Handle, Handler
from apps.consumer.consuming.containment import Contained, start_contained
from apps.consumer.consuming.handler_thread import as_async
from apps.consumer.consuming.policy import Retry
from apps.consumer.consuming.publish import Publisher

log = logging.getLogger(__name__)

T = TypeVar("T")

OPEN_TIMEOUT_S = 30.0
"""Seconds for a resource to open; then it is cancelled, and opened again."""
CLOSE_TIMEOUT_S = 3.0
"""Seconds for a resource to close; then it is cancelled."""
CANCEL_TIMEOUT_S = 1.0
"""Seconds for a cancelled resource to end; then it is left behind."""
GIVE_WAY_S = 10.0
"""Seconds after which a batch that waits for its resource is redelivered, so that the consumer polls."""
OPENING = "the resource of the handler is being opened"
CHECK_OPEN_S = 0.05
"""Seconds between two checks whether a resource is open."""


class NotOpen(RuntimeError):
    """A resource did not open, or ended while it was open."""


OpenHandler = Callable[..., AbstractAsyncContextManager[Handler[T]]]
PUBLISH = "publish"
"""The parameter of a context manager that wants to publish."""


@dataclass(frozen=True)
class Resource(Generic[T]):
    """A handler that needs something open; `open_handler` returns the context that yields it."""

    open_handler: OpenHandler[T]
    settings_type: type[Settings] = Settings


def resource(open_handler: OpenHandler[T], settings_type: type[Settings] = Settings) -> Resource[T]:
    """Declare a handler that needs something open, for `HANDLERS`.

    `open_handler(settings)` is an asynchronous context manager that yields the handler. `settings` are of
    `settings_type`, a subclass of `Settings` with further fields. It may also take `publish`, a `Publish`. Raises
    `TypeError` for a bare generator.
    """
    if inspect.isasyncgenfunction(open_handler) or inspect.isgeneratorfunction(open_handler):
        raise TypeError(f"{open_handler.__qualname__}: expected an @asynccontextmanager, got a bare generator")
    return Resource(open_handler, settings_type)


AnyHandler = Handler[T] | Resource[T]
"""What `HANDLERS` may contain."""


def settings_of(handlers: Iterable[AnyHandler[Any]]) -> list[type[Settings]]:
    """Return the types of settings that handlers declare, each once."""
    declared = (one.settings_type for one in handlers if isinstance(one, Resource))
    return list(dict.fromkeys(declared))


class HandlerResource:
    """The handler of a stream, with what it needs open; without `make` there is nothing to open.

    `trouble` is why it cannot be opened, without quotes of errors; `error` is the last error, `failing_since` the time
    of the first. They are None when it is open, and while it is opened again. `retry_at` is when it was or will be
    opened again after a failure. `note_error` gets each error.
    """

    def __init__(  # noqa: PLR0913 - policies with their defaults
        self,
        handle: Handle | None = None,
        make: Callable[[], AbstractAsyncContextManager[Handler[Any]]] | None = None,
        name: str = "",
        retry: Retry = Retry(),  # noqa: B008 - frozen
        *,
        open_timeout_s: float = OPEN_TIMEOUT_S,
        close_timeout_s: float = CLOSE_TIMEOUT_S,
        give_way_s: float = GIVE_WAY_S,
    ) -> None:
        self.trouble = None if make is None else OPENING
        self.error: str | None = None
        self.failing_since: float | None = None
        self.retry_at: float | None = None
        self.note_error: NoteError = ignore_error
        self._handle = handle
        self._make = make
        self._name = name
        self._retry = retry
        self._open_timeout_s, self._close_timeout_s = open_timeout_s, close_timeout_s
        self._give_way_s = give_way_s
        self.is_open = make is None
        self._life: Contained | None = None
        self._end: asyncio.Future[None] | None = None

    async def handle(self, batch: Batch[Any]) -> object:
        """Call the handler. Raises `NotOpen` when it was never open."""
        if self._handle is None:
            raise NotOpen("the resource of the handler is not open")
        return await self._handle(batch)

    async def ready(self, abandonment: Abandonment) -> bool:
        """Wait until it is open; return False when the batch is to be redelivered first."""
        deadline = asyncio.get_running_loop().time() + self._give_way_s
        while not self.is_open:
            if await abandonment.wait(CHECK_OPEN_S) or asyncio.get_running_loop().time() > deadline:
                return False
        return True

    def renew(self) -> None:
        """Have it closed and opened again: nothing succeeds with it. No call of the handler may be running."""
        if self._make is not None and self._end is not None:
            self.is_open = False
            _finish(self._end)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Close it at the end of the block; `keep_open` opens it."""
        try:
            yield
        finally:
            await self._close()

    async def keep_open(self) -> None:
        """Open it, and open it again when it fails or is to be renewed, until cancelled."""
        failures = 0
        while self._make is not None:
            try:
                await self._live(self._make)
                failures = 0
            except Exception as error:  # noqa: BLE001 - after any error the records must wait for it
                failures += 1
                self._life = None  # nothing of it is open, or will be closed
                self._note(error, is_first=failures == 1)
                backoff_s = self._retry.backoff_s(failures + 1) * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load, not a secret
                self.retry_at = time.time() + backoff_s
                await asyncio.sleep(backoff_s)

    async def _live(self, make: Callable[[], AbstractAsyncContextManager[Handler[Any]]]) -> None:
        """Open it; close it after `renew`. Raises the error of the opening, or `NotOpen` when it ended by itself."""
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[Handler[Any]] = loop.create_future()
        end = self._end = loop.create_future()
        # a context is left by the task that entered it: anyio wants that, and a hanging one can be left behind
        life = self._life = start_contained(partial(_keep_open_until, make, opened, end), "resource of a handler")
        either: list[asyncio.Future[Any]] = [life, opened]
        await asyncio.wait(either, timeout=self._open_timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if not opened.done():
            if life.done():
                raise _error_of(life) or NotOpen("it ended before it was open")
            await self._cancel(life)
            raise NotOpen(f"it was not open after {self._open_timeout_s:g} s")
        self._handle = as_async(opened.result())
        self.trouble = self.error = self.failing_since = None
        self.is_open = not end.done()
        either = [life, end]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        self.is_open = False
        if not end.done():
            raise _error_of(life) or NotOpen("it ended while it was in use")
        await self._close()

    async def _close(self) -> None:
        """Close it; one that does not close in time is cancelled, then left behind."""
        life, end = self._life, self._end
        if life is None or end is None:
            return
        _finish(end)
        await asyncio.wait([life], timeout=self._close_timeout_s)
        if not life.done():
            log.error("the resource of the handler of %s does not close: it is cancelled", self._name)
            await self._cancel(life)
        elif error := _error_of(life):
            log.warning("the resource of the handler of %s raised when it was closed", self._name, exc_info=error)
        self._life = None

    async def _cancel(self, life: Contained) -> None:
        life.cancel()
        await asyncio.wait([life], timeout=CANCEL_TIMEOUT_S)
        if not life.done():
            log.error("the resource of the handler of %s ignores its cancellation: it is left behind", self._name)

    def _note(self, error: Exception, *, is_first: bool) -> None:
        kind = without_values(error)
        self.trouble = f"the resource of the handler cannot be opened: {kind}"
        self.error = one_line(error)[:MAX_ERROR_CHARACTERS]
        self.failing_since = self.failing_since or time.time()
        self.note_error(self.error, self.trouble)
        if is_first:
            log.warning("the resource of the handler of %s is not open, retrying: %s", self._name, kind, exc_info=error)


def handler_resource(  # noqa: PLR0913, PLR0917 - what a handler may need
    handler: AnyHandler[Any],
    settings: Settings,
    environment: Mapping[str, str],
    name: str,
    retry: Retry,
    publisher: Publisher,
) -> HandlerResource:
    """Return the handler of a stream with what it needs. Raises `WrongSetting` for a wrong setting of its own."""
    if not isinstance(handler, Resource):
        return HandlerResource(as_async(handler))
    own = read_own_settings(handler.settings_type, settings, environment)
    opens = _open_with_publish if PUBLISH in inspect.signature(handler.open_handler).parameters else _open
    return HandlerResource(None, partial(opens, handler.open_handler, own, publisher), name, retry)


def _open(open_handler: OpenHandler[T], settings: Settings, _: Publisher) -> AbstractAsyncContextManager[Handler[T]]:
    return open_handler(settings)


@asynccontextmanager
async def _open_with_publish(
    open_handler: OpenHandler[T], settings: Settings, publisher: Publisher
) -> AsyncIterator[Handler[T]]:
    async with publisher.open() as publish, open_handler(settings, publish=publish) as handler:
        yield handler


async def _keep_open_until(
    make: Callable[[], AbstractAsyncContextManager[Handler[Any]]],
    opened: "asyncio.Future[Handler[Any]]",
    end: "asyncio.Future[None]",
) -> None:
    async with make() as handler:
        if not callable(handler):
            raise TypeError(f"expected the context to yield a handler, got {type(handler).__name__}")
        opened.set_result(handler)
        await asyncio.wait([end])


def _finish(end: "asyncio.Future[None]") -> None:
    if not end.done():
        end.set_result(None)


def _error_of(life: Contained) -> BaseException | None:
    """Return why a context ended, None when it was left as it should be."""
    return NotOpen("its task was cancelled") if life.cancelled() else life.result()
