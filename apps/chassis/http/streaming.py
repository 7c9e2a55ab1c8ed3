"""Streamed answers, for callers that read them."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from functools import partial
from http import HTTPStatus
from typing import Any

from anyio import CancelScope, create_task_group
from litestar.response import Response
from litestar.response.base import ASGIResponse
from litestar.response.streaming import ASGIStreamingResponse
from litestar.types import Receive, Scope, Send

from apps.chassis.http.connection_limits import BREAK_OFF, SENDS_NO_MORE
from apps.chassis.internals.http_framing import ASK_FOR_BODY

NOT_READING_S = 30.0
"""Seconds after which a caller that does not read is disconnected."""


class BrokenOff(Exception):
    """An answer must not look complete: its end is not sent."""


class Streamed(Response[Any]):
    """An answer whose pieces are sent as they come; the generator is closed when the caller disconnects.

    With `reads_body` the generator may read the request's body. The answer then does not listen for a disconnect,
    because listening would consume the body. An `endless` answer ends when the caller closes its sending side: whether
    it still reads could be known only by writing.
    """

    def __init__(  # noqa: PLR0913 - each is a property of the answer
        self,
        pieces: AsyncGenerator[bytes, None],
        media_type: str,
        status: HTTPStatus,
        headers: dict[str, str] | None = None,
        *,
        reads_body: bool,
        endless: bool = False,
    ) -> None:
        super().__init__(b"", media_type=media_type, status_code=status, headers=headers)
        self._pieces = pieces
        self._reads_body = reads_body
        self._endless = endless

    def to_asgi_response(self, *_: Any, **__: Any) -> ASGIResponse:  # noqa: ANN401 - Litestar's signature
        """Return the ASGI application that sends it."""
        return _Streaming(
            self._pieces,
            reads_body=self._reads_body,
            endless=self._endless,
            media_type=self.media_type,
            status_code=self.status_code,
            headers=self.headers,
        )


class _Streaming(ASGIStreamingResponse):
    """Sends pieces until they end, the caller disconnects, or the caller does not read for 30 s.

    Litestar's own class listens on after an answer that was broken off, and always reads the body.
    """

    def __init__(
        self,
        pieces: AsyncGenerator[bytes, None],
        *,
        reads_body: bool,
        endless: bool,
        **options: Any,  # noqa: ANN401 - Litestar's
    ) -> None:
        super().__init__(iterator=pieces, **options)
        self._pieces = pieces
        self._reads_body = reads_body
        self._endless = endless

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask for the body of a caller that waits for 100 Continue, if the pieces read it, and send the answer."""
        ask_for_body: Any = scope.get(ASK_FOR_BODY)
        if self._reads_body and ask_for_body is not None:
            ask_for_body()
        if self._endless:
            receive = partial(_receive_until_no_more_is_sent, scope, receive)
        await super().__call__(scope, receive, send)

    async def send_body(self, send: Send, receive: Receive) -> None:
        """Send the pieces; unless they read the body, also listen for a disconnect."""
        if self._reads_body:
            await self._send_pieces(send)
            return
        async with create_task_group() as tasks:
            tasks.start_soon(_cancel_at_disconnect, tasks.cancel_scope, receive)
            await self._send_pieces(send)
            tasks.cancel_scope.cancel()

    async def _send_pieces(self, send: Send) -> None:
        with suppress(TimeoutError, BrokenOff):
            async with aclosing(self._pieces):
                async for piece in self._pieces:
                    await _send_in_time(send, piece, more_body=True)
                await _send_in_time(send, b"", more_body=False)


async def _send_in_time(send: Send, piece: bytes, *, more_body: bool) -> None:
    async with asyncio.timeout(NOT_READING_S):
        await send({"type": "http.response.body", "body": piece, "more_body": more_body})


async def _receive_until_no_more_is_sent(scope: Scope, receive: Receive) -> Any:  # noqa: ANN401 - an ASGI event
    message: Any = await receive()
    if scope.get(SENDS_NO_MORE):
        break_off: Any = scope[BREAK_OFF]  # type: ignore[literal-required]  # a key of our own
        break_off()
        return {"type": "http.disconnect"}
    return message


async def _cancel_at_disconnect(answering: CancelScope, receive: Receive) -> None:
    while not answering.cancel_called:
        if (await receive())["type"] == "http.disconnect":
            answering.cancel()
