"""Answer `GET /livez` on a separate port from a thread, even while the event loop is blocked.

A loop that is blocked for ever needs a restart; a block of some seconds does not. On the service's own port a probe
could not distinguish them.
"""

import asyncio
import socket
import threading
from contextlib import closing, suppress
from http import HTTPStatus
from typing import Protocol

DEAD_AFTER_S = 30.0
"""Seconds without a turn of the event loop after which the process counts as dead."""
CALLER_S = 5.0
"""Seconds that a caller may take to send a request and to read its answer."""
MAX_CALLERS = 100
"""Open connections; beyond that the oldest one is closed, so that probes always find room."""
MAX_HEAD_BYTES = 8 * 1024


class Watch(Protocol):
    """Knows how long an event loop has not turned."""

    @property
    def without_turn_s(self) -> float:
        """The seconds for which the loop has not answered; 0 when it has."""


class LivenessServer:
    """Answers 200 if the event loop turned within the last 30 s, else 503. It has an event loop of its own."""

    def __init__(
        self,
        listening: socket.socket,
        watch: Watch,
        dead_after_s: float = DEAD_AFTER_S,
        *,
        caller_s: float = CALLER_S,
        max_callers: int = MAX_CALLERS,
    ) -> None:
        self._listening = listening
        self._watch = watch
        self._dead_after_s = dead_after_s
        self._caller_s = caller_s
        self._max_callers = max_callers
        self._callers: dict[asyncio.StreamWriter, None] = {}

    def start(self) -> None:
        """Serve until the process ends."""
        threading.Thread(target=lambda: asyncio.run(self._serve()), name="liveness", daemon=True).start()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._converse, sock=self._listening, limit=MAX_HEAD_BYTES)
        await server.serve_forever()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request, and close the connection."""
        if len(self._callers) >= self._max_callers:
            oldest = next(iter(self._callers))
            del self._callers[oldest]
            oldest.transport.abort()
        self._callers[writer] = None
        try:
            with closing(writer), suppress(OSError, EOFError, asyncio.LimitOverrunError):
                async with asyncio.timeout(self._caller_s):
                    head = await reader.readuntil(b"\r\n\r\n")
                    method, path, *_ = [*head.split(b" ", 2), b""]
                    writer.write(self._answer(method, path.partition(b"?")[0]))
                    await writer.drain()
        finally:
            self._callers.pop(writer, None)

    def _answer(self, method: bytes, path: bytes) -> bytes:
        """Return an answer, whose status and body depend on the loop."""
        status, body, silent_s = HTTPStatus.OK, b'{"status":"alive"}', self._watch.without_turn_s
        if path != b"/livez":
            status, body = HTTPStatus.NOT_FOUND, b'{"status":"unknown path"}'
        elif method not in {b"GET", b"HEAD"}:
            status, body = HTTPStatus.METHOD_NOT_ALLOWED, b'{"status":"expected GET"}'
        elif silent_s > self._dead_after_s:
            status, body = HTTPStatus.SERVICE_UNAVAILABLE, b'{"status":"blocked","seconds":%d}' % silent_s
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nAllow: GET, HEAD\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + (b"" if method == b"HEAD" else body)
