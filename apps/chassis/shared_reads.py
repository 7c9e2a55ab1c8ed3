"""Share reads of Kafka between calls: several tabs of a page ask for the same at the same time."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from itertools import count
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class _Reading(NamedTuple):
    """A read under way: its number in the order of calls and reads, and its result."""

    number: int
    result: "asyncio.Future[Any]"


class SharedReads:
    """Runs one read of a thing at a time. Callers that wait for it share the next one, or the error of this one.

    A caller never gets what was read before it asked: its own action may have changed that.
    """

    def __init__(self) -> None:
        self._numbers = count()
        self._readings: dict[Hashable, _Reading] = {}

    async def read(self, thing: Hashable, read: Callable[[], Awaitable[T]]) -> T:
        """Return what `read` returns, here or for another caller that wants the same thing."""
        asked = next(self._numbers)
        while reading := self._readings.get(thing):
            await asyncio.wait([reading.result])
            if not reading.result.cancelled() and (reading.number > asked or reading.result.exception()):
                result: T = reading.result.result()
                return result
        result_of_all: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._readings[thing] = _Reading(next(self._numbers), result_of_all)
        try:
            result = await read()
        except Exception as error:
            result_of_all.set_exception(error)
            result_of_all.exception()  # retrieves it, or asyncio logs a warning
            raise
        else:
            result_of_all.set_result(result)
            return result
        finally:
            result_of_all.cancel()  # when the caller has gone: another one reads then
            del self._readings[thing]
