"""Ask for the in-flight batch to be abandoned, and cancel a handler call that takes too long."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

Reason = Literal["rebalance", "seek", "stop"]


class Abandonment:
    """Asks for batches to be abandoned, as long as there is a reason; `cancel` ends a handler call."""

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._cancel = cancel
        self._reasons: dict[Reason, asyncio.TimerHandle | None] = {}
        self._event = asyncio.Event()

    @property
    def is_asked(self) -> bool:
        """Whether there is a reason."""
        return bool(self._reasons)

    def ask(self, reason: Reason, cancel_after_s: float | None = None) -> None:
        """Ask for the batch until `withdraw`; cancel a handler call that still runs after some seconds."""
        self.withdraw(reason)
        loop = asyncio.get_running_loop()
        self._reasons[reason] = None if cancel_after_s is None else loop.call_later(cancel_after_s, self._cancel)
        self._event.set()

    def withdraw(self, *reasons: Reason) -> None:
        """Withdraw reasons; batches are handled again once none is left."""
        for reason in reasons:
            if timer := self._reasons.pop(reason, None):
                timer.cancel()
        if not self._reasons:
            self._event.clear()

    def end_backoff(self) -> None:
        """Wake who waits in `wait`, without a reason to abandon batches."""
        self._event.set()
        self.withdraw()

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait for a reason or for `end_backoff`, at most some seconds; return whether one came."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await self._event.wait()
        return False
