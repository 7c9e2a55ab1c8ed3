"""A name for every request: in its answer, and in all that is logged while it is answered."""

import re
import secrets

from litestar import Litestar
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from apps.chassis.logs import request_id

HEADER = b"x-request-id"
SANE = re.compile(rb"[A-Za-z0-9._-]{1,64}")
"""What is taken over from a caller: nothing that could make a line of the log say something else."""


def name_requests(app: Litestar) -> None:
    """Have an application take over the `X-Request-Id` of a request, or make one where it is not sane, and answer it.

    What the request starts and awaits is logged with it; what runs in the background belongs to no request.
    """
    handler: ASGIApp = app.asgi_handler

    async def named(scope: Scope, receive: Receive, send: Send) -> None:
        given = next((value for name, value in scope["headers"] if name == HEADER), b"")
        name = given if SANE.fullmatch(given) else secrets.token_hex(8).encode()

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (HEADER, name)]
            await send(message)

        token = request_id.set(name.decode())
        try:
            await handler(scope, receive, answer)
        finally:
            request_id.reset(token)

    app.asgi_handler = named
