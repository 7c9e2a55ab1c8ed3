"""HEAD: whoever asks for it gets what GET would answer, without the body (RFC 9110, section 9.3.2)."""

import asyncio
from collections.abc import Awaitable
from typing import Any

from litestar import Litestar
from litestar.enums import HttpMethod, ScopeType
from litestar.types import Message, Receive, Scope, Send


def answer_head(app: Litestar) -> Litestar:
    """Have an application, which is returned, answer HEAD wherever it answers GET: Litestar itself answers 405.

    What GET would go on sending, maybe for ever, is broken off.
    """
    answer_all = app.asgi_handler

    def answer(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == ScopeType.HTTP and scope["method"] == HttpMethod.HEAD:
            return answer_as_get(scope, receive, send)
        return answer_all(scope, receive, send)

    async def answer_as_get(scope: Scope, receive: Receive, send: Send) -> None:
        as_get: Any = {**scope, "method": "GET"}  # not the enum, whose text is another
        begun = asyncio.Event()

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                begun.set()

        answering = asyncio.ensure_future(answer_all(as_get, receive, send_head))
        waiting = asyncio.create_task(begun.wait())
        try:
            await asyncio.wait([answering, waiting], return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                answering.result()
        finally:
            answering.cancel()
            waiting.cancel()
            await asyncio.gather(answering, waiting, return_exceptions=True)

    app.asgi_handler = answer
    return app
