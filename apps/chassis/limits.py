"""How much a service does at a time: what is more is refused at once, so that what was begun is done."""

from collections.abc import Callable

from litestar.types import Scope

from apps.chassis.problems import BUSY, RETRY_AFTER, problem

MOST_CALLS = 500
"""Calls under way at a time."""

ALWAYS = {"/livez", "/health-check", "/metrics"}
"""Paths that are answered whatever is under way."""

Weigh = Callable[[Scope], int | None]
"""Tells how many bytes a call may take of this process's memory, about; None for one that is never refused."""


TAKEN = "room_taken"
"""Tells in the scope of a call what it weighs, while it is under way."""


class Limit:
    """Refuses calls that would be more than `most_calls`, or take more than `most_bytes`, with those under way.

    A call that takes more than all of it is let in when it is alone.
    """

    def __init__(self, weigh: Weigh, most_bytes: int, most_calls: int = MOST_CALLS) -> None:
        self._weigh = weigh
        self._most_bytes = most_bytes
        self._most_calls = most_calls
        self._bytes = 0
        self._calls = 0

    def let_in(self, scope: Scope) -> None:
        """Count a call as under way, until `let_out`. Raises 503 when there is no room for it."""
        weight = None if scope["path"] in ALWAYS else self._weigh(scope)
        if weight is None:
            return
        if self._calls >= self._most_calls or (self._bytes and self._bytes + weight > self._most_bytes):
            detail = f"{self._calls} calls are under way, which take {self._bytes} bytes"
            raise problem(BUSY, detail, headers={"Retry-After": RETRY_AFTER})
        self._calls += 1
        self._bytes += weight
        scope[TAKEN] = weight  # type: ignore[literal-required]  # a key of our own

    def let_out(self, scope: Scope) -> None:
        """Note that a call has ended, if it was let in."""
        weight = scope.pop(TAKEN, None)  # type: ignore[misc]
        if weight is not None:
            self._calls -= 1
            self._bytes -= weight
