"""Ask for the in-flight batch to be abandoned, and cancel a handler that takes too long."""

import asyncio
from collections.abc import Callable


class Leaving(asyncio.Event):
    """Set while the partitions are about to be revoked, or sought; `break_off` is called when the time is up."""

    def __init__(self, break_off: Callable[[], None]) -> None:
        super().__init__()
        self._break_off = break_off
        self._timer: asyncio.TimerHandle | None = None

    def set(self, within_s: float | None = None) -> None:
        """Ask for the batch to be abandoned; cancel a handler that still runs after `within_s` seconds."""
        super().set()
        self._stop_timer()
        if within_s is not None:
            self._timer = asyncio.get_running_loop().call_later(within_s, self._break_off)

    def clear(self) -> None:
        """Allow batches to be handled again."""
        super().clear()
        self._stop_timer()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
