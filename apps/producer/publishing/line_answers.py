"""Answer calls that send lines: while lines are still being read, or after all of them."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from http import HTTPStatus
from typing import Any

import msgspec
from litestar.connection import Request
from litestar.plugins.problem_details import ProblemDetailsException
from litestar.response import Response
from litestar.types import Receive, Scope, Send

from apps.chassis.http.admission import share_of
from apps.chassis.http.authorization import access_of
from apps.chassis.http.connection_limits import BREAK_OFF
from apps.chassis.http.problem_kinds import BAD_BODY, BUSY, NOT_ACKNOWLEDGED
from apps.chassis.http.problems import MEDIA_TYPE, BrokenBody, problem, with_root_path
from apps.chassis.http.request_body import NDJSON, BodyHead, head_of, read_pieces
from apps.chassis.http.spool import Spool, Spools
from apps.chassis.http.streaming import BrokenOff, Streamed
from apps.producer.publishing.lines import send_lines
from apps.producer.publishing.publisher import Busy, Publisher
from apps.producer.publishing.receipts import BadLine, Receipt
from contracts.stream import Stream

Answers = Sequence[Receipt | BadLine]
encode = msgspec.json.Encoder().encode


class LinesCut(msgspec.Struct):
    """The last line of an answer to an incomplete body: what is wrong, and how many lines were answered."""

    error: str
    lines: int
    outcome: str = "broken_off"


class LineAnswers:
    """Answers the lines of one call.

    A streamed answer needs a caller that reads while it sends. Many do not, and a proxy may stop sending the body once
    the answer has begun. Therefore the answer waits for the end of the body if the body has a `Content-Length` or comes
    over HTTP/1.0 (from proxies that buffer whole bodies). With `at_end` it always waits, and its status covers all
    lines.
    """

    def __init__(  # noqa: PLR0913 - what an answer depends on
        self,
        request: Request[Any, Any, Any],
        stream: Stream[Any],
        publisher: Publisher,
        spools: Spools,
        *,
        at_end: bool,
        root_path: str,
    ) -> None:
        self._scope = request.scope
        self._at_end = at_end
        self._root_path = root_path
        self._spool = spools.open()
        self._delivered = 0
        self._answered = 0
        self._tried = 0
        self._streams = not (at_end or self._scope.get("http_version") == "1.0" or _announces_length(self._scope))
        body = self._body(request, head_of(request.scope), publisher.ending)
        self._results = send_lines(stream, publisher, body, share_of(request.scope), patient=self._streams)

    async def respond(self) -> Response[Any]:
        """Return the answer. Raises a problem when no line was answered."""
        if self._streams:
            return Streamed(self._stream(), NDJSON, HTTPStatus.OK, reads_body=True)
        try:
            return await self._answer_at_end()
        except BaseException:
            self._spool.close()
            raise

    async def _body(
        self, request: Request[Any, Any, Any], head: BodyHead, ending: asyncio.Event
    ) -> AsyncGenerator[bytes, None]:
        async with aclosing(read_pieces(request, head, ending)) as pieces:
            async for piece in pieces:
                await access_of(request).guard(request, request.route_handler)  # the key may have ended meanwhile
                if self._at_end and self._spool.full:
                    if not self._spool.too_large:
                        raise Busy("there is no room on the disk for more receipts")
                    raise BrokenBody(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "there are too many lines for one answer")
                yield piece

    async def _answer_at_end(self) -> Response[Any]:
        try:
            async for answers in self._results:
                self._count(answers)
                await self._spool.write(_encoded(answers))
                if self._spool.full and not self._at_end:
                    return _Spooled(self._stream(), self._spool, HTTPStatus.OK, reads_body=True)
        except ProblemDetailsException as broken:
            detail = self._cut_off(broken.detail)
            return self._refuse(problem(HTTPStatus(broken.status_code), detail, headers=broken.headers))
        except Busy as busy:
            return self._refuse(problem(BUSY, self._cut_off(str(busy))))
        return self._answer_all()

    def _answer_all(self) -> Response[Any]:
        """Answer the lines after the end of the body."""
        if not self._at_end or self._delivered == self._answered:
            return self._lines(HTTPStatus.OK)
        if self._delivered:
            return self._lines(HTTPStatus.MULTI_STATUS)
        if not self._tried:
            return self._refuse(problem(BAD_BODY, f"none of {self._answered} lines is a record"))
        return self._refuse(problem(NOT_ACKNOWLEDGED, f"none of {self._tried} records was acknowledged"))

    async def _stream(self) -> AsyncGenerator[bytes, None]:
        """Yield the answers so far, then further ones as they come; an incomplete body gets an incomplete answer."""
        async for piece in self._spool.read():
            yield piece
        try:
            async with aclosing(self._results):
                async for answers in self._results:
                    self._answered += len(answers)
                    yield _encoded(answers)
        except (ProblemDetailsException, Busy) as broken:
            reason = broken.detail if isinstance(broken, ProblemDetailsException) else str(broken)
            yield encode(LinesCut(self._cut_off(reason), self._answered)) + b"\n"
            break_off: Any = self._scope.get(BREAK_OFF)
            if break_off is not None:
                break_off()
            raise BrokenOff from None

    def _count(self, answers: Answers) -> None:
        self._answered += len(answers)
        self._delivered += sum(answer.error is None for answer in answers)
        self._tried += sum(isinstance(answer, Receipt) for answer in answers)

    def _cut_off(self, reason: str) -> str:
        if not self._answered:
            return reason
        return f"{reason}; {self._answered} lines before that were taken and are answered here"

    def _lines(self, status: HTTPStatus) -> Response[Any]:
        return _Spooled(self._spool.read(), self._spool, status, reads_body=False)

    def _refuse(self, error: ProblemDetailsException) -> Response[Any]:
        """Answer with a problem that has the receipts of the lines before it."""
        if not self._answered:
            raise error
        error = with_root_path(self._root_path, error)
        head = {
            "type": error.type_,
            "title": error.title,
            "status": error.status_code,
            "detail": error.detail,
            "delivered": self._delivered,
        }

        async def pieces() -> AsyncGenerator[bytes, None]:
            yield encode(head)[:-1] + b',"receipts":['
            left = self._spool.size
            async for piece in self._spool.read():
                left -= len(piece)
                listed = piece.replace(b"\n", b",")  # JSON escapes line breaks inside strings
                yield listed if left else listed[:-1]
            yield b"]}"

        refusal = _Spooled(pieces(), self._spool, HTTPStatus(error.status_code), reads_body=False)
        refusal.media_type = MEDIA_TYPE
        refusal.headers.update(error.headers or {})
        return refusal


class _Spooled(Streamed):
    """An answer from a spool, which is closed whether or not the answer could be sent."""

    def __init__(
        self, pieces: AsyncGenerator[bytes, None], spool: Spool, status: HTTPStatus, *, reads_body: bool
    ) -> None:
        super().__init__(pieces, NDJSON, status, reads_body=reads_body)
        self._spool = spool

    def to_asgi_response(self, *_: Any, **__: Any) -> Any:  # noqa: ANN401 - Litestar's signature
        """Return the ASGI application that sends the answer."""
        answer: Any = super().to_asgi_response()  # Litestar's type is not callable

        async def send_all(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await answer(scope, receive, send)
            finally:
                self._spool.close()

        return send_all


def _encoded(answers: Answers) -> bytes:
    return b"".join(encode(answer) + b"\n" for answer in answers)


def _announces_length(scope: Scope) -> bool:
    return any(name == b"content-length" for name, _ in scope["headers"])
