"""Admission control: limit how much a service does at a time, so that accepted calls can finish."""

import asyncio
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from litestar.plugins.problem_details import ProblemDetailsException
from litestar.types import Scope

from apps.chassis.http.problem_kinds import BUSY
from apps.chassis.http.problems import RETRY_AFTER, problem

MAX_CALLS = 500
"""Calls under way at a time. One route may have four fifths of them, so that others find room while it hangs.

Calls that only read may have nine tenths: so calls that change something find room, however many read.
"""
FOR_STRANGERS = "for_strangers"
"""The option of a route that needs no key and reads a body: such calls take no room from those with a key."""
LARGE = "large"
"""The option of a route whose answers are large and ready: they are sent one at a time."""
STRANGERS_CALLS, STRANGERS_BYTES, STRANGERS_BODY_S = 100, 8 * 1024 * 1024, 5.0

SHARE = "share_of_memory"
"""Set in the scope of an admitted call: its `Share`."""
UNSENT = "unsent_answers"
"""The key of `UnsentAnswers` in the ASGI state that all calls of a server share."""
FREE_BYTES = 64 * 1024
"""Bytes of a body that may arrive without being counted: the server reads that much by itself."""
STALLED_AFTER_S = 10.0
"""Seconds without a byte of its body after which a call gives way, where another call finds no room.

Records that it sent before are acknowledged or given up by then.
"""
TURN_S = 2.0
"""Seconds that a call waits for its turn to make a large answer."""
SLOW_BODY_S = 60.0
"""Seconds that a JSON body may take to arrive, and that a body of lines may pause."""


class UnsentAnswers:
    """The bytes of answers that the server's connections hold, because callers have not read them yet."""

    def __init__(self) -> None:
        self.bytes = 0


class Limit:
    """Refuses calls beyond `max_calls` or `max_bytes`, counting the calls under way.

    Unread answers count as well. A call that needs more than all of it is admitted when it is alone. Bodies that are
    still arriving may take half, so that complete bodies always find room. Where there is no room, calls whose bodies
    have stalled give way, the one that has stalled longest first.
    """

    def __init__(
        self,
        max_bytes: int,
        max_calls: int = MAX_CALLS,
        *,
        stalled_after_s: float = STALLED_AFTER_S,
        slow_body_s: float = SLOW_BODY_S,
    ) -> None:
        self.max_bytes = max_bytes
        self._max_calls = max_calls
        self._max_of_a_route = max_calls - max_calls // 5
        self._max_reads = max_calls - max_calls // 10
        self.stalled_after_s = stalled_after_s
        self.slow_body_s = slow_body_s
        self._calls = Counter[str]()
        self._reads = 0
        self.taken_bytes = 0
        self.arriving_bytes = 0
        self.waiting: dict[Share, float] = {}
        """Calls that wait for more of their body, with the time since when, the longest first."""
        self.making = asyncio.Lock()
        """Held by the call that makes a large answer."""

    def let_in(self, scope: Scope) -> None:
        """Count a call as under way, until `let_out`. Raises 503 when there is no room for it."""
        share = Share(self, _unsent_answers(scope), str(scope.get("path_template")), reads=scope.get("method") == "GET")
        if self._calls.total() >= self._max_calls and not self.dismiss_stalled():
            raise share.busy()
        if share.reads and self._reads >= self._max_reads:
            raise share.busy()
        if self._calls[share.route] >= self._max_of_a_route and not self.dismiss_stalled(share.route):
            raise share.busy()
        self._calls[share.route] += 1
        self._reads += share.reads
        scope[SHARE] = share  # type: ignore[literal-required]  # a key of our own

    def count_answer(self, scope: Scope, size: int, *, refusable: bool) -> bool:
        """Count the bytes of an answer that is about to be sent, in place of what its call took to make it.

        Return False when there is no room for an answer that may be refused.
        """
        share = scope.get(SHARE)
        if not isinstance(share, Share):  # calls that are never refused are not counted
            return True
        return share.take(size - share.taken_bytes, refusable=refusable)

    def let_out(self, scope: Scope) -> None:
        """Note that a call has ended, if it was let in."""
        share: Share | None = scope.pop(SHARE, None)  # type: ignore[misc]
        if share is not None and not share.dismissed:
            share.leave()

    def end(self, share: "Share") -> None:
        """Note that a call has ended."""
        self._forget(share)
        share.release()

    def _forget(self, share: "Share") -> None:
        self._calls[share.route] -= 1
        self._reads -= share.reads

    def dismiss_stalled(self, route: str | None = None, *, with_bytes: bool = False) -> bool:
        """End the longest stalled call: of a route if given, if `with_bytes` of those that take bytes.

        Return False if there is none.
        """
        stalled = (one for one in self.waiting if (one.taken_bytes or not with_bytes) and route in {None, one.route})
        share = next(stalled, None)
        if share is None or time.monotonic() - self.waiting[share] < self.stalled_after_s:
            return False
        del self.waiting[share]
        self._forget(share)
        share.dismiss()
        return True

    def describe(self, scope: Scope) -> str:
        """Return a summary of the calls under way."""
        return self.described(_unsent_answers(scope))

    def described(self, unsent: UnsentAnswers) -> str:
        """Return a summary of the calls under way and of the server's unread answers."""
        busy = f"the service is busy with {self._calls.total()} calls, which take {_mib(self.taken_bytes)} of memory"
        return busy + (f"; callers have not read {_mib(unsent.bytes)} of answers" if unsent.bytes else "")


