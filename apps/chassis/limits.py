"""How much a service does at a time: what is more is refused at once, so that what was begun is done."""

from collections.abc import Callable

from litestar.types import ASGIApp, Receive, Scope, Send

from apps.chassis.problems import BUSY, RETRY_AFTER, problem

MOST_CALLS = 500
"""Calls under way at a time."""

ALWAYS = {"/livez", "/health-check", "/metrics"}
"""Paths that are answered whatever is under way."""

Weigh = Callable[[Scope], int | None]
"""Tells how many bytes a call may take of this process's memory, about; None for one that is never refused."""


class Limit:
    """Answers 503 to calls that would be more than `most_calls`, or take more than `most_bytes`, with those under way.

    A call that takes more than all of it is let through when it is alone. It is a middleware for Litestar.
    """

    def __init__(self, weigh: Weigh, most_bytes: int, most_calls: int = MOST_CALLS) -> None:
        self._weigh = weigh
        self._most_bytes = most_bytes
        self._most_calls = most_calls
        self._bytes = 0
        self._calls = 0

    def __call__(self, app: ASGIApp) -> ASGIApp:
        """Return an application that lets a call through to `app`, or refuses it."""

        async def limited(scope: Scope, receive: Receive, send: Send) -> None:
            weight = None if scope["path"] in ALWAYS else self._weigh(scope)
            if weight is None:
                await app(scope, receive, send)
                return
            if self._calls >= self._most_calls or (self._bytes and self._bytes + weight > self._most_bytes):
                detail = f"{self._calls} calls are under way, which take {self._bytes} bytes"
                raise problem(BUSY, detail, headers={"Retry-After": RETRY_AFTER})
            self._calls += 1
            self._bytes += weight
            try:
                await app(scope, receive, send)
            finally:
                self._calls -= 1
                self._bytes -= weight

        return limited
