"""Limits of connections, for requests and for unread answers: uvicorn sets none with httptools."""

import asyncio
import socket
import struct
import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any, NamedTuple

from apps.chassis.http.admission import UNSENT, UnsentAnswers
from apps.chassis.http.paced_transport import PacedTransport
from apps.chassis.internals.http_framing import Cycle, FramedProtocol, Refused

MAX_HEAD_BYTES = 64 * 1024
"""Largest head of a request in bytes, and most bytes after its body or between two chunks of it."""
MAX_URL_BYTES = 65_535
"""Longest path and query that the parser of httptools takes, in bytes."""
MAX_WITHOUT_REQUEST = 2_000
"""Most connections without a request: a thousand callers may connect at once. Of those with TLS a quarter may wait."""
MAX_PIPELINED = 100
"""Most requests that a connection may send before the first is answered."""

ALL_HERE = "request_is_all_here"
"""Set in the scope of a request that has arrived completely: reading its body needs no timeout."""

UNCOUNTED_BYTES = 16 * 1024
"""Bytes of answers that each connection may leave unread before they count."""
JOINED_BYTES = 64 * 1024
"""A larger body is not copied to be written together with its head."""

BREAK_OFF = "break_off"
"""Set in the scope of a request: a function that closes the connection in the middle of the answer."""
SENDS_NO_MORE = "caller_sends_no_more"
"""Set in the scope of a request whose caller has closed its sending side: it may still read, or have gone."""
RESET_AT_CLOSE = struct.pack("ii", 1, 0)
"""The value of `SO_LINGER` for a connection that is reset when it closes."""

URL_TOO_LONG = Refused(HTTPStatus.REQUEST_URI_TOO_LONG, f"the path and query are longer than {MAX_URL_BYTES} bytes")
HEAD_TOO_LARGE = Refused(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the head of the request is larger than {MAX_HEAD_BYTES} bytes"
)
TOO_MANY_IN_ADVANCE = Refused(
    HTTPStatus.BAD_REQUEST, f"more than {MAX_PIPELINED} requests were sent before the first was answered"
)


class ConnectionLimits(NamedTuple):
    """How long a connection may do nothing, and how many may."""

    request_within_s: float = 30.0
    """Seconds to send a request head, from the connection or from the head's first byte.

    Between two requests a connection may be idle for uvicorn's `timeout_keep_alive`.
    """
    max_without_request: int = MAX_WITHOUT_REQUEST
    read_check_s: float = 30.0
    min_read_bytes: int = 1024 * 1024
    """A caller with unread bytes that reads fewer than this between two checks is disconnected."""


COST_OF_TLS = 4
"""How many times as much memory a waiting connection with TLS may take, in whole numbers: its buffers stay."""
DEFAULT_LIMITS = ConnectionLimits()


