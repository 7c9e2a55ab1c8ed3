"""A name for every request: in its answer, and in all that is logged while it is answered."""

import re
from collections.abc import Awaitable
from random import Random

from litestar import Litestar
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from apps.chassis.logs import request_id

HEADER = b"x-request-id"
SANE = re.compile(rb"[A-Za-z0-9._-]{1,64}")
"""What is taken over from a caller: nothing that could make a line of the log say something else."""
made_up = Random()  # noqa: S311 - a name is no secret, and the system's randomness is a system call


def name_requests(app: Litestar) -> None:
    """Have an application take over the `X-Request-Id` of a request, or make one where it is not sane, and answer it.

    What the request starts and awaits is logged with it; what runs in the background belongs to no request.
    """
    handler: ASGIApp = app.asgi_handler

    def named(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        given = next((value for name, value in scope["headers"] if name == HEADER), b"")
        name = given if SANE.fullmatch(given) else b"%016x" % made_up.getrandbits(64)
        request_id.set(name.decode())  # in the context of the request's own task

        def answer(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (HEADER, name)]
            return send(message)

        return handler(scope, receive, answer)

    app.asgi_handler = named
