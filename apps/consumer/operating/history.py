"""Keep how fast a stream was consumed, and its lag, over the last hour."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec

STEP_S = 10.0
"""Seconds between two points."""
KEPT_POINTS = 360
"""Points that are kept: an hour of them."""


class Counts(NamedTuple):
    """How many records were consumed and dead-lettered since the start."""

    consumed: int
    dead_lettered: int


class Point(msgspec.Struct, frozen=True):
    """Records per second since the point before, and the lag in records; `at` in milliseconds since 1970 UTC.

    `lag` is null where Kafka did not report it.
    """

    at: int
    consumed: float
    dead_lettered: float
    lag: int | None


class History(msgspec.Struct):
    """The points of the last hour, oldest first, `step_seconds` apart: a longer distance is a gap.

    This instance keeps them in memory, so they begin with its start.
    """

    step_seconds: float
    points: list[Point]


class HistoryKeeper:
    """Keeps the history of a stream, of bounded length; `counts` and `lag` return the present values."""

    def __init__(
        self,
        counts: Callable[[], Counts],
        lag: Callable[[], Awaitable[int | None]],
        step_s: float = STEP_S,
        kept: int = KEPT_POINTS,
    ) -> None:
        self._counts = counts
        self._lag = lag
        self._step_s = step_s
        self._points: deque[Point] = deque(maxlen=kept)

    @property
    def history(self) -> History:
        """The history up to now."""
        return History(self._step_s, list(self._points))

    async def keep(self) -> None:
        """Add a point at each step, until cancelled."""
        before, began = self._counts(), time.monotonic()
        while True:
            await asyncio.sleep(self._step_s)
            lag, now, at = await self._lag(), self._counts(), time.monotonic()
            seconds = at - began
            consumed, dead_lettered = ((after - first) / seconds for first, after in zip(before, now, strict=True))
            self._points.append(
                Point(int(time.time() * 1_000), round(consumed, 1), round(dead_lettered, 1), lag),
            )
            before, began = now, at