class Share:
    """The approximate memory of one call: bytes in use, and bytes that only wait."""

    def __init__(self, limit: Limit, unsent: UnsentAnswers, route: str = "", *, reads: bool = False) -> None:
        self.route = route
        self.reads = reads
        self._limit = limit
        self._unsent = unsent
        self._end_wait: Callable[[], object] | None = None
        self.slow_body_s = limit.slow_body_s
        self.taken_bytes = 0
        self.arriving_bytes = 0
        self.dismissed = False

    @contextmanager
    def waiting(self, end_wait: Callable[[], object]) -> Iterator[None]:
        """Wait for more of the body; `end_wait` is called when the call must give way, and is `dismissed` then."""
        self._end_wait = end_wait
        self._limit.waiting[self] = time.monotonic()
        try:
            yield
        finally:
            self._limit.waiting.pop(self, None)
            self._end_wait = None

    async def turn(self, size: int) -> None:
        """Wait until an answer of about this size may be made: one large one in a turn of the event loop.

        Many in one would hold up all other work for seconds, that with Kafka too. Raises 503 when others take too long.
        """
        if size <= FREE_BYTES:
            return
        try:
            async with asyncio.timeout(TURN_S):
                await self._limit.making.acquire()
        except TimeoutError:
            raise self.busy() from None
        try:
            await asyncio.sleep(0)
        finally:
            self._limit.making.release()

    def dismiss(self) -> None:
        """Give back everything, and end the wait for more of the body."""
        self.dismissed = True
        counted, self._limit = self._limit, Limit(sys.maxsize)  # what its work gives back counts here
        counted.taken_bytes -= self.taken_bytes
        counted.arriving_bytes -= self.arriving_bytes
        if self._end_wait is not None:
            self._end_wait()

    def take(self, more: int, *, refusable: bool = True) -> bool:
        """Take more bytes. Without room for them, take none and return False if the call may be refused."""
        while refusable and more > 0 and not self._fits(more):
            if not self._limit.dismiss_stalled(with_bytes=True):
                return False
        self.taken_bytes += more
        self._limit.taken_bytes += more
        return True

    def _fits(self, more: int) -> bool:
        taken = self._limit.taken_bytes + self._unsent.bytes
        alone = taken == self.taken_bytes
        return alone or taken + more <= self._limit.max_bytes

    def _fits_with_arriving(self, more: int) -> bool:
        arriving = self._limit.arriving_bytes
        alone = arriving == self.arriving_bytes
        return alone or arriving + more <= self._limit.max_bytes // 2

    def require(self, more: int) -> None:
        """Take more bytes. Raises 503 when there is no room for them."""
        if not self.take(more):
            raise self.busy()

    def require_in_all(self, size: int) -> None:
        """Take bytes until the call has this many. Raises 503 when there is no room for them."""
        self.require(max(0, size - self.taken_bytes))

    def give_back(self, fewer: int) -> None:
        """Give back bytes that were taken."""
        self.taken_bytes -= fewer
        self._limit.taken_bytes -= fewer

    def set_arriving(self, size: int) -> bool:
        """Count this many bytes of a body that still arrives, in place of those before; return False without room."""
        if size <= FREE_BYTES and not self.arriving_bytes:
            return True
        more = max(size - FREE_BYTES, 0) - self.arriving_bytes
        while more > 0 and not self._fits_with_arriving(more):
            if not self._limit.dismiss_stalled(with_bytes=True):
                return False
        if not self.take(more):
            return False
        self.arriving_bytes += more
        self._limit.arriving_bytes += more
        return True

    def leave(self) -> None:
        """End the call where it was let in."""
        self._limit.end(self)

    def release(self) -> None:
        """Give back everything."""
        self._limit.arriving_bytes -= self.arriving_bytes
        self.arriving_bytes = 0
        self.give_back(self.taken_bytes)

    def busy(self) -> ProblemDetailsException:
        """Return the error to raise where there is no room."""
        return problem(BUSY, self._limit.described(self._unsent), headers={"Retry-After": RETRY_AFTER})


def for_strangers(workers: int = 1) -> Limit:
    """Return the limit of calls that need no key, of one of the workers that share it.

    A body that is still arriving gives way at once: that of a sign-in is so small that it arrives with its head.
    """
    max_bytes, max_calls = STRANGERS_BYTES // workers, max(STRANGERS_CALLS // workers, 1)
    return Limit(max_bytes, max_calls, stalled_after_s=0.0, slow_body_s=STRANGERS_BODY_S)


def share_of(scope: Scope) -> Share:
    """Return the share of a call; a call that is not counted has an unbounded one."""
    share = scope.get(SHARE)
    return share if isinstance(share, Share) else unbounded()


def unbounded() -> Share:
    """Return a share that is never refused."""
    return Share(Limit(sys.maxsize), UnsentAnswers())


def _mib(size: int) -> str:
    return f"{math.ceil(size / 1024**2)} MiB"


def _unsent_answers(scope: Scope) -> UnsentAnswers:
    unsent = scope.get("state", {}).get(UNSENT)
    return unsent if isinstance(unsent, UnsentAnswers) else UnsentAnswers()
