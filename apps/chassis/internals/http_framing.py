"""Reads requests and frames answers as RFC 9112 says, where uvicorn's httptools protocol does not: a PROTECTION.

Reaches for the protocol's steps (head, body, end) and for the parts of a request's cycle.

Lost without it:

- The body behind an offered upgrade: uvicorn would parse it as the next request, which is request smuggling
  (https://github.com/Kludex/uvicorn/issues/2722; several fixes were not taken).
- The ends of answers to HTTP/1.0.
"""

import asyncio
import socket
import struct
from functools import partial
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from apps.chassis.http.problems import encoded, problem

REACHES = (
    "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol.data_received(data)",
    "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol.on_header(name, value)",
    "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol.on_headers_complete uses cycle, expect_100_continue",
    "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol.on_message_complete(self)",
    "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol._unset_keepalive_if_required(self)",
    "uvicorn.protocols.http.httptools_impl:RequestResponseCycle.__init__ uses transport, keep_alive, body, more_body",
    "uvicorn.protocols.http.httptools_impl:RequestResponseCycle.__init__ uses waiting_for_100_continue, disconnected",
    "uvicorn.protocols.http.httptools_impl:RequestResponseCycle.receive uses message_event",
    "uvicorn.protocols.http.httptools_impl:RequestResponseCycle.send uses chunked_encoding, response_complete",
    "uvicorn.protocols.http.httptools_impl:RequestResponseCycle.send(message) uses expected_content_length",
)

ASK_FOR_BODY = "ask_for_body"
"""Set in the scope of a request whose caller waits for `100 Continue` before it sends the body: sends it once."""

MAX_HEADERS = 100
"""Most headers of a request, and most trailers: Apache, Tomcat and HAProxy take as many."""
CLOSE_AFTER_S = 1.0
"""Seconds for a caller to read a refusal or the sent part of a broken answer, before its connection is closed."""


