"""Remember since when errors last that have no time of their own, and the newest of them."""

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

TimedError = tuple[str | None, datetime | None]
"""An error, None without one, and when it happened or began."""
LOOK_EVERY_S = 1.0
"""Seconds between two looks at the errors."""


class LastingErrors:
    """Knows when each error began that lasts now; `newest` is the last one that began, also when it is over.

    An error is kept as the newest only when `is_kept` says so: what fails before the first connection is soon over.
    """

    def __init__(self, is_kept: Callable[[], bool]) -> None:
        self._is_kept = is_kept
        self.newest: TimedError = None, None
        self._began: dict[str, datetime] = {}

    def note(self, source: str, error: str | None) -> TimedError:
        """Note the error that a source has now, None without one; return it with the time when it was first noted."""
        if error is None:
            self._began.pop(source, None)
            return None, None
        began = self._began.setdefault(source, datetime.now(UTC))
        if self._is_kept() and (self.newest[1] is None or began >= self.newest[1]):
            self.newest = error, began
        return error, began

    async def watch(self, errors: Callable[[], Mapping[str, str | None]], every_s: float = LOOK_EVERY_S) -> None:
        """Note the errors of all sources until cancelled, so that their times do not depend on who asks."""
        while True:
            for source, error in errors().items():
                self.note(source, error)
            await asyncio.sleep(every_s)
