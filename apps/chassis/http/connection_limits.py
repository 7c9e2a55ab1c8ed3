"""What a connection may ask for before a request is there: uvicorn itself sets no such limits with httptools."""

import asyncio
import socket
import struct
import time
from functools import partial
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from apps.chassis.http.admission import UNSENT, UnsentAnswers
from apps.chassis.internals.http_framing import FramedProtocol

REQUEST_WITHIN = 30.0
"""Seconds to send a request head, from the connection or from the head's first byte.

Between two requests a connection may be idle for uvicorn's `timeout_keep_alive`.
"""
LARGEST_HEAD = 64 * 1024
"""Bytes of the head of a request, of what stands behind its body, and of what stands between two pieces of it."""
MOST_WITHOUT_REQUEST = 2_000
"""Connections that wait for a request at a time: a thousand callers may well come at once."""
MOST_IN_ADVANCE = 100
"""Requests that a connection may send before the one in hand is answered."""

ALL_HERE = "request_is_all_here"
"""Set in the scope of a request that has arrived to its end: whoever reads its body need not watch the clock."""

UNCOUNTED_BYTES = 16 * 1024
"""Bytes of answers that each connection may leave unread before they count."""
READ_CHECK_S = 30.0
LEAST_READ_BYTES = 1024 * 1024
"""A caller with unread bytes that reads fewer than this between two checks is disconnected."""
JOINED_BYTES = 64 * 1024
"""A larger body is not copied to be written together with its head."""

BREAK_OFF = "break_off"
"""Set in the scope of a request: closes its connection, so that its caller cannot take the answer for complete."""
RESET_AT_CLOSE = struct.pack("ii", 1, 0)
"""The value of `SO_LINGER` for a connection that is reset when it closes."""

TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Joined:
    """A transport that writes the head of an answer together with the first of its body, where that follows at once.

    Two writes are two system calls and two packets, which the caller reads one after the other.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""

    def write(self, data: bytes) -> None:
        """Write, a head with what follows it."""
        if self._head and len(data) > JOINED_BYTES:
            self._write_head()
            self._transport.write(data)
        elif self._head:
            head, self._head = self._head, b""
            self._transport.write(head + data)
        elif data.startswith(b"HTTP/"):
            self._head = data
            self._loop.call_soon(self._write_head)
        else:
            self._transport.write(data)

    def is_closing(self) -> bool:
        """Tell whether nothing more will be written."""
        return self._transport.is_closing()

    def close(self) -> None:
        """Close when all is written."""
        self._write_head()
        self._transport.close()

    def _write_head(self) -> None:
        if self._head and not self._transport.is_closing():
            self._transport.write(self._head)
        self._head = b""


class LimitedProtocol(FramedProtocol):
    """Closes connections that send no request in time, and disconnects callers that do not read.

    When too many connections wait, the one that has waited longest is closed. A caller that sends its request at once
    is never affected. Unread bytes of answers are counted.
    """

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - uvicorn's own
        super().__init__(*args, **options)
        self.waiting_since = 0.0
        self._begun = 0.0
        self._idle = False
        self._between_requests = True
        self._giving_up: asyncio.TimerHandle | None = None
        self._answers: UnsentAnswers = self.app_state.setdefault(UNSENT, UnsentAnswers())
        self._unsent = 0
        self._read_check: asyncio.TimerHandle | None = None
        self._unused = 0
        self._asked: list[RequestResponseCycle] = []

    @property
    def waits(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Begin to wait for a request."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=UNCOUNTED_BYTES)
        self._joined: Any = Joined(transport, self.loop)
        self.waiting_since = time.monotonic()  # uvloop's own clock stands still for milliseconds
        self._expect_request()
        if len(self.connections) > MOST_WITHOUT_REQUEST:
            waiting = [one for one in self.connections if isinstance(one, LimitedProtocol) and one.waits]
            if len(waiting) > MOST_WITHOUT_REQUEST:
                min(waiting, key=lambda one: one.waiting_since).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        if self._giving_up is not None:
            self._giving_up.cancel()
        self._forget_unsent()
        self._answer_no_more()
        super().connection_lost(exc)

    def eof_received(self) -> None:
        """Take a caller that sends no more for one that has gone, as uvicorn does."""
        self._answer_no_more()

    def data_received(self, data: bytes) -> None:
        """Take what came, unless it is too much of nothing that is of use yet."""
        self._unused += len(data)
        if self._idle:
            self._idle = False
            self._expect_request()
        super().data_received(data)
        if self._unused > LARGEST_HEAD and not self.transport.is_closing():
            if self.waits:
                self.transport.write(TOO_LARGE)
            self._answer_no_more()
            self.transport.close()

    def on_message_begin(self) -> None:
        """Begin to read a request."""
        super().on_message_begin()
        self._between_requests = False

    def request_begun(self) -> None:
        """Begin to answer a request, or queue it behind the one that is being answered."""
        self._unused = 0
        if len(self.pipeline) >= MOST_IN_ADVANCE:
            raise httptools.HttpParserError("too many requests in advance")
        super().request_begun()
        self.cycle.transport = self._joined
        self.cycle.scope[BREAK_OFF] = partial(self._break_off, self.scope["http_version"])  # type: ignore[literal-required]  # a key of our own
        unanswered = [one for one in self._asked if not one.response_complete] if self.pipeline else []
        self._asked = [*unanswered, self.cycle]

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        self._unused = 0
        super().on_body(body)

    def request_complete(self) -> None:
        """Note that a request is all here."""
        super().request_complete()
        self._between_requests = True
        self.cycle.scope[ALL_HERE] = True  # type: ignore[literal-required]  # a key of our own

    def on_response_complete(self) -> None:
        """Wait for the next request. Its time starts at its first byte, which may already be here."""
        super().on_response_complete()
        self.waiting_since = time.monotonic()
        self._idle = self._between_requests
        if not self._idle:
            self._expect_request()

    def pause_writing(self) -> None:
        """Count the bytes that the caller has not read yet, until it reads them."""
        super().pause_writing()
        self._count_unsent()

    def resume_writing(self) -> None:
        """Stop counting the unread bytes."""
        self._forget_unsent()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP; while a request is being answered that would be taken for its answer."""
        if self.waits:
            super().send_400_response(msg)
        else:
            self._answer_no_more()
            self.transport.close()

    def _break_off(self, http_version: str) -> None:
        """Close the connection in the middle of an answer, so that the caller notices that it is incomplete.

        An answer to HTTP/1.0 ends with its connection, so the connection is reset.
        """
        if http_version == "1.0":
            connected = self.transport.get_extra_info("socket")
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
        self._answer_no_more()
        self._joined.close()

    def _answer_no_more(self) -> None:
        """Tell all calls under way that their caller has gone; uvicorn tells the last alone, and that later.

        What they would send until then, or after, would be an error: uvloop raises at a transport that was closed.
        """
        for one in self._asked:
            if not one.response_complete:
                one.disconnected = True
                one.message_event.set()

    def _expect_request(self) -> None:
        self._begun = time.monotonic()
        if self._giving_up is None and not self.transport.is_closing():
            self._giving_up = self.loop.call_later(REQUEST_WITHIN, self._give_up)

    def _give_up(self) -> None:
        """Close connections that took too long. One timer serves many requests, because most arrive together."""
        self._giving_up = None
        if self._idle or not self.waits or self.transport.is_closing():  # the next request restarts the time
            return
        left = self._begun + REQUEST_WITHIN - time.monotonic()
        if left > 0:
            self._giving_up = self.loop.call_later(left, self._give_up)
        else:
            self.transport.close()

    def _count_unsent(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        self._answers.bytes += unsent - self._unsent
        self._unsent = unsent
        self._read_check = self.loop.call_later(READ_CHECK_S, self._check_reading)

    def _forget_unsent(self) -> None:
        if self._read_check is not None:
            self._read_check.cancel()
            self._read_check = None
        self._answers.bytes -= self._unsent
        self._unsent = 0

    def _check_reading(self) -> None:
        if self._unsent - self.transport.get_write_buffer_size() < LEAST_READ_BYTES:
            self._answer_no_more()
            self.transport.abort()
        else:
            self._count_unsent()
