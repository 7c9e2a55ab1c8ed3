"""Wait for the acknowledgement of batches that a producer has sent."""

import asyncio
from typing import Any


class SentBatches:
    """Batches that wait for their acknowledgement.

    They are not cancelled with the task that waits for them. The client would go on with them all the same, and asyncio
    would log the error of each that fails later.
    """

    def __init__(self) -> None:
        self._pending: set[asyncio.Future[Any]] = set()

    def add(self, sending: asyncio.Future[Any]) -> None:
        """Add what `send_batch` or `send` of a producer returned."""
        sending.add_done_callback(_retrieve_error)
        self._pending.add(sending)

    async def acknowledged(self, timeout_s: float | None = None) -> bool:
        """Return whether all are acknowledged, after `timeout_s` seconds at most. Raises the first error."""
        if self._pending:
            done, self._pending = await asyncio.wait(
                self._pending, timeout=timeout_s, return_when=asyncio.FIRST_EXCEPTION
            )
            for one in done:
                one.result()
        return not self._pending


def _retrieve_error(sending: asyncio.Future[Any]) -> None:
    if not sending.cancelled():
        sending.exception()
