"""Writes to a connection with TLS in pieces, so that it is known how much of the answers its caller has not read."""

from collections import deque
from typing import Any

PIECE_BYTES = 16 * 1024
"""The most that one record of TLS holds (RFC 8446, section 5.1)."""


class PacedTransport:
    """A transport with TLS that takes the next piece only when the one before has left it.

    asyncio's and uvloop's own hand a whole write on to the connection below, and then no longer count it as unsent: an
    answer that nobody reads would take memory, and neither pause its writer nor count.
    """

    def __init__(self, transport: Any) -> None:  # noqa: ANN401 - asyncio's or uvloop's
        self._transport = transport
        self._waiting: deque[memoryview] = deque()
        self._is_paused = self._ends = False

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - what a transport has
        """Return what the transport itself has."""
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write, behind what waits."""
        whole = memoryview(data)
        self._waiting += (whole[begin : begin + PIECE_BYTES] for begin in range(0, len(whole), PIECE_BYTES))
        self._hand_on()

    def pause(self) -> None:
        """Wait: the connection is full."""
        self._is_paused = True

    def resume(self) -> bool:
        """Write what waits; return whether there is room for more."""
        self._is_paused = False
        self._hand_on()
        return not (self._waiting or self._is_paused)

    def get_write_buffer_size(self) -> int:
        """Return the unsent bytes, without up to 80 KiB in the connection below."""
        return sum(map(len, self._waiting)) + int(self._transport.get_write_buffer_size())

    def is_closing(self) -> bool:
        """Return whether nothing more will be written than what waits."""
        return self._ends or bool(self._transport.is_closing())

    def close(self) -> None:
        """Close after everything is written."""
        self._ends = True
        self._hand_on()

    def abort(self) -> None:
        """Close at once."""
        self._waiting.clear()
        self._transport.abort()

    def _hand_on(self) -> None:
        while self._waiting and not self._is_paused:
            self._transport.write(self._waiting.popleft())
        if self._ends and not self._waiting:
            self._transport.close()
