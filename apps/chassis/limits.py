"""Admission control: how much a service does at a time. It refuses more at once, so that what it began gets done."""

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

UNSENT = "unsent_answers"
"""The key of `UnsentAnswers` in the ASGI state that all calls of a server share."""


class UnsentAnswers:
    """The bytes of answers that the connections of a server hold, because their callers have not read them yet."""

    def __init__(self) -> None:
        self.bytes = 0


class Limit:
    """Refuses calls that would be more than `most_calls`, or take more than `most_bytes`, with those under way.

    Answers that were not read yet count as well. A call that takes more than all of it is let in when it is alone.
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
        if self._calls >= self._most_calls or not self._has_room(weight, self._bytes + _unsent_bytes(scope)):
            raise problem(BUSY, self.describe(scope), headers={"Retry-After": RETRY_AFTER})
        self._calls += 1
        self._bytes += weight
        scope[TAKEN] = weight  # type: ignore[literal-required]  # a key of our own

    def count_answer(self, scope: Scope, size: int, *, refusable: bool) -> bool:
        """Count the bytes of an answer that is about to be sent, where they are more than its call weighs.

        Return False when there is no room for an answer that may be refused.
        """
        weight = scope.get(TAKEN)
        if not isinstance(weight, int) or size <= weight:  # calls that are never refused are not counted
            return True
        others = self._bytes - weight + _unsent_bytes(scope)
        if refusable and not self._has_room(size, others):
            return False
        self._bytes += size - weight
        scope[TAKEN] = size  # type: ignore[literal-required]
        return True

    def let_out(self, scope: Scope) -> None:
        """Note that a call has ended, if it was let in."""
        weight = scope.pop(TAKEN, None)  # type: ignore[misc]
        if weight is not None:
            self._calls -= 1
            self._bytes -= weight

    def describe(self, scope: Scope) -> str:
        """Return how much is under way."""
        unsent = _unsent_bytes(scope)
        return (
            f"{self._calls} calls are under way, which take {self._bytes} bytes; {unsent} bytes of answers are unread"
        )

    def _has_room(self, size: int, others: int) -> bool:
        return not others or others + size <= self._most_bytes


def _unsent_bytes(scope: Scope) -> int:
    unsent = scope.get("state", {}).get(UNSENT)
    return unsent.bytes if isinstance(unsent, UnsentAnswers) else 0
