"""Admission control: limit how much a service does at a time, so that accepted calls can finish."""

import sys
from collections.abc import Callable

from litestar.plugins.problem_details import ProblemDetailsException
from litestar.types import Scope

from apps.chassis.problems import BUSY, RETRY_AFTER, problem

MOST_CALLS = 500
"""Calls under way at a time."""

ALWAYS = {"/livez", "/health-check", "/metrics"}
"""Paths that are answered whatever is under way."""

Weigh = Callable[[Scope], int | None]
"""Tells how many bytes a call may take of this process's memory, about; None for one that is never refused."""


SHARE = "share_of_memory"
"""Set in the scope of an admitted call: its `Share`."""
UNSENT = "unsent_answers"
"""The key of `UnsentAnswers` in the ASGI state that all calls of a server share."""
FREE_BYTES = 64 * 1024
"""Bytes of a body that may arrive without being counted: the server reads that much by itself."""


class UnsentAnswers:
    """The bytes of answers that the server's connections hold, because callers have not read them yet."""

    def __init__(self) -> None:
        self.bytes = 0


class Limit:
    """Refuses calls beyond `most_calls` or `most_bytes`, counting the calls under way.

    Unread answers count as well. A call that needs more than all of it is admitted when it is alone. Bodies that are
    still arriving may take half, so that complete bodies always find room.
    """

    def __init__(self, weigh: Weigh, most_bytes: int, most_calls: int = MOST_CALLS) -> None:
        self._weigh = weigh
        self.most_bytes = most_bytes
        self._most_calls = most_calls
        self._calls = 0
        self.taken_bytes = 0
        self.held_bytes = 0

    def let_in(self, scope: Scope) -> None:
        """Count a call as under way, until `let_out`. Raises 503 when there is no room for it."""
        weight = None if scope["path"] in ALWAYS else self._weigh(scope)
        if weight is None:
            return
        share = Share(self, _unsent_answers(scope))
        if self._calls >= self._most_calls or not share.take(weight):
            raise share.busy()
        self._calls += 1
        scope[SHARE] = share  # type: ignore[literal-required]  # a key of our own

    def count_answer(self, scope: Scope, size: int, *, refusable: bool) -> bool:
        """Count the bytes of an answer that is about to be sent, where they are more than its call holds.

        Return False when there is no room for an answer that may be refused.
        """
        share = scope.get(SHARE)
        if not isinstance(share, Share):  # calls that are never refused are not counted
            return True
        more = max(size - share.taken_bytes, 0)
        return share.take(more, refusable=refusable)

    def let_out(self, scope: Scope) -> None:
        """Note that a call has ended, if it was let in."""
        share: Share | None = scope.pop(SHARE, None)  # type: ignore[misc]
        if share is not None:
            self._calls -= 1
            share.release()

    def describe(self, scope: Scope) -> str:
        """Return a summary of the calls under way."""
        return self.described(_unsent_answers(scope))

    def described(self, unsent: UnsentAnswers) -> str:
        """Return a summary of the calls under way and of the server's unread answers."""
        under_way = f"{self._calls} calls are under way, which take {self.taken_bytes} bytes"
        return f"{under_way}; {unsent.bytes} bytes of answers are unread"


class Share:
    """The approximate memory of one call: bytes in use, and bytes that only wait."""

    def __init__(self, limit: Limit, unsent: UnsentAnswers) -> None:
        self._limit = limit
        self._unsent = unsent
        self.taken_bytes = 0
        self.held_bytes = 0

    def take(self, more: int, *, refusable: bool = True) -> bool:
        """Take more bytes. Without room for them, take none and return False if the call may be refused."""
        taken = self._limit.taken_bytes + self._unsent.bytes
        alone = taken == self.taken_bytes
        if refusable and more > 0 and not alone and taken + more > self._limit.most_bytes:
            return False
        self.taken_bytes += more
        self._limit.taken_bytes += more
        return True

    def give_back(self, fewer: int) -> None:
        """Give back bytes that were taken."""
        self.taken_bytes -= fewer
        self._limit.taken_bytes -= fewer

    def hold(self, size: int) -> bool:
        """Hold this many bytes of a body that is still arriving. Return False, and hold what it held, without room."""
        more = max(size - FREE_BYTES, 0) - self.held_bytes
        held = self._limit.held_bytes + more
        alone = self._limit.held_bytes == self.held_bytes
        if more > 0 and not alone and held > self._limit.most_bytes // 2:
            return False
        if not self.take(more):
            return False
        self.held_bytes += more
        self._limit.held_bytes += more
        return True

    def release(self) -> None:
        """Give back everything."""
        self._limit.held_bytes -= self.held_bytes
        self.held_bytes = 0
        self.give_back(self.taken_bytes)

    def busy(self) -> ProblemDetailsException:
        """Return the error to raise where there is no room."""
        return problem(BUSY, self._limit.described(self._unsent), headers={"Retry-After": RETRY_AFTER})


def share_of(scope: Scope) -> Share:
    """Return the share of a call; a call that is not counted has an unbounded one."""
    share = scope.get(SHARE)
    return share if isinstance(share, Share) else unbounded()


def unbounded() -> Share:
    """Return a share that is never refused."""
    return Share(Limit(lambda _: None, sys.maxsize), UnsentAnswers())


def _unsent_answers(scope: Scope) -> UnsentAnswers:
    unsent = scope.get("state", {}).get(UNSENT)
    return unsent if isinstance(unsent, UnsentAnswers) else UnsentAnswers()