class Joined:
    """A transport that writes the head of an answer together with the beginning of its body, if that follows at once.

    Two writes would be two system calls and two packets, also with uvloop. `last_bytes` is the size of the last write.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""
        self.last_bytes = 0
        self.end: Callable[[], object] = transport.close

    def write(self, data: bytes) -> None:
        """Write; a head waits for what follows it."""
        self.last_bytes = len(data)
        if self._head and len(data) > JOINED_BYTES:
            self.write_head()
            self._transport.write(data)
        elif self._head:
            head, self._head = self._head, b""
            self._transport.write(head + data)
        elif data.startswith(b"HTTP/"):
            self._head = data
            self._loop.call_soon(self.write_head)
        else:
            self._transport.write(data)

    def is_closing(self) -> bool:
        """Return whether nothing more will be written."""
        return self._transport.is_closing()

    def close(self) -> None:
        """Close after everything is written."""
        self.write_head()
        self.end()

    def write_head(self) -> None:
        """Write a head that waits for what follows it, unless the connection is gone."""
        if self._head and not self._transport.is_closing():
            self._transport.write(self._head)
        self._head = b""


class LimitedProtocol(FramedProtocol):
    """Closes connections that send no request in time, and disconnects callers that do not read.

    When too many connections wait, those that have waited longest are closed. A caller that sends its request at once
    is never affected. Unread bytes of answers are counted.
    """

    def __init__(self, *args: Any, limits: ConnectionLimits = DEFAULT_LIMITS, **options: Any) -> None:  # noqa: ANN401 - uvicorn's own
        super().__init__(*args, **options)
        self._limits = limits
        self._max_waiting = limits.max_without_request
        self.waiting_since = 0.0
        self._begun = 0.0
        self._idle = False
        self._between_requests = True
        self._timer: asyncio.TimerHandle | None = None
        self._answers: UnsentAnswers = self.app_state.setdefault(UNSENT, UnsentAnswers())
        self._unsent = self._counted = 0
        self._read_check: asyncio.TimerHandle | None = None
        self._paced: PacedTransport | None = None
        self._unused = 0
        self._asked: list[Cycle] = []
        self._refused: Refused | None = None

    @property
    def waits(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Begin to wait for a request."""
        if transport.get_extra_info("ssl_object") is not None:
            transport = self._paced = PacedTransport(transport)  # type: ignore[assignment]  # a transport all the same
            self._max_waiting = max(1, self._max_waiting // COST_OF_TLS)
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=UNCOUNTED_BYTES)
        self._joined: Any = Joined(transport, self.loop)
        self.waiting_since = time.monotonic()  # uvloop's own clock stands still for milliseconds
        self._expect_request()
        if len(self.connections) > self._max_waiting:
            self._close_longest_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timers, and disconnect the calls under way."""
        if self._timer is not None:
            self._timer.cancel()
        self._forget_unsent()
        if self._paced is not None:
            self._paced.abort()
        self._disconnect_calls()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio's own may say to keep the connection open
        """Keep the connection for the answers under way: a caller that has gone is noticed when they are written."""
        if self.waits or not self.transport.can_write_eof():  # TLS ends in both directions
            self._disconnect_calls()
            return False
        for one in self._unanswered():
            one.scope[SENDS_NO_MORE] = True  # type: ignore[literal-required]  # a key of our own
            one.message_event.set()
        if self._refused is None:
            self.cycle.keep_alive = False
            if self.cycle.more_body:
                self.end_body_early()
        return True

    def data_received(self, data: bytes) -> None:
        """Parse received bytes; refuse too many that belong to no body."""
        if self._refused is not None or (self._paced is not None and self._paced.is_closing()):
            return
        self._unused += len(data)
        if self._idle:
            self._idle = False
            self._expect_request()
        super().data_received(data)
        if self._unused > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.refuse(HEAD_TOO_LARGE)

    def on_url(self, url: bytes) -> None:
        """Add a piece to the path and query."""
        super().on_url(url)
        if len(self.url) > MAX_URL_BYTES:
            raise URL_TOO_LONG

    def on_message_begin(self) -> None:
        """Begin to read a request."""
        super().on_message_begin()
        self._between_requests = False

    def request_begun(self) -> None:
        """Begin to answer a request, or queue it behind the one that is being answered."""
        self._unused = 0
        if len(self.pipeline) >= MAX_PIPELINED:
            raise TOO_MANY_IN_ADVANCE
        super().request_begun()
        self.cycle.transport = self._joined
        self.cycle.scope[BREAK_OFF] = partial(self._break_off, self.scope["http_version"])  # type: ignore[literal-required]  # a key of our own
        self._asked = [*(self._unanswered() if self.pipeline else ()), self.cycle]

    def on_body(self, body: bytes) -> None:
        """Add a piece to the body."""
        self._unused = 0
        super().on_body(body)

    def request_complete(self) -> None:
        """Note that a request has arrived completely."""
        super().request_complete()
        self._between_requests = True
        self.cycle.scope[ALL_HERE] = True  # type: ignore[literal-required]  # a key of our own

    def on_response_complete(self) -> None:
        """Wait for the next request. Its time starts at its first byte, which may already be here."""
        self._joined.write_head()  # of an answer without a body: the connection may close before the next turn
        super().on_response_complete()
        if self.cycle.ended_by is not None:
            return
        if self._refused is not None and self.waits and not self.transport.is_closing():
            super().refuse(self._refused)
            return
        self.waiting_since = time.monotonic()
        self._idle = self._between_requests
        if not self._idle:
            self._expect_request()

    def shutdown(self) -> None:
        """Close when the answers under way are done: with TLS asyncio would wait for a caller's good-bye."""
        super().shutdown()
        if self._paced is not None and self.waits:
            self._reset_later()

    def pause_writing(self) -> None:
        """Count the bytes that the caller has not read yet, until it reads them."""
        if self._paced is not None:
            self._paced.pause()
        super().pause_writing()
        if self._read_check is None:
            self._count_unsent()

    def resume_writing(self) -> None:
        """Stop counting the unread bytes, once there are few."""
        if self._paced is not None and not self._paced.resume():
            return
        self._forget_unsent()
        super().resume_writing()

    def refuse(self, refused: Refused) -> None:
        """Refuse what arrived: behind the answers to complete requests, and in place of one that waits for its turn.

        A call whose body is incomplete answers itself: it may have sent records.
        """
        if self._refused is not None or self.transport.is_closing():
            return
        self._refused = refused
        if self._runs_an_incomplete_request():
            self._joined.end = self.close_later
            self.end_body_early(refused)
        elif self.waits:
            super().refuse(refused)
        elif self.cycle.more_body:
            self.pipeline.popleft()
            self._asked.pop()
            self.cycle = self._asked[-1]

    def _runs_an_incomplete_request(self) -> bool:
        """Return whether the request that is being answered has not arrived completely."""
        return not self.waits and self.cycle.more_body and not self.pipeline

    def _break_off(self, http_version: str) -> None:
        """Close the connection in the middle of an answer, so that the caller notices that it is incomplete.

        An answer to HTTP/1.0 ends with its connection, so the connection is reset.
        """
        if http_version == "1.0":
            connected = self.transport.get_extra_info("socket")
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
            self._joined.end = self.transport.close if self._paced is None else self._reset_later  # TLS says good-bye
        self._disconnect_calls()
        self._joined.close()

    def _reset_later(self) -> None:
        self.loop.call_later(self._close_after_s, self.transport.abort)

    def _disconnect_calls(self) -> None:
        """Mark all calls under way as disconnected; uvicorn marks only the last, and later.

        Sending would be an error: uvloop raises for a closed transport.
        """
        for one in self._unanswered():
            one.disconnected = True
            one.message_event.set()

    def _unanswered(self) -> list[Cycle]:
        return [one for one in self._asked if not one.response_complete]

    def _close_longest_waiting(self) -> None:
        """Close waiting connections beyond the limit, and a twentieth more: finding them takes milliseconds."""
        maximum = self._max_waiting
        waiting = [one for one in self.connections if isinstance(one, LimitedProtocol) and one.waits]
        if (excess := len(waiting) - maximum) > 0:
            for one in sorted(waiting, key=lambda one: one.waiting_since)[: excess + maximum // 20]:
                self.connections.discard(one)  # its end is announced only after all new ones
                one.transport.abort()

    def _expect_request(self) -> None:
        self._begun = time.monotonic()
        if self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(self._limits.request_within_s, self._time_out)

    def _time_out(self) -> None:
        """Close a connection that took too long. One timer serves many requests, because most arrive quickly."""
        self._timer = None
        if self._idle or not self.waits or self.transport.is_closing():  # the next request restarts the time
            return
        left = self._begun + self._limits.request_within_s - time.monotonic()
        if left > 0:
            self._timer = self.loop.call_later(left, self._time_out)
        else:
            self.transport.close()

    def _count_unsent(self) -> None:
        self._unsent = self.transport.get_write_buffer_size()
        counted = max(self._unsent, self._joined.last_bytes)  # uvloop keeps all of a write until its last byte is sent
        self._answers.bytes += counted - self._counted
        self._counted = counted
        self._read_check = self.loop.call_later(self._limits.read_check_s, self._check_reading)

    def _forget_unsent(self) -> None:
        if self._read_check is not None:
            self._read_check.cancel()
            self._read_check = None
        self._answers.bytes -= self._counted
        self._unsent = self._counted = 0

    def _check_reading(self) -> None:
        if self._unsent - self.transport.get_write_buffer_size() < self._limits.min_read_bytes:
            self._disconnect_calls()
            self.transport.abort()
        else:
            self._count_unsent()