class Refused(httptools.HttpParserError):
    """A request that the server itself refuses, with a status and what is wrong; nothing behind it is parsed."""

    def __init__(self, status: HTTPStatus, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


LINES = b"application/x-ndjson"
"""The media type of a body of lines: none would look like a body of which every line was taken."""
NO_LENGTH = Refused(
    HTTPStatus.LENGTH_REQUIRED, "lines need a Content-Length, which may be 0, or Transfer-Encoding: chunked"
)
FRAGMENT = Refused(HTTPStatus.BAD_REQUEST, "the request target has a #: send %23")
TOO_MANY_HEADERS = Refused(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the request has more than {MAX_HEADERS} headers, or trailers"
)
NOT_HTTP = Refused(HTTPStatus.BAD_REQUEST, "what was sent is not a valid HTTP request")
BROKE_OFF = Refused(HTTPStatus.BAD_REQUEST, "the body broke off")


class ClosingTransport:
    """A transport for an answer that ends when the connection closes: one that is incomplete resets the connection.

    The caller could not tell it from a complete answer otherwise.
    """

    def __init__(
        self,
        transport: Any,  # noqa: ANN401 - a transport, or its wrapper
        connection: asyncio.Transport,
        cycle: RequestResponseCycle,
        close_after_s: float,
    ) -> None:
        self._close_after_s = close_after_s
        self._transport = transport
        self._connection = connection
        self._cycle = cycle

    def write(self, data: bytes) -> None:
        """Write to the transport."""
        self._transport.write(data)

    def is_closing(self) -> bool:
        """Return whether the transport is closing."""
        return bool(self._transport.is_closing())

    def close(self) -> None:
        """Close after a complete answer, reset after an incomplete one."""
        if self._cycle.response_complete:
            self._transport.close()
        else:
            asyncio.get_running_loop().call_later(self._close_after_s, self._reset)

    def _reset(self) -> None:
        if not self._connection.is_closing():
            at_once = struct.pack("ii", 1, 0)
            self._connection.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
            self._connection.abort()


class Cycle(RequestResponseCycle):
    """A request and its answer; the body of a request may end early, and its call can still answer then."""

    ended_by: Refused | None = None

    async def receive(self) -> Any:  # noqa: ANN401 - an ASGI event
        """Return the next piece of the body; behind the last one of a body that ended early a disconnect and `why`."""
        message: Any = await super().receive()
        if self.ended_by is not None and message["type"] == "http.request":
            if not message["body"]:
                return {"type": "http.disconnect", "why": self.ended_by}
            self.message_event.set()
        return message


class FramedProtocol(HttpToolsProtocol):
    """Ignores offered upgrades, refuses requests without a clear end, and answers HTTP/1.0 without chunks.

    The parser stops after the head of an offered upgrade, because another protocol might follow. No upgrade is ever
    accepted here, so the body follows (RFC 9110, section 7.8). A new parser then reads the same head without its
    `Upgrade` header, and finds the body and its end as in any other request.
    """

    cycle: Cycle

    def __init__(self, *args: Any, close_after_s: float = CLOSE_AFTER_S, **options: Any) -> None:  # noqa: ANN401 - uvicorn's own
        super().__init__(*args, **options)
        self._close_after_s = close_after_s
        self._head_without_offer = b""

    def request_begun(self) -> None:
        """Begin to answer the received request, or queue it after the one that is being answered."""
        super().on_headers_complete()
        self.cycle.__class__ = Cycle  # before its call begins
        self.headers = []  # trailers go here: they are not headers (RFC 9110, section 6.5.1)
        if self.cycle.scope["http_version"] != "1.1":
            self.cycle.waiting_for_100_continue = False
            self.cycle.send = partial(_send_without_chunks, self.transport, self.cycle, self._close_after_s)  # type: ignore[method-assign]
        elif self.expect_100_continue:
            self.cycle.send = partial(_send_and_close_without_body, self.cycle)  # type: ignore[method-assign]
            self.cycle.scope[ASK_FOR_BODY] = partial(_ask_for_body, self.cycle)  # type: ignore[literal-required]  # a key of our own

    def request_complete(self) -> None:
        """Note that the request is complete, and that its trailers ask to close the connection if they do."""
        super().on_message_complete()
        if not self.parser.should_keep_alive():  # the parser ignores what follows
            self.cycle.keep_alive = False
            if self.cycle.response_complete:
                self.cycle.transport.close()

    def refuse(self, refused: Refused) -> None:
        """Answer what the server refuses by a problem, and close the connection.

        Closing at once, with bytes unread, would reset it, and the caller could lose the answer.
        """
        error = problem(refused.status, refused.detail)
        _, headers, body = encoded(error)
        headers += [*self.server_state.default_headers, (b"connection", b"close")]
        lines = [b"%b: %b" % header for header in headers]
        first = b"HTTP/1.1 %d %b" % (refused.status, refused.status.phrase.encode())
        self.transport.write(b"\r\n".join([first, *lines, b"", body]))
        self.close_later()

    def close_later(self) -> None:
        """End the answers, and close the connection when the caller had time to read them."""
        if self.transport.is_closing():
            return
        if self.transport.can_write_eof():  # TLS cannot
            self.transport.write_eof()
        self.loop.call_later(self._close_after_s, self.transport.close)

    def data_received(self, data: bytes) -> None:
        """Parse received bytes; refuse them if they are not HTTP."""
        self._unset_keepalive_if_required()
        rest: Any = data
        try:
            while True:
                try:
                    self.parser.feed_data(rest)
                    break
                except httptools.HttpParserUpgrade as stop:
                    rest = memoryview(rest)[stop.args[0] :]
                    self._parse_head_without_offer()
        except httptools.HttpParserError as error:
            refused = error.__context__  # what a step of this class raised
            self.refuse(refused if isinstance(refused, Refused) else NOT_HTTP)

    def end_body_early(self, why: Refused = BROKE_OFF) -> None:
        """Let the call that is being answered read what arrived of its body, and then a disconnect; it may answer."""
        self.cycle.ended_by = why
        self.cycle.keep_alive = False
        self.cycle.message_event.set()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header without the white space behind its value, which is no part of it (RFC 9110, section 5.5).

        Refuse too many before the head is complete: in memory a header takes 80 bytes more than in the head.
        """
        if len(self.headers) >= MAX_HEADERS:
            raise TOO_MANY_HEADERS
        super().on_header(name, value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        """Refuse a request that is unclear, or begin it, unless the parser is about to stop at an offered upgrade."""
        if self.parser.get_http_version() not in {"1.0", "1.1"}:
            raise Refused(HTTPStatus.BAD_REQUEST, "the version of HTTP is not 1.0 or 1.1")
        if b"#" in self.url:  # the parser would drop it with all that follows, and another record could be meant
            raise FRAGMENT
        media_type, has_length = b"", False
        for name, value in self.headers:
            if name == b"content-type":
                media_type = value
            elif name == b"content-length":
                has_length = True
            elif name == b"transfer-encoding":
                if value.lower() != b"chunked":
                    raise Refused(HTTPStatus.BAD_REQUEST, "the only supported Transfer-Encoding is chunked")
                has_length = True
        if not has_length and self.parser.get_method() == b"POST" and _are_lines(media_type):
            raise NO_LENGTH
        if self.parser.should_upgrade():
            self._head_without_offer = self._write_head_without_offer()
        else:
            self.request_begun()

    def on_message_complete(self) -> None:
        """End the request, unless the parser is about to stop at an offered upgrade."""
        if not self.parser.should_upgrade():
            self.request_complete()

    def _parse_head_without_offer(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # ignored, as uvicorn does
        self.parser.feed_data(self._head_without_offer)

    def _write_head_without_offer(self) -> bytes:
        method = self.parser.get_method()
        if method == b"CONNECT":  # no tunnel is ever opened, so the end of its body is unclear
            raise Refused(HTTPStatus.BAD_REQUEST, "CONNECT is not supported")
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (method, self.url, version)]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])


def _are_lines(media_type: bytes) -> bool:
    return media_type.partition(b";")[0].strip().lower() == LINES


async def _send_without_chunks(
    connection: asyncio.Transport,
    cycle: RequestResponseCycle,
    close_after_s: float,
    message: Any,  # noqa: ANN401 - an ASGI event
) -> None:
    """Send an answer that HTTP/1.0 can read: one without a length ends when the connection closes."""
    if message["type"] == "http.response.start":
        if not any(name.lower() == b"content-length" for name, _ in message["headers"]):
            cycle.chunked_encoding = False
            cycle.transport = ClosingTransport(cycle.transport, connection, cycle, close_after_s)  # type: ignore[assignment]
    elif isinstance(cycle.transport, ClosingTransport):
        cycle.expected_content_length = len(message.get("body", b""))
    await RequestResponseCycle.send(cycle, message)


async def _send_and_close_without_body(cycle: RequestResponseCycle, message: Any) -> None:  # noqa: ANN401 - likewise
    """Send an answer; close the connection after one that replaces `100 Continue`.

    The caller may then omit the body, and its next request would be taken for that body.
    """
    if message["type"] == "http.response.start" and cycle.waiting_for_100_continue and not cycle.body:
        cycle.keep_alive = cycle.keep_alive and not cycle.more_body
    await RequestResponseCycle.send(cycle, message)


def _ask_for_body(cycle: RequestResponseCycle) -> None:
    """Send `100 Continue` before an answer begins that is sent while the body is read.

    The caller would take that answer for the final one otherwise, and never send the body.
    """
    if cycle.waiting_for_100_continue and not cycle.disconnected:
        cycle.waiting_for_100_continue = False
        cycle.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
