"""Streamed answers, for callers that read them."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from http import HTTPStatus
from typing import Any

from anyio import create_task_group
from litestar.response import Response
from litestar.response.base import ASGIResponse
from litestar.response.streaming import ASGIStreamingResponse
from litestar.types import Receive, Send

NOT_READING_S = 30.0
"""Seconds after which a caller that does not read is disconnected."""


class BrokenOff(Exception):
    """An answer must not look complete: its end is not sent."""


class Streamed(Response[Any]):
    """An answer whose pieces are sent as they come; the generator is closed when the caller disconnects.

    With `reads_body` the generator may read the request's body. The answer then does not listen for a disconnect,
    because listening would consume the body.
    """

    def __init__(
        self,
        pieces: AsyncGenerator[bytes, None],
        media_type: str,
        status: HTTPStatus,
        headers: dict[str, str] | None = None,
        *,
        reads_body: bool,
    ) -> None:
        super().__init__(b"", media_type=media_type, status_code=status, headers=headers)
        self._pieces = pieces
        self._kind = _SendingOnly if reads_body else _SendingInTime

    def to_asgi_response(self, *_: Any, **__: Any) -> ASGIResponse:  # noqa: ANN401 - Litestar's signature
        """Return the ASGI application that sends it."""
        return self._kind(
            iterator=self._pieces, media_type=self.media_type, status_code=self.status_code, headers=self.headers
        )


class _SendingInTime(ASGIStreamingResponse):
    """Ends the call when the caller disconnects, or does not read for 30 s."""

    async def send_body(self, send: Send, receive: Receive) -> None:
        """Send the pieces. Litestar's own class would go on listening after an answer that was broken off."""
        async with create_task_group() as together:
            together.start_soon(self._listen_for_disconnect, together.cancel_scope, receive)
            await self._stream(send)
            together.cancel_scope.cancel()

    async def _stream(self, send: Send) -> None:
        async def send_in_time(message: Any) -> None:  # noqa: ANN401 - an ASGI event
            async with asyncio.timeout(NOT_READING_S):
                await send(message)

        assert isinstance(self.iterator, AsyncGenerator)  # noqa: S101 - it is that of `Streamed`
        with suppress(TimeoutError, BrokenOff):
            async with aclosing(self.iterator):
                await super()._stream(send_in_time)


class _SendingOnly(_SendingInTime):
    """Never reads the body: Litestar's own class listens for a disconnect by reading, and loses the body."""

    async def send_body(self, send: Send, receive: Receive) -> None:  # noqa: ARG002 - Litestar's signature
        """Send the pieces."""
        await self._stream(send)
